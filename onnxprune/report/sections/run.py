"""How the run was asked for, how long it took, and what it noted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import seconds


@dataclass(frozen=True)
class Run:
    tool: str
    model: str
    out: str
    options: tuple[tuple[str, str], ...]
    timings: tuple[tuple[str, str, float], ...]
    """Stage, duration, and its share of the longest (percent)."""
    notes: tuple[str, ...]


def run(report: Mapping[str, Any]) -> Run:
    """Options, timings, notes."""
    options = tuple((k.replace("_", "-"), _text(v)) for k, v in report.get("options", {}).items())
    times = report.get("timings", {})
    most = max(times.values(), default=0) or 1
    return Run(
        report["tool"], report.get("model", ""), report.get("out", ""), options,
        tuple((k, seconds(s), round(100 * s / most, 1)) for k, s in times.items()),
        tuple(report.get("notes", ())),
    )  # fmt: skip


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(str(v) for v in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
