"""The head of a report on one model: what is gone, and is it right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from onnxprune.report.figures import change, in_bytes, percent
from onnxprune.report.sections.bench import latency_tile
from onnxprune.report.sections.fidelity import metric
from onnxprune.report.sections.head import Head, Tile, base
from onnxprune.report.sections.proof import verdict
from onnxprune.report.text import quantity

_TILES = (
    ("params", "Parameters"), ("macs", "MACs"), ("bytes", "File"), ("channels", "Channels"),
)  # fmt: skip


def head(report: Mapping[str, Any]) -> Head:
    """Which model, what is gone, is it right."""
    before, after = report["before"], report.get("after")
    tiles = [_tile(k, title, before[k], after[k] if after else None) for k, title in _TILES]
    tiles += _quality(report)
    cases = report.get("bench", {}).get("cases", ())
    tiles += [tile for c in cases[:1] if (tile := latency_tile(c, "Speed")) is not None]
    out = base(report.get("out", ""))
    return Head(base(report["model"]), out, sentence(report), verdict(report), tuple(tiles))


def _tile(key: str, title: str, before: int, after: int | None) -> Tile:
    shown = in_bytes if key == "bytes" else quantity
    if after is None:
        return Tile(title, shown(before), "", None)
    small = f"{shown(before)} → {shown(after)}"
    return Tile(title, change(before, after), small, after / max(1, before))


def _quality(report: Mapping[str, Any]) -> Iterator[Tile]:
    """What became of the user's metric, or of the answers."""
    found = report.get("fidelity", {})
    if (m := metric(found)) is not None:
        name, before, after, difference = m
        yield Tile(name, difference, f"{before} → {after}", None)
    for row in found.get("outputs", ())[:1]:
        if row.get("agreement") is not None:
            yield Tile("Same answer", percent(row["agreement"]),
                       f"{found['samples']:,} {found['on']} samples", None)  # fmt: skip


def sentence(report: Mapping[str, Any]) -> str:
    """What happened, in one sentence."""
    removed = report.get("removed")
    free = [g for g in report.get("groups", ()) if not g["fixed_by"]]
    if removed:
        gone = f"{percent(removed['params'])} of the parameters and {percent(removed['macs'])}"
        failed = not report.get("verify", {}).get("passed", True)
        return f"{gone} of the MACs {'would be' if failed else 'are'} gone."
    if report.get("options"):
        return "Nothing was removed."
    channels = sum(g["channels"] for g in free)
    return f"{channels:,} channels in {len(free):,} groups may go."
