"""The HTML report: one well-made file, whatever the run was like and whatever names there are."""

import base64
import hashlib
import io
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from models.builder import G
from onnxprune import pipeline
from onnxprune.errors import NothingToPrune
from onnxprune.report.figures import LogAxis, change, in_bytes, seconds, short
from onnxprune.report.html import PAGES, render
from onnxprune.report.sections.groups import groups, runs
from onnxprune.report.sections.network import network
from onnxprune.report.sections.proof import verdict
from onnxprune.report.sections.stayed import stayed
from onnxprune.report.write import SCHEMAS
from tests.conftest import ROOT
from tests.page import Outline, asked, opened

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7*7 }}"
DIGITS = ROOT / "models" / "digits_resnet.onnx"
Report = dict[str, Any]


@pytest.fixture(scope="module")
def slim_report() -> Report:
    """A run with everything that needs no data, as the command line writes it."""
    result = pipeline.slim(DIGITS, ratio=0.5)
    report = pipeline.with_pictures(pipeline.with_out(result.report, Path("o.onnx")), result)
    data = report.to_json()
    data["repair"] = {
        "kind": "linear", "batches": 4,
        "layers": [{"node": "Conv_1", "before": 0.02, "after": 0.001},
                   {"node": "Conv_2", "before": 0.0, "after": 0.0}],
    }  # fmt: skip
    return json.loads(json.dumps(data))


@pytest.fixture(scope="module")
def inspected() -> Report:
    return json.loads(json.dumps(pipeline.describe(pipeline.analyze(DIGITS)).to_json()))


@pytest.fixture(scope="module")
def unchanged() -> Report:
    with pytest.raises(NothingToPrune) as caught:
        pipeline.slim(DIGITS, ratio=0.001)
    return json.loads(json.dumps(caught.value.report.to_json()))  # type: ignore[union-attr]


def failed(report: Report) -> Report:
    """The same run, had the proof found a difference."""
    verify = {**report["verify"], "passed": False, "max_rel_err": 0.3, "first_bad": "/layer3/add"}
    return {**report, "verify": verify}


def sections(outline: Outline) -> list[str]:
    return [e.attrs["id"] for e in outline.all("section")]


# ---- structure ----------------------------------------------------------------------------------


@pytest.fixture(params=["slim", "failed", "inspected", "unchanged"])
def any_report(
    request: pytest.FixtureRequest, slim_report: Report, inspected: Report, unchanged: Report
) -> Report:
    found = {"slim": slim_report, "failed": failed(slim_report),
             "inspected": inspected, "unchanged": unchanged}  # fmt: skip
    return found[request.param]


def test_the_page_is_well_formed_and_alone(any_report: Report) -> None:
    outline = Outline.of(render(any_report))
    assert outline.wrong == []
    ids = [e.attrs["id"] for e in outline.elements if "id" in e.attrs]
    assert len(ids) == len(set(ids))
    links = [e.attrs[k] for e in outline.elements for k in ("href", "src") if k in e.attrs]
    assert links
    assert all(x.startswith(("#", "data:")) for x in links)
    assert {x[1:] for x in links if x.startswith("#")} <= set(ids)
    assert not outline.all("style")[0].text.count("url(")
    assert "@import" not in outline.all("style")[0].text


def test_the_page_is_accessible(any_report: Report) -> None:
    outline = Outline.of(render(any_report))
    assert outline.all("html")[0].attrs["lang"] == "en"
    assert outline.all("meta", name="viewport")
    assert len(outline.all("h1")) == 1
    levels = [int(e.tag[1]) for e in outline.elements if re.fullmatch(r"h[1-6]", e.tag)]
    assert all(b - a <= 1 for a, b in pairwise(levels))
    for e in outline.elements:
        if e.tag == "svg":
            named = e.attrs.get("role") == "img" and e.attrs.get("aria-label")
            assert named or e.attrs.get("aria-hidden") == "true"
        if e.tag == "img":
            assert e.attrs["alt"]
        if e.tag in ("figure", "div") and "tabindex" in e.attrs:
            assert e.attrs.get("aria-label")
            assert e.attrs.get("role")
        if e.tag == "input":
            assert "label" in e.inside
        if e.tag == "section":
            assert e.attrs["aria-labelledby"]
        if e.tag == "details":
            assert e.text.strip()


