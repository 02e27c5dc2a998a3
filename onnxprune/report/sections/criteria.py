"""What the criteria see: do they agree, and can they tell the channels apart?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import LogAxis, count, percent, short
from onnxprune.report.sections.head import Head, base
from onnxprune.report.sections.histogram import Histogram, histogram

SHOWN = 24
"""Groups that are shown at once; the rest folds out."""

Cell = tuple[str, float | None]
"""A number as text, and how deep its colour is (0 to 1)."""


@dataclass(frozen=True)
class Agreement:
    """Heat maps over the criteria: rank correlations, and choices in common."""

    names: tuple[str, ...]
    correlation: tuple[tuple[Cell, ...], ...]
    """Left of the diagonal inside a group, right of it over the whole network."""
    common: tuple[tuple[Cell, ...], ...]
    groups: int
    ratio: str
    chance: str


@dataclass(frozen=True)
class SpreadView:
    """One criterion: how far its scores spread, and how far they would by chance."""

    criterion: str
    cv: str
    at: float
    chance: str
    at_chance: float | None
    close: str


@dataclass(frozen=True)
class Spreads:
    rows: tuple[SpreadView, ...]
    ticks: tuple[tuple[float, str], ...]
    normal: str


@dataclass(frozen=True)
class GroupScores:
    id: int
    name: str
    channels: int
    first: Histogram | None
    """Of the criterion that is shown without opening the row."""
    cv: str
    close: bool
    scores: tuple[tuple[str, Histogram, str], ...]
    """By criterion: its histogram, and how far it spreads."""


@dataclass(frozen=True)
class GroupsScores:
    criterion: str
    shown: tuple[GroupScores, ...]
    folded: tuple[GroupScores, ...]


def head(report: Mapping[str, Any]) -> Head:
    """The model, and what follows."""
    samples, groups = report.get("samples", 0), report["groups"]
    on = f", with {count(samples, 'calibration sample')}" if samples else ", from the weights alone"
    what = f"{count(len(report['criteria']), 'criterion', 'criteria')} rank the channels of "
    sentence = f"{what}{count(len(groups), 'group')}{on}."
    return Head(base(report["model"]), "", sentence, None, (), tuple(report.get("advice", ())))


def agreement(report: Mapping[str, Any]) -> Agreement | None:
    """The heat maps; None where there is nothing to compare."""
    names: Sequence[str] = report["criteria"]
    if len(names) < 2:
        return None
    layer, network = report["layer"], report["network"]
    size, chance = range(len(names)), report["chance"]
    cells = tuple(
        tuple(_rank((layer if j < i else network)[i][j], i == j) for j in size) for i in size
    )
    common = tuple(
        tuple(_share(v, chance, i == j) for j, v in enumerate(row))
        for i, row in enumerate(report["common"])
    )
    return Agreement(
        tuple(names), cells, common, len(report["groups"]), percent(report["ratio"]),
        percent(chance),
    )  # fmt: skip


def _rank(value: float | None, same: bool) -> Cell:
    """A rank correlation; its square, the share of the variance, is what the colour shows."""
    if value is None or same:
        return "", None
    return f"{value:.2f}", min(1.0, max(0.0, value)) ** 2


def _share(value: float | None, chance: float, same: bool) -> Cell:
    """Choices in common, coloured by how far they go beyond chance."""
    if value is None or same:
        return "", None
    return f"{100 * value:.0f}", min(1.0, max(0.0, (value - chance) / max(1 - chance, 1e-9)))


def spreads(report: Mapping[str, Any]) -> Spreads | None:
    """How far the scores spread, against chance."""
    rows = report["spread"]
    if not rows:
        return None
    values = [v for r in rows for v in (r["cv"], r.get("gaussian")) if v]
    axis = LogAxis.over(values, 1e-3)
    found = tuple(
        SpreadView(
            r["criterion"], short(r["cv"]), axis.at(r["cv"]),
            short(r["gaussian"]) if r.get("gaussian") is not None else "",
            axis.at(r["gaussian"]) if r.get("gaussian") is not None else None,
            f"{r['close']} of {r['groups']}" if r["groups"] else "",
        )
        for r in rows
    )  # fmt: skip
    n = report.get("normality", {"normal": 0, "tested": 0})
    normal = ""
    if n["tested"]:
        share = percent(n["normal"] / n["tested"])
        normal = f"{share} of {n['tested']:,} filters look as if drawn from a normal distribution."
    return Spreads(found, tuple(axis.ticks), normal)


def groups(report: Mapping[str, Any]) -> GroupsScores | None:
    """Every group's scores by every criterion."""
    names = report["criteria"]
    if not report["groups"] or not names:
        return None
    main = "l2" if "l2" in names else names[0]
    rows = tuple(_group(g, names, main) for g in report["groups"])
    return GroupsScores(main, rows[:SHOWN], rows[SHOWN:])


def _group(row: Mapping[str, Any], names: Sequence[str], main: str) -> GroupScores:
    spread = row["spread"]
    found = tuple(
        (name, h, f"spread {short(spread[name]['cv'])}" if name in spread else "")
        for name in names
        if (h := histogram(row["scores"].get(name))) is not None
    )
    mine = spread.get(main, {})
    return GroupScores(
        row["id"], row["name"], row["channels"], histogram(row["scores"].get(main)),
        short(mine["cv"]) if mine else "", bool(mine.get("close")), found,
    )  # fmt: skip
