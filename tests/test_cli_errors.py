"""How commands end that can't do what they are asked to: exit codes 1 to 4, with the reason."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import numpy_helper

from models.zoo import ZOO
from onnxprune import pipeline
from onnxprune.errors import CheckFailed
from tests.commands import files, onnxprune

# 1: a check failed


def test_a_tampered_model_is_not_proven(net: Path) -> None:
    plan, slim = net.parent / "p.json", net.parent / "net.slim.onnx"
    onnxprune("slim", net, "--ratio", 0.5, "--repair", "none", "--plan-out", plan, "-q")
    proto = onnx.load(slim)
    weight = next(t for t in proto.graph.initializer if t.name == "conv_3.weight")
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[::-1], weight.name))
    onnx.save(proto, slim)
    ended = onnxprune("verify", net, slim, "--plan", plan)
    assert ended.code == 1
    assert ended.out.startswith("NOT PROVEN: ")
    verdict = json.loads(onnxprune("verify", net, slim, "--plan", plan, "--json").out)
    assert verdict["passed"] is False


def test_a_model_that_does_not_run_is_unproven(net: Path) -> None:
    proto = onnx.load(net)
    proto.graph.node[-1].domain = "elsewhere"
    proto.opset_import.append(onnx.helper.make_opsetid("elsewhere", 1))
    onnx.save(proto, net)
    ended = onnxprune("slim", net, "--ratio", 0.5)
    assert ended.code == 1
    assert "unproven" in ended.err
    assert "try: --no-verify" in ended.err
    assert files(net) == {"net.onnx"}
    assert onnxprune("slim", net, "--ratio", 0.5, "--no-verify").code == 0


def test_a_failed_proof_keeps_the_old_output_and_writes_the_report(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report = net.parent / "net.slim.onnx", net.parent / "r.json"
    out.write_bytes(b"old")
    result = pipeline.slim(net, ratio=0.5)

    def wrong(*_: object, **__: object) -> None:
        error = CheckFailed("the slim model is not the original", where="Conv_3")
        error.report = result.report
        raise error

    monkeypatch.setattr(pipeline, "slim", wrong)
    ended = onnxprune("slim", net, "--ratio", 0.5, "--report", report, "--json")
    assert ended.code == 1
    assert "where: Conv_3" in ended.err
    assert json.loads(ended.out) == json.loads(report.read_text())
    assert out.read_bytes() == b"old"


# 2: usage


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("", "how much should go?"),
        ("--ratio 0.5 --threshold 1", "exclude each other"),
        ("--ratio 0.5 --dead", "exclude each other"),
        ("--ratio 1", "from 0 to below 1"),
        ("--ratio -0.1", "from 0 to below 1"),
        ("--ratio half", "not a valid float"),
        ("--ratio 0.5 --bogus", "No such option"),
        ("--ratio 0.5 --include (", "no regular expression"),
        ("--ratio 0.5 --exclude [", "no regular expression"),
        ("--ratio 0.5 --criterion l3", "no criterion 'l3'"),
        ("--ratio 0.5 --scope both", "--scope"),
        ("--ratio 0.5 --heads some", "--heads"),
        ("--ratio 0.5 --align 0", "at least 1"),
        ("--ratio 0.5 --min-channels 0", "at least 1"),
        ("--ratio 0.5 --max-ratio 1", "from 0 to below 1"),
        ("--ratio 0.5 --shape 1x3x16x16", "is not NAME:SIZE"),
        ("--ratio 0.5 --shape y:1x3x16x16", "no input 'y'"),
        ("--ratio 0.5 --shape x:1x3", "can't have this shape"),
        ("--ratio 0.5 --shape x:1x4x16x16", "the model says Nx3x16x16"),
        ("--ratio 0.5 --dim N", "is not SYMBOL=SIZE"),
        ("--ratio 0.5 --dim N=0", "is not SYMBOL=SIZE"),
        ("--ratio 0.5 --dim M=2", "no symbolic axis 'M'"),
        ("--ratio 0.5 --report r.pdf", "unknown kind of report"),
        ("--ratio 0.5 --report none/r.json", "folder does not exist"),
        ("--ratio 0.5 --plan-out none/p.json", "folder does not exist"),
        ("--ratio 0.5 --plan-out net.onnx", "it is the model too"),
        ("--ratio 0.5 --plan-out net.slim.onnx", "it is the slim model too"),
        ("--ratio 0.5 --plan-out p.json --report p.json", "one name"),
        ("--ratio 0.5 -o none/out.onnx", "folder does not exist"),
        ("--per-layer list.yaml", "must be a mapping"),
        ("--per-layer ratio.yaml", "from 0 to below 1"),
        ("--per-layer regex.yaml", "no regular expression"),
    ],
)
def test_usage(net: Path, monkeypatch: pytest.MonkeyPatch, args: str, said: str) -> None:
    monkeypatch.chdir(net.parent)
    for name, text in (("list", "- 0.5"), ("ratio", "conv: 2"), ("regex", "'(': 0.5")):
        Path(f"{name}.yaml").write_text(text)
    before = {f: f.read_bytes() for f in net.parent.iterdir()}
    ended = onnxprune("slim", "net.onnx", *args.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert "Traceback" not in ended.err
    assert {f: f.read_bytes() for f in net.parent.iterdir()} == before


def test_the_model_s_own_data_file_is_no_output(tmp_path: Path) -> None:
    onnx.save(ZOO["mlp"](0), tmp_path / "m.onnx", save_as_external_data=True,
              location="m.data", size_threshold=0)  # fmt: skip
    before = (tmp_path / "m.data").read_bytes()
    ended = onnxprune("slim", tmp_path / "m.onnx", "--ratio", 0.5, "-o", tmp_path / "m.data")
    assert ended.code == 2
    assert "would replace its source" in ended.err
    assert (tmp_path / "m.data").read_bytes() == before


def test_an_unknown_name_suggests_close_ones(net: Path) -> None:
    ended = onnxprune("explain", net, "conv_0.weigth")
    assert ended.code == 2
    assert "did you mean conv_0.weight" in ended.err


def test_an_unknown_command(net: Path) -> None:
    assert onnxprune("prune", net).code == 2


# 3: what can't be read


def test_a_broken_file_says_what_where_why_and_what_to_try(net: Path) -> None:
    net.write_bytes(net.read_bytes()[: net.stat().st_size // 2])
    ended = onnxprune("slim", net, "--ratio", 0.5)
    assert (ended.code, ended.out) == (3, "")
    assert ended.err.splitlines() == [
        "error: not an ONNX model",
        f"  where: {net}",
        "  why: it begins like one and ends too soon or is damaged: fetch or export it again",
    ]


@pytest.mark.parametrize("command", ["slim", "inspect", "explain", "apply", "verify"])
def test_a_file_that_is_not_there(net: Path, command: str) -> None:
    plan, none = net.parent / "p.json", net.parent / "none.onnx"
    onnxprune("slim", net, "--ratio", 0.5, "--plan-out", plan, "-q")
    args = {
        "slim": (none, "--ratio", 0.5),
        "inspect": (none,),
        "explain": (none, "x"),
        "apply": (plan, none, "-o", net.parent / "out.onnx"),
        "verify": (net, none, "--plan", plan),
    }
    ended = onnxprune(command, *args[command])
    assert (ended.code, ended.out) == (3, "")
    assert ended.err == f"error: no such file\n  where: {none}\n"


@pytest.mark.parametrize("option", ["--scores", "--per-layer"])
def test_a_table_that_is_not_there(net: Path, option: str) -> None:
    ended = onnxprune("slim", net, "--ratio", 0.5, option, net.parent / "none")
    assert ended.code == 3
    assert f"where: {net.parent / 'none'}" in ended.err


def test_a_plan_is_for_one_model(net: Path, fixed: Path) -> None:
    plan, out = net.parent / "p.json", net.parent / "out.onnx"
    onnxprune("slim", net, "--ratio", 0.5, "--plan-out", plan, "-q")
    ended = onnxprune("apply", plan, fixed, "-o", out)
    assert ended.code == 3
    assert "the plan is for another model" in ended.err
    plan.write_text(plan.read_text().replace('"kept": [', '"kept": [9999, ', 1))
    assert onnxprune("apply", plan, net, "-o", out).code == 3
    plan.write_text("{")
    ended = onnxprune("apply", plan, net, "-o", out)
    assert ended.code == 3
    assert "the plan is not JSON" in ended.err
    assert not out.exists()


# 4: nothing to prune


@pytest.mark.parametrize("how", ["--ratio 0.5", "--dead"])
def test_nothing_to_prune_still_reports_why(fixed: Path, how: str) -> None:
    report = fixed.parent / "r.json"
    ended = onnxprune("slim", fixed, *how.split(), "--report", report)
    assert (ended.code, ended.out) == (4, "")
    assert files(fixed) == {"fixed.onnx", "r.json"}
    data = json.loads(report.read_text())
    assert "after" not in data or data["after"]["params"] == data["before"]["params"]
    assert any("one scale per block" in g["fixed_by"] for g in data["groups"])


def test_what_rounds_to_nothing(net: Path) -> None:
    ended = onnxprune("slim", net, "--ratio", 0.01)
    assert ended.code == 4
    assert "rounds to none" in ended.err
    assert "try: a higher --ratio" in ended.err
    assert files(net) == {"net.onnx"}
