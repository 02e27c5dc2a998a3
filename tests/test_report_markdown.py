"""The Markdown report, as GitHub's dialect reads it."""

import json
from typing import Any

import pytest
from markdown_it import MarkdownIt

from onnxprune import pipeline
from onnxprune.report.markdown import LONGEST, code, prose, render, table
from tests.conftest import ROOT
from tests.page import Outline

DIGITS = ROOT / "models" / "digits_resnet.onnx"
HOSTILE = "a|b`c``</details><script>alert(1)</script>*_[x](http://y)\n# z"
Report = dict[str, Any]


@pytest.fixture(scope="module")
def report() -> Report:
    return json.loads(json.dumps(pipeline.slim(DIGITS, ratio=0.5, repair="none").report.to_json()))


def outline(text: str) -> Outline:
    """As a reader that takes HTML in Markdown for HTML."""
    html = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    return Outline.of(f"<body>{html}</body>")


def test_what_changed_is_a_table(report: Report) -> None:
    first = outline(render(report)).all("table")[0]
    text = " ".join(first.text.split())
    assert "before after change" in text
    assert "channels 336 168" in text
    assert outline(render(report)).all("h3")[0].text == "digits_resnet.onnx"


def test_proof_and_what_stayed(report: Report) -> None:
    found = outline(render(report))
    assert "Proven." in found.text
    assert "10 channels in 1 weight axis: it is an output of the model" in found.text


def test_details_fold(report: Report) -> None:
    found = outline(render(report))
    assert [e.text for e in found.all("summary")] == [
        "6 groups of channels",
        "11 layers",
        "Options",
    ]
    assert found.wrong == []
    folded = [e for e in found.all("table") if "details" in e.inside]
    assert len(folded) == 3
    layers = " ".join(folded[1].text.split())
    assert all(r["name"] in layers for r in report["layers"])


def test_a_repair_is_told(report: Report) -> None:
    layers = [{"node": "Conv_1", "before": 0.02, "after": 0.001},
              {"node": "Conv_2", "before": 0.02, "after": 0.02}]  # fmt: skip
    text = outline(render({**report, "repair": {"kind": "linear", "layers": layers}})).text
    assert "1 of 2 layers were refitted" in text


def test_a_failed_proof(report: Report) -> None:
    verify = {**report["verify"], "passed": False, "first_bad": HOSTILE}
    found = outline(render({**report, "verify": verify}))
    assert "Wrong." in found.text
    assert found.all("script") == []


def test_without_a_slim_model() -> None:
    report = pipeline.describe(pipeline.analyze(DIGITS)).to_json()
    text = outline(render(report)).text
    assert "336 channels in 6 groups may go." in text
    assert "Proven" not in text


def test_the_least_that_a_report_can_be(report: Report) -> None:
    least = {k: report[k] for k in ("schema", "tool", "model", "before")}
    assert outline(render(least)).all("table")


def test_hostile_names_are_text(report: Report) -> None:
    def renamed(rows: list[Report]) -> list[Report]:
        return [{**r, "name": HOSTILE, "op": HOSTILE, "fixed_by": r.get("fixed_by") and HOSTILE}
                for r in rows]  # fmt: skip

    hostile = {
        **report, "model": HOSTILE.replace("/", ""), "notes": [HOSTILE], "unknown": {HOSTILE: 1},
        "groups": renamed(report["groups"]), "layers": renamed(report["layers"]),
        "options": {"include": [HOSTILE]},
    }  # fmt: skip
    found = outline(render(hostile))
    assert found.wrong == []
    assert {e.tag for e in found.elements} <= {
        "body", "h3", "p", "table", "thead", "tbody", "tr", "th", "td", "code", "strong",
        "details", "summary", "ul", "li",
    }  # fmt: skip
    rows = MarkdownIt("commonmark").enable("table").parse(render(hostile).split("</summary>")[1])
    opened = [t.type for t in rows if t.type in ("tr_open", "th_open", "td_open")]
    assert len(opened) == 5 * opened.count("tr_open") == 5 * 7
    assert " ".join(HOSTILE.split()) in found.text


@pytest.mark.parametrize(
    "name", ["plain", "a`b", "`", "``a", "a``", "a|b", " spaced  out ", "x\ny"]
)
def test_code_spans_hold_any_name(name: str) -> None:
    (found,) = outline(code(name)).all("code")
    assert found.text == " ".join(name.split())


def test_prose_has_no_markup() -> None:
    found = outline(prose(HOSTILE))
    assert [e.tag for e in found.elements] == ["body", "p"]
    assert found.text == " ".join(HOSTILE.split())


def test_long_tables_end() -> None:
    text = table(("a", "n"), ((str(k), "1") for k in range(LONGEST + 7)))
    assert text.endswith("and 7 more")
    assert text.count("\n") < LONGEST + 6
