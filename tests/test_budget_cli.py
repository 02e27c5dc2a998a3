"""Targets, drops and metrics from the command line: what is written, told and refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnxprune import pipeline
from onnxprune.choose.plan import read_plan
from onnxprune.pipeline.repairing import Repaired, Repairer
from tests.commands import files, onnxprune

MODELS = Path(__file__).parents[1] / "models"
NET, CALIB, TEST = (MODELS / f"digits_{n}" for n in ("resnet.onnx", "calib.npz", "test.npz"))
TRANSFORMER = MODELS / "digits_transformer.onnx"
SLICED = ("--criterion", "l2", "--repair", "none")

METRICS = """
import numpy as np

def accuracy(outputs, data):
    assert set(outputs) == {"logits"}
    return (outputs["logits"].argmax(axis=1) == data["y"]).mean()

def session_accuracy(session):
    data = np.load(PATH)
    return (session.run(None, {"x": data["x"]})[0].argmax(axis=1) == data["y"]).mean()

def broken(outputs, data):
    return outputs["logits"].no_such_thing

def nothing(outputs, data):
    return None

def not_a_number(outputs, data):
    return float("nan")

a_table = {}
"""


@pytest.fixture
def metrics(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(METRICS.replace("PATH", repr(str(TEST))))
    return path


def accuracy(path: Path) -> float:
    import onnxruntime

    data = np.load(TEST)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return float((session.run(None, {"x": data["x"]})[0].argmax(1) == data["y"]).mean())


# ---- targets ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target", ["macs=50%", "macs=3M", "params=100k", "params=0.3", "bytes=300kB", "bytes=0.6"]
)
def test_a_target_is_met_by_what_inspect_counts(net: Path, target: str) -> None:
    what, value = target.split("=")
    out, plan, again = (net.parent / n for n in ("out.onnx", "plan.json", "again.onnx"))
    before = json.loads(onnxprune("inspect", NET, "--json").out)["before"][what]
    ended = onnxprune("slim", NET, "--target", target, "-o", out, "--plan-out", plan, "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    after = json.loads(onnxprune("inspect", out, "--json").out)["before"][what]
    units = {"%": 0.01 * before, "M": 1e6, "k": 1e3, "kB": 1e3}
    unit = value.lstrip("0123456789.")
    limit = float(value.removesuffix(unit)) * units.get(unit, before)
    assert limit - 0.01 * before <= after <= limit
    assert report["after"][what] == after == report["search"]["reached"]
    assert report["search"]["limit"] == pytest.approx(limit)
    assert onnxprune("apply", plan, NET, "-o", again).code == 0
    assert again.read_bytes() == out.read_bytes()
    kept = read_plan(plan)
    assert kept.search == report["search"]
    assert kept.options["target"] == report["options"]["target"]


def test_a_target_with_data_is_met_and_replayed(tmp_path: Path) -> None:
    """With --calib the losses decide."""
    out, plan, again = (tmp_path / n for n in ("out.onnx", "plan.json", "again.onnx"))
    data = ("--calib", CALIB, "--calib-samples", 32, "--repair", "none")
    ended = onnxprune("slim", TRANSFORMER, "--target", "macs=75%", "-o", out, "--plan-out", plan,
                      *data, "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["options"]["criterion"] == "obs"
    assert 0.25 <= report["removed"]["macs"] <= 0.26
    assert onnxprune("apply", plan, TRANSFORMER, "-o", again).code == 0
    assert again.read_bytes() == out.read_bytes()


def test_out_of_reach(net: Path) -> None:
    report = net.parent / "r.json"
    ended = onnxprune("slim", net, "--target", "macs=0.001", "--report", report)
    assert (ended.code, ended.out) == (1, "")
    assert "the target can't be reached" in ended.err
    assert "why: the smallest reachable is macs=" in ended.err
    assert files(net) == {"net.onnx", "r.json"}
    data = json.loads(report.read_text())
    assert "after" not in data
    assert data["search"]["smallest"] > data["search"]["limit"]


def test_within_as_it_is(net: Path) -> None:
    ended = onnxprune("slim", net, "--target", "params=1G")
    assert ended.code == 4
    assert "within the target as it is" in ended.err
    assert files(net) == {"net.onnx"}


def test_ratios_per_layer_hold_under_a_target(tmp_path: Path) -> None:
    table, out = tmp_path / "t.yaml", tmp_path / "o.onnx"
    name = json.loads(onnxprune("inspect", NET, "--json").out)["groups"][0]["name"]
    table.write_text(f"'^{name}$': 0.25\n")
    ended = onnxprune(
        "slim", NET, "--target", "macs=0.4", "--per-layer", table, "-o", out, "--json"
    )
    assert ended.code == 0, ended.err
    group = json.loads(ended.out)["groups"][0]
    assert group["kept"] == group["channels"] - group["channels"] // 4


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ("--target macs", "a target is KEY=VALUE"),
        ("--target flops=0.5", "nothing is called 'flops'"),
        ("--target macs=half", "no amount of macs"),
        ("--target macs=150%", "no such target"),
        ("--target macs=0.5 --ratio 0.5", "exclude each other"),
        ("--target macs=0.5 --max-drop 0.1", "exclude each other"),
        ("--target macs=0.5 --threshold 1", "exclude each other"),
        ("--target macs=0.5 --dead", "exclude each other"),
        ("--max-drop 0.1 --dead", "exclude each other"),
        ("--threshold 1 --per-layer t.yaml", "exclude each other"),
        ("--max-drop 0.1", "needs something to measure"),
        ("--max-drop much", "not a valid float"),
        ("--target macs=0.5 --align some", "neither a number nor auto"),
        ("--target macs=0.5 --align 0", "at least 1"),
    ],
)
def test_usage(net: Path, args: str, said: str) -> None:
    ended = onnxprune("slim", net, *args.split())
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err
    assert files(net) == {"net.onnx"}


# ---- drops --------------------------------------------------------------------------------------


def test_the_slimmest_within_a_drop(tmp_path: Path) -> None:
    out, plan, again = (tmp_path / n for n in ("out.onnx", "plan.json", "again.onnx"))
    ended = onnxprune("slim", TRANSFORMER, "--max-drop", 0.05, "--eval", TEST, "-o", out,
                      "--plan-out", plan, "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    search, metric = report["search"], report["fidelity"]["metric"]
    before = accuracy(TRANSFORMER)
    assert metric == {"name": "top-1", "before": pytest.approx(before),
                      "after": pytest.approx(accuracy(out))}  # fmt: skip
    assert before - metric["after"] <= 0.05
    trials = search["trials"]
    assert search["reached"] == metric["after"]
    assert {t["accepted"] for t in trials} == {True, False}
    assert all(t["accepted"] == (t["drop"] <= 0.05 + 1e-12) for t in trials)
    chosen = min(t["macs"] for t in trials if t["accepted"])
    assert report["after"]["macs"] / report["before"]["macs"] == pytest.approx(chosen)
    # it is told to a percent of the work: a model as much slimmer as that was tried and refused
    assert any(chosen - 0.02 <= t["macs"] < chosen for t in trials if not t["accepted"])
    assert onnxprune("apply", plan, TRANSFORMER, "-o", again).code == 0
    assert again.read_bytes() == out.read_bytes()


def test_the_search_is_shown(tmp_path: Path) -> None:
    ended = onnxprune("slim", NET, "--max-drop", 0.02, "--eval", TEST, "-o", tmp_path / "o.onnx")
    assert ended.code == 0, ended.err
    assert "Tried" in ended.out
    assert "too much" in ended.out
    assert "top-1" in ended.out


def test_every_model_of_the_search_is_repaired_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is scored is what will be written: the repaired model, not the sliced one."""
    given: list[int] = []

    def whole(*_: object) -> Repaired:
        """As if the repair made up for everything."""
        given.append(len(given))
        return Repaired(onnx.load(TRANSFORMER), {"kind": "linear", "batches": 1, "layers": []})

    monkeypatch.setattr(Repairer, "repaired", whole)
    how = ("--criterion", "l2", "--no-verify", "--dry-run", "-o", tmp_path / "o.onnx", "--json")
    ended = onnxprune("slim", TRANSFORMER, "--max-drop", 0, "--eval", TEST, "--calib", CALIB,
                      "--calib-samples", 32, *how)  # fmt: skip
    assert ended.code == 0, ended.err
    trials = json.loads(ended.out)["search"]["trials"]
    assert all(t["accepted"] for t in trials)
    assert len(given) == len(trials)


