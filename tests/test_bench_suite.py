"""The suite behind the README: its networks, its verdicts, its figure. No test looks at times."""

import json
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from bench import compare, figure, metered, suite
from bench.isolated import Outcome
from bench.networks import NETWORKS
from bench.rows import OURS, Row, read
from models.builder import G
from models.zoo import ZOO
from onnxprune.axes.analyse import facts_of
from onnxprune.bench.settings import Settings
from onnxprune.cost.cost import cost_before
from onnxprune.cost.work import sizes_at_one
from onnxprune.errors import Unreadable, UsageError
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise
from onnxprune.report.figures import TIMES
from onnxprune.runtime.machine import describe
from onnxprune.runtime.session import open_session

KNOWN = {
    "resnet18": (11.69, 1.814), "resnet50": (25.56, 4.089), "vgg16": (138.36, 15.47),
    "mobilenet_v2": (3.505, 0.301), "mobilenet_v3_large": (5.483, 0.217),
    "efficientnet_b0": (5.289, 0.386), "densenet121": (7.979, 2.834), "vit_small": (22.05, 4.6),
    "bert": (22.4, 1.434), "unet": (7.77, 12.07), "yolo": (3.157, 4.37), "lstm": (3.79, 0.485),
}  # fmt: skip
"""Millions of parameters and 10^9 multiply-accumulates, as torchvision and the papers count them
(MiniLM's words, U-Net's and the LSTM's by hand): running statistics of norms are not among them.
"""

MACHINE: dict[str, str | int] = {
    "cpu": "a processor",
    "cores": 2,
    "onnxruntime": "1.31.1 (onnxruntime)",
}
ROW = Row(
    "resnet18", "align 1", "cpu", 1, MACHINE, "0.1.0", params=11_000_000, params_removed=0.7,
    macs=1_800_000_000, macs_removed=0.72, promised=3.5, speedup=2.8, low=2.7, high=2.9,
    measurable=True, ms=10.0, original_ms=28.0, seconds=2.0, cpu_seconds=1.8,
    peak_bytes=200_000_000,
)  # fmt: skip


@pytest.fixture
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights are made in the graph, as in onnx's light models: counts do not depend on values."""

    half = np.full(1, 0.5, np.float32)

    def weight(
        g: G, *shape: int, std: float | None = None, mean: float = 0.0, name: str | None = None
    ) -> str:
        return g.op("ConstantOfShape", shape, value=onnx.numpy_helper.from_array(half))

    monkeypatch.setattr(G, "weight", weight)


def written(path: Path, *rows: Row) -> Path:
    path.write_text("".join(row.to_json() + "\n" for row in rows), encoding="utf-8")
    return path


# ---- the networks -------------------------------------------------------------------------------


@pytest.mark.usefixtures("light")
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_as_large_as_it_is_known_to_be(name: str) -> None:
    # `model` has them pass onnx.checker with full shape inference.
    facts = facts_of(normalise(load(NETWORKS[name].model())))
    cost = cost_before(facts, sizes_at_one(facts))
    params, macs = KNOWN[name]
    assert cost.params / 1e6 == pytest.approx(params, rel=0.015)
    assert cost.macs / 1e9 == pytest.approx(macs, rel=0.01)
    assert not facts.unknown


def test_every_network_is_known_and_has_a_title() -> None:
    assert set(KNOWN) == set(NETWORKS) == set(figure.TITLES)


@pytest.mark.parametrize(
    ("name", "shape"), [("mobilenet_v3_large", (2, 1000)), ("lstm", (2, 128, 62))]
)
def test_a_network_runs_at_any_batch(name: str, shape: Sequence[int]) -> None:
    net = NETWORKS[name]
    x = np.random.default_rng(0).standard_normal((2, *net.input), np.float32)
    with open_session(net.model()) as session:
        y = session.run({"x": x})["y"]
    assert y.shape == shape
    assert np.isfinite(y).all()
    assert y.std() > 0


