"""What a benchmark has to tell, as data: a table, JSON and a page are made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

SCHEMA = "onnxprune/bench/1"


@dataclass(frozen=True)
class ModelRow:
    """A model that took part; the first is the baseline."""

    name: str
    path: str | None
    bytes: int
    """Of the file and its external data."""
    nodes: int


@dataclass(frozen=True)
class Times:
    """Wall-clock times of one inference, in milliseconds, over all rounds."""

    median: float
    p25: float
    p75: float
    p95: float
    min: float
    rounds: int
    blocks: int
    """How often new sessions were made for them."""

    @property
    def iqr(self) -> float:
        """The middle half of all times lies within so many milliseconds."""
        return self.p75 - self.p25


@dataclass(frozen=True)
class Row:
    """One model in one case."""

    model: str
    ms: Times
    per_second: float
    """Samples a second: the batch over the median time."""
    opening_ms: float
    """To create a session, median over all that were made."""
    macs: int | None
    """Multiply-accumulates of one inference at the case's shapes; None where they are not known."""
    host_bytes: int | None
    """What a fresh process needed more, at its peak, to open the model and run it."""
    device_bytes: int | None
    """The same on the GPU."""
    nodes: Mapping[str, int]
    """How many nodes ran on which provider, as ONNX Runtime had fused them."""
    elsewhere: Mapping[str, int]
    """Operators that ran on another provider than the one that was asked for, with how often."""
    waited: float
    """Share of its time that a run waited for a core which other programs had (median)."""


@dataclass(frozen=True)
class Speedup:
    """How many times faster than the baseline a model is."""

    model: str
    ratio: float
    low: float
    high: float
    """The 95 % interval of `ratio`."""
    measurable: bool
    """Whether it differs from 1 by more than noise."""
    promised: float | None
    """What it would be if time were proportional to multiply-accumulates."""
    uneven: float | None = None
    """Share of its multiply-accumulates in layers that got a width which is no multiple of 8."""

    @property
    def reached(self) -> float | None:
        """How much of the promise was kept, from 0 to 1 and above."""
        return None if self.promised is None else self.ratio / self.promised


@dataclass(frozen=True)
class LayerRow:
    """One layer in all models: what ONNX Runtime fused with it is counted with it."""

    name: str
    op: str
    ms: Mapping[str, float]
    """By model; absent where the layer is gone."""
    macs: Mapping[str, int]
    widths: Mapping[str, tuple[int, int]]
    """Channels in and out, by model."""
    why: tuple[str, ...] = ()
    """Why it did not get as much faster as its multiply-accumulates promise."""


@dataclass(frozen=True)
class Case:
    """All models on one provider, at one batch size."""

    provider: str
    batch: int | None
    """None where the inputs have no batch axis."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of the baseline's inputs."""
    threads: int | None
    """Of the sessions' pools, the calling thread with them; None where it is not known."""
    options: Mapping[str, str]
    """What sessions were made with: graph optimisation, spinning, cuDNN search and so on."""
    rows: tuple[Row, ...]
    speedups: tuple[Speedup, ...]
    """One for each model but the baseline."""
    seconds: float
    """How long it took to measure."""
    busy: float | None
    """Share of all cores that other programs took meanwhile, from 0 to 1."""
    layers: tuple[LayerRow, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Missing:
    """A provider that could not be measured at all, or a case that gave no number, and why."""

    provider: str
    batch: int | None
    model: str | None
    why: str
    failed: bool
    """A check failed; otherwise there is only nothing to measure with."""


@dataclass(frozen=True)
class SweepPoint:
    """The model slimmed by one ratio at one alignment, on one provider."""

    provider: str
    batch: int | None
    ratio: float
    align: int
    macs: int | None
    macs_left: float | None
    """Share of the original's multiply-accumulates."""
    median_ms: float
    original_ms: float
    """The original's, measured in turn with it."""
    speedup: Speedup


@dataclass(frozen=True)
class BenchReport:
    """All of a benchmark. Keys that do not apply are absent from the JSON."""

    tool: str
    machine: Mapping[str, str | int]
    models: tuple[ModelRow, ...]
    cases: tuple[Case, ...]
    missing: tuple[Missing, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def failed(self) -> bool:
        """Whether any number that was asked for could not be had because a check failed."""
        return any(m.failed for m in self.missing)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data (schema onnxprune/bench/1)."""
        found: dict[str, Any] = {"schema": SCHEMA, **_plain(self)}
        return found


def _plain(value: Any) -> Any:
    """Plain data, what is worked out from it included; what does not apply is left out."""
    if hasattr(value, "__dataclass_fields__"):
        names = [*value.__dataclass_fields__, *_worked_out(type(value))]
        found = {name: _plain(getattr(value, name)) for name in names}
        return {k: v for k, v in found.items() if v is not None and v not in ([], {})}
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _worked_out(kind: type) -> list[str]:
    return [name for name, member in vars(kind).items() if isinstance(member, property)]
