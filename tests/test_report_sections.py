"""Sections and pages that the runs of other commands bring: fidelity, search, bench, studies."""

import json
from pathlib import Path
from typing import Any

import pytest

from onnxprune import pipeline
from onnxprune.bench import data as benching
from onnxprune.errors import UsageError
from onnxprune.report.figures import MINUS, TIMES, LinearAxis
from onnxprune.report.html import render
from onnxprune.report.markdown import render as markdown
from onnxprune.report.sections.bench import benchmark
from onnxprune.report.sections.criteria import agreement
from onnxprune.report.sections.fidelity import fidelity
from onnxprune.report.sections.search import search
from onnxprune.report.sections.sensitivity import curves
from onnxprune.report.write import write
from onnxprune.study.criteria import study_criteria
from onnxprune.study.sensitivity import study_sensitivity
from tests.conftest import ROOT
from tests.page import Outline, asked, opened

DIGITS = ROOT / "models" / "digits_resnet.onnx"
Report = dict[str, Any]


@pytest.fixture(scope="module")
def slim_report() -> Report:
    return json.loads(json.dumps(pipeline.slim(DIGITS, ratio=0.5).report.to_json()))


# ---- fidelity and search ------------------------------------------------------------------------

FIDELITY = {
    "on": "held-out", "samples": 64,
    "outputs": [{"output": "logits", "snr_db": 24.31, "agreement": 0.984, "kl": 0.0034},
                {"output": "boxes", "snr_db": None, "agreement": None, "kl": None}],
    "metric": {"name": "top-1", "before": 0.9931, "after": 0.9876},
}  # fmt: skip
DROP = {
    "kind": "max_drop", "quantity": "top-1", "limit": 0.01, "original": 0.99, "reached": 0.985,
    "trials": [{"macs": 0.5, "score": 0.988, "drop": 0.002, "accepted": True},
               {"macs": 0.1, "score": 0.7, "drop": 0.29, "accepted": False},
               {"macs": 0.3, "score": 0.985, "drop": 0.005, "accepted": True}],
}  # fmt: skip
LATENCY = {
    "kind": "latency", "quantity": "latency", "provider": "cpu", "original": 60.0, "limit": 30.0,
    "reached": 29.0, "widths": {"align": 8, "layers": []},
    "trials": [{"macs": 0.1, "ms": 9.0, "share": 0.15, "low": 0.14, "high": 0.17, "accepted": True},
               {"macs": 0.4, "ms": 33.0, "share": 0.55, "low": 0.5, "high": 0.6,
                "accepted": False}],
}  # fmt: skip
TARGET = {"kind": "target", "quantity": "macs", "original": 7_600_000, "limit": 3_800_000,
          "reached": 3_790_000}  # fmt: skip


def test_fidelity_is_told(slim_report: Report) -> None:
    report = {**slim_report, "fidelity": FIDELITY}
    outline = Outline.of(render(report))
    tiles = [" ".join(e.text.split()) for e in outline.all("div", class_="tile")]
    assert f"top-1 {MINUS}0.0055 0.9931 → 0.9876" in tiles
    assert "Same answer 98.4 % 64 held-out samples" in tiles
    (section,) = (e for e in outline.all("section") if e.attrs["id"] == "fidelity")
    assert "24.3 dB" in section.text
    assert "24.3 dB" in markdown(report)
    assert "**0.9876** after" in markdown(report)


def test_a_metric_alone(slim_report: Report) -> None:
    found = fidelity({"fidelity": {"metric": FIDELITY["metric"]}})
    assert found is not None
    assert found.outputs == ()
    only = {**slim_report, "fidelity": {"metric": FIDELITY["metric"]}}
    assert "0.9931 before" in Outline.of(render(only)).text
    assert fidelity(slim_report) is None


def test_a_bisection_is_drawn_and_listed(slim_report: Report) -> None:
    found = search({"search": DROP})
    assert found is not None
    assert found.met
    assert found.plane is not None
    assert found.plane.level is not None
    original, *trials = found.plane.points
    assert original.tone == "origin"
    assert original.y > found.plane.level[0]
    for point, trial in zip(trials, DROP["trials"], strict=True):
        assert point.x == pytest.approx(100 * trial["macs"])
        assert (point.y >= found.plane.level[0]) == trial["accepted"] == (point.tone == "good")
    report = {**slim_report, "search": DROP}
    assert "top-1 may fall by 0.01 from 0.99" in Outline.of(render(report)).text
    assert "3 trials" in markdown(report)