def test_only_our_script_may_run(slim_report: Report) -> None:
    html = render(slim_report)
    outline = Outline.of(html)
    (policy,) = (
        e.attrs["content"] for e in outline.all("meta", http_equiv="Content-Security-Policy")
    )
    assert "default-src 'none'" in policy
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    seal = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{seal}'" in policy
    assert not [k for e in outline.elements for k in e.attrs if k.startswith("on")]


def test_every_schema_that_can_be_read_has_a_page() -> None:
    assert set(SCHEMAS) == set(PAGES)


# ---- what it says -------------------------------------------------------------------------------


def test_before_and_after(slim_report: Report) -> None:
    outline = Outline.of(render(slim_report))
    tiles = [" ".join(e.text.split()) for e in outline.all("div", class_="tile")]
    assert len(tiles) == 4
    removed = slim_report["removed"]
    assert f"{100 * removed['params']:.1f} %" in tiles[0]
    assert change(slim_report["before"]["macs"], slim_report["after"]["macs"]) in tiles[1]
    assert "Proven" in outline.text
    assert outline.all("title")[0].text.startswith("digits_resnet.onnx")


def test_sections_of_each_kind_of_run(
    slim_report: Report, inspected: Report, unchanged: Report
) -> None:
    every = ["network", "groups", "pictures", "stayed", "proof", "repair", "run"]
    assert sections(Outline.of(render(slim_report))) == every
    assert sections(Outline.of(render(inspected))) == ["network", "groups", "stayed", "run"]
    assert sections(Outline.of(render(unchanged))) == ["network", "groups", "stayed", "run"]


def test_a_run_that_removed_nothing_says_so(unchanged: Report, inspected: Report) -> None:
    assert "Nothing was removed." in Outline.of(render(unchanged)).text
    assert "336 channels in 6 groups may go." in Outline.of(render(inspected)).text


def test_a_failed_proof_is_not_dressed_up(slim_report: Report) -> None:
    text = Outline.of(render(failed(slim_report))).text
    assert "/layer3/add" in text
    assert "No model was written" in text
    assert "would be gone" in text
    assert "Proven" not in text


@pytest.mark.parametrize(
    ("verify", "tone", "word"),
    [
        ({"vacuous": True}, "warn", "Not shown"),
        ({"passed": False}, "bad", "Wrong"),
        ({"inputs": []}, "good", "Proven"),
        ({}, "good", "Proven"),
    ],
)
def test_verdicts(slim_report: Report, verify: Report, tone: str, word: str) -> None:
    found = verdict({**slim_report, "verify": {**slim_report["verify"], **verify}})
    assert found is not None
    assert (found.tone, found.word) == (tone, word)


def test_a_skipped_proof_is_named(slim_report: Report, inspected: Report) -> None:
    skipped = verdict({k: v for k, v in slim_report.items() if k != "verify"})
    assert skipped is not None
    assert skipped.tone == "warn"
    assert verdict(inspected) is None


OPTIONAL = ("out", "after", "groups", "layers", "options", "sizes", "timings", "verify", "repair",
            "removed", "pictures", "notes", "unknown")  # fmt: skip


@pytest.mark.parametrize("key", OPTIONAL)
def test_any_key_that_may_be_absent_may_be(slim_report: Report, key: str) -> None:
    gone = {key, "removed"} if key == "after" else {key}
    outline = Outline.of(render({k: v for k, v in slim_report.items() if k not in gone}))
    assert outline.wrong == []
    assert outline.all("h1")


def test_the_least_that_a_report_can_be(slim_report: Report) -> None:
    least = {k: slim_report[k] for k in ("schema", "tool", "model", "before")}
    assert sections(Outline.of(render(least))) == ["run"]


