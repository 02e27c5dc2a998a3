"""What is measured: sizes and values that all models run on, and what they have to do there."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper

import onnxprune
from models.zoo import ZOO
from onnxprune.bench.inputs import Wanted, check_batches, feeds_of, own_batch, settle
from onnxprune.bench.models import Contestant, contestants, short_names
from onnxprune.errors import Unreadable, UsageError
from onnxprune.graph.files import load
from onnxprune.runtime.session import open_session


def one(proto: ModelProto) -> tuple[Contestant, ...]:
    return contestants({"a": proto})


def pooled(shape: list[int | str]) -> ModelProto:
    """Any image becomes one number a channel."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("GlobalAveragePool", ["x"], ["y"])],
        "g", [info("x", TensorProto.FLOAT, shape)], [info("y", TensorProto.FLOAT, None)],
    )  # fmt: skip
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 21)])


# ---- names ------------------------------------------------------------------------------------


def test_names_are_as_short_as_tells_them_apart() -> None:
    assert short_names([Path("m.onnx"), Path("n.onnx")]) == ["m.onnx", "n.onnx"]
    assert short_names([Path("a/m.onnx"), Path("b/m.onnx")]) == ["a/m.onnx", "b/m.onnx"]
    deep = [Path("x/a/m.onnx"), Path("y/a/m.onnx"), Path("n.onnx")]
    assert short_names(deep) == ["x/a/m.onnx", "y/a/m.onnx", "n.onnx"]
    assert short_names([Path("m.onnx"), Path("a/m.onnx")]) == ["m.onnx", "a/m.onnx"]
    assert short_names([Path("m.onnx")] * 3) == ["m.onnx", "m.onnx (2)", "m.onnx (3)"]


