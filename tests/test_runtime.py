"""Sessions, placement, timing and machine; no test looks at how long anything took."""

import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

from onnxprune.errors import MissingRuntime, Unreadable, UsageError
from onnxprune.graph import files
from onnxprune.graph.files import load
from onnxprune.runtime import machine, providers, timing
from onnxprune.runtime.feeds import random_feeds
from onnxprune.runtime.placement import available_providers, placement, profile
from onnxprune.runtime.session import Port, open_session
from onnxprune.runtime.timing import Timing, interleave, speedup
from tests.test_files import external, tensor

F32 = np.dtype(np.float32)


def chain(kind: int = TensorProto.FLOAT, *ops: str) -> ModelProto:
    """x -> op -> op ... -> y, of nodes without names."""
    names = ["x", *(f"t{i}" for i in range(len(ops) - 1)), "y"]
    nodes = [helper.make_node(op, [names[i]], [names[i + 1]]) for i, op in enumerate(ops)]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "g", [info("x", kind, ["n", 2])], [info("y", kind, ["n", 2])])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


# ---- sessions ---------------------------------------------------------------------------------


def test_ports_and_extra_outputs() -> None:
    proto = chain(TensorProto.FLOAT, "Neg", "Relu", "Neg")
    before = proto.SerializeToString()
    with open_session(proto, extra_outputs=["t0", "y", "x"]) as session:
        assert session.inputs == (Port("x", F32, ("n", 2)),)
        assert [port.name for port in session.outputs] == ["y", "t0", "x"]
        assert session.providers == ("cpu",)
        x = np.array([[1, -2]], np.float32)
        got = session.run({"x": x})
        assert got["t0"].tolist() == (-x).tolist()
        assert got["x"].tolist() == x.tolist()
        assert list(session.run({"x": x}, ["t0"])) == ["t0"]
        assert session.run({"x": x}, []) == {}
    assert proto.SerializeToString() == before


@pytest.mark.parametrize(
    "kind", ["FLOAT16", "DOUBLE", "INT8", "BOOL", "STRING", "BFLOAT16", "FLOAT8E5M2"]
)
def test_every_type_goes_through(kind: str) -> None:
    proto = chain(TensorProto.DataType.Value(kind), "Identity")
    with open_session(proto) as session:
        feeds = random_feeds(session.inputs, {"x": (3, 2)}, seed=1)
        assert feeds["x"].dtype == session.inputs[0].dtype
        assert np.array_equal(session.run(feeds)["y"], feeds["x"])


def test_sequences_and_maps() -> None:
    info = helper.make_tensor_value_info
    kind = helper.make_sequence_type_proto(helper.make_tensor_type_proto(1, None))
    graph = helper.make_graph(
        [helper.make_node("SplitToSequence", ["x"], ["s"], axis=0)],
        "g", [info("x", 1, [2, 2])], [helper.make_value_info("s", kind)],
    )  # fmt: skip
    proto = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    with open_session(proto) as session:
        assert session.outputs[0].dtype is None
        got = session.run({"x": np.eye(2, dtype=np.float32)})
    assert sorted(got) == ["s[0]", "s[1]"]

    zipmap = helper.make_node(
        "ZipMap", ["x"], ["m"], domain="ai.onnx.ml", classlabels_int64s=[7, 9]
    )
    maps = onnx.ValueInfoProto(name="m")
    maps.type.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    maps.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = 1
    graph = helper.make_graph([zipmap], "g", [info("x", 1, [2, 2])], [maps])
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("ai.onnx.ml", 1)]
    with open_session(helper.make_model(graph, ir_version=10, opset_imports=opsets)) as session:
        x = np.array([[1, 2], [3, 4]], np.float32)
        assert np.array_equal(session.run({"x": x})["m"], x)


@pytest.mark.parametrize("extra", [[], ["y_one"]])
def test_external_data_from_a_path_and_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    path = external(tmp_path)
    monkeypatch.chdir("/")  # nothing is looked for in the working directory
    feeds = {"x": np.ones(1, np.float32), "q": np.array(True)}
    proto = load(path).proto
    for model, folder in ((path, None), (proto, tmp_path)):
        with open_session(model, extra_outputs=extra, folder=folder) as session:
            assert session.run(feeds, ["z"])["z"].tolist() == list(range(300))
            assert all(session.run(feeds)[name].size == 5000 for name in extra)
    with pytest.raises(Unreadable, match="memory"):
        open_session(proto)


def test_a_model_too_large_for_memory_goes_by_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    proto = chain(TensorProto.FLOAT, "Neg")
    proto.graph.initializer.append(tensor("w", np.ones(4000, np.float32)))
    monkeypatch.setattr(files, "INLINE_LIMIT", 2000)
    with open_session(proto, extra_outputs=["w"]) as session:
        assert session.run({"x": np.ones((1, 2), np.float32)})["w"].sum() == 4000
        assert list(tmp_path.iterdir())
    assert not list(tmp_path.iterdir())