# ---- names --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hostile() -> Report:
    """A model whose every name is an attack."""
    g = G(0)
    y = g.gap(g.conv(g.relu(g.conv(g.input("x", [1, 3, 8, 8]), 8, 3)), 8, 3))
    model = g.model(out=y)
    renamed = {t.name: f"{HOSTILE}{k}" for k, t in enumerate(model.graph.initializer)}
    for t in model.graph.initializer:
        t.name = renamed[t.name]
    for k, n in enumerate(model.graph.node):
        n.name = f"{HOSTILE} node {k}"
        n.input[:] = [renamed.get(i, i) for i in n.input]
    result = pipeline.slim(model, ratio=0.5)
    report = pipeline.with_pictures(result.report, result).to_json()
    report["model"] = f"/somewhere/{HOSTILE.replace('/', '')}.onnx"
    report["notes"] = [HOSTILE]
    report["unknown"] = {HOSTILE: 2}
    return json.loads(json.dumps(report))


def test_hostile_names_are_text(hostile: Report) -> None:
    html = render(hostile)
    outline = Outline.of(html)
    assert outline.wrong == []
    assert len(outline.all("script")) == 1
    assert not outline.all("img", src="x")
    assert html.count("</script>") == 1
    body = outline.all("body")[0].text
    assert f"{HOSTILE} node 0" in body
    assert HOSTILE in [e.text for e in outline.all("li")]


def test_long_names_keep_their_tails() -> None:
    name = "model.encoder." + "layer." * 30 + "attention.output.dense.weight"
    g = G(0)
    model = g.model(out=g.gap(g.conv(g.relu(g.conv(g.input("x", [1, 3, 8, 8]), 8, 3)), 8, 3)))
    old = model.graph.initializer[0].name
    model.graph.initializer[0].name = name
    for n in model.graph.node:
        n.input[:] = [name if i == old else i for i in n.input]
    outline = Outline.of(render(pipeline.slim(model, ratio=0.5, verify=False).report.to_json()))
    shown = [e for e in outline.all("span", class_="name") if e.attrs["title"] == name]
    assert shown
    assert all(e.text == name for e in shown)  # whole for search, copy and screen readers


# ---- views --------------------------------------------------------------------------------------


def test_the_network_is_all_layers_in_order(slim_report: Report) -> None:
    found = network(slim_report)
    assert found is not None
    assert [x.name for x in found.layers] == [r["name"] for r in slim_report["layers"]]
    first, last = found.layers[0], found.layers[-1]
    assert (first.width, first.width_after, first.fixed) == (48, 24, False)
    assert (last.width, last.width_after, last.fixed) == (10, 10, True)
    assert first.kept == pytest.approx(first.tall / 2, abs=0.01)
    assert max(x.tall for x in found.layers) == 100
    assert max(x.work for x in found.layers) == 100


def test_ties_are_the_layers_of_a_group(slim_report: Report) -> None:
    found = network(slim_report)
    assert found is not None
    weights = [r["weight"] for r in slim_report["layers"]]
    by_id = {g["id"]: g for g in slim_report["groups"]}
    assert len(found.ties) == 6
    for tie in found.ties:
        members = by_id[tie.group]["members"]
        made = {m["tensor"] for m in members if m["role"] == "creates"}
        assert {weights[i] for i in tie.creates} == made
        assert tie.first == min(tie.creates + tie.contracts)
    residual = max(found.ties, key=lambda t: len(t.creates))
    assert len(residual.creates) > 2


