"""What each group is worth: errors as it alone is slimmed, and ratios of equal cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import LinearAxis, LogAxis, count, percent, short
from onnxprune.report.sections.head import Head, base
from onnxprune.report.sections.plane import polyline

SHOWN = 40
"""Groups that are shown at once; the rest folds out."""
FLOOR = 1e-8
"""An error under it is drawn there: no output moves."""

Cell = tuple[str, float | None, str]
"""A number as text, how deep its colour is (0 to 1), and what else is known."""


@dataclass(frozen=True)
class CurveView:
    name: str
    channels: int
    line: str
    """Error over ratio, as the `points` of a polyline."""
    cells: tuple[Cell, ...]
    even: str
    even_share: float


@dataclass(frozen=True)
class Curves:
    ratios: tuple[str, ...]
    rows: tuple[CurveView, ...]
    even: bool
    even_sentence: str
    metric: str
    shown: int = SHOWN


def head(report: Mapping[str, Any]) -> Head:
    """The model, what was run, and what follows."""
    on = {"calibration": "calibration", "labelled": "labelled"}.get(report["inputs"], "random")
    sentence = (
        f"{count(len(report['groups']), 'group')}, each slimmed alone by {report['criterion']}, "
        f"on {count(report['samples'], f'{on} sample')}."
    )
    return Head(base(report["model"]), "", sentence, None, (), tuple(report.get("advice", ())))


def curves(report: Mapping[str, Any]) -> Curves | None:
    """Errors group by group, in the order of the network."""
    groups, ratios = report["groups"], report["ratios"]
    if not groups:
        return None
    errors = [p["error"] for g in groups for p in g["points"]]
    y = LogAxis.over([*errors, 1.0], FLOOR)
    metric = report.get("metric") or ""
    rows = tuple(_row(g, ratios, y, metric) for g in groups)
    even = report.get("even") or {}
    sentence = ""
    if even:
        sentence = (
            f"{percent(even['share'])} of the channels go, at an output error of at most "
            f"{short(even['error'])} a group."
        )
    return Curves(
        tuple(percent(r).replace(".0 ", " ") for r in ratios), rows,
        any(g.get("even") is not None for g in groups), sentence, metric,
    )  # fmt: skip


def _row(g: Mapping[str, Any], ratios: Sequence[float], y: LogAxis, metric: str) -> CurveView:
    points = sorted(g["points"], key=lambda p: p["ratio"])
    x = LinearAxis(0.0, 1.0)
    line = polyline([0.0, *(p["ratio"] for p in points)],
                    [FLOOR, *(max(p["error"], FLOOR) for p in points)], x, y)  # fmt: skip
    even = g.get("even")
    return CurveView(
        g["name"], g["channels"], line, tuple(_cell(g, r, y, metric) for r in ratios),
        "" if even is None else percent(even), even or 0.0,
    )  # fmt: skip


def _cell(g: Mapping[str, Any], ratio: float, y: LogAxis, metric: str) -> Cell:
    """The point whose ratio is nearest, where it removes any channel."""
    kept = g["channels"] - int(g["channels"] * ratio + 1e-9)
    p = next((p for p in g["points"] if p["kept"] == kept), None)
    if p is None:
        return "", None, ""
    more = [f"{p['kept']} channels kept"]
    if p.get("agreement") is not None:
        more.append(f"same answer for {percent(p['agreement'])}")
    if p.get("metric") is not None:
        more.append(f"{metric} {short(p['metric'])}")
    return short(p["error"]), round(y.at(p["error"]) / 100, 3), ", ".join(more)
