"""Is it faster: times with their spread, layer by layer, and over a sweep of ratios."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import TIMES, LinearAxis, count, in_bytes, percent, seconds, shape
from onnxprune.report.sections.head import Head, Tile, base
from onnxprune.report.sections.plane import Line, Plane, Point, polyline
from onnxprune.report.text import quantity

LAYERS = 24
"""Layers that are shown at once, those that took longest; the rest folds out."""


@dataclass(frozen=True)
class Time:
    """One model in one case; places in percent of the axis."""

    model: str
    median: str
    at: float
    box: tuple[float, float]
    """Where the middle half of all times begins, and how wide it is."""
    whisker: tuple[float, float]
    """From the fastest to the 95th percentile."""
    spread: str
    speedup: str
    interval: str
    promised: str
    per_second: str
    opening: str
    host: str
    device: str
    elsewhere: str


@dataclass(frozen=True)
class LayerTime:
    name: str
    op: str
    times: tuple[tuple[str, str, float, int], ...]
    """By model: its name, its time, its share of the longest (percent), and its colour."""
    speedup: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    title: str
    shapes: str
    options: str
    rows: tuple[Time, ...]
    ticks: tuple[tuple[float, str], ...]
    layers: tuple[LayerTime, ...]
    models: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Bench:
    cases: tuple[Case, ...]
    missing: tuple[tuple[str, str, bool], ...]
    """What could not be measured, why, and whether a check failed."""
    sweeps: tuple[tuple[str, Plane], ...]
    machine: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]
    shown: int = LAYERS


def bench(report: Mapping[str, Any]) -> Bench | None:
    """The benchmark inside a report; None where nothing was timed."""
    return benchmark(report["bench"]) if report.get("bench") else None


def benchmark(found: Mapping[str, Any]) -> Bench:
    """A benchmark."""
    return Bench(
        tuple(_case(c) for c in found.get("cases", ())),
        tuple((_where(m), m["why"], m.get("failed", False)) for m in found.get("missing", ())),
        _sweeps(found.get("sweep", ())),
        tuple((k.replace("_", " "), str(v)) for k, v in found.get("machine", {}).items()),
        tuple(found.get("notes", ())),
    )


def head(report: Mapping[str, Any]) -> Head:
    """Which models, and how much faster."""
    models = [base(m["name"]) for m in report.get("models", ())]
    cases = report.get("cases", ())
    tiles = [tile for case in cases[:4] if (tile := latency_tile(case, _title(case))) is not None]
    what = f"{count(len(models), 'model')} in {count(len(cases), 'case')}."
    return Head(" against ".join(models) or "Benchmark", "", what, None, tuple(tiles))


def latency_tile(case: Mapping[str, Any], title: str) -> Tile | None:
    """The speed-up of the last model of a case over the first, or the time of the only one."""
    rows, speedups = case.get("rows", ()), case.get("speedups", ())
    if not rows:
        return None
    first, last = rows[0]["ms"]["median"], rows[-1]["ms"]["median"]
    if not speedups:
        return Tile(title, seconds(first / 1000), "", None)
    small = f"{seconds(first / 1000)} → {seconds(last / 1000)}"
    return Tile(title, _times(speedups[-1]), small, min(1.0, last / max(first, 1e-12)))


def _times(s: Mapping[str, Any]) -> str:
    return f"{s['ratio']:.2f} {TIMES}" if s["measurable"] else "no change"


def _title(case: Mapping[str, Any]) -> str:
    batch = case.get("batch")
    return f"{case['provider'].upper()}{'' if batch is None else f', batch {batch}'}"


def _where(m: Mapping[str, Any]) -> str:
    parts = [m["provider"].upper(), f"batch {m['batch']}" if m.get("batch") else "",
             base(m["model"]) if m.get("model") else ""]  # fmt: skip
    return ", ".join(p for p in parts if p)


def _case(case: Mapping[str, Any]) -> Case:
    rows = case.get("rows", ())
    # Rare stragglers must not squeeze everything else into a corner.
    axis = LinearAxis.over([0.0, *(min(r["ms"]["p95"], 2 * r["ms"]["p75"]) for r in rows)])
    speedups = {s["model"]: s for s in case.get("speedups", ())}
    threads = case.get("threads")
    title = _title(case) + ("" if threads is None else f", {count(threads, 'thread')}")
    models = tuple(r["model"] for r in rows)
    shapes = ", ".join(f"{k}: {shape(v)}" for k, v in case.get("shapes", {}).items())
    options = ", ".join(f"{k} {v}" for k, v in case.get("options", {}).items())
    busy = case.get("busy")
    notes = [*case.get("notes", ())]
    if busy is not None and busy >= 0.05:
        notes.append(f"other programs took {percent(busy)} of all cores meanwhile")
    return Case(
        title, shapes, options, tuple(_time(r, speedups.get(r["model"]), axis) for r in rows),
        tuple(axis.ticks), _layers(case.get("layers", ()), models), models, tuple(notes),
    )  # fmt: skip


def _time(row: Mapping[str, Any], s: Mapping[str, Any] | None, axis: LinearAxis) -> Time:
    ms = row["ms"]
    low, high, least, most = (axis.at(ms[k]) for k in ("p25", "p75", "min", "p95"))
    return Time(
        row["model"], seconds(ms["median"] / 1000), axis.at(ms["median"]),
        (low, round(high - low, 2)), (least, round(most - least, 2)),
        f"half of {ms['rounds']:,} runs within {ms['p25']:.4g} to {ms['p75']:.4g} ms, "
        f"95 % under {ms['p95']:.4g} ms",
        "" if s is None else _times(s),
        "" if s is None else f"{s['low']:.2f} to {s['high']:.2f}",
        f"{s['promised']:.2f} {TIMES}" if s is not None and s.get("promised") else "",
        quantity(row["per_second"]), seconds(row["opening_ms"] / 1000),
        in_bytes(row["host_bytes"]) if row.get("host_bytes") is not None else "",
        in_bytes(row["device_bytes"]) if row.get("device_bytes") is not None else "",
        ", ".join(f"{n}\N{MULTIPLICATION SIGN} {op}" for op, n in row.get("elsewhere", {}).items()),
    )  # fmt: skip


def _layers(rows: Sequence[Mapping[str, Any]], models: Sequence[str]) -> tuple[LayerTime, ...]:
    """The layers that took longest first."""
    longest = max((t for r in rows for t in r["ms"].values()), default=0) or 1
    found = []
    for r in sorted(rows, key=lambda r: -max(r["ms"].values(), default=0)):
        times = tuple(
            (m, seconds(r["ms"][m] / 1000), round(100 * r["ms"][m] / longest, 2),
             min(k, 3) if len(models) > 1 else 1)
            for k, m in enumerate(models)
            if m in r["ms"]
        )  # fmt: skip
        ends = [r["ms"].get(m) for m in (models[0], models[-1])] if len(models) > 1 else []
        ratio = f"{ends[0] / ends[1]:.2f} {TIMES}" if ends and ends[0] and ends[1] else ""
        found.append(LayerTime(r["name"], r["op"], times, ratio, tuple(r.get("why", ()))))
    return tuple(found)


def _sweeps(points: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, Plane], ...]:
    """Time against work, a plane for each provider and batch, a line for each alignment."""
    by_case: dict[str, list[Mapping[str, Any]]] = {}
    for p in points:
        if p.get("macs_left") is not None:
            by_case.setdefault(_title(p), []).append(p)
    return tuple((title, _sweep(mine)) for title, mine in by_case.items())


def _sweep(points: Sequence[Mapping[str, Any]]) -> Plane:
    left = {id(p): p["median_ms"] / p["original_ms"] for p in points}
    x, y = LinearAxis.over([0.0, 1.0]), LinearAxis.over([0.0, 1.0, *left.values()])
    lines = [Line("what MACs promise", "promise", polyline([0, 1], [0, 1], x, y))]
    dots = []
    aligns = sorted({p["align"] for p in points})
    for k, align in enumerate(aligns):
        mine = sorted((p for p in points if p["align"] == align), key=lambda p: p["macs_left"])
        tone = f"t{k % 4}"
        xs, ys = [p["macs_left"] for p in mine], [left[id(p)] for p in mine]
        lines.append(Line(f"kept counts a multiple of {align}", tone, polyline(xs, ys, x, y)))
        dots += [
            Point(x.at(a), y.at(b), tone, f"align {align}: {percent(a)} of the MACs take "
                  f"{percent(b)} of the time")
            for a, b in zip(xs, ys, strict=True)
        ]  # fmt: skip
    ticks = tuple((x.at(k / 4), f"{25 * k} %") for k in range(5))
    heights = tuple((at, f"{100 * float(text):g} %") for at, text in y.ticks)
    return Plane("MACs left", "time left", ticks, heights, tuple(dots), tuple(lines))