def test_times_have_their_spread() -> None:
    found = search({"search": LATENCY})
    assert found is not None
    assert found.align == 8
    assert found.plane is not None
    for point in found.plane.points[1:]:
        assert point.low is not None
        assert point.high is not None
        assert point.low < point.y < point.high
    assert found.bars[1] == ("allowed", "30 ms", 0.5)
    assert "at most 30 ms" in found.sentence


def test_a_target_is_three_bars(slim_report: Report) -> None:
    found = search({"search": TARGET})
    assert found is not None
    assert [b[0] for b in found.bars] == ["original", "allowed", "reached"]
    assert found.plane is None
    assert "49.9 % of the original" in Outline.of(render({**slim_report, "search": TARGET})).text


@pytest.mark.parametrize("kind", [DROP, TARGET, LATENCY])
def test_a_target_out_of_reach_is_said(slim_report: Report, kind: Report) -> None:
    missed = {k: v for k, v in kind.items() if k != "reached"} | {"smallest": kind["original"]}
    found = search({"search": missed})
    assert found is not None
    assert not found.met
    assert "can be had" in found.sentence or "stays within" in found.sentence
    report = {k: v for k, v in slim_report.items() if k not in ("after", "removed", "verify")}
    assert Outline.of(render({**report, "search": missed})).wrong == []
    assert "Nothing was removed." in markdown({**report, "search": missed})


def test_alignment_without_a_search(slim_report: Report) -> None:
    report = {**slim_report, "search": {"widths": {"align": 16, "layers": []}}}
    assert "multiples of 16" in Outline.of(render(report)).text
    assert search({"search": {"widths": {}}}) is None


def test_the_models_that_alignment_timed(slim_report: Report) -> None:
    models = [{"multiple": 1, "yields": True, "work": 0.28, "ms": 3.4},
              {"multiple": 16, "yields": True, "work": 0.29, "ms": 3.1},
              {"multiple": 16, "yields": False, "work": 0.31, "ms": 2.9}]  # fmt: skip
    widths = {"align": 16, "layers": [], "models": models}
    found = search({"search": {"widths": widths}})
    assert found is not None
    assert [w[0] for w in found.widths] == [
        "any width", "multiples of 16, finer in narrow groups", "multiples of 16"
    ]  # fmt: skip
    assert found.widths[0][1:] == ("28.0 %", "3.4 ms", 1.0)
    report = {**slim_report, "search": {"widths": widths}}
    page = Outline.of(render(report))
    assert page.wrong == []
    assert "none is clearly faster" in page.text
    assert "3.4 ms" in page.text
    assert "multiples of 16, finer in narrow groups" in markdown(report)


# ---- bench --------------------------------------------------------------------------------------


def times(median: float) -> benching.Times:
    return benching.Times(median, 0.9 * median, 1.1 * median, 1.5 * median, 0.8 * median, 400, 4)


def row(model: str, median: float, macs: int) -> benching.Row:
    return benching.Row(
        model, times(median), 1000 / median, 35.0, macs, 120_000_000, None,
        {"CPUExecutionProvider": 9}, {}, 0.01,
    )  # fmt: skip


@pytest.fixture(scope="module")
def benched() -> Report:
    models = ("a.onnx", "a.slim.onnx")
    speedup = benching.Speedup(models[1], 2.5, 2.4, 2.6, True, 3.9)
    layer = benching.LayerRow(
        "/conv<1>", "Conv", {models[0]: 4.0, models[1]: 1.0}, {models[0]: 8, models[1]: 2},
        {models[0]: (64, 64), models[1]: (31, 31)}, ("31 is no multiple of 8",),
    )  # fmt: skip
    gone = benching.LayerRow("/gone", "Conv", {models[0]: 1.0}, {models[0]: 8}, {})
    case = benching.Case(
        "cpu", 1, {"x": (1, 3, 8, 8)}, 2, {"graph optimisation": "all"},
        (row(models[0], 10.0, 8), row(models[1], 4.0, 2)), (speedup,), 3.0, 0.2, (layer, gone),
    )  # fmt: skip
    same = benching.Speedup(models[1], 1.0, 0.99, 1.01, False, 3.9)
    other = benching.Case(
        "cuda", None, {"x": (1, 3, 8, 8)}, None, {}, tuple(row(m, 3.0, 8) for m in models),
        (same,), 3.0, None,
    )  # fmt: skip
    sweep = tuple(
        benching.SweepPoint("cpu", 1, r, a, 5, left, 2 + 8 * left, 10.0, speedup)
        for r, left in ((0.25, 0.5), (0.5, 0.25))
        for a in (1, 8)
    )
    report = benching.BenchReport(
        "onnxprune 0", {"cpu": "some", "cores": 2},
        (benching.ModelRow("a.onnx", "/x/a.onnx", 9, 3), benching.ModelRow(models[1], None, 5, 3)),
        (case, other),
        (benching.Missing("tensorrt", None, None, "not installed", False),
         benching.Missing("cuda", 8, "a.onnx", "Conv ran on the CPU", True)),
        sweep,
    )  # fmt: skip
    return json.loads(json.dumps(report.to_json()))