def test_histograms_are_cut_where_the_scores_were(slim_report: Report) -> None:
    found = groups(slim_report)
    assert found is not None
    by_name = {g["name"]: g["scores"] for g in slim_report["groups"] if g.get("scores")}
    for g in (*found.shown, *found.folded):
        h, scores = g.histogram, by_name[g.name]
        assert h is not None
        assert h.cut is not None
        low, high = scores["edges"][0], scores["edges"][-1]
        assert h.cut == pytest.approx(100 * (scores["cut"] - low) / (high - low), abs=0.01)
        assert all(x + w <= h.cut + 0.02 for x, w, _ in h.gone)
        assert all(x >= h.cut - 0.02 for x, _, _ in h.kept)
        assert max(t for *_, t in (*h.gone, *h.kept)) == 100


@pytest.mark.parametrize(
    "scores",
    [
        {"edges": [1.0, 1.0], "counts": [7]},
        {"edges": [0.0, 0.5, 1.0], "counts": [3, 4], "cut": 0.0},
        {"edges": [0.0, 0.5, 1.0], "counts": [3, 4], "cut": 1.0},
        {"edges": [0.0, 0.5, 1.0], "counts": [0, 4]},
        {"edges": [], "counts": []},
        {},
    ],
)
def test_odd_histograms_are_drawn(slim_report: Report, scores: Report) -> None:
    first = {**slim_report["groups"][0], "scores": scores}
    outline = Outline.of(render({**slim_report, "groups": [first]}))
    assert outline.wrong == []
    assert "NaN" not in outline.text


def test_runs_of_kept_channels() -> None:
    flags = [True, True, False, True, False, False, False, False, True, True]
    bits = np.packbits(flags).tobytes().hex()
    assert runs(bits, len(flags)) == ((0, 2), (3, 1), (8, 2))
    assert runs("ff", 5) == ((0, 5),)
    assert runs("00", 8) == ()


def test_reasons_name_who_says_so() -> None:
    row = {"id": 1, "name": "w", "channels": 64, "kept": 64, "members": [],
           "fixed_by": "LayerNormalization mixes this axis (/norm1); it is an output"}  # fmt: skip
    found = stayed({"groups": [row, {**row, "name": "v"}], "unknown": {"Odd: no rule": 3}})
    assert found is not None
    (reason,) = found.reasons
    assert (reason.why, reason.channels) == ("LayerNormalization mixes this axis", 128)
    assert reason.axes == (("w", 64, "/norm1"), ("v", 64, "/norm1"))
    assert found.unknown == (("Odd: no rule", 3),)
    assert stayed({"groups": []}) is None


def test_pictures_are_images_of_the_right_size(slim_report: Report) -> None:
    outline = Outline.of(render(slim_report))
    images = outline.all("img")
    assert len(images) == 2 + len(slim_report["pictures"]["maps"])
    for e in images:
        kind, data = e.attrs["src"].split(",")
        assert kind == "data:image/png;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as image:
            assert image.mode in ("RGBA", "P", "LA")
            assert int(e.attrs["width"]) % image.width == 0


# ---- numbers ------------------------------------------------------------------------------------


def test_numbers_for_people() -> None:
    assert [short(x) for x in (0, 0.0434, 3.1e-7, 1e-4, 12.34, float("nan"))] == [
        "0", "0.0434", "3.1e-7", "1e-4", "12.3", "nan",
    ]  # fmt: skip
    assert [in_bytes(n) for n in (12, 915_900, 102_500_000)] == ["12 B", "915.9 kB", "102.5 MB"]
    assert [seconds(s) for s in (0.031, 2.4, 180)] == ["31 ms", "2.4 s", "3 min"]
    assert change(100, 25) == "\N{MINUS SIGN}75.0 %"


def test_logarithmic_axes() -> None:
    axis = LogAxis.over([3e-5, 0.02])
    assert (axis.low, axis.high) == (-5, -1)
    assert axis.at(1e-3) == 50
    assert [axis.at(x) for x in (0, 1e-9, 5, float("inf"), float("nan"))] == [0, 0, 100, 100, 0]
    assert axis.ticks[0] == (0, "1e-5")
    assert len(LogAxis.over([1e-12, 1e9]).ticks) <= 7
    assert LogAxis.over([]).span == 1
    assert LogAxis.over([0.0, 0.0]).span >= 1


