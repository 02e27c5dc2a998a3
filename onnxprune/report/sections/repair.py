"""The repair: each layer's error before and after it was refitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import LogAxis, change, short

SHOWN = 30
"""Layers that are shown at once; the rest folds out."""


@dataclass(frozen=True)
class Refit:
    """Held-out errors of one layer, and where they lie on the axis (percent)."""

    node: str
    before: str
    after: str
    at_before: float
    at_after: float
    change: str
    better: bool


@dataclass(frozen=True)
class Repair:
    kind: str
    batches: int
    better: int
    rows: tuple[Refit, ...]
    ticks: tuple[tuple[float, str], ...]
    shown: int = SHOWN


def repair(report: Mapping[str, Any]) -> Repair | None:
    """The refitted layers in order."""
    found = report.get("repair")
    if not found or not found.get("layers"):
        return None
    layers = found["layers"]
    axis = LogAxis.over([x for r in layers for x in (r["before"], r["after"])])
    rows = tuple(
        Refit(
            r["node"], short(r["before"]), short(r["after"]), axis.at(r["before"]),
            axis.at(r["after"]), change(r["before"], r["after"]), r["after"] < r["before"],
        )
        for r in layers
    )  # fmt: skip
    better = sum(r.better for r in rows)
    return Repair(found["kind"], found.get("batches", 0), better, rows, tuple(axis.ticks))