def test_nothing_within_the_drop(tmp_path: Path, metrics: Path) -> None:
    """A score that falls with every parameter: its smallest drop is named."""
    metrics.write_text(
        "def size(session):\n"
        "    x = session.get_inputs()[0]\n"
        "    import numpy as np\n"
        "    y = session.run(None, {'x': np.ones((1, 1, 8, 8), np.float32)})[0]\n"
        f"    return -float(abs(y - np.load({str(tmp_path / 'y.npy')!r})).sum())\n"
    )
    import onnxruntime

    session = onnxruntime.InferenceSession(TRANSFORMER, providers=["CPUExecutionProvider"])
    np.save(tmp_path / "y.npy", session.run(None, {"x": np.ones((1, 1, 8, 8), np.float32)})[0])
    report = tmp_path / "r.json"
    ended = onnxprune("slim", TRANSFORMER, "--max-drop", 1e-4, "--metric", f"{metrics}:size",
                      "-o", tmp_path / "o.onnx", "--report", report)  # fmt: skip
    assert ended.code == 1
    assert "nothing stays within the drop" in ended.err
    least = min(t["drop"] for t in json.loads(report.read_text())["search"]["trials"])
    assert f"the smallest drop seen is {least:.4g}" in ended.err
    assert not (tmp_path / "o.onnx").exists()


