"""The proof: the masked original and the slim model give the same on the same inputs."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx

from onnxprune.axes.view import View
from onnxprune.check.case import Case, Run, outputs, within_memory
from onnxprune.check.copies import has_odd_types, seeded
from onnxprune.check.inputs import draw, hints, settings
from onnxprune.check.probes import kept_part, probes
from onnxprune.check.randomise import carried, randomised
from onnxprune.check.scatter import scattered
from onnxprune.check.steps import affordable, by_node
from onnxprune.check.verdict import FLOAT32_TOLERANCE, Difference, Fed, Verdict, difference, moved
from onnxprune.cut.cut import cut
from onnxprune.cut.mask import masked
from onnxprune.errors import CheckFailed, MissingRuntime, OutOfMemory, PruneError
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import open_session

UNMOVED = 1e-6
"""Relative; a mask that moves the outputs by no more than this has shown nothing."""
_WEAK = 10 * FLOAT32_TOLERANCE
"""A mask that moves the outputs by less could hide an error in the tolerance."""


@within_memory()
def verify(
    view: View,
    slim: onnx.ModelProto,
    *,
    feeds: Sequence[Mapping[str, np.ndarray]] | None = None,
    seeds: Sequence[int] = (0, 1),
    provider: str = "cpu",
    folder: Path | None = None,
    slim_folder: Path | None = None,
    own_weights: bool = False,
) -> Verdict:
    """Prove that `slim` is the original with everything that `view` does not keep set to zero.

    Args:
        view: the plan, over the original.
        slim: the model to prove; it is not changed.
        feeds: inputs by name, one mapping a run; default: drawn at random for each of `seeds`, at
            two sizes where dims are dynamic.
        provider: cpu, cuda or tensorrt.
        folder: where the original's external data lies; default: beside the file it came from.
        slim_folder: the same for `slim`; default: `folder`.
        own_weights: hold `slim` against its own weights scattered back to full size, for a model
            whose weights were repaired after the cut.

    Outputs agree within 1e-4 of their largest value (float32), 1e-2 (half types), one step (8-bit),
    or exactly; and so does every node on its own, fed with the original's values (see `steps`).
    Where only the outputs do not, it was rounding. A wrong model is a verdict, not an exception.

    Raises:
        CheckFailed: "unproven": the original runs on no inputs that could be found, or not in the
            memory that there is.
        MissingRuntime, UsageError: ONNX Runtime or the provider is not there.
    """
    start = time.perf_counter()
    model = view.facts.model
    if view.keep.all() and slim == model.source.proto:
        nothing = "nothing was removed: the model is the original"
        return Verdict(True, 0.0, FLOAT32_TOLERANCE, notes=(nothing,))
    folder = folder or model.source.folder
    slim_folder = slim_folder or folder
    full = scattered(view, slim, cut(view).weights, slim_folder) if own_weights else masked(view)
    model.forget_arrays()  # what follows needs the memory
    case = Case(
        view, seeded(model.proto), seeded(full), seeded(slim), provider, folder, slim_folder
    )
    notes: list[str] = []
    try:
        runs = _runs(case, feeds, seeds)
    except CheckFailed as error:
        if not has_odd_types(case.original):
            raise
        case = case.in_float32()
        runs = _runs(case, feeds, seeds, unproven=error)
        notes.append(f"proven on a float32 copy: {error.why}")
    verdict = _compare(case, runs)
    if verdict.passed and verdict.moved < _WEAK and not own_weights:
        verdict = _again(case, runs, verdict)
    if verdict.vacuous:
        notes.append("the removed channels have no influence on the outputs: this proves nothing")
    return replace(
        verdict, notes=(*notes, *verdict.notes), inputs=tuple(r.fed for r in runs),
        seconds=time.perf_counter() - start,
    )  # fmt: skip


def _runs(
    case: Case,
    feeds: Sequence[Mapping[str, np.ndarray]] | None,
    seeds: Sequence[int],
    unproven: CheckFailed | None = None,
) -> list[Run]:
    """What to feed. Raises CheckFailed if the original can't be run, OutOfMemory."""
    extra = tuple(probes(case.view, case.slim))
    try:
        with open_session(
            case.original, provider=case.provider, extra_outputs=extra, folder=case.folder
        ) as session:
            if feeds is not None:
                runs = [Run(dict(f), Fed({n: a.shape for n, a in f.items()}, None)) for f in feeds]
                return [replace(r, before=session.run(r.feeds)) for r in runs[:1]] + runs[1:]
            facts, runs = case.view.facts, []
            clues = hints(facts)
            for setting, before in settings(facts, session, seeds[0]):
                for seed in seeds:
                    values = draw(session.inputs, setting, seed, clues)
                    runs.append(Run(values, Fed(setting.shapes, seed)))
                runs[-len(seeds)] = replace(runs[-len(seeds)], before=before)
            return runs
    except OutOfMemory:
        raise
    except CheckFailed as error:
        raise unproven or error from error
    except PruneError as error:
        if error.exit_code == 2 or not error.why or isinstance(error, MissingRuntime):
            raise
        what, hint = "unproven: the original can't be run", "--no-verify to go without"
        raise unproven or CheckFailed(what, why=error.why, hint=hint) from error


