"""The command line is a contract: what it writes, what it says, and how it ends."""

import contextlib
import io
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models.zoo import ZOO
from onnxprune import pipeline
from onnxprune.cli.main import COMMANDS, main
from onnxprune.errors import CheckFailed

START = [sys.executable, "-c", "from onnxprune.cli.main import main; main()"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said: data on stdout, talk on stderr."""

    code: int
    out: str
    err: str


def onnxprune(*args: object) -> Ended:
    """Run a command in this process, as in a pipe: neither stream is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in args])
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture
def net(tmp_path: Path) -> Path:
    onnx.save(ZOO["resnet"](0), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    onnx.save(ZOO["int4_blocked"](0), tmp_path / "fixed.onnx")
    return tmp_path / "fixed.onnx"


def files(path: Path) -> set[str]:
    return {f.name for f in path.parent.iterdir()}


# 0: done


def test_slim_says_what_is_gone_and_where_it_is(net: Path) -> None:
    ended = onnxprune("slim", net, "--ratio", 0.5)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    assert lines[1].split() == ["channels", "144", "72", "-50.0", "%"]
    assert [line.split()[0] for line in lines[2:5]] == ["parameters", "MACs", "bytes"]
    assert lines[5] == "MACs at x:1x3x16x16"
    assert "  10 channels in 1 weight axis: it is an output of the model" in lines
    assert lines[-2].startswith("74.0% of the parameters and 72.7% of the MACs are gone; proven:")
    assert lines[-1] == f"wrote {net.parent / 'net.slim.onnx'}"
    assert files(net) == {"net.onnx", "net.slim.onnx"}
    onnx.checker.check_model(net.parent / "net.slim.onnx", full_check=True)


def test_the_output_goes_where_it_is_told(net: Path) -> None:
    before = net.read_bytes()
    assert onnxprune("slim", net, "--ratio", 0.5, "-o", net.parent / "small.onnx", "-q").out == ""
    assert files(net) == {"net.onnx", "small.onnx"}
    assert net.read_bytes() == before
    assert onnxprune("slim", net, "--ratio", 0.5, "-o", net, "-q").code == 0
    assert net.read_bytes() == (net.parent / "small.onnx").read_bytes()


def test_a_dry_run_writes_no_model(net: Path) -> None:
    ended = onnxprune("slim", net, "--ratio", 0.5, "--dry-run")
    assert ended.code == 0
    assert "proven" in ended.out
    assert ended.out.endswith("nothing was written (--dry-run)\n")
    assert files(net) == {"net.onnx"}


def test_json_is_the_report_alone(net: Path) -> None:
    report = net.parent / "r.json"
    ended = onnxprune("slim", net, "--ratio", 0.5, "--json", "--report", report)
    assert (ended.code, ended.err) == (0, "")
    data = json.loads(ended.out)
    assert data == json.loads(report.read_text())
    assert data["schema"] == "onnxprune/report/1"
    assert data.keys() >= {"before", "after", "removed", "groups", "layers", "verify", "options",
                           "timings"}  # fmt: skip
    for side in ("before", "after"):
        assert data[side].keys() >= {"params", "macs", "bytes", "nodes"}
    assert data["removed"].keys() == {"channels", "params", "macs", "bytes"}
    assert data["removed"]["channels"] == pytest.approx(0.5)
    group = data["groups"][0]
    assert group.keys() >= {"id", "name", "channels", "kept", "fixed_by", "members", "scores"}
    assert group["members"][0].keys() == {"tensor", "axis", "role"}
    assert data["verify"].keys() >= {"passed", "max_rel_err", "tolerance", "inputs", "vacuous"}
    assert data["verify"]["passed"] is True
    assert data["options"]["ratio"] == 0.5
    assert [layer["op"] for layer in data["layers"]].count("Conv") == 10
    assert "repair" not in data


def test_no_verify(net: Path) -> None:
    ended = onnxprune("slim", net, "--ratio", 0.5, "--no-verify")
    assert ended.code == 0
    assert "not verified" in ended.out


def test_a_plan_gives_the_identical_file_and_proves_it(net: Path) -> None:
    plan, again = net.parent / "p.json", net.parent / "again.onnx"
    slim = net.parent / "net.slim.onnx"
    assert onnxprune("slim", net, "--ratio", 0.5, "--plan-out", plan, "-q").code == 0
    ended = onnxprune("apply", plan, net, "-o", again)
    assert (ended.code, ended.out) == (0, f"wrote {again}\n")
    assert again.read_bytes() == slim.read_bytes()
    ended = onnxprune("verify", net, slim, "--plan", plan)
    assert ended.code == 0
    assert ended.out.startswith("proven: ")
    assert json.loads(onnxprune("verify", net, slim, "--plan", plan, "--json").out)["passed"]


def test_inspect_and_explain(net: Path, fixed: Path) -> None:
    ended = onnxprune("inspect", net)
    assert ended.code == 0
    assert "6 groups may shrink" in ended.out
    assert len(json.loads(onnxprune("inspect", net, "--json").out)["groups"]) > 6
    assert "one scale per block" in onnxprune("inspect", fixed).out
    ended = onnxprune("explain", net, "conv_0.weight")
    assert ended.code == 0
    assert "axis 0, 16 channels: may shrink" in ended.out
    assert "axis 3, 3 channels: fixed\n    Conv slides over this axis (Conv_0)" in ended.out
    axes = json.loads(onnxprune("explain", net, "conv_0.weight", "--json").out)["tensors"][0]["axes"]
    assert [a["size"] for a in axes] == [16, 3, 3, 3]


def test_ratios_per_layer(net: Path) -> None:
    table = net.parent / "t.yaml"
    table.write_text("conv_1: 0.75\nconv_3: 0.25\n")
    data = json.loads(onnxprune("slim", net, "--per-layer", table, "--dry-run", "--json").out)
    kept = {g["name"]: g["kept"] for g in data["groups"] if not g["fixed_by"]}
    assert (kept["conv_3.weight"], kept["conv_1.weight"]) == (12, 4)
    assert kept["conv_5.weight"] == 32


def test_scores_from_elsewhere_decide(net: Path) -> None:
    scores, plan = net.parent / "s.npz", net.parent / "p.json"
    np.savez(scores, **{"conv_1.weight": np.arange(16)[::-1]})
    args = ("--ratio", 0.5, "--scores", scores, "--plan-out", plan, "--dry-run", "-q")
    assert onnxprune("slim", net, *args).code == 0
    tables = json.loads(plan.read_text())["groups"]
    assert next(g["kept"] for g in tables if g["name"] == "conv_1.weight") == list(range(8))


# 1: a check failed


def test_a_tampered_model_is_not_proven(net: Path) -> None:
    plan, slim = net.parent / "p.json", net.parent / "net.slim.onnx"
    onnxprune("slim", net, "--ratio", 0.5, "--plan-out", plan, "-q")
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


# How it talks


def process(*args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*START, *map(str, args)], env={**os.environ, **variables}, capture_output=True, text=True
    )


