"""The network as a picture: every layer's width and work, before and after, and who is tied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

from onnxprune.report.figures import change, shape
from onnxprune.report.text import quantity


@dataclass(frozen=True)
class Layer:
    """A node that multiplies. Heights are percent of the chart's height."""

    index: int
    name: str
    op: str
    shape: str
    shape_after: str
    width: int
    width_after: int
    fixed: bool
    """No channel that it creates may go."""
    tall: float
    kept: float
    work: float
    work_after: float
    macs: str
    macs_after: str
    change: str
    groups: tuple[int, ...]
    """Rows of `Network.ties` that its weight belongs to."""


@dataclass(frozen=True)
class Tie:
    """A group as a row: which layers create its channels, which read them."""

    group: int
    name: str
    channels: int
    kept: int
    first: int
    last: int
    creates: tuple[int, ...]
    contracts: tuple[int, ...]


@dataclass(frozen=True)
class Network:
    layers: tuple[Layer, ...]
    ties: tuple[Tie, ...]
    slim: bool
    sizes: str
    widest: int


def network(report: Mapping[str, Any]) -> Network | None:
    """The layers in order, and the groups that tie them; None without a layer."""
    rows, slim = report.get("layers", ()), "after" in report
    if not rows:
        return None
    ties = _ties(report.get("groups", ()), rows)
    mine: dict[int, list[int]] = {}
    created: set[int] = set()
    for k, tie in enumerate(ties):
        for i in dict.fromkeys((*tie.creates, *tie.contracts)):
            mine.setdefault(i, []).append(k)
        created.update(tie.creates)
    widest = max(1, *(r.get("width", 0) for r in rows))
    most = max(1, *(r["macs"] for r in rows))
    layers = tuple(
        _layer(i, r, widest, most, i not in created, tuple(mine.get(i, ())))
        for i, r in enumerate(rows)
    )
    return Network(layers, ties, slim, report.get("sizes", ""), widest)


def _layer(
    i: int, row: Mapping[str, Any], widest: int, most: int, fixed: bool, groups: tuple[int, ...]
) -> Layer:
    width, after = row.get("width", 0), row.get("width_after", 0)
    tall = 100 * sqrt(width / widest)  # narrow layers stay visible beside wide ones
    return Layer(
        i, row["name"], row["op"], shape(row["shape"]), shape(row["shape_after"]), width, after,
        fixed and after == width,
        round(tall, 2), round(tall * after / max(1, width), 2),
        round(100 * row["macs"] / most, 2), round(100 * row["macs_after"] / most, 2),
        quantity(row["macs"]), quantity(row["macs_after"]),
        change(row["macs"], row["macs_after"]), groups,
    )  # fmt: skip


def _ties(
    groups: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]]
) -> tuple[Tie, ...]:
    """Groups whose weights are those of layers, in the order in which they begin."""
    at: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        if row["weight"]:
            at.setdefault(row["weight"], []).append(i)
    ties = []
    for g in groups:
        found: dict[str, set[int]] = {"creates": set(), "contracts": set()}
        for m in g["members"]:
            if m["role"] in found:
                found[m["role"]].update(at.get(m["tensor"], ()))
        both = found["creates"] | found["contracts"]
        if both:
            ties.append(
                Tie(
                    g["id"], g["name"], g["channels"], g["kept"], min(both), max(both),
                    tuple(sorted(found["creates"])), tuple(sorted(found["contracts"])),
                )
            )  # fmt: skip
    return tuple(sorted(ties, key=lambda t: (t.first, t.last, t.group)))
