"""Groups of channels that go together: how many stay, by which scores, and who is in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.sections.histogram import Histogram, histogram

SHOWN = 24
"""Groups that are shown at once; the rest folds out."""


@dataclass(frozen=True)
class GroupView:
    id: int
    name: str
    channels: int
    kept: int
    why: str
    """Why it was left alone; empty if it was not."""
    creates: int
    contracts: int
    """How many weights create the channels, and how many read them."""
    histogram: Histogram | None
    runs: tuple[tuple[int, int], ...]
    """Runs (start, length) of channels that stay, where the report knows which."""
    members: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    """What is done with the channels, and by which axes of which weights."""


@dataclass(frozen=True)
class Groups:
    shown: tuple[GroupView, ...]
    folded: tuple[GroupView, ...]
    slim: bool
    criterion: str


def groups(report: Mapping[str, Any]) -> Groups | None:
    """All groups that could shrink, in the order of the network."""
    kept = report.get("pictures", {}).get("kept", {})
    rows = tuple(
        _group(g, kept.get(str(g["id"]), ""))
        for g in report.get("groups", ())
        if not any(m["role"] == "fixed" for m in g["members"])
    )
    if not rows:
        return None
    place = {layer["weight"]: i for i, layer in reversed([*enumerate(report.get("layers", ()))])}
    last = len(place)
    first = {
        g.id: min((place.get(w, last) for _, axes in g.members for w, _ in axes), default=last)
        for g in rows
    }
    rows = tuple(sorted(rows, key=lambda g: first[g.id]))
    criterion = report.get("options", {}).get("criterion", "")
    return Groups(rows[:SHOWN], rows[SHOWN:], "after" in report, criterion)


_ROLES = (("creates", "Created by"), ("contracts", "Read by"), ("follows", "Along with them"))


def _with(members: Sequence[Mapping[str, Any]], role: str) -> tuple[tuple[str, int], ...]:
    return tuple((m["tensor"], m["axis"]) for m in members if m["role"] == role)


def _group(row: Mapping[str, Any], bits: str) -> GroupView:
    return GroupView(
        row["id"], row["name"], row["channels"], row["kept"], row["fixed_by"],
        len(dict(_with(row["members"], "creates"))),
        len(dict(_with(row["members"], "contracts"))),
        histogram(row.get("scores")),
        runs(bits, row["channels"]) if bits else (),
        tuple((title, found) for role, title in _ROLES if (found := _with(row["members"], role))),
    )  # fmt: skip


def runs(bits: str, channels: int) -> tuple[tuple[int, int], ...]:
    """Runs (start, length) of ones in a bit string as `onnxprune.pictures` writes it."""
    flags = "".join(f"{byte:08b}" for byte in bytes.fromhex(bits))[:channels]
    found, start = [], 0
    for k in range(1, len(flags) + 1):
        if k == len(flags) or flags[k] != flags[start]:
            if flags[start] == "1":
                found.append((start, k - start))
            start = k
    return tuple(found)
