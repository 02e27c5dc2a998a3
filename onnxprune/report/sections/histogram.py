"""Histograms of scores, as bars on a canvas of 100 by 100."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import short

Bar = tuple[float, float, float]
"""Left end, width and height."""


@dataclass(frozen=True)
class Histogram:
    """Bars of what stayed and of what went; `cut` is where the line between them lies."""

    kept: tuple[Bar, ...]
    gone: tuple[Bar, ...]
    cut: float | None
    low: str
    high: str
    cut_text: str

    @property
    def label(self) -> str:
        """What it shows, in words."""
        cut = f", cut at {self.cut_text}" if self.cut is not None else ""
        return f"Scores from {self.low} to {self.high}{cut}"


def histogram(scores: Mapping[str, Any] | None) -> Histogram | None:
    """Bars of `edges` and `counts`, parted at `cut`; None where there are no scores."""
    if not scores or not scores.get("counts"):
        return None
    edges: Sequence[float] = scores["edges"]
    low, high = edges[0], edges[-1]
    span = (high - low) or 1.0
    most = max(scores["counts"]) or 1
    cut = scores.get("cut")
    gone: list[Bar] = []
    kept: list[Bar] = []
    for a, b, n in zip(edges, edges[1:], scores["counts"], strict=False):
        if not n:
            continue
        middle = a if cut is None else min(max(cut, a), b)
        for side, lo, hi in ((gone, a, middle), (kept, middle, b)):
            if hi > lo:
                place, width = 100 * (lo - low) / span, 100 * (hi - lo) / span
                side.append((round(place, 2), round(width, 2), round(100 * n / most, 1)))
    place = None if cut is None else round(100 * (min(max(cut, low), high) - low) / span, 2)
    return Histogram(
        tuple(kept), tuple(gone), place, short(low), short(high),
        "" if cut is None else short(cut),
    )  # fmt: skip
