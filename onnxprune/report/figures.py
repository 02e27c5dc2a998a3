"""Numbers as people read them, and the axes of plots."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from onnxprune.report.text import quantity, share

MINUS, TIMES = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}"


def percent(part: float) -> str:
    """A share: 0.7292 -> 72.9 %."""
    return f"{100 * part:.1f} %"


def change(before: float, after: float) -> str:
    """A change in percent with a minus sign: −74.9 %."""
    return share(before, after).replace("-", MINUS)


def short(x: float) -> str:
    """A number of any magnitude, with the digits that matter: 0.0434, 3.1e-7."""
    if x == 0 or not math.isfinite(x):
        return "0" if x == 0 else str(x)
    if 1e-3 <= abs(x) < 1e4:
        return f"{x:.3g}"
    mantissa, exponent = f"{x:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"


def in_bytes(n: float) -> str:
    """A size: 102.5 MB (decimal)."""
    text = quantity(n)
    return text + "B" if text[-1].isalpha() else text + " B"


def seconds(s: float) -> str:
    """A duration: 31 ms, 2.4 s, 3 min."""
    if s < 1:
        return f"{1000 * s:.3g} ms"
    return f"{s:.3g} s" if s < 100 else f"{s / 60:.3g} min"


def count(n: int, one: str, many: str | None = None) -> str:
    """1 layer, 12 layers, 1,024 layers."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def shape(sizes: Sequence[int]) -> str:
    """64 × 3 × 7 × 7; one number if there is no axis."""
    return f" {TIMES} ".join(str(s) for s in sizes) or "1"


def gain(before: float, after: float) -> str:
    """A signed difference: +0.012, or a minus sign."""
    return ("+" if after >= before else MINUS) + short(abs(after - before))


class Axis(Protocol):
    """Where values lie along a side of a plot."""

    def at(self, value: float) -> float:
        """In percent of the axis."""


@dataclass(frozen=True)
class LinearAxis:
    """A linear axis that begins and ends with a tick."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Sequence[float]) -> LinearAxis:
        """The axis that holds all of these values."""
        real = [v for v in values if math.isfinite(v)] or [0.0]
        step = _step(min(real), max(real))
        low, high = math.floor(min(real) / step), math.ceil(max(real) / step)
        return cls(low * step, max(high, low + 1) * step)

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the axis; beyond its ends at the end."""
        if math.isnan(value):
            return 0.0
        return round(100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low))), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels, seven at most."""
        step = _step(self.low, self.high)
        count = round((self.high - self.low) / step)
        return [
            (self.at(self.low + k * step), short(round(self.low + k * step, 12)))
            for k in range(count + 1)
        ]


def _step(low: float, high: float) -> float:
    """A distance of ticks of which five or so lie between two values: 1, 2 or 5 times 10^n."""
    rough = (high - low) / 5 or abs(high) / 5 or 1.0
    power = 10.0 ** math.floor(math.log10(rough))
    return power * next(m for m in (1, 2, 5, 10) if m * power >= 0.999 * rough)


@dataclass(frozen=True)
class LogAxis:
    """A logarithmic axis over whole decades."""

    low: int
    high: int

    @classmethod
    def over(cls, values: Sequence[float], floor: float = 1e-12) -> LogAxis:
        """The axis that holds all of these values; what is under `floor` lies at its end."""
        real = [max(v, floor) for v in values if math.isfinite(v)] or [1.0]
        low, high = math.floor(math.log10(min(real))), math.ceil(math.log10(max(real)))
        return cls(low, max(high, low + 1))

    def at(self, value: float) -> float:
        """Where a value lies, in percent of the axis; beyond its ends at the end."""
        if not value > 0:
            return 0.0
        place = 1.0 if value == math.inf else (math.log10(value) - self.low) / self.span
        return round(100 * min(1.0, max(0.0, place)), 2)

    @property
    def span(self) -> int:
        return self.high - self.low

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places and labels, seven at most."""
        step = -(-self.span // 6)
        return [(self.at(10.0**k), short(10.0**k)) for k in range(self.low, self.high + 1, step)]