def test_times_are_drawn_to_scale(benched: Report) -> None:
    found = benchmark(benched)
    first = found.cases[0]
    a, b = first.rows
    assert (a.at, a.box, a.whisker) == (66.67, (60, 13.33), (53.33, 46.67))  # of up to 15 ms
    assert b.at == 26.67
    assert (b.speedup, b.interval, b.promised) == (f"2.50 {TIMES}", "2.40 to 2.60", f"3.90 {TIMES}")
    assert found.cases[1].rows[1].speedup == "no change"
    assert any("20.0 % of all cores" in n for n in first.notes)
    assert [x.name for x in first.layers] == ["/conv<1>", "/gone"]
    assert [tone for *_, tone in first.layers[0].times] == [0, 1]
    assert [tone for *_, tone in first.layers[1].times] == [0]  # the colour is the model's
    assert first.layers[0].speedup == f"4.00 {TIMES}"


def test_a_sweep_has_a_line_for_each_alignment(benched: Report) -> None:
    found = benchmark(benched)
    ((title, plane),) = found.sweeps
    assert title == "CPU, batch 1"
    assert len(plane.lines) == 3
    assert len(plane.points) == 4
    assert {p.x for p in plane.points} == {25, 50}


def test_a_benchmark_has_a_page_of_its_own(benched: Report) -> None:
    outline = Outline.of(render(benched))
    assert outline.wrong == []
    assert "a.onnx against a.slim.onnx" in outline.all("h1")[0].text
    assert f"2.50 {TIMES}" in outline.text
    assert "failed CUDA, batch 8, a.onnx: Conv ran on the CPU" in outline.text
    assert "/conv<1>" in outline.text
    text = markdown(benched)
    assert f"**2.50 {TIMES}**" in text
    assert "❌ CUDA, batch 8, a.onnx: Conv ran on the CPU" in text


def test_a_benchmark_inside_a_report(slim_report: Report, benched: Report) -> None:
    inside = {k: v for k, v in benched.items() if k != "schema"}
    report = {**slim_report, "bench": inside}
    outline = Outline.of(render(report))
    assert "bench" in [e.attrs["id"] for e in outline.all("section")]
    tiles = [" ".join(e.text.split()) for e in outline.all("div", class_="tile")]
    assert f"Speed 2.50 {TIMES} 10 ms → 4 ms" in tiles
    assert f"**2.50 {TIMES}**" in markdown(report)


def test_a_benchmark_that_measured_nothing() -> None:
    empty = benching.BenchReport("onnxprune 0", {}, (), (), (
        benching.Missing("cuda", None, None, "no GPU", False),))  # fmt: skip
    outline = Outline.of(render(empty.to_json()))
    assert "CUDA: no GPU" in outline.text


# ---- studies ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def criteria() -> Report:
    a = pipeline.analyze(DIGITS)
    study = study_criteria(a.solution, a.groups, tool="onnxprune 0", model="/x/m.onnx")
    return json.loads(json.dumps(study.to_json()))


@pytest.fixture(scope="module")
def sensitivity() -> Report:
    a = pipeline.analyze(DIGITS)
    study = study_sensitivity(a.solution, a.groups, tool="onnxprune 0", model="/x/m.onnx")
    return json.loads(json.dumps(study.to_json()))


def test_criteria_have_a_heat_map(criteria: Report) -> None:
    outline = Outline.of(render(criteria))
    assert outline.wrong == []
    names = criteria["criteria"]
    correlation, common = outline.all("table", class_="heat")
    for table in (correlation, common):
        assert all(n in table.text for n in names)
    found = agreement(criteria)
    assert found is not None
    assert found.correlation[1][0][0] == f"{criteria['layer'][1][0]:.2f}"
    assert found.correlation[0][1][0] == f"{criteria['network'][0][1]:.2f}"
    assert found.correlation[2][2] == ("", None)
    assert all(line in outline.text for line in criteria["advice"])
    assert len(outline.all("details", class_="group")) == len(criteria["groups"])


