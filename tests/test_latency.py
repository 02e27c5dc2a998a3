"""Latency targets: the search, on times that are made up, and one real run without a stopwatch."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune import pipeline
from onnxprune.choose.allocate import Request
from onnxprune.choose.scores import group_scores
from onnxprune.choose.target import parse_target
from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.pipeline.clock import Clock
from onnxprune.pipeline.run import Candidate, Run
from onnxprune.pipeline.searching import Space, by_time, space_of
from onnxprune.runtime.latency import Latency, compare
from tests.choosing import model_of
from tests.commands import onnxprune

NET = Path(__file__).parents[1] / "models" / "digits_resnet.onnx"


@pytest.fixture(scope="module")
def space() -> Space:
    a = pipeline.analyze(NET)
    run = Run(a, Clock(), {}, ranked=group_scores(a.facts, a.groups))
    return space_of(run, Request(target=parse_target("latency=0.5")))


def machine(space: Space, share: Callable[[float], float], ms: float = 10.0):  # type: ignore[no-untyped-def]
    """A machine on which a model takes a share of the original's time that its work decides."""

    def timed(made: Candidate, patience: float) -> Latency:
        s = share(space.work(made))
        return Latency(s * ms, ms, s, 0.98 * s, 1.02 * s)

    return timed


@pytest.mark.parametrize("target", ["latency=0.4", "latency=60%", "latency=8.5ms", "latency=3.7"])
@pytest.mark.parametrize(
    "share",
    [
        lambda w: 0.1 + 0.9 * w,
        lambda w: w,
        lambda w: w**0.5,
        lambda w: 0.05 + 0.95 * w**2,
        lambda w: np.ceil(20 * w) / 20,
    ],
    ids=["line", "work", "root", "square", "steps"],
)
def test_the_target_is_met_from_below(
    space: Space, target: str, share: Callable[[float], float]
) -> None:
    wanted = parse_target(target)
    made, record = by_time(space, wanted, machine(space, share))
    limit = wanted.amount(10.0)
    found = 10 * share(space.work(made))
    assert found == pytest.approx(record["reached"])
    coarse = 0.5 if share(0.501) == share(0.502) else 0.0  # a machine that only knows twentieths
    assert 0.95 * limit - coarse <= found <= limit
    assert record["limit"] == pytest.approx(limit)
    assert record["original"] == 10.0
    assert len(record["trials"]) <= 12
    accepted = [t for t in record["trials"] if t["accepted"]]
    assert max(t["ms"] for t in accepted) == pytest.approx(record["reached"])
    assert all(t["ms"] <= limit for t in accepted)


def test_noise_does_not_take_it_above(space: Space) -> None:
    for seed in range(10):
        rng = np.random.default_rng(seed)
        timed = machine(space, lambda w, rng=rng: (0.1 + 0.9 * w) * rng.uniform(0.98, 1.02))  # type: ignore[misc]
        _, record = by_time(space, parse_target("latency=0.5"), timed)
        assert record["reached"] <= 5.0
        assert record["reached"] >= 0.85 * 5.0


def test_what_would_do_is_timed_twice(space: Space) -> None:
    asked: list[float] = []

    def timed(made: Candidate, patience: float) -> Latency:
        asked.append(patience)
        # lucky the first time: near the target only where nobody looks twice
        share = space.work(made) if patience == min(asked) else 1.2 * space.work(made)
        return Latency(share, 1.0, share, share, share)

    made, record = by_time(space, parse_target("latency=0.5"), timed)
    assert 1.2 * space.work(made) <= 0.5
    assert {*asked} == {min(asked), 2 * min(asked)}
    assert record["trials"]


def test_out_of_reach(space: Space) -> None:
    with pytest.raises(CheckFailed, match="can't be reached") as e:
        by_time(space, parse_target("latency=0.5"), machine(space, lambda w: 0.6 + 0.4 * w))
    least = 6 + 4 * space.work(space.run.cut(space.smallest))
    assert f"latency={least:.4g}ms" in str(e.value.why)
    assert e.value.report.search["smallest"] == pytest.approx(least)  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["latency=11ms", "latency=1"])
def test_within_as_it_is(space: Space, target: str) -> None:
    with pytest.raises(NothingToPrune, match="within the target as it is"):
        by_time(space, parse_target(target), machine(space, lambda w: w))


def test_a_model_that_does_not_multiply_varies_its_parameters() -> None:
    """Nothing but a lookup and sums: no work that a search could vary."""
    table = np.random.default_rng(0).standard_normal((10, 32)).astype(np.float32)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Gather", ["t", "i"], ["e"]),
         helper.make_node("ReduceSum", ["e", "axes"], ["y"], keepdims=0)],
        "g", [info("i", TensorProto.INT64, [5])], [info("y", TensorProto.FLOAT, [5])],
        [numpy_helper.from_array(table, "t"), numpy_helper.from_array(np.array([1]), "axes")],
    )  # fmt: skip
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])
    a = pipeline.analyze(proto)
    found = space_of(Run(a, Clock(), {}, ranked=group_scores(a.facts, a.groups)), Request())
    assert found.lever == "params"
    assert found.within("params", 0.5 * found.full("params")).kept[0].size == 16


# ---- measured -----------------------------------------------------------------------------------


def test_a_comparison_ends_and_counts() -> None:
    calls = {"a": 0, "b": 0}

    def run(name: str) -> Callable[[], None]:
        def once() -> None:
            calls[name] += 1

        return once

    found = compare(run("a"), run("b"), patience=0.1)
    assert calls["a"] == calls["b"] >= 20
    assert 0 < found.low <= found.share <= found.high


def test_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the machine does meanwhile: the record, the exit code and the plan agree."""
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("onnxprune.pipeline.searching._PATIENCE", 0.3)
    out, plan, again, report = (tmp_path / n for n in ("o.onnx", "p.json", "a.onnx", "r.json"))
    ended = onnxprune("slim", NET, "--target", "latency=0.7", "-o", out, "--plan-out", plan,
                      "--report", report)  # fmt: skip
    data = json.loads(report.read_text())
    search = data["search"]
    assert search["provider"] == "cpu"
    assert search["widths"]["align"] in (1, 4, 8, 16, 32)
    assert data["options"]["align"] == "auto"
    if ended.code == 1:  # so noisy that even the smallest was not faster
        assert "can't be reached" in ended.err
        assert search["smallest"] > search["limit"]
        return
    assert ended.code == 0, ended.err
    assert "latency" in ended.out
    assert search["reached"] <= search["limit"] * 1.001
    assert onnxprune("apply", plan, NET, "-o", again).code == 0
    assert again.read_bytes() == out.read_bytes()


def test_what_can_t_be_run_says_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w0": rng.standard_normal((8, 16)), "w1": rng.standard_normal((16, 2))}
    proto = model_of(
        [("MatMul", ["x", "w0"], ["h"], {}), ("Relu", ["h"], ["r"], {}),
         ("MatMul", ["r", "w1"], ["z"], {}), ("Thing", ["z"], ["y"], {"domain": "acme"})],
        {k: v.astype(np.float32) for k, v in weights.items()}, ["n", 8], ["n", 2],
    )  # fmt: skip
    proto.opset_import.append(helper.make_opsetid("acme", 1))
    onnx.save(proto, tmp_path / "m.onnx")
    ended = onnxprune("slim", tmp_path / "m.onnx", "--target", "latency=0.5", "--align", 1)
    assert ended.code == 3
    assert "ONNX Runtime cannot load the model" in ended.err
    assert not (tmp_path / "m.slim.onnx").exists()
