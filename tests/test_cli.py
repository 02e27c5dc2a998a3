"""The command line is a contract: what it writes, what it says, and how it talks."""

import contextlib
import json
import os
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import pipeline
from onnxprune.bench import compare
from onnxprune.bench.settings import Settings
from onnxprune.cli.main import COMMANDS
from onnxprune.pipeline import slimming
from tests.choosing import model_of
from tests.commands import START, files, onnxprune

# What it does


def test_slim_says_what_is_gone_and_where_it_is(net: Path) -> None:
    ended = onnxprune("slim", net, "--ratio", 0.5)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert lines[0].split() == ["before", "after", "change"]
    assert lines[1].split() == ["channels", "144", "72", "-50.0", "%"]
    assert [line.split()[0] for line in lines[2:5]] == ["parameters", "MACs", "bytes"]
    assert lines[5] == "MACs at x:1x3x16x16"
    assert "  10 channels in 1 weight axis: it is an output of the model" in lines
    assert lines[-3].startswith("73.7% of the parameters and 72.7% of the MACs are gone; proven:")
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
    assert data["repair"]["kind"] == data["options"]["repair"] == "closed"
    assert all(row["after"] <= row["before"] for row in data["repair"]["layers"])


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
    ended = onnxprune("explain", net, "conv_0.weight", "--json")
    assert [a["size"] for a in json.loads(ended.out)["tensors"][0]["axes"]] == [16, 3, 3, 3]


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


# How it talks


def process(*args: object, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*START, *map(str, args)], env={**os.environ, **variables}, capture_output=True, text=True
    )


def test_in_a_pipe_there_are_no_escape_codes(net: Path) -> None:
    done = process("slim", net, "--ratio", 0.5)
    assert done.returncode == 0
    assert "\x1b" not in done.stdout + done.stderr
    assert done.stdout.splitlines()[-3].startswith("73.7% of the parameters")
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


def test_a_traceback_only_where_it_is_asked_for(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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

    monkeypatch.setattr(slimming, "finish", stop)
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


def test_slim_times_what_it_made(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compare.compare

    def quick(models: Any, settings: Settings, tell: Any) -> Any:
        return real(models, replace(settings, runs=3, memory=False), tell)

    monkeypatch.setattr(compare, "compare", quick)
    ended = onnxprune("slim", net, "--ratio", 0.5, "--bench", "--json")
    assert ended.code == 0
    (case,) = json.loads(ended.out)["bench"]["cases"]
    assert [row["model"] for row in case["rows"]] == ["original", "slim"]


@pytest.mark.parametrize(("more", "said"), [
    ((), True), (("--align", 8), False), (("--dead",), False),
])  # fmt: skip
def test_odd_widths_are_worth_a_word(tmp_path: Path, more: tuple[object, ...], said: bool) -> None:
    rng = np.random.default_rng(0)
    weights = {"w0": rng.standard_normal((16, 24)).astype(np.float32),
               "w1": rng.standard_normal((24, 8)).astype(np.float32)}  # fmt: skip
    weights["w0"][:, 3] = 0  # something for --dead
    net = model_of([("MatMul", ["x", "w0"], ["h"], {}), ("Relu", ["h"], ["r"], {}),
                    ("MatMul", ["r", "w1"], ["y"], {})], weights, ["n", 16], ["n", 8])  # fmt: skip
    onnx.save(net, tmp_path / "net.onnx")
    ratio = () if "--dead" in more else ("--ratio", 0.5)
    ended = onnxprune("slim", tmp_path / "net.onnx", *ratio, *more)
    assert ended.code == 0, ended.err
    assert ("100% of the MACs left are in layers whose new widths" in ended.out) == said
