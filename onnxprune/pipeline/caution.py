"""How much losses count that few samples tell: settled by a trial on samples that are left out.

A layer with few rows for each column is refitted well to the samples it sees and badly to others,
so what its channels lose is told too low, and a budget takes too many of them. How much too low is
known (see `repair.obs`), but not what that does to the network: errors of early layers are made up
for by later ones, and sparing one layer costs another its channels. So the budget is met both
ways, both models are refitted without some of the samples, and these decide.
"""

from __future__ import annotations

from dataclasses import replace

from onnxprune.choose.allocate import Allocation, Request
from onnxprune.choose.scores import Scores
from onnxprune.pipeline.repairing import Repairer
from onnxprune.pipeline.run import Run
from onnxprune.pipeline.searching import likely

WARY = 2
"""The power of `Scores.unseen` by which losses count more: refits of such a layer fail in making up
for what went, and for the changes that earlier layers left in its input.
"""
_STARVED = 1.2
"""What `Scores.unseen` must reach in some group for a trial; below, both ways are as good."""


def settled(run: Run, request: Request, ranked: Scores) -> Scores:
    """The scores that keep a network closer to the original on samples that were left out.

    Raises:
        NothingToPrune: nothing may go.
    """
    wary, repairer = ranked.wary(WARY), run.repairer
    budget = request.target is not None or request.max_drop is not None
    starved = max(ranked.unseen.values(), default=1.0) >= _STARVED
    if not (budget and starved) or repairer is None or repairer.stand_in is not None:
        return wary
    left = [likely(replace(run, ranked=scores), request) for scores in (ranked, wary)]
    if _kept(left[0]) == _kept(left[1]):
        return wary
    errors = [_error(run, chosen, repairer) for chosen in left]
    chosen = wary if errors[1] <= errors[0] else ranked
    told = "count more" if chosen is wary else "count like others"
    note = f"obs: losses that few samples tell {told} (trial: {min(errors):.3g}, {max(errors):.3g})"
    return replace(chosen, notes=(*chosen.notes, note))


def _kept(chosen: Allocation) -> dict[int, list[int]]:
    return {g: list(kept) for g, kept in chosen.kept.items()}


def _error(run: Run, chosen: Allocation, repairer: Repairer) -> float:
    """How far a network is from the original on the samples that its refit has not seen."""
    from onnxprune.check.fidelity import fidelity, output_error
    from onnxprune.repair.fits import fold_of

    count = len(repairer.batches)
    held = [b for k, b in enumerate(repairer.batches) if fold_of(k, count) == 0]
    rest = [b for k, b in enumerate(repairer.batches) if fold_of(k, count)]
    made = run.cut(chosen)
    with run.clock("trial", "trying what samples tell on others"):
        kind = "linear" if repairer.kind == "full" else repairer.kind
        trial = replace(repairer, kind=kind, batches=rest)
        model = trial.repaired(made.view, made.cut, run.clock.tell).model
        source = run.analysis.source
        return output_error(fidelity(source.proto, model, source.folder, held, run.provider))