def test_there_must_be_a_model(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no model"):
        contestants({})
    with pytest.raises(Unreadable, match="no such file"):
        contestants({"a": tmp_path / "none.onnx"})


def test_a_model_in_memory_is_written_once(tmp_path: Path) -> None:
    (model,) = one(ZOO["resnet"](0))
    file = model.written(tmp_path / "m.onnx")
    assert file.source.path == tmp_path / "m.onnx"
    assert file.written(tmp_path / "n.onnx") is file
    assert file.source.proto.graph.node == model.source.proto.graph.node


# ---- inputs -----------------------------------------------------------------------------------


def test_batches_of_any_size() -> None:
    models = contestants({"a": ZOO["resnet"](0), "b": ZOO["resnet"](1)})
    settled = settle(models, Wanted())
    assert settled.batches
    for batch in (1, 5):
        a, b = feeds_of(settled, models, batch)
        assert a["x"].shape == (batch, 3, 16, 16)
        assert np.array_equal(a["x"], b["x"]), "all models see the same values"
    check_batches(settled, (1, 8, 64), Wanted(), models)


def test_a_batch_that_the_model_fixes() -> None:
    models = one(pooled([4, 3, 8, 8]))
    settled = settle(models, Wanted())
    assert own_batch(models[0]) == 4
    assert feeds_of(settled, models, 64)[0]["x"].shape == (4, 3, 8, 8)
    check_batches(settled, (), Wanted(), models)
    check_batches(settled, (4,), Wanted(), models)
    with pytest.raises(UsageError, match="no other batch") as error:
        check_batches(settled, (1, 4), Wanted(), models)
    assert "fix a batch of 4" in str(error.value)


def test_a_state_that_begins_with_its_layers_is_no_batch() -> None:
    proto = pooled(["batch", 3, 8, 8])
    state = helper.make_tensor_value_info("h", TensorProto.FLOAT, [2, "batch", 4])
    proto.graph.input.append(state)
    proto.graph.node.append(helper.make_node("Identity", ["h"], ["h_out"]))
    proto.graph.output.append(helper.make_tensor_value_info("h_out", TensorProto.FLOAT, None))
    models = one(proto)
    assert own_batch(models[0]) is None
    (feeds,) = feeds_of(settle(models, Wanted()), models, 5)
    assert {name: a.shape for name, a in feeds.items()} == {"x": (5, 3, 8, 8), "h": (2, 5, 4)}


def test_sizes_that_were_asked_for() -> None:
    models = one(pooled(["n", 3, "h", "w"]))
    wanted = Wanted(dims={"h": 12, "w": 20})
    settled = settle(models, wanted)
    assert feeds_of(settled, models, 7)[0]["x"].shape == (7, 3, 12, 20)
    shaped = Wanted(shapes={"x": (2, 3, 5, 6)})
    settled = settle(models, shaped)
    assert feeds_of(settled, models, 7)[0]["x"].shape == (2, 3, 5, 6)
    for given in (shaped, Wanted(dims={"n": 3, "h": 12, "w": 12})):
        with pytest.raises(UsageError, match="--batch excludes"):
            check_batches(settle(models, given), (1, 7), given, models)
    with pytest.raises(UsageError, match="no symbolic axis 'k'"):
        settle(models, Wanted(dims={"k": 1}))
    with pytest.raises(UsageError, match="no input 'z'"):
        settle(models, Wanted(shapes={"z": (1,)}))


def test_token_numbers_stay_within_their_table() -> None:
    models = one(ZOO["bert"](0))
    (feeds,) = feeds_of(settle(models, Wanted()), models, 3)
    with open_session(models[0].source) as session:
        session.run(feeds)  # ONNX Runtime refuses an index out of range


def test_values_from_a_file(tmp_path: Path) -> None:
    models = one(pooled(["n", 3, "h", "w"]))
    values = np.arange(3 * 3 * 4 * 4, dtype=np.float32).reshape(3, 3, 4, 4)
    np.savez(tmp_path / "c.npz", x=values)
    wanted = Wanted(calib=tmp_path / "c.npz")
    settled = settle(models, wanted)
    assert np.array_equal(feeds_of(settled, models, 2)[0]["x"], values[:2])
    more = feeds_of(settled, models, 8)[0]["x"]
    assert np.array_equal(more, values[np.arange(8) % 3]), "too few are repeated"
    with pytest.raises(Unreadable, match="no such file"):
        settle(models, Wanted(calib=tmp_path / "none.npz"))


def test_no_size_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.bench.inputs._LARGEST", 1 << 14)
    proto = pooled(["n", 3, "h", "w"])
    proto.graph.node[0].op_type = "GlobalMaxPool"
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 1, 1])
    proto.graph.node.append(helper.make_node("Reshape", ["y0", "shape"], ["y"]))
    proto.graph.node[0].output[0] = "y0"
    shape = helper.make_tensor("shape", TensorProto.INT64, [4], [1, 1, 1, 1])
    proto.graph.initializer.append(shape)
    proto.graph.output[0].CopyFrom(info)
    with pytest.raises(Unreadable, match="no input was found") as error:
        settle(one(proto), Wanted())
    assert "--shape" in str(error.value)
    assert error.value.why


# ---- what there is to do ----------------------------------------------------------------------


def test_work_at_the_sizes_that_are_measured() -> None:
    report = onnxprune.slim(ZOO["resnet"](0), ratio=0.5, verify=False).report
    (model,) = one(ZOO["resnet"](0))
    at_one = model.work({"x": (1, 3, 16, 16)})
    assert sum(w.macs for w in at_one.values()) == report.before.macs
    at_five = model.work({"x": (5, 3, 16, 16)})
    assert sum(w.macs for w in at_five.values()) == 5 * report.before.macs
    assert at_one.keys() == at_five.keys()
    first = next(iter(at_one.values()))
    assert first.node.op == "Conv"
    assert first.widths[0] == 3


def test_shapes_that_no_one_can_follow_give_no_number() -> None:
    (model,) = one(ZOO["resnet"](0))
    assert model.work({"x": (3,)}) == {}


def test_a_model_that_cannot_be_analysed_can_still_be_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(source: object) -> None:
        raise Unreadable("the graph has a cycle")

    monkeypatch.setattr("onnxprune.bench.models.normalise", refuses)
    (model,) = one(ZOO["resnet"](0))
    assert model.facts is None
    assert model.work({"x": (1, 3, 16, 16)}) == {}
    assert feeds_of(settle((model,), Wanted()), (model,), 2)[0]["x"].shape == (2, 3, 16, 16)


def test_the_row_of_a_model(net: Path) -> None:
    row = Contestant("net", load(net)).row
    assert row.path == str(net)
    assert row.bytes == net.stat().st_size
    assert row.nodes == len(onnx.load(net).graph.node)
