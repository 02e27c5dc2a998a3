"""Why a layer did not get as much faster as it has less to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxprune.bench.fused import BLOCKED, Ran
from onnxprune.bench.models import Work
from onnxprune.choose.limits import ALIGNED
from onnxprune.runtime.machine import channel_block

KEPT_PROMISE = 0.8
"""A layer that reaches so much of what its multiply-accumulates promise needs no reason."""
_FEW_MACS_PER_BYTE = 4.0
"""Below, memory is the limit: a core multiplies several times for each byte that it can fetch."""
_SHORT_MS = 0.02
"""A call as short as this is mostly the call."""


@dataclass(frozen=True, eq=False)
class Side:
    """A layer in one model."""

    ms: float
    macs: int
    widths: tuple[int, int]
    ran: Sequence[Ran]

    @property
    def blocked(self) -> bool:
        return any(BLOCKED in r.event.node for r in self.ran)


def reasons(before: Side, after: Side, provider: str) -> list[str]:
    """Why a layer did not get as much faster as it has less to do; nothing if it did."""
    promised, got = before.macs / after.macs, before.ms / max(after.ms, 1e-9)
    if promised <= 1 or got >= KEPT_PROMISE * promised:
        return []
    why = []
    others = {r.event.provider for r in after.ran} - {provider}
    if others:
        why.append(f"ran on {', '.join(sorted(others))}")
    if before.blocked and not after.blocked:
        why.append(f"left the blocked layout: {after.widths[0]} channels in")
    sides = [*zip(("in", "out"), after.widths, before.widths, strict=True)]
    for multiple in sorted({ALIGNED, channel_block()}):
        odd = [f"{w} {side}" for side, w, was in sides if w % multiple and not was % multiple]
        if odd:
            why.append(f"channels {' and '.join(odd)}: no multiple of {multiple}")
            break
    moved = sum(r.event.bytes for r in after.ran)
    if moved and after.macs / moved < _FEW_MACS_PER_BYTE:
        why.append(f"memory-bound: {after.macs / moved:.1f} MACs a byte")
    if after.ms < _SHORT_MS:
        why.append(f"the call itself: {1e3 * after.ms:.0f} us")
    return why


def uneven(work: Mapping[str, Work], before: Mapping[str, Work]) -> float | None:
    """Share of the multiply-accumulates in layers that got a width which is no multiple of 8.

    Widths that are as they were are nobody's choice. None where nothing is known, or no layer has
    changed.
    """
    macs = changed = odd = 0
    for key, w in work.items():
        macs += w.macs
        was = before[key].widths if key in before else w.widths
        changed += w.widths != was
        odd += w.macs * any(a % ALIGNED and a != b for a, b in zip(w.widths, was, strict=True))
    return odd / macs if macs and changed else None
