"""Time a model slimmed by several ratios at several alignments: where MACs become milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from onnx import ModelProto

from onnxprune.bench.case import Tell
from onnxprune.bench.compare import compare
from onnxprune.bench.data import BenchReport, Case, SweepPoint
from onnxprune.bench.settings import Settings
from onnxprune.errors import NothingToPrune
from onnxprune.graph.files import Source, load

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)
ALIGNMENTS = (1, 8, 16, 32)
RATIO_SECONDS = 20.0
"""How long all alignments of one ratio are timed at most, against the original, in turn."""

Slimmed = Callable[[float, int], ModelProto]
"""The model with a ratio of its channels gone at an alignment; raises NothingToPrune."""


def sweep(original: Source, slimmed: Slimmed, settings: Settings, tell: Tell) -> BenchReport:
    """A curve of latency against multiply-accumulates for each alignment.

    All alignments of one ratio are timed in turn with the original, so each point is a ratio of
    its own. Raises as `compare` does, and NothingToPrune where no ratio leaves anything to time.
    """
    duration = settings.duration or (None if settings.runs else RATIO_SECONDS)
    once = replace(settings, duration=duration, memory=False, per_layer=False)
    reports: list[BenchReport] = []
    points: list[SweepPoint] = []
    error: NothingToPrune | None = None
    for k, ratio in enumerate(RATIOS):

        def part(what: str, share: float, k: int = k, ratio: float = ratio) -> None:
            tell(f"ratio {ratio}, {what}", (k + share) / len(RATIOS))

        part("slimming", 0)
        models = {"original": original}
        same: dict[bytes, str] = {}
        names: dict[int, str] = {}
        for align in ALIGNMENTS:
            try:
                model = slimmed(ratio, align)
            except NothingToPrune as e:
                e.report = None  # that of a slimming, not of this benchmark
                error = e
                continue
            # Alignments that come to the same channels are timed once.
            names[align] = same.setdefault(
                model.SerializeToString(deterministic=True), f"align {align}"
            )
            # Weights in external data lie where the original's do.
            models.setdefault(names[align], replace(load(model), folder=original.folder))
        if names:
            reports.append(compare(models, once, part))
            points += [p for case in reports[-1].cases for p in _points(case, ratio, names)]
    if not reports:
        raise error or NothingToPrune("no ratio left anything to time")
    first = reports[0]
    missing = {m: None for report in reports for m in report.missing}
    return replace(
        first, models=first.models[:1], cases=(), missing=tuple(missing), sweep=tuple(points)
    )


def _points(case: Case, ratio: float, names: Mapping[int, str]) -> list[SweepPoint]:
    rows = {row.model: row for row in case.rows}
    speedups = {s.model: s for s in case.speedups}
    original = case.rows[0]
    points = []
    for align, name in names.items():
        row = rows[name]
        left = row.macs / original.macs if row.macs and original.macs else None
        points.append(
            SweepPoint(
                case.provider, case.batch, ratio, align, row.macs, left,
                row.ms.median, original.ms.median, speedups[name],
            )
        )  # fmt: skip
    return points