def test_errors_are_short_and_say_what(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unreadable, match="cannot load") as error:
        open_session(chain(TensorProto.FLOAT, "NoSuchOperator"))
    assert "NoSuchOperator" in str(error.value)
    assert "[ONNXRuntimeError]" not in str(error.value)
    with open_session(chain(TensorProto.FLOAT, "Neg")) as session:
        for feeds in (
            {"x": np.ones((1, 5), np.float32)},
            {"q": np.ones(1)},
            {"x": np.ones((1, 2))},
        ):
            with pytest.raises(Unreadable, match="cannot run"):
                session.run(feeds)
    with pytest.raises(UsageError, match="no provider 'tpu'"):
        open_session(chain(TensorProto.FLOAT, "Neg"), provider="tpu")
    for provider in {"cuda", "tensorrt"} - set(available_providers()):
        with pytest.raises(UsageError, match="does not work here"):
            open_session(chain(TensorProto.FLOAT, "Neg"), provider=provider)
    out, err = capfd.readouterr()
    assert (out, err) == ("", ""), "ONNX Runtime talked"


def test_without_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingRuntime, match=r"onnxprune\[cpu\]") as error:
        open_session(chain(TensorProto.FLOAT, "Neg"))
    assert error.value.exit_code == 3
    with pytest.raises(MissingRuntime):
        available_providers()


def test_providers_are_tried() -> None:
    assert available_providers()[0] == "cpu"


def test_placement_names_every_node() -> None:
    proto = chain(TensorProto.FLOAT, "Neg", "Relu", "Exp")
    proto.graph.node[1].name = "middle"
    feeds = {"x": np.ones((1, 2), np.float32)}
    assert placement(proto, "cpu", feeds) == {"t0": "cpu", "middle": "cpu", "y": "cpu"}
    times = profile(proto, "cpu", feeds, runs=4)
    assert [time.op for time in times] == ["Neg", "Relu", "Exp"] * 4
    for node in proto.graph.node:
        node.name = "twin"
    assert sorted(placement(proto, "cpu", feeds)) == ["t0", "t1", "y"]
    assert proto.graph.node[0].name == "twin"


# ---- timing and machine -----------------------------------------------------------------------


def test_interleaving_is_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    runs = {name: (lambda name=name: seen.append(name)) for name in "ab"}
    got = interleave(runs, rounds=50, warmup=2)
    assert seen[:4] == list("abab")
    pairs = {"".join(seen[i : i + 2]) for i in range(4, len(seen), 2)}
    assert pairs == {"ab", "ba"}
    assert got["a"].rounds == len(got["b"].samples) == 50
    ticks = iter(range(1000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    assert interleave(runs, duration=5, warmup=0)["a"].rounds == 5
    assert interleave(runs, rounds=3, duration=5)["a"].rounds == 3
    assert interleave(runs, duration=0)["a"].rounds == 1
    with pytest.raises(ValueError, match="rounds"):
        interleave(runs)


def made(samples: np.ndarray) -> Timing:
    return timing._timing(samples.tolist())


def test_speedups_have_a_spread() -> None:
    rng = np.random.default_rng(0)
    drift = np.exp(np.cumsum(rng.normal(0, 0.1, 200)))  # a machine that wanders by factors

    def noise() -> np.ndarray:
        return np.exp(rng.normal(0, 0.05, 200))

    a, b, c = made(drift * noise()), made(drift * noise()), made(drift * noise() / 2)
    same, twice = speedup(a, b), speedup(a, c)
    assert not same.measurable
    assert same.low <= 1 <= same.high
    assert twice.measurable
    assert twice.low < 2 < twice.high
    assert abs(twice.ratio - 2) < 0.05
    tiny = speedup(made(np.full(99, 1.01)), made(np.full(99, 1.0)))
    assert not tiny.measurable, "under the resolution"
    assert not speedup(made(np.full(3, 2.0)), made(np.ones(3))).measurable, "too few rounds"
    with pytest.raises(ValueError, match="rounds"):
        speedup(a, made(np.ones(3)))


def test_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = machine.describe()
    assert here["cpu"]
    assert int(here["cores"]) >= 1
    assert "onnxruntime" in str(here["onnxruntime"])
    monkeypatch.setattr(machine, "_output", lambda *_: "NVIDIA H200, 570.1\nNVIDIA H200, 570.1")
    assert machine.describe()["gpu"] == "NVIDIA H200, NVIDIA H200"
    monkeypatch.setattr(machine, "_output", lambda *_: "No devices were found")
    assert "gpu" not in machine.describe()


def test_messages_lose_their_prefixes() -> None:
    raw = "[ONNXRuntimeError] : 2 : INVALID_ARGUMENT : Got\n invalid dimensions"
    assert providers.shorten(Exception(raw)) == "Got invalid dimensions"
    assert len(providers.shorten(Exception("x" * 999))) == 300
