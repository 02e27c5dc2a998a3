"""What a run has to tell, as data: the same numbers feed the table, the JSON and later the HTML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from onnxprune.choose.limits import ALIGNED

SCHEMA = "onnxprune/report/1"


@dataclass(frozen=True)
class Size:
    """How large a model is: parameters, multiply-accumulates (batch 1), file bytes, nodes."""

    params: int
    macs: int
    bytes: int
    nodes: int
    channels: int
    """Channels of all prunable groups, each counted once."""


@dataclass(frozen=True)
class MemberRow:
    tensor: str
    axis: int
    role: str


@dataclass(frozen=True)
class GroupRow:
    """Channels that are tied together. `fixed_by` says why they stay; empty if they may go."""

    id: int
    name: str
    channels: int
    kept: int
    fixed_by: str
    members: tuple[MemberRow, ...]
    scores: Mapping[str, Any] | None = None
    """Histogram of the scores: bin edges, counts, and the score at which the cut fell."""


@dataclass(frozen=True)
class LayerRow:
    """A node that multiplies, in the order of the network."""

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    shape_after: tuple[int, ...]
    macs: int
    macs_after: int
    width: int = 0
    """Channels that its weight creates; 0 for a node that multiplies two activations."""
    width_after: int = 0


@dataclass(frozen=True)
class Report:
    """All of a run. Keys that do not apply are absent from the JSON."""

    tool: str
    model: str
    out: str | None
    before: Size
    after: Size | None
    groups: tuple[GroupRow, ...]
    layers: tuple[LayerRow, ...]
    options: Mapping[str, Any]
    sizes: str
    """The input sizes at which multiply-accumulates were counted."""
    timings: Mapping[str, float] = field(default_factory=dict)
    verify: Mapping[str, Any] | None = None
    repair: Mapping[str, Any] | None = None
    """Which layers were refitted, and their error on held-out samples before and after."""
    fidelity: Mapping[str, Any] | None = None
    """How close the outputs are to the original's, and a metric before and after."""
    search: Mapping[str, Any] | None = None
    """How a target was met: what was tried, and what was measured."""
    unknown: Mapping[str, int] = field(default_factory=dict)
    """Operators without a rule, with how often."""
    notes: tuple[str, ...] = ()
    pictures: Mapping[str, Any] | None = None
    """Small images of weights (see `onnxprune.pictures`), where a report asks for them."""

    bench: Mapping[str, Any] | None = None
    """Times of original and slim model, as `onnxprune bench` gives them."""

    @property
    def removed(self) -> dict[str, float]:
        """Shares removed, of channels, parameters, MACs and bytes."""
        if self.after is None:
            return {}
        return {
            key: 1 - getattr(self.after, key) / max(1, getattr(self.before, key))
            for key in ("channels", "params", "macs", "bytes")
        }

    @property
    def odd_widths(self) -> float:
        """Share of the MACs left in layers that were cut to a width that is no multiple of 8."""
        left = sum(row.macs_after for row in self.layers)
        odd = sum(
            row.macs_after for row in self.layers
            if any(now != was and now % ALIGNED for was, now in
                   zip(row.shape[:2], row.shape_after[:2], strict=True))
        )  # fmt: skip
        return odd / max(1, left)

    def to_json(self) -> dict[str, Any]:
        """The report as plain data (schema onnxprune/report/1)."""
        out = {"schema": SCHEMA, **asdict(self), "removed": self.removed}
        return {k: _plain(v) for k, v in out.items() if v not in (None, {}, ())}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items() if v is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "item"):
        return value.item()
    return value
