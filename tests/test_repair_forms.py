"""Repair meets the forms that models come in: shared and computed tensors, sizes, old files."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune import pipeline
from tests.choosing import model_of
from tests.test_repair_nets import FIRST, _conv, _copies, _errors, _gemm, _samples, _w


def _both(model: onnx.ModelProto, scores: dict[str, np.ndarray]) -> tuple[float, float, Any]:
    """Errors without and with repair, and the repaired result, which is proven and valid."""
    how = {"ratio": 0.5, "criterion": "l2", "scores": scores}
    sliced = pipeline.slim(model, repair="none", **how)
    repaired = pipeline.slim(model, calib=_samples(model, 16, seed=1), **how)
    onnx.checker.check_model(repaired.model, full_check=True)
    assert repaired.verdict is not None
    assert repaired.verdict.passed
    return *_errors(model, sliced.model, repaired.model), repaired


def _pop(graph: onnx.GraphProto, name: str) -> onnx.TensorProto:
    tensor = next(t for t in graph.initializer if t.name == name)
    graph.initializer.remove(tensor)
    return tensor


def test_a_weight_of_two_consumers_is_not_fitted_to_one_of_them() -> None:
    weights = {"w1": _copies(6).T.copy(), "u1": _w(6, 8), "w2": _w(8, 5)}
    nodes = [
        ("MatMul", ["x", "w1"], ["h"], {}),
        ("MatMul", ["x", "u1"], ["k"], {}),
        ("Relu", ["h"], ["r"], {}),
        ("Neg", ["k"], ["s"], {}),
        ("MatMul", ["r", "w2"], ["a"], {}),
        ("MatMul", ["s", "w2"], ["b"], {}),
        ("Mul", ["a", "b"], ["y"], {}),
    ]
    model = model_of(nodes, weights, ["n", 6], ["n", 5])
    before, after, _ = _both(model, {"w1": FIRST, "u1": FIRST})
    assert after == before


@pytest.mark.parametrize("sizes", [[(7, 7)], [(40, 33)], [(8, 20), (20, 8), (5, 6)]])
def test_samples_of_any_size(sizes: list[tuple[int, int]]) -> None:
    weights = {"w1": _copies(3, 3, 3), "w2": _w(5, 8, 3, 3)}
    nodes = [
        ("Conv", ["x", "w1"], ["h"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["h"], ["r"], {}),
        ("Conv", ["r", "w2"], ["y"], {}),
    ]
    model = model_of(nodes, weights, ["n", 3, "H", "W"], ["n", 5, "h", "w"])
    rng = np.random.default_rng(0)
    calib = [
        {"x": rng.standard_normal((8, 3, *sizes[k % len(sizes)]), np.float32)} for k in range(9)
    ]
    result = pipeline.slim(model, ratio=0.5, criterion="l2", scores={"w1": FIRST}, calib=calib)
    (row,) = result.report.repair["layers"]
    assert row["before"] > 0.1
    assert row["after"] < 1e-3
    assert pipeline.slim(model, ratio=0.5, calib=calib).report.repair["layers"]


def test_a_computed_bias_stays() -> None:
    model, scores = _conv()
    graph = model.graph
    graph.node[2].input[2] = "b3"
    graph.node.insert(0, helper.make_node("Neg", ["b2"], ["b3"]))
    before, after, result = _both(model, scores)
    assert after == before
    assert next(n for n in result.model.graph.node if n.output[0] == "y").input[2] == "b3"


@pytest.mark.parametrize("names", [["b2"], ["w1", "w2"]])
def test_constant_nodes_are_repaired(names: list[str]) -> None:
    model, scores = _conv()
    for name in names:
        value = _pop(model.graph, name)
        model.graph.node.insert(0, helper.make_node("Constant", [], [name], value=value))
    before, after, _ = _both(model, scores)
    assert before > 0.2
    assert after < 0.02


@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 5)])
def test_a_bias_of_another_shape(shape: tuple[int, ...]) -> None:
    model, scores = _gemm()
    _pop(model.graph, "b2")
    value = np.broadcast_to(_w(5) if shape == (1, 5) else np.float32(0.7), shape)
    model.graph.initializer.append(numpy_helper.from_array(value.copy(), "b2"))
    before, after, result = _both(model, scores)
    assert before > 0.2
    assert after < 0.02
    bias = next(t for t in result.model.graph.initializer if t.name == "b2")
    assert tuple(bias.dims) == shape
    assert (numpy_helper.to_array(bias) == value).all() == (shape != (1, 5))


def test_a_bias_that_differs_by_row_is_left_alone() -> None:
    model, scores = _gemm()
    _pop(model.graph, "b2")
    model.graph.initializer.append(numpy_helper.from_array(_w(32, 1), "b2"))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 32
    before, after, _ = _both(model, scores)
    assert after == before


def test_a_bias_of_two_nodes_is_held() -> None:
    model, scores = _gemm()
    model.graph.node[1].output[0] = "z"
    model.graph.node.append(helper.make_node("Mul", ["z", "b2"], ["y"]))
    before, after, result = _both(model, scores)
    assert before > 0.2
    assert after < 0.02
    bias = next(t for t in result.model.graph.initializer if t.name == "b2")
    np.testing.assert_array_equal(numpy_helper.to_array(bias), _w(5))


def test_an_ir_3_file_gets_a_bias_that_it_lists() -> None:
    model, scores = _conv()
    del model.graph.node[2].input[2]
    _pop(model.graph, "b2")
    model.ir_version, model.opset_import[0].version = 3, 8
    infos = [helper.make_tensor_value_info(t.name, 1, t.dims) for t in model.graph.initializer]
    model.graph.input.extend(infos)
    before, after, result = _both(model, scores)
    assert before > 0.2
    assert after < 0.02
    assert len(next(n for n in result.model.graph.node if n.output[0] == "y").input) == 3


def test_external_weights(tmp_path: Path) -> None:
    model, scores = _conv()
    path = tmp_path / "net.onnx"
    onnx.save(model, path, save_as_external_data=True, location="net.bin", size_threshold=0)
    calib = _samples(model, 9, seed=1)
    result = pipeline.slim(path, ratio=0.5, criterion="l2", scores=scores, calib=calib)
    result.save(tmp_path / "slim.onnx")
    (after,) = _errors(_conv()[0], onnx.load(tmp_path / "slim.onnx"))
    assert after < 0.02


def test_a_term_of_the_sum_may_be_what_the_consumer_reads() -> None:
    weights = {"w1": _copies(3, 3, 3), "q": _w(8, 8, 1, 1), "w2": _w(5, 8, 1, 1)}
    nodes = [
        ("Conv", ["x", "w1"], ["h"], {"pads": [1, 1, 1, 1]}),
        ("Conv", ["h", "q"], ["k"], {}),
        ("Add", ["h", "k"], ["z"], {}),
        ("Conv", ["z", "w2"], ["y"], {}),
    ]
    model = model_of(nodes, weights, ["n", 3, 8, 8], ["n", 5, 8, 8])
    before, after, _ = _both(model, {"w1": FIRST, "q": FIRST})
    assert before > 0.2
    assert after < 0.02


def test_overflow_while_calibrating_ends_without_repair() -> None:
    weights = {"w1": _copies(6) * np.float32(1e30), "w2": _w(8, 5)}
    nodes = [
        ("Gemm", ["x", "w1"], ["h"], {"transB": 1}),
        ("Mul", ["h", "h"], ["hh"], {}),
        ("Gemm", ["hh", "w2"], ["y"], {}),
    ]
    model = model_of(nodes, weights, ["n", 6], ["n", 5])
    calib = _samples(model, 9, seed=1)
    for criterion in ("l2", "obs"):
        how = {"criterion": criterion, "verify": False}
        assert pipeline.slim(model, ratio=0.5, calib=calib, **how).report.repair["layers"] == []


def test_without_a_bias_the_weights_are_the_best_without_one() -> None:
    """The mean of what went must go into the weights where no bias can take it up."""
    weights = {"w1": np.abs(_w(6, 8)), "w2": _w(8, 5)}
    nodes = [("MatMul", ["x", "w1"], ["h"], {}), ("MatMul", ["h", "w2"], ["y"], {})]
    model = model_of(nodes, weights, ["n", 6], ["n", 5])
    calib = [{"x": np.abs(b["x"]) + 2} for b in _samples(model, 16, seed=1)]
    how = {"ratio": 0.5, "criterion": "l2", "scores": {"w1": FIRST}}
    result = pipeline.slim(model, calib=calib, **how)
    stored = {t.name: numpy_helper.to_array(t) for t in result.model.graph.initializer}
    x = np.concatenate([b["x"] for b in calib])
    target = x @ weights["w1"] @ weights["w2"]
    inputs = x @ stored["w1"]
    ones = np.ones((len(inputs), 1), np.float32)
    centred = np.linalg.lstsq(np.concatenate([inputs, ones], axis=1), target, rcond=None)[0][:-1]
    errors = [float(((inputs @ w - target) ** 2).sum()) for w in (stored["w2"], centred)]
    assert errors[0] < 0.5 * errors[1]
