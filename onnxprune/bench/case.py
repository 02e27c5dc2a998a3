"""One case: all models on one provider at one batch size."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxprune.bench.data import Case, LayerRow, Row, Speedup, Times
from onnxprune.bench.fresh import Memory, memory
from onnxprune.bench.fused import misplaced, names_of
from onnxprune.bench.layers import layer_rows, profiled
from onnxprune.bench.measure import Runs, measure
from onnxprune.bench.models import Contestant, Shapes, Work
from onnxprune.bench.reasons import uneven
from onnxprune.bench.settings import Settings
from onnxprune.errors import CheckFailed
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.iobinding import bound
from onnxprune.runtime.machine import busy_seconds
from onnxprune.runtime.placement import NodeTime, profile
from onnxprune.runtime.session import Tuning, open_session
from onnxprune.runtime.timing import Timing, speedup

_PROFILED_RUNS = 20
_PROFILED_SECONDS = 5.0
"""A profile by layer takes so many runs, or as many as fit."""

_OPENED, _TIMED = 0.05, 0.95
"""Where timing begins and ends, as a share of a case."""

Tell = Callable[[str, float], None]
"""Hears what is being done, and what share of all is done."""


@dataclass(frozen=True, eq=False)
class Entry:
    """A model in a case: what it is fed there, and what it has to do."""

    model: Contestant
    feeds: Feeds
    work: Mapping[str, Work]

    @property
    def name(self) -> str:
        return self.model.name

    @property
    def shapes(self) -> Shapes:
        return {name: array.shape for name, array in self.feeds.items()}

    def profile(self, provider: str, tuning: Tuning, runs: int) -> list[NodeTime]:
        """What ONNX Runtime says that it ran where, set up as it is for timing."""
        return profile(
            self.model.source, provider, self.feeds, runs=runs, optimise=True, tuning=tuning
        )


@dataclass(eq=False)
class Opener:
    """Opens the sessions of a case again and again, and keeps what they tell."""

    entries: Mapping[str, Entry]
    provider: str
    tuning: Tuning
    opening_ms: dict[str, list[float]] = field(default_factory=dict)
    threads: int | None = None
    devices: set[str] = field(default_factory=set)
    """Where inputs and outputs were bound; empty text where they could not be."""

    @contextlib.contextmanager
    def __call__(self, order: Sequence[str]) -> Iterator[Runs]:
        """Sessions made in this order, ready to run."""
        with contextlib.ExitStack() as stack:
            yield {name: self._open(self.entries[name], stack) for name in order}

    def _open(self, entry: Entry, stack: contextlib.ExitStack) -> Callable[[], None]:
        before = _threads()
        session = stack.enter_context(
            open_session(
                entry.model.source, provider=self.provider, optimise=True, tuning=self.tuning
            )
        )
        # Those of a session that was closed may end meanwhile: the most is right.
        if before is not None:
            self.threads = max(self.threads or 1, (_threads() or 0) - before + 1)
        self.opening_ms.setdefault(entry.name, []).append(session.opening_ms)
        found = bound(session, entry.feeds)
        self.devices.add(found.device)
        return found.run


def run_case(
    entries: Sequence[Entry], provider: str, where: str, settings: Settings, tell: Tell
) -> Case:
    """Measure models on a provider, after a look at where their nodes run.

    Raises CheckFailed where another provider did what multiplies, and as `open_session` and
    `bound` do.
    """
    tuning = settings.tuning(provider)
    tell(f"{where}: where nodes run", 0.0)
    seen = {e.name: e.profile(provider, tuning, 1) for e in entries}
    for e in entries:
        _check_placement(e, provider, seen[e.name])
    needs = {e.name: _memory(e, provider, tuning, where, tell) for e in entries if settings.memory}

    opener = Opener({e.name: e for e in entries}, provider, tuning)
    timing = f"{where}: timing {' against '.join(e.name for e in entries)}"
    busy, cpu, start = busy_seconds(), time.process_time(), time.perf_counter()
    tell(timing, _OPENED)
    timed = measure(
        [e.name for e in entries], opener, settings.budget(len(entries)),
        lambda share: tell(timing, _OPENED + share * (_TIMED - _OPENED)),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    others = _others(busy, cpu, seconds)

    tell(f"{where}: time by layer", _TIMED)
    by_layer = settings.per_layer and provider == "cpu"
    rows = tuple(
        _row(e, provider, timed[e.name], opener, seen[e.name], needs.get(e.name)) for e in entries
    )
    return Case(
        provider=provider,
        batch=_batch(entries[0]),
        shapes=entries[0].shapes,
        threads=opener.threads,
        options={**settings.said(provider), "io_binding": _binding(opener.devices)},
        rows=rows,
        speedups=tuple(
            _speedup(entries[0], rows[0], e, row, timed)
            for e, row in zip(entries[1:], rows[1:], strict=True)
        ),
        seconds=seconds,
        busy=others,
        layers=_layers(entries, provider, tuning, timed) if by_layer else (),
        notes=tuple(_notes(opener, settings.per_layer and not by_layer)),
    )


def _check_placement(entry: Entry, provider: str, events: Sequence[NodeTime]) -> None:
    """Raise CheckFailed if another provider did what multiplies: that would be its time."""
    wrong = misplaced(events, provider, names_of(entry.model), entry.work)
    if not wrong:
        return
    first = ", ".join(f"{e.op} {e.node} on {e.provider}" for e in wrong[:3])
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    raise CheckFailed(
        f"{provider} did not run all that multiplies", where=entry.name, why=first + more,
        hint="its time would be that of two providers; convert the model, or choose another",
    )  # fmt: skip


def _memory(entry: Entry, provider: str, tuning: Tuning, where: str, tell: Tell) -> Memory:
    path = entry.model.source.path
    tell(f"{where}: memory of {entry.name}", 0.0)
    if path is None:
        return Memory(None, None)
    return memory(path, provider, tuning, entry.feeds)


def _row(
    entry: Entry,
    provider: str,
    timing: Timing,
    opener: Opener,
    seen: Sequence[NodeTime],
    needs: Memory | None,
) -> Row:
    t = timing
    return Row(
        model=entry.name,
        ms=Times(t.median_ms, t.p25, t.p75, t.p95, t.min_ms, t.rounds, len(t.blocks)),
        per_second=(_batch(entry) or 1) * 1e3 / t.median_ms,
        opening_ms=float(np.median(opener.opening_ms[entry.name])),
        macs=sum(w.macs for w in entry.work.values()) or None,
        host_bytes=None if needs is None else needs.host,
        device_bytes=None if needs is None else needs.device,
        nodes=dict(Counter(e.provider for e in seen)),
        elsewhere=dict(Counter(e.op for e in seen if e.provider != provider)),
        waited=float(np.median(t.waited)),
    )


def _speedup(
    first: Entry, baseline: Row, entry: Entry, row: Row, timed: Mapping[str, Timing]
) -> Speedup:
    found = speedup(timed[first.name], timed[entry.name])
    promised = baseline.macs / row.macs if baseline.macs and row.macs else None
    odd = uneven(entry.work, first.work)
    return Speedup(row.model, found.ratio, found.low, found.high, found.measurable, promised, odd)


def _layers(
    entries: Sequence[Entry], provider: str, tuning: Tuning, timed: Mapping[str, Timing]
) -> tuple[LayerRow, ...]:
    """Profiles of all models, joined."""
    found = []
    for e in entries:
        fits = _PROFILED_SECONDS * 1e3 / timed[e.name].median_ms
        runs = int(np.clip(fits, 3, _PROFILED_RUNS))
        found.append(profiled(e.model, e.work, e.profile(provider, tuning, runs)))
    return layer_rows(found, provider)


def _notes(opener: Opener, layers_missing: bool) -> Iterator[str]:
    if "" in opener.devices:
        on_cpu = opener.provider == "cpu"
        costs = "outputs are new each time" if on_cpu else "copies are timed with it"
        yield f"an input or output can't be bound: {costs}"
    if layers_missing:
        yield "by layer, ONNX Runtime's profile times launches on a GPU, not kernels"


def _binding(devices: set[str]) -> str:
    return ", ".join(sorted(filter(None, devices))) or "none"


def _batch(entry: Entry) -> int | None:
    """How many samples an inference takes: the first axis of the first input that has several."""
    return next((shape[0] for shape in entry.shapes.values() if len(shape) > 1), None)


def _others(before: float | None, cpu: float, seconds: float) -> float | None:
    """Share of all cores that other programs took since then."""
    after = busy_seconds()
    if before is None or after is None or seconds <= 0:
        return None
    others = after - before - (time.process_time() - cpu)
    return float(np.clip(others / seconds / (os.cpu_count() or 1), 0, 1))


def _threads() -> int | None:
    """Threads of this process; None off Linux."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return None