# ---- metrics ------------------------------------------------------------------------------------


def test_a_metric_before_and_after(tmp_path: Path, metrics: Path) -> None:
    out = tmp_path / "out.onnx"
    how = ("slim", NET, "--ratio", 0.7, "-o", out, "--json")
    for more in (
        ("--eval", TEST),
        ("--eval", TEST, "--metric", f"{metrics}:accuracy"),
        ("--metric", f"{metrics}:session_accuracy"),
    ):
        ended = onnxprune(*how, *more)
        assert ended.code == 0, ended.err
        metric = json.loads(ended.out)["fidelity"]["metric"]
        assert metric["before"] == pytest.approx(accuracy(NET))
        assert metric["after"] == pytest.approx(accuracy(out))
        assert metric["before"] > metric["after"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("mine.py:broken", ["the metric failed", "mine.py, line 13, in broken", "no_such_thing"]),
        ("mine.py:nothing", ["gives no finite number", "it is None"]),
        ("mine.py:not_a_number", ["gives no finite number", "it is nan"]),
        ("mine.py:session_accuracy", ["the metric failed", "FUNCTION(outputs, data)"]),
        ("mine.py:missing", ["no function 'missing'", "accuracy, session_accuracy"]),
        ("mine.py:a_table", ["no function 'a_table'"]),
        ("mine.py", ["FILE.py:FUNCTION"]),
        ("none.py:f", ["no such file"]),
        ("wrong.py:f", ["the metric's file can't be run", "wrong.py, line 2", "SyntaxError"]),
        ("raises.py:f", ["the metric's file can't be run", "raises.py, line 3", "KeyError: 'a'"]),
    ],
)
def test_metrics_that_fail(
    metrics: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: list[str]
) -> None:
    monkeypatch.chdir(metrics.parent)
    Path("wrong.py").write_text("def f(a, b):\n    return )\n")
    Path("raises.py").write_text("table = {}\n\ntable['a']\n")
    ended = onnxprune("slim", NET, "--ratio", 0.5, "-o", "o.onnx", "--eval", TEST, "--metric", name)
    assert (ended.code, ended.out) == (2, "")
    assert all(s in ended.err for s in says), ended.err
    assert "Traceback" not in ended.err
    assert not Path("o.onnx").exists()


