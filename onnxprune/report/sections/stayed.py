"""What can't go, and who says so."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reason:
    why: str
    channels: int
    axes: tuple[tuple[str, int, str], ...]
    """Weight, channels, and the node that says so."""


@dataclass(frozen=True)
class Stayed:
    reasons: tuple[Reason, ...]
    unknown: tuple[tuple[str, int], ...]
    """Operators without a rule, with how often."""


def stayed(report: Mapping[str, Any]) -> Stayed | None:
    """Reasons, the most channels first; None where everything may go."""
    by_why: dict[str, list[tuple[str, int, str]]] = {}
    for g in report.get("groups", ()):
        if g["fixed_by"]:
            why, node = split(g["fixed_by"])
            by_why.setdefault(why, []).append((g["name"], g["channels"], node))
    unknown = tuple(report.get("unknown", {}).items())
    if not by_why and not unknown:
        return None
    reasons = [Reason(w, sum(n for _, n, _ in axes), tuple(axes)) for w, axes in by_why.items()]
    return Stayed(tuple(sorted(reasons, key=lambda r: -r.channels)), unknown)


def split(fixed_by: str) -> tuple[str, str]:
    """'LayerNormalization mixes this axis (/norm1)' -> the reason, and who says so."""
    why, _, node = fixed_by.split("; ")[0].partition(" (")
    return why, node.removesuffix(")")