def _compare(case: Case, runs: Sequence[Run]) -> Verdict:
    """Run the models one after the other and compare: first the outputs, then node by node."""
    extra = probes(case.view, case.slim)
    model = case.view.facts.model
    values = {model.in_file(o): o for o in model.graph.outputs} | extra
    try:
        full = outputs(case, case.masked, runs, extra)
    except OutOfMemory:
        raise
    except PruneError as error:
        raise CheckFailed("unproven: the masked original can't be run", why=error.why) from error
    distance = 0.0
    for run, now in zip(runs, full, strict=True):
        for name, then in (run.before or {}).items():
            if name in now:
                parts = (kept_part(case.view, values.get(name, ""), x) for x in (then, now[name]))
                distance = max(distance, moved(*parts))
    compared = tuple(dict.fromkeys(name for out in full for name in out))
    try:
        slim = outputs(case, case.slim, runs, extra, case.slim_folder)
    except OutOfMemory:
        raise
    except PruneError as error:
        why = f"the slim model does not run: {error.why or error.what}"
        return Verdict(False, np.inf, 0.0, compared=compared, moved=distance, first_bad=why)
    worst, off = Difference("", 0.0, FLOAT32_TOLERANCE), list[Run]()
    for run, out, got in zip(runs, full, slim, strict=True):
        for name, array in out.items():
            kept = kept_part(case.view, values.get(name, ""), array)
            d = Difference(name, np.inf, 0.0, "the slim model does not give it")
            d = difference(name, kept, got[name]) if name in got else d
            if d.bad and run not in off:
                off.append(run)
            if d.badness >= worst.badness:
                worst = d
    verdict = Verdict(
        not worst.bad, worst.error, worst.tolerance, compared=compared, moved=distance,
        worst=worst.tensor, first_bad=str(worst) if worst.bad else "",
    )  # fmt: skip
    del full, slim
    # One run that agrees is enough, the cheapest; of those that do not, all are looked into.
    cheapest = min(runs, key=lambda r: sum(a.size for a in r.feeds.values()))
    if verdict.passed and not affordable(case.view, cheapest.feeds):
        return verdict
    found = (_stepwise(case, run.feeds, verdict) for run in off or [cheapest])
    return min(found, key=lambda v: v.passed)


def _stepwise(case: Case, feeds: Feeds, found: Verdict) -> Verdict:
    """Does every node agree on its own? Then what adds up to more was rounding."""
    try:
        steps = by_node(
            case.view, case.masked, case.slim, feeds,
            provider=case.provider, folder=case.folder, slim_folder=case.slim_folder,
        )  # fmt: skip
    except (OutOfMemory, MemoryError):
        if not found.passed:
            raise
        return replace(found, notes=("the outputs alone were compared: nodes need more memory",))
    found = replace(found, nodes=steps.count)
    one = replace(
        found, max_rel_err=steps.worst.error, tolerance=steps.worst.tolerance,
        worst=steps.worst.tensor,
    )  # fmt: skip
    if steps.first_bad:
        worse = one if found.passed else found
        return replace(worse, passed=False, first_bad=steps.first_bad)
    if found.passed or steps.stuck or not steps.count:
        return found
    note = (
        f"{found.worst} differs by {found.max_rel_err:.1e} in all, which is rounding that the "
        f"network amplifies: each of {steps.count} tensors agrees when its node gets the "
        "original's own values"
    )
    return replace(one, passed=True, by_node=True, first_bad="", notes=(note,))


def _again(case: Case, runs: Sequence[Run], first: Verdict) -> Verdict:
    """The outputs hardly moved: once more, constant weights made random in all models alike."""
    view, count = randomised(case.view)
    if count:
        stored = cut(case.view).weights
        slim = carried(case.view, view, case.slim, stored)
        other = replace(
            case, view=view, original=seeded(view.facts.model.proto), masked=seeded(masked(view)),
            slim=slim,
        )  # fmt: skip
        if has_odd_types(other.original) and not has_odd_types(case.original):
            other = other.in_float32()
        measured = [r for r in runs if r.before is not None]
        before = outputs(other, other.original, measured, probes(view, slim))
        runs = [replace(r, before=b) for r, b in zip(measured, before, strict=True)]
        second = _compare(other, runs)
        note = f"{count} constant weights were made random: the mask had moved nothing"
        if not second.passed or second.moved > first.moved:
            return replace(second, notes=(*second.notes, note), vacuous=second.moved <= UNMOVED)
    return replace(first, vacuous=first.moved <= UNMOVED)