def test_a_network_in_half_precision() -> None:
    model = NETWORKS["mobilenet_v2"].model(np.float16)
    types = {t.data_type for t in model.graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert onnx.TensorProto.FLOAT not in types
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


# ---- the suite ----------------------------------------------------------------------------------


def test_targets() -> None:
    found = list(suite.targets(["unet"], [], ["cpu", "cuda"], ()))
    assert [(t.name, t.provider, t.batches) for t in found] == [
        ("unet", "cpu", (1,)), ("unet", "cuda", (1, 16)), ("unet-fp16", "cuda", (1, 16)),
    ]  # fmt: skip
    assert found[-1].dtype is np.float16
    (asked,) = suite.targets(["unet"], [], ["cpu"], (3,))
    assert asked.batches == (3,)


def test_a_file_is_measured_at_its_own_batch(tmp_path: Path) -> None:
    g = G(0)
    fixed = g.model(y=g.relu(g.conv(g.input("x", (5, 3, 8, 8)), 8)))
    onnx.save(fixed, tmp_path / "fixed.onnx")
    onnx.save(ZOO["resnet"](0), tmp_path / "open.onnx")
    files = [tmp_path / "fixed.onnx", tmp_path / "open.onnx"]
    found = list(suite.targets([], files, ["cpu"], ()))
    assert [t.batches for t in found] == [(5,), (1,)]
    assert found[0].name == f"{tmp_path.name}/fixed"


def test_a_run_from_end_to_end(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both alignments, and what lies beside the file as Torch-Pruning's; nothing is run twice."""
    out = tmp_path / "results" / "suite.jsonl"
    onnx.save(onnx.load(net), net.with_suffix(suite.THEIRS))
    args = ["suite", str(net), "--peers", "--provider", "cpu", "--duration", "0.05", "--out",
            str(out)]  # fmt: skip
    monkeypatch.setattr("sys.argv", args)
    monkeypatch.setattr(suite, "has_onnxsim", lambda: False)
    suite.main()
    rows = list(read(out).values())
    assert [row.variant for row in rows] == [*OURS, "torch-pruning"]
    one, auto, theirs = rows
    for row in (one, auto):
        assert row.network == f"{tmp_path.name}/net"
        assert (row.provider, row.batch, row.failed) == ("cpu", 1, "")
        assert row.machine["cpu"]
        assert 0.4 < (row.params_removed or 0) < 0.9
        assert row.promised == pytest.approx(1 / (1 - (row.macs_removed or 0)), rel=1e-3)
        assert (row.low or 0) <= (row.speedup or 0) <= (row.high or 0)
        assert (row.cpu_seconds or 0) > 0
        assert (row.peak_bytes or 0) > 10e6
    assert one.align is None
    assert auto.align in (1, 4, 8, 16, 32)
    assert theirs.params_removed == 0
    assert theirs.promised == 1
    assert "onnxsim is not installed" in capsys.readouterr().err

    monkeypatch.setattr(suite, "rows_of", lambda *_: pytest.fail("measured again"))
    suite.main()
    shown = capsys.readouterr().out
    assert "align 1" in shown
    assert "torch-pruning" in shown


def test_what_is_not_known_is_measured() -> None:
    (target,) = suite.targets(["resnet18"], [], ["cpu"], (1, 8))
    here = replace(ROW, machine=describe())
    known = {row.key: row for row in (here, replace(here, variant="align auto"))}
    assert suite.unknown(target, known, OURS) == (8,)
    assert suite.unknown(target, known, (*OURS, "onnxsim")) == (1, 8)
    assert suite.unknown(target, {ROW.key: ROW}, ("align 1",)) == (1, 8)  # another machine's


def test_same_files_are_timed_once(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        onnx.save(ZOO["resnet"](seed), tmp_path / f"{name}.onnx")
    made = [suite.Made(name, tmp_path / f"{name}.onnx") for name in "abc"]
    found = suite.distinct([*made, suite.Made("d", failed="crashed")])
    assert found == {"a": "a", "b": "a", "c": "c"}


def test_what_fails_is_a_row_with_its_reason(fixed: Path) -> None:
    (target,) = suite.targets([], [fixed], ["cpu"], ())
    rows = suite.rows_of(target, Settings(("cpu",), (1,)), False, suite.Limits(120, 12))
    assert [row.variant for row in rows] == [*OURS]
    assert all("nothing" in row.failed.lower() or "error" in row.failed for row in rows)
    assert all(row.speedup is None for row in rows)


@pytest.mark.parametrize("err", ["", "Killed", "error: x\n[1]", '{"cpu": 1}'])
def test_a_process_that_was_ended_has_told_nothing(err: str) -> None:
    assert metered.needs(Outcome(None, "", err, 1.0)) is None


# ---- rows ---------------------------------------------------------------------------------------


def test_a_row_there_and_back(tmp_path: Path) -> None:
    failed = replace(ROW, network="vgg16", low=None, high=None, speedup=None, failed="crashed")
    found = read(written(tmp_path / "rows.jsonl", ROW, failed))
    assert list(found.values()) == [ROW, failed]
    line = json.loads(ROW.to_json())
    assert line["reached"] == 80
    assert "failed" not in line


def test_the_last_line_wins(tmp_path: Path) -> None:
    later = replace(ROW, speedup=3.0, high=3.1)
    assert list(read(written(tmp_path / "rows.jsonl", ROW, later)).values()) == [later]


# ---- two files against each other ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "what", "worse"),
    [
        ({"low": 2.5, "speedup": 2.6, "high": 2.69}, "speed-up", True),
        ({"low": 2.91, "speedup": 3.0, "high": 3.1}, "speed-up", False),
        ({"low": 2.5, "speedup": 2.6, "high": 2.71}, None, False),  # the intervals overlap
        ({"params_removed": 0.6999}, "parameters removed", True),
        ({"params_removed": 0.71}, "parameters removed", False),
        ({"macs_removed": 0.7}, "MACs removed", True),
        ({"cpu_seconds": 2.3}, "tool, CPU seconds", True),
        ({"cpu_seconds": 1.2}, "tool, CPU seconds", False),
        ({"cpu_seconds": 2.1}, None, False),
        ({"peak_bytes": 230_000_000}, "tool, peak memory", True),
        ({"peak_bytes": 215_000_000}, None, False),
        ({"seconds": 20.0}, None, False),  # a busy machine
        ({"failed": "crashed", "low": None, "high": None, "speedup": None}, "result", True),
    ],
)  # fmt: skip
def test_verdicts(change: dict[str, object], what: str | None, worse: bool) -> None:
    new = replace(ROW, **change)  # type: ignore[arg-type]
    found = list(compare.changes(ROW, new))
    assert [(c.what, c.worse) for c in found] == ([] if what is None else [(what, worse)])
    back = list(compare.changes(new, ROW))
    assert [(c.what, c.worse) for c in back] == ([] if what is None else [(what, not worse)])


@pytest.mark.parametrize(("high", "code"), [(2.6, 1), (2.8, 0)])
def test_the_exit_code_says_whether_anything_got_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    high: float, code: int,
) -> None:  # fmt: skip
    peer = replace(ROW, variant="onnxsim")
    old = written(tmp_path / "old.jsonl", ROW, peer, replace(ROW, batch=8))
    slow = replace(ROW, low=high - 0.2, speedup=high - 0.1, high=high)
    new = written(tmp_path / "new.jsonl", slow, replace(peer, low=0.1, high=0.2))
    monkeypatch.setattr("sys.argv", ["compare", str(old), str(new)])
    with pytest.raises(SystemExit) as ended:
        compare.main()
    assert ended.value.code == code
    out = capsys.readouterr().out
    assert f"worse: {1 if code else 'nothing'}" in out
    assert "1 rows compared; 1 only in old.jsonl, 0 only in new.jsonl" in out
    assert "onnxsim" not in out  # a peer that got slower is not our regression


def test_files_without_a_common_row(tmp_path: Path) -> None:
    other = replace(ROW, machine={**MACHINE, "cpu": "another"})
    with pytest.raises(UsageError, match="no row in common") as caught:
        compare.compared(written(tmp_path / "a", ROW), written(tmp_path / "b", other))
    assert "a processor" in str(caught.value)
    assert "another" in str(caught.value)


@pytest.mark.parametrize("line", ["{", "[]", '{"network": "x"}', '{"what": 1}'])
def test_a_file_that_holds_something_else(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{ROW.to_json()}\n{line}\n")
    with pytest.raises(Unreadable, match="not a row of results") as caught:
        read(tmp_path / "a.jsonl")
    assert "a.jsonl:2" in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="can't be read"):
        read(tmp_path / "none.jsonl")


# ---- the figure ---------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def drawn(*rows: Row) -> ET.Element:
    return ET.fromstring(figure.render(figure.figure(figure.chosen(rows, "cpu", 1))))


def of_class(root: ET.Element, name: str) -> list[ET.Element]:
    return [e for e in root.iter() if name in e.get("class", "").split()]


def test_the_figure() -> None:
    auto = replace(ROW, variant="align auto", promised=3.4, speedup=3.2, low=3.1, high=3.3)
    root = drawn(
        ROW, auto, replace(ROW, network="<mine> & yours"), replace(ROW, variant="onnxsim"),
        replace(auto, network="vgg16"), replace(ROW, batch=8), replace(ROW, provider="cuda"),
    )  # fmt: skip
    assert root.tag == f"{SVG}svg"
    assert root.get("role") == "img"
    assert float(root.get("width", "inf")) <= 900
    ids = {e.get("id"): e.text or "" for e in root if e.get("id")}
    assert root.get("aria-labelledby") == "title desc"
    assert "--align 1 2.80 (2.70 to 2.90) of 3.50" in ids["desc"]
    assert "ResNet-18" in ids["desc"]
    names = [e.text for e in of_class(root, "name")]
    assert names == ["ResNet-18", "VGG-16", "<mine> & yours"]
    measured, promised = of_class(root, "measured"), of_class(root, "promised")
    assert len(measured) == len(promised) == len(of_class(root, "spread")) == 4
    ratio = float(measured[0].get("width", 0)) / float(promised[0].get("width", 0))
    assert ratio == pytest.approx(3.2 / 3.4, rel=0.01)
    values = [(e.text or "").split(f" {TIMES}  ") for e in of_class(root, "value")]
    assert values[:2] == [["3.20", "(94 %)"], ["2.80", "(80 %)"]]
    assert "prefers-color-scheme: dark" in (root.findtext(f"{SVG}style") or "")
    assert of_class(root, "card")


def test_nothing_lies_outside_of_the_figure() -> None:
    root = drawn(
        *(replace(ROW, network=n, variant=v, promised=9.6) for n in NETWORKS for v in OURS)
    )
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    for e in root.iter(f"{SVG}rect"):
        right = float(e.get("x", 0)) + float(e.get("width", 0))
        bottom = float(e.get("y", 0)) + float(e.get("height", 0))
        assert 0 < right <= width
        assert 0 < bottom <= height
    for e in root.iter(f"{SVG}text"):
        assert float(e.get("x", "inf")) < width
        assert float(e.get("y", "inf")) < height


def test_the_figure_is_of_one_machine() -> None:
    other = replace(ROW, machine={**MACHINE, "cpu": "another"}, speedup=1.5, low=1.4, high=1.6)
    assert figure.chosen([ROW, other], "cpu", 1) == [other]
    with pytest.raises(UsageError, match="nothing was measured on cuda"):
        figure.chosen([ROW], "cuda", 1)


def test_the_figure_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = written(tmp_path / "rows.jsonl", ROW)
    monkeypatch.setattr("sys.argv", ["figure", str(rows), "-o", str(tmp_path / "speed.svg")])
    figure.main()
    assert ET.parse(tmp_path / "speed.svg").getroot().tag == f"{SVG}svg"
