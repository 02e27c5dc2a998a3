"""`--align auto`: slim models at the multiples that the layers speak for, timed in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from onnxprune.choose.alignment import align_by_time, near_multiples
from onnxprune.choose.allocate import Allocation, Request, allocate
from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.pipeline.inputs import timing_feeds
from onnxprune.pipeline.run import Candidate, Run
from onnxprune.pipeline.searching import space_of

_SECONDS = 1.5
"""For each model that is timed."""
_ROUNDS = 8
"""At least, however long they take."""
_QUANTILE = 25
"""Of the times: what a busy machine adds to the others is not the model's."""
_LIKE = 0.04
"""Times that differ by no more are the same."""
_LIKE_WORK = 0.02
"""The same of the work that is left."""
_HALF = 0.5
"""Work at which models are compared where nobody knows yet how much will be left."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A slim model whose kept counts are multiples of something."""

    multiple: int
    work: float
    """Share of the original's multiply-accumulates."""
    ms: float


def aligned(run: Run, request: Request) -> tuple[Request, dict[str, Any]]:
    """The request with the multiple that makes the fastest model here, and the times that say so.

    Raises:
        NothingToPrune: nothing may go. UsageError: the provider does not work here.
    """
    solution, clock = run.analysis.solution, run.clock
    with clock("widths", "timing layers at neighbouring widths"):
        table = align_by_time(solution, run.sizes, run.provider, clock.tell)
    tried: list[Tried] = []
    if table.layers:
        tried = _timed(run, _models(run, request, near_multiples(table.multiple)))
    best = fastest(tried) if tried else table.multiple
    record = {**table.record(), "align": best, "models": [asdict(t) for t in tried]}
    return _at(request, best), {"widths": record}


def fastest(tried: Sequence[Tried]) -> int:
    """The multiple of the fastest model; of several as fast, of those with most work left (it
    costs nothing to keep), and of these the smallest: coarse steps fit the scores less well.
    """
    least = min(t.ms for t in tried)
    near = [t for t in tried if t.ms <= least * (1 + _LIKE)]
    most = max(t.work for t in near)
    return min(t.multiple for t in near if t.work >= most * (1 - _LIKE_WORK))


def _at(request: Request, multiple: int) -> Request:
    return replace(request, limits=replace(request.limits, align=multiple, yields=True))


def _models(run: Run, request: Request, multiples: Sequence[int]) -> dict[int, Candidate]:
    """Slim models by the multiple of their kept counts, without those that are like another's."""
    made: dict[int, Candidate] = {}
    seen = set()
    for m in multiples:
        at = _at(request, m)
        try:
            chosen = _chosen(run, at)
        except NothingToPrune:
            if m == 1:
                raise
            continue
        counts = tuple(len(k) for k in chosen.kept.values())
        if counts not in seen:
            seen.add(counts)
            made[m] = run.cut(chosen)
    return made


def _chosen(run: Run, request: Request) -> Allocation:
    """What a request leaves, or something like it where it takes a search to tell."""
    if request.target is None and request.max_drop is None:
        assert run.ranked is not None
        return allocate(run.analysis.facts, run.analysis.groups, run.ranked, request)
    space = space_of(run, request)
    target = request.target
    if target is None or target.quantity == "latency":
        return space.within(space.lever, _HALF * space.full(space.lever))
    what = target.quantity
    return space.within(what, target.amount(int(getattr(run.before, what))))


def _timed(run: Run, made: Mapping[int, Candidate]) -> list[Tried]:
    """How long these models take, in turn; nothing where they can't be run."""
    from onnxprune.runtime.iobinding import bound
    from onnxprune.runtime.session import open_session
    from onnxprune.runtime.timing import interleave

    folder, runs = run.analysis.source.folder, {}
    with ExitStack() as opened, run.clock("widths", f"timing {len(made)} slim models"):
        for m, one in made.items():
            session = open_session(one.model, provider=run.provider, optimise=True, folder=folder)
            opened.enter_context(session)
            try:
                runs[m] = bound(session, timing_feeds(run, session)).run
            except CheckFailed:
                return []
        named = {str(m): r for m, r in runs.items()}
        once = sum(t.median_ms for t in interleave(named, rounds=1, warmup=1).values()) / 1e3
        times = interleave(named, duration=max(_SECONDS * len(runs), _ROUNDS * once), warmup=0)
    return [
        Tried(m, run.work(one), float(np.percentile(times[str(m)].samples, _QUANTILE)))
        for m, one in made.items()
    ]