@pytest.mark.parametrize(
    ("change", "code", "says"),
    [
        ({"y": None}, 2, "no labels"),
        ({"y": np.zeros(450) + 0.5}, 2, "whole numbers"),
        ({"y": np.full(450, 10)}, 2, "no output looks like class scores"),
        ({"y": np.zeros(449, int)}, 2, "no output looks like class scores"),
        ({"x": None}, 3, "no array for input 'x'"),
        ({"x": np.zeros((450, 1, 8, 9), np.float32)}, 3, "wrong shape"),
        (None, 3, "no such file"),
    ],
)
def test_data_that_do_not_fit(
    tmp_path: Path, change: dict[str, np.ndarray | None] | None, code: int, says: str
) -> None:
    data = tmp_path / "data.npz"
    if change is not None:
        arrays = {**np.load(TEST), **change}
        np.savez(data, **{k: v for k, v in arrays.items() if v is not None})
    ended = onnxprune("slim", NET, "--ratio", 0.5, "-o", tmp_path / "o.onnx", "--eval", data)
    assert (ended.code, ended.out) == (code, "")
    assert says in ended.err
    assert not (tmp_path / "o.onnx").exists()


def test_labels_may_be_called_labels_and_outputs_labels(tmp_path: Path) -> None:
    """A model that ends in ArgMax names the classes itself."""
    proto = onnx.load(NET)
    proto.graph.node.append(onnx.helper.make_node("ArgMax", ["logits"], ["class"], axis=1))
    del proto.graph.output[:]
    proto.graph.output.append(onnx.helper.make_tensor_value_info("class", 7, ["n", 1]))
    onnx.save(proto, tmp_path / "m.onnx")
    data = np.load(TEST)
    np.savez(tmp_path / "d.npz", x=data["x"], labels=data["y"][:, None])
    ended = onnxprune("slim", tmp_path / "m.onnx", "--ratio", 0.7, "-o", tmp_path / "o.onnx",
                      "--eval", tmp_path / "d.npz", "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["fidelity"]["metric"]["before"] == pytest.approx(accuracy(NET))


# ---- fidelity -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "on", "count"),
    [
        (("--calib", CALIB, "--calib-samples", 64), "held-out", 128),
        (("--calib", CALIB), "calibration", 256),
        (("--calib", CALIB, "--eval", TEST), "evaluation", 450),
        (("--eval", TEST), "evaluation", 450),
    ],
)
def test_what_outputs_are_compared_on(
    tmp_path: Path, more: tuple[object, ...], on: str, count: int
) -> None:
    how = ("slim", TRANSFORMER, "--ratio", 0.3, "-o", tmp_path / "o.onnx", *SLICED)
    ended = onnxprune(*how, *more, "--json")
    assert ended.code == 0, ended.err
    found = json.loads(ended.out)["fidelity"]
    assert (found["on"], found["samples"]) == (on, count)
    (output,) = found["outputs"]
    assert output["output"] == "logits"
    assert 0.5 < output["agreement"] <= 1
    assert output["snr_db"] > 1
    assert output["kl"] > 0


def test_fidelity_in_the_table(tmp_path: Path) -> None:
    how = ("slim", TRANSFORMER, "--ratio", 0.3, "-o", tmp_path / "o.onnx", *SLICED)
    out = onnxprune(*how, "--calib", CALIB).out
    assert "SNR" in out
    assert "same top-1" in out
    assert "compared on 256 calibration samples, which the model was fitted to" in out


def test_held_out_samples_are_others() -> None:
    from onnxprune.repair.calibration import calibration

    source = pipeline.source_of(NET)
    calib = calibration(CALIB, source, 64)
    more = calibration(CALIB, source, 192)
    found = pipeline.others(more, calib)
    mine = {a.tobytes() for b in calib for a in b["x"]}
    held = [a.tobytes() for b in found for a in b["x"]]
    assert len(held) == 128
    assert not mine & set(held)
    assert pipeline.others(calib, calib) == []