def test_in_a_pipe_there_are_no_escape_codes(net: Path) -> None:
    done = process("slim", net, "--ratio", 0.5)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-2].startswith("74.0% of the parameters"), "lines are not wrapped"
    failed = process("slim", net)
    assert failed.returncode == 2
    assert "\x1b" not in failed.stderr


def test_on_a_terminal_there_is_colour_unless_none_is_wanted(net: Path) -> None:
    assert "\x1b[" in on_a_terminal("inspect", net)
    plain = on_a_terminal("inspect", net, NO_COLOR="1")
    assert "6 groups may shrink" in plain
    assert "\x1b[3" not in plain


def on_a_terminal(*args: object, **variables: str) -> str:
    """What a command shows on a terminal of 60 columns."""
    master, slave = os.openpty()
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "60", **variables}
    with subprocess.Popen([*START, *map(str, args)], stdout=slave, stderr=slave, env=env):
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # the end, on Linux
            while chunk := os.read(master, 4096):
                shown += chunk
    os.close(master)
    return shown.decode()


def test_a_reader_that_leaves_is_no_error(net: Path) -> None:
    with subprocess.Popen(
        [*START, "inspect", str(net), "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as running:
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 0


def test_a_traceback_only_where_it_is_asked_for(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ("slim", net.parent / "none.onnx", "--ratio", "0.5")
    assert "Traceback" not in onnxprune(*args).err
    monkeypatch.setenv("ONNXPRUNE_DEBUG", "1")
    ended = onnxprune(*args)
    assert ended.code == 3
    assert "Traceback" in ended.err


def test_a_bug_is_told_as_one(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(pipeline, "slim", broken)
    ended = onnxprune("slim", net, "--ratio", 0.5)
    assert ended.code == 1
    assert "ZeroDivisionError: by zero" in ended.err
    assert "Traceback" not in ended.err
    assert "ONNXPRUNE_DEBUG=1" in ended.err


def test_ctrl_c_leaves_nothing(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "finish", stop)
    ended = onnxprune("slim", net, "--ratio", 0.5)
    assert (ended.code, ended.out) == (130, "")
    assert "nothing was written" in ended.err
    assert files(net) == {"net.onnx"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_helps(command: str) -> None:
    ended = onnxprune(command, "--help")
    assert ended.code == 0
    assert ended.out.startswith(f"Usage: onnxprune {command} ")
    assert command in onnxprune("--help").out
