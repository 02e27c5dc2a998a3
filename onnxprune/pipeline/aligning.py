"""`--align auto`: slim models at the multiples that the layers speak for, timed in turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from onnxprune.choose.alignment import align_by_time, near_multiples
from onnxprune.choose.allocate import Request
from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.pipeline.inputs import timing_feeds
from onnxprune.pipeline.run import Candidate, Run
from onnxprune.pipeline.searching import likely

_SECONDS = 1.5
"""For each model that is timed."""
_ROUNDS = 8
"""At least, however long they take."""
_QUANTILE = 25
"""Of the times: what a busy machine adds to the others is not the model's."""
_LIKE = 0.04
"""Times that differ by no more are the same."""


Way = tuple[int, bool]
"""A multiple, and whether it yields to a finer one in narrow groups."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A slim model that was timed, by its way."""

    multiple: int
    yields: bool
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
    best = fastest(tried) if tried else Tried(table.multiple, True, 1.0, 0.0)
    record = {**table.record(), "align": best.multiple, "models": [asdict(t) for t in tried]}
    return _at(request, best.multiple, best.yields), {"widths": record}


def fastest(tried: Sequence[Tried]) -> Tried:
    """The fastest model; of several as fast the one with the finest steps, which are truer to the
    request and to the scores.
    """
    least = min(t.ms for t in tried)
    near = [t for t in tried if t.ms <= least * (1 + _LIKE)]
    return min(near, key=lambda t: (t.multiple, not t.yields))


def _at(request: Request, multiple: int, yields: bool) -> Request:
    limits = replace(request.limits, align=multiple, yields=yields)
    return replace(request, limits=limits)


def _models(
    run: Run, request: Request, multiples: Sequence[int]
) -> Iterator[tuple[Way, Candidate]]:
    """Slim models, without those that are like one before."""
    seen = set()
    for way in product(multiples, (True, False)):
        try:
            chosen = likely(run, _at(request, *way))
        except NothingToPrune:
            if way == (1, True):
                raise
            continue
        counts = tuple(len(k) for k in chosen.kept.values())
        if counts not in seen:
            seen.add(counts)
            yield way, run.cut(chosen)


def _timed(run: Run, made: Iterable[tuple[Way, Candidate]]) -> list[Tried]:
    """How long these models take, in turn; nothing where they can't be run."""
    from onnxprune.runtime.iobinding import bound
    from onnxprune.runtime.session import open_session
    from onnxprune.runtime.timing import interleave

    folder, work, runs = run.analysis.source.folder, {}, {}
    with ExitStack() as opened:
        for way, one in made:
            session = open_session(one.model, provider=run.provider, optimise=True, folder=folder)
            opened.enter_context(session)
            try:
                runs[str(way)] = bound(session, timing_feeds(run, session)).run
            except CheckFailed:
                return []
            work[way] = run.work(one)
        with run.clock("widths", f"timing {len(runs)} slim models"):
            once = sum(t.median_ms for t in interleave(runs, rounds=1, warmup=1).values()) / 1e3
            times = interleave(runs, duration=max(_SECONDS * len(runs), _ROUNDS * once), warmup=0)
    return [
        Tried(*way, share, float(np.percentile(times[str(way)].samples, _QUANTILE)))
        for way, share in work.items()
    ]
