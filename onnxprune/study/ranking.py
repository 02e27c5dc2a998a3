"""Scores for a study, by any criterion that `slim` knows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from onnxprune.axes.solve import Group, Solution
from onnxprune.choose.criteria import Values, inputs_for
from onnxprune.choose.scores import group_scores
from onnxprune.errors import UsageError
from onnxprune.runtime.feeds import Feeds


def ranked(
    solution: Solution,
    groups: Sequence[Group],
    criterion: str,
    calib: Sequence[Feeds] | None,
    *,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[Mapping[int, Values], tuple[str, ...]]:
    """(channels,) scores by group id, and notes on groups that had to be ranked by l2.

    Raises:
        UsageError: no such criterion, or it needs calibration data.
        Unreadable: ONNX Runtime can't run the model on a batch.
    """
    tell(f"ranking by {criterion}")
    if criterion != "obs":
        inputs = inputs_for(criterion, solution, groups, calib)
        scores = group_scores(solution.facts, groups, criterion, seed, inputs=inputs)
        return scores.by_group, scores.notes
    if not calib:
        raise UsageError("--criterion obs needs calibration data", hint="--calib samples.npz")
    from onnxprune.repair.obs import obs_scores

    found = obs_scores(solution, groups, calib, 1.0, seed, tell).by_group
    rest = group_scores(solution.facts, [g for g in groups if g.id not in found], "l2", seed)
    names = ", ".join(g.name for g in groups if g.id not in found)
    note = f"obs says nothing about {names}: ranked by l2"
    return {**rest.by_group, **found}, (note,) if names else ()