# ---- size and the browser -----------------------------------------------------------------------


def deep(layers: int) -> onnx.ModelProto:
    """A residual network of so many convolutions."""
    g = G(0)
    x = g.conv(g.input("x", [1, 3, 16, 16]), 16, 3)
    for _ in range(layers // 2):
        x = g.op("Add", x, g.conv(g.relu(g.conv(x, 32, 1)), 16, 1))
    return g.model(out=g.gemm(g.flatten(g.gap(x)), 10))


@pytest.fixture(scope="module")
def deep_report() -> Report:
    result = pipeline.slim(deep(200), ratio=0.5, verify=False)
    return pipeline.with_pictures(result.report, result).to_json()


def test_two_hundred_layers_stay_small(deep_report: Report) -> None:
    html = render(deep_report)
    assert len(deep_report["layers"]) > 200
    assert len(html.encode()) < 3_000_000
    outline = Outline.of(html)
    assert outline.wrong == []
    (table,) = outline.all("table", class_="layers")
    assert table.text.count("Conv") >= 200
    assert len(outline.all("details", class_="group")) == len(
        [g for g in deep_report["groups"] if not g["fixed_by"]]
    )


def test_the_browser_check_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<!doctype html><p>x<script>missing()</script>")
    assert any("missing is not defined" in line for line in opened(page).console)


def test_browsers_open_it_without_a_word(
    tmp_path: Path, slim_report: Report, hostile: Report, deep_report: Report
) -> None:
    for name, report in (("slim", slim_report), ("hostile", hostile), ("deep", deep_report)):
        page = tmp_path / f"{name}.html"
        page.write_text(render(report), encoding="utf-8")
        shown = opened(page)
        assert shown.console == ()
        assert Outline.of(shown.dom).all("html")[0].attrs["class"] == "js"  # our script ran


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen(
    tmp_path: Path, slim_report: Report, hostile: Report, width: int
) -> None:
    for report in (slim_report, hostile):
        script = """
        page.querySelectorAll("details").forEach((d) => { d.open = true; });
        return [page.documentElement.scrollWidth, page.documentElement.clientWidth];
        """
        shown = asked(render(report), tmp_path, width, script)
        assert shown.console == ()
        needed, there = json.loads(Outline.of(shown.dom).all("output")[0].text)
        assert needed <= there


def test_layers_can_be_read_with_the_keyboard(tmp_path: Path, slim_report: Report) -> None:
    script = """
    const press = (key) => page.querySelector(".network").dispatchEvent(
      new frame.contentWindow.KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
    const say = () => page.querySelector(".readout").textContent;
    const said = [say()];
    for (const key of ["ArrowRight", "ArrowRight", "End", "ArrowRight", "Home"]) {
      press(key);
      said.push(say());
    }
    return said;
    """
    shown = asked(render(slim_report), tmp_path, 800, script)
    said = json.loads(Outline.of(shown.dom).all("output")[0].text)
    names = [r["name"] for r in slim_report["layers"]]
    assert "arrow keys" in said[0]
    assert [s.split()[0] for s in said[1:]] == [names[0], names[1], names[-1], names[-1], names[0]]
    assert "24 \N{MULTIPLICATION SIGN} 1" in said[1]


def test_weights_can_be_found(tmp_path: Path, deep_report: Report) -> None:
    wanted = next(g for g in reversed(deep_report["groups"]) if not g["fixed_by"])["members"][0]
    script = f"""
    const field = page.querySelector("#filter");
    field.value = {json.dumps(wanted["tensor"].upper())};
    field.dispatchEvent(new frame.contentWindow.Event("input"));
    return [...page.querySelectorAll(".group:not([hidden])")].map((g) => g.textContent);
    """
    shown = asked(render(deep_report), tmp_path, 800, script)
    found = json.loads(Outline.of(shown.dom).all("output")[0].text)
    assert 0 < len(found) < 10
    assert all(wanted["tensor"] in text for text in found)
