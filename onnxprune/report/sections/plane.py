"""Points and lines over two axes, in percent of the plane; text stays text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxprune.report.figures import Axis


@dataclass(frozen=True)
class Point:
    """`tone`: good, bad, origin, or t0 to t3 for those of a line; `low` to `high` is its spread."""

    x: float
    y: float
    tone: str
    label: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Line:
    """A polyline, as the `points` of an SVG element."""

    name: str
    tone: str
    points: str


@dataclass(frozen=True)
class Plane:
    """What is drawn; `level` is a horizontal line and what it means."""

    x_title: str
    y_title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    points: tuple[Point, ...]
    lines: tuple[Line, ...] = ()
    level: tuple[float, str] | None = None

    @property
    def label(self) -> str:
        """What it shows, in words."""
        return f"{self.y_title} against {self.x_title}: " + "; ".join(p.label for p in self.points)


def polyline(xs: Sequence[float], ys: Sequence[float], x: Axis, y: Axis) -> str:
    """Values as the `points` of an SVG polyline on a canvas of 100 by 100."""
    return " ".join(f"{x.at(a)},{round(100 - y.at(b), 2)}" for a, b in zip(xs, ys, strict=True))
