"""What each group of a model is worth, and ratios at which all of them cost the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Solution
from onnxprune.check.inputs import draw, hints, settings
from onnxprune.errors import CheckFailed
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import open_session
from onnxprune.study.curves import Curve, Metric, Progress, measure
from onnxprune.study.even import even, per_layer
from onnxprune.study.groups import in_order, samples_of
from onnxprune.study.ranking import ranked

SCHEMA = "onnxprune/sensitivity/1"
RANDOM_BATCHES = 8
"""How many random batches stand in for data."""
CHEAP = 0.01
"""Output error that the advice counts as little."""


@dataclass(frozen=True)
class Scored:
    """Labelled samples and a metric on them."""

    name: str
    batches: Sequence[Feeds]
    metric: Metric


@dataclass(frozen=True)
class Sensitivity:
    """All curves of a model, in the order of the network."""

    tool: str
    model: str
    criterion: str
    inputs: str
    """What was run: 'calibration', 'labelled' or 'random' samples."""
    samples: int
    ratios: tuple[float, ...]
    outputs: tuple[str, ...]
    """What errors were taken of: the outputs, or what lies before outputs that jump."""
    metric: str | None
    baseline: float | None
    """The original's metric."""
    groups: tuple[Curve, ...]
    per_layer: Mapping[str, float]
    """Regular expression -> ratio, as `slim --per-layer` takes them; `Curve.even` is the result."""
    even: Mapping[str, float]
    """The `error` that none of these ratios exceeds, and the `share` of the channels that go."""
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The curves as plain data (schema onnxprune/sensitivity/1)."""
        found = {"schema": SCHEMA, **asdict(self)}
        return {k: v for k, v in found.items() if v is not None}

    @property
    def even_sentence(self) -> str:
        """What the ratios at equal cost come to."""
        error, share = self.even["error"], self.even["share"]
        return f"{share:.1%} of the channels go, at an output error of at most {error:.2g} a group"

    def yaml(self) -> str:
        """The file for `slim --per-layer`."""
        import yaml

        head = (
            f"{self.model}: ratios at which every group alone costs about the same, "
            f"channels ranked by {self.criterion}",
            self.even_sentence,
            f"onnxprune slim {self.model} --per-layer FILE",
        )
        comments = "".join(f"# {line}\n" for line in head)
        table = dict(self.per_layer)
        return comments + yaml.safe_dump(table, sort_keys=False, width=10_000, allow_unicode=True)


def random_batches(facts: Facts, seed: int = 0) -> list[Feeds]:
    """Random inputs that the model runs on, for want of better ones.

    Raises:
        CheckFailed: none could be found.
    """
    model = facts.model
    with open_session(model.proto, folder=model.source.folder) as session:
        try:
            setting, _ = settings(facts, session, seed)[0]
        except CheckFailed as error:
            raise CheckFailed(
                "the model runs on no random inputs", why=error.why,
                hint="--calib samples.npz, or --shape NAME:1x3x224x224",
            ) from error  # fmt: skip
        clues = hints(facts)
        return [draw(session.inputs, setting, seed + k, clues) for k in range(RANDOM_BATCHES)]


def study_sensitivity(
    solution: Solution,
    groups: Sequence[Group],
    calib: Sequence[Feeds] | None = None,
    *,
    ratios: Sequence[float] = (0.25, 0.5, 0.75),
    criterion: str | None = None,
    scored: Scored | None = None,
    ratio: float = 0.5,
    seed: int = 0,
    tool: str = "",
    model: str = "",
    tell: Callable[[str], None] = lambda text: None,
    progress: Progress = lambda done, of: None,
) -> Sensitivity:
    """Slim every group alone at several ratios, and see what it costs.

    Args:
        calib: calibration batches. They rank the channels (by obs, if nothing else is asked for),
            and errors are taken on them, unless there are labelled samples.
        ratio: the share of all channels that goes where all groups cost the same.

    Raises:
        NothingToPrune: no group may shrink.
        UsageError: no such criterion, or it needs `calib`.
        Unreadable: ONNX Runtime can't run the model on a batch.
        CheckFailed: there are no samples, and no random inputs that the model runs on.
    """
    name = criterion or ("obs" if calib else "l2")
    scores, notes = ranked(solution, groups, name, calib, seed=seed, tell=tell)
    kind, batches = _samples(solution.facts, calib, scored, seed)
    found = measure(
        solution, groups, scores, batches, ratios,
        metric=scored.metric if scored else None, progress=progress,
    )  # fmt: skip
    level = even(found.groups, ratio)
    ordered = in_order(solution.facts, groups)
    table, given = per_layer(solution.facts, ordered, level.ratios)
    curves = tuple(replace(c, even=given.get(c.id)) for c in found.groups)
    return Sensitivity(
        tool, model, name, kind, sum(samples_of(b) for b in batches), tuple(ratios), found.outputs,
        scored.name if scored else None, found.baseline, curves, table,
        {"error": level.error, "share": level.share},
        _advice(curves, ratios, kind), (*found.notes, *notes),
    )  # fmt: skip


def _samples(
    facts: Facts, calib: Sequence[Feeds] | None, scored: Scored | None, seed: int
) -> tuple[str, Sequence[Feeds]]:
    if scored is not None:
        return "labelled", scored.batches
    if calib:
        return "calibration", calib
    return "random", random_batches(facts, seed)


def _advice(curves: Sequence[Curve], ratios: Sequence[float], kind: str) -> tuple[str, ...]:
    """Sentences on what to do, each true for these numbers."""
    out = []
    half = ratios[len(ratios) // 2]
    there = [(p.error, c.name) for c in curves if (p := c.at(half)) is not None]
    if there:
        cheap = sum(e < CHEAP for e, _ in there)
        out.append(
            f"{cheap} of {len(there)} groups can lose {half:.0%} of their channels, each alone, "
            f"for an output error under {CHEAP:.0%}"
        )
        total = sum(e for e, _ in there)
        worst = sorted(there, reverse=True)
        few = int(np.searchsorted(np.cumsum([e for e, _ in worst]), total / 2)) + 1
        if total > 0 and len(worst) >= 4 * few:
            names = [n for _, n in worst[:few]]
            first = (
                f"{', '.join(names[:-1])} and {names[-1]} cost" if few > 1 else f"{names[0]} costs"
            )
            out.append(f"{first} at least as much as all other groups together, each alone")
    if kind == "random":
        out.append("on random inputs: --calib shows what real ones depend on")
    return tuple(out)