def test_criteria_that_never_meet(criteria: Report) -> None:
    holes = [[None] * len(row) for row in criteria["layer"]]
    outline = Outline.of(render({**criteria, "layer": holes, "common": holes}))
    assert outline.wrong == []
    one = {**criteria, "criteria": criteria["criteria"][:1]}
    assert agreement(one) is None


def test_sensitivity_has_curves(sensitivity: Report) -> None:
    outline = Outline.of(render(sensitivity))
    assert outline.wrong == []
    (table,) = outline.all("table", class_="curves")
    found = curves(sensitivity)
    assert found is not None
    assert len(found.rows) == len(sensitivity["groups"])
    for view, group in zip(found.rows, sensitivity["groups"], strict=True):
        assert view.name in table.text
        assert len(view.line.split()) == 1 + len(group["points"])
        shown = [c for c in view.cells if c[0]]
        assert len(shown) == len(group["points"])
        depths = [c[1] for c in shown]
        assert all(0 <= d <= 1 for d in depths if d is not None)


def test_a_ratio_that_removes_nothing_has_no_cell(sensitivity: Report) -> None:
    point = {"ratio": 0.5, "kept": 2, "error": 0.1, "agreement": None, "metric": 0.5}
    group = {"id": 0, "name": "w", "channels": 3, "even": None, "points": [point]}
    found = curves({**sensitivity, "ratios": [0.25, 0.5], "groups": [group], "metric": "top-1"})
    assert found is not None
    (row,) = found.rows
    assert [c[0] for c in row.cells] == ["", "0.1"]
    assert row.cells[1][2] == "2 channels kept, top-1 0.5"


def test_studies_have_no_markdown(criteria: Report, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no Markdown"):
        write(criteria, tmp_path / "c.md")
    assert not (tmp_path / "c.md").exists()


def test_browsers_open_them(
    tmp_path: Path, slim_report: Report, benched: Report, criteria: Report, sensitivity: Report
) -> None:
    inside = {k: v for k, v in benched.items() if k != "schema"}
    full = {**slim_report, "fidelity": FIDELITY, "search": LATENCY, "bench": inside}
    pages = {"full": full, "bench": benched, "criteria": criteria, "sensitivity": sensitivity}
    for name, report in pages.items():
        page = tmp_path / f"{name}.html"
        page.write_text(render(report), encoding="utf-8")
        assert opened(page).console == ()


def test_they_fit_a_phone(
    tmp_path: Path, slim_report: Report, benched: Report, criteria: Report, sensitivity: Report
) -> None:
    inside = {k: v for k, v in benched.items() if k != "schema"}
    full = {**slim_report, "fidelity": FIDELITY, "search": LATENCY, "bench": inside}
    script = """
    page.querySelectorAll("details").forEach((d) => { d.open = true; });
    return [page.documentElement.scrollWidth, page.documentElement.clientWidth];
    """
    for report in (full, criteria, sensitivity):
        shown = asked(render(report), tmp_path, 390, script)
        needed, there = json.loads(Outline.of(shown.dom).all("output")[0].text)
        assert needed <= there


# ---- axes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "low", "high", "labels"),
    [
        ([0.0, 1.0], 0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        ([0.0, 93.0], 0, 100, ["0", "20", "40", "60", "80", "100"]),
        ([0.951, 0.993], 0.95, 1.0, ["0.95", "0.96", "0.97", "0.98", "0.99", "1"]),
        ([5.0, 5.0], 5, 6, ["5", "6"]),
        ([0.0, 0.0], 0, 1, ["0", "1"]),
        ([], 0, 1, ["0", "1"]),
    ],
)
def test_linear_axes(values: list[float], low: float, high: float, labels: list[str]) -> None:
    axis = LinearAxis.over(values)
    assert (axis.low, axis.high) == pytest.approx((low, high))
    assert [text for _, text in axis.ticks] == labels or len(values) < 2 or values[0] == values[1]
    assert len(axis.ticks) <= 8
    assert axis.ticks[0][0] == 0
    assert axis.ticks[-1][0] == 100
    assert [axis.at(v) for v in (low - 9, high + 9, float("nan"))] == [0, 100, 0]
