"""How a target was met: what was tried, and where the limit lay."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import LinearAxis, in_bytes, percent, short
from onnxprune.report.sections.plane import Plane, Point
from onnxprune.report.text import quantity

_TITLES = {"macs": "MACs", "params": "parameters", "bytes": "file size", "latency": "latency"}


@dataclass(frozen=True)
class Search:
    """`bars`: what, how much, and the share of the original."""

    sentence: str
    met: bool
    bars: tuple[tuple[str, str, float], ...]
    plane: Plane | None
    trials: tuple[tuple[str, str, str, bool], ...]
    """Share of the MACs, what was measured, its spread or drop, and whether it is within."""
    align: int | None
    """The multiple that `--align auto` found to be fastest here."""
    widths: tuple[tuple[str, str, str, float], ...] = ()
    """Slim models that it timed: multiple, share of the MACs, time, and that over the slowest's."""


def search(report: Mapping[str, Any]) -> Search | None:
    """What was asked for, and what was found."""
    found = report.get("search")
    if not found:
        return None
    align = found.get("widths", {}).get("align")
    widths = _widths(found.get("widths", {}).get("models", ()))
    if "kind" not in found:
        return Search("", True, (), None, (), align, widths) if align else None
    drop = found["kind"] == "max_drop"
    return Search(
        _drop_sentence(found) if drop else _sentence(found), "reached" in found,
        () if drop else _bars(found), _plane(found) if found.get("trials") else None,
        tuple(_trial(t) for t in found.get("trials", ())), align, widths,
    )  # fmt: skip


def _widths(models: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str, str, float], ...]:
    slowest = max((m["ms"] for m in models), default=1.0)
    return tuple(
        (_widths_of(m["multiple"], m["yields"]), percent(m["work"]), f"{m['ms']:.4g} ms",
         m["ms"] / slowest)
        for m in models
    )  # fmt: skip


def _widths_of(multiple: int, yields: bool) -> str:
    if multiple == 1:
        return "any width"
    return f"multiples of {multiple}{', finer in narrow groups' if yields else ''}"


def _amount(found: Mapping[str, Any], value: float) -> str:
    if found["quantity"] == "latency":
        return f"{value:.4g} ms"
    return in_bytes(value) if found["quantity"] == "bytes" else quantity(value)


def _sentence(found: Mapping[str, Any]) -> str:
    title, limit = _TITLES.get(found["quantity"], found["quantity"]), found["limit"]
    asked = f"The {title} may be at most {_amount(found, limit)}"
    if "reached" not in found:
        least = f"; the smallest that can be had is {_amount(found, found['smallest'])}"
        return f"{asked}{least if 'smallest' in found else ', which was not reached'}."
    left = percent(found["reached"] / (found["original"] or 1))
    return f"{asked}, and came to {_amount(found, found['reached'])}, {left} of the original."


def _drop_sentence(found: Mapping[str, Any]) -> str:
    name = found["quantity"]
    asked = f"{name} may fall by {short(found['limit'])} from {found['original']:.4g}"
    if "reached" not in found:
        return f"{asked}; nothing that was tried stays within."
    return f"{asked}; the slimmest model that stays within has {found['reached']:.4g}."


def _bars(found: Mapping[str, Any]) -> tuple[tuple[str, str, float], ...]:
    original = found["original"] or 1
    rows = (("original", "original"), ("limit", "allowed"), ("reached", "reached"),
            ("smallest", "smallest"))  # fmt: skip
    return tuple(
        (title, _amount(found, found[key]), min(1.0, found[key] / original))
        for key, title in rows
        if key in found
    )


def _trial(t: Mapping[str, Any]) -> tuple[str, str, str, bool]:
    if "ms" in t:
        spread = f"{percent(t['low'])} to {percent(t['high'])} of the original"
        return percent(t["macs"]), f"{t['ms']:.4g} ms", spread, t["accepted"]
    return percent(t["macs"]), f"{t['score']:.4g}", f"drop {short(t['drop'])}", t["accepted"]


def _plane(found: Mapping[str, Any]) -> Plane:
    original, trials = found["original"], found["trials"]
    timed = "ms" in trials[0]
    value = "ms" if timed else "score"
    limit = found["limit"] if timed else original - found["limit"]
    values = [*(t[value] for t in trials), original, limit]
    if timed:
        values += [0.0, *(t[end] * original for t in trials for end in ("low", "high"))]
    x, y = LinearAxis.over([0.0, 1.0]), LinearAxis.over(values)
    points = [Point(x.at(1), y.at(original), "origin", f"original {short(original)}")]
    for t in trials:
        low, high = (y.at(t[e] * original) if timed else None for e in ("low", "high"))
        label = f"{percent(t['macs'])} of the MACs: {t[value]:.4g}"
        tone = "good" if t["accepted"] else "bad"
        points.append(Point(x.at(t["macs"]), y.at(t[value]), tone, label, low, high))
    ticks = tuple((x.at(k / 4), f"{25 * k} %") for k in range(5))
    return Plane(
        "MACs left", "milliseconds" if timed else found["quantity"], ticks, tuple(y.ticks),
        tuple(points), level=(y.at(limit), "allowed"),
    )  # fmt: skip
