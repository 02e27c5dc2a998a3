"""Layers as matrices, their transposes, and a model run part by part."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import pipeline
from onnxprune.cut.cut import cut
from onnxprune.repair.consumers import layers
from onnxprune.repair.jobs import Job, jobs_of, start
from onnxprune.repair.linear import RECIPES, refit
from onnxprune.repair.operators import Operator
from onnxprune.repair.rewrite import read_matrix, write_array
from onnxprune.repair.stream import Store, Stream
from onnxprune.repair.taps import at_places, draw_places, groups_of, in_groups, rows_read
from onnxprune.runtime.session import open_session
from tests.choosing import model_of

LAYERS: dict[str, tuple[str, tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "conv": ("Conv", (6, 9, 7), (4, 6, 3, 3), {"pads": [1, 0, 1, 2], "strides": [2, 1]}),
    "conv in groups": ("Conv", (6, 5, 5), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ("Conv", (6, 8, 8), (6, 1, 3, 3), {"group": 6, "strides": [2, 2]}),
    "two filters a channel": ("Conv", (3, 5, 5), (6, 1, 3, 3), {"group": 3}),
    "1-D": ("Conv", (6, 11), (4, 6, 4), {"strides": [2], "auto_pad": "SAME_UPPER"}),
    "transposed": ("ConvTranspose", (6, 4, 5), (6, 3, 3, 3), {}),
    "transposed, stride": (
        "ConvTranspose", (6, 4, 5), (6, 3, 4, 3),
        {"strides": [2, 3], "pads": [1, 0, 1, 2], "output_padding": [1, 2]},
    ),
    "transposed in groups": (
        "ConvTranspose", (6, 4, 4), (6, 2, 3, 2),
        {"group": 3, "strides": [2, 2], "dilations": [2, 1]},
    ),
    "Gemm": ("Gemm", (6,), (4, 6), {"transB": 1}),
    "Gemm, not turned": ("Gemm", (6,), (6, 4), {}),
    "MatMul": ("MatMul", (3, 6), (6, 4), {}),
}  # fmt: skip


def _layer(what: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    op, size, shape, attributes = LAYERS[what]
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal(shape).astype(np.float32)}
    outputs = shape[1] * attributes.get("group", 1) if op == "ConvTranspose" else shape[0]
    if op in ("MatMul", "Gemm"):
        outputs = 4
    nodes: list[Any] = [(op, ["x", "w", "b"], ["y"], attributes)]
    if op == "MatMul":
        nodes = [(op, ["x", "w"], ["h"], attributes), ("Add", ["b", "h"], ["y"], {})]
    weights["b"] = rng.standard_normal(outputs).astype(np.float32)
    out = ["n", 3, 4] if op == "MatMul" else ["n", outputs, *"abc"[: len(size) - 1]]
    x = rng.standard_normal((2, *size)).astype(np.float32)
    return model_of(nodes, weights, ["n", *size], out), {"x": x}


@pytest.mark.parametrize("what", LAYERS)
def test_rows_times_matrix_is_the_layer(what: str) -> None:
    proto, feeds = _layer(what)
    facts = pipeline.analyze(proto).facts
    (c,) = layers(facts)
    weight = numpy_helper.to_array(proto.graph.initializer[0])
    bias = numpy_helper.to_array(proto.graph.initializer[1])
    with open_session(proto) as session:
        y = session.run(feeds)["y"]
    groups = groups_of(feeds["x"].shape[1], c, weight.shape) if c.is_conv else 1
    places = draw_places(y.shape, 9, np.random.default_rng(1)) if c.is_conv else ()
    rows = rows_read(feeds["x"], c, weight.shape, places)
    wanted = at_places(y, places) if c.is_conv else y.reshape(-1, y.shape[-1])
    matrix = read_matrix(weight, c, groups)
    got = rows @ matrix + bias.reshape(*matrix.shape[:-2], 1, -1)
    np.testing.assert_allclose(got, in_groups(wanted, groups), atol=3e-5)
    np.testing.assert_array_equal(write_array(matrix, c, weight.shape), weight)


def _job(proto: onnx.ModelProto) -> Job:
    analysis = pipeline.analyze(proto)
    (job,) = jobs_of(analysis.view(), proto, (), 9, 0)
    return job


@pytest.mark.parametrize("what", LAYERS)
def test_an_operator_is_the_layer_and_its_transpose_is_the_adjoint(what: str) -> None:
    proto, feeds = _layer(what)
    job, x = _job(proto), feeds["x"]
    w = start(job, proto, None)
    with open_session(proto) as session:
        y = session.run(feeds)["y"]
    np.testing.assert_allclose(Operator(job, w)(x), y, atol=3e-5)
    bare = w.copy()
    bare[..., -1, :] = 0
    linear = Operator(job, bare)
    r = np.random.default_rng(2).standard_normal(y.shape).astype(np.float32)
    back = linear.back(r, x.shape)
    assert back.shape == x.shape
    assert np.vdot(linear(x), r) == pytest.approx(np.vdot(x, back), rel=1e-4)


# Streams


def _net() -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    nodes: list[Any] = [
        ("Conv", ["x", "w1"], ["a"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["a"], ["b"], {}),
        ("Conv", ["b", "w2"], ["c"], {"pads": [1, 1, 1, 1]}),
        ("Add", ["c", "b"], ["d"], {}),
        ("Relu", ["d"], ["e"], {}),
        ("GlobalAveragePool", ["e"], ["f"], {}),
        ("Flatten", ["f"], ["g"], {}),
        ("Gemm", ["g", "w3"], ["y"], {"transB": 1}),
    ]
    weights = {
        "w1": rng.standard_normal((8, 3, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((8, 8, 3, 3)).astype(np.float32) / 5,
        "w3": rng.standard_normal((5, 8)).astype(np.float32),
    }
    return model_of(nodes, weights, ["n", 3, 8, 8], ["n", 5])


def _batches(count: int = 3, size: int = 4) -> list[Mapping[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"x": rng.standard_normal((size, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


@pytest.mark.parametrize("memory", [0, 10_000_000])
def test_a_stream_gives_what_a_run_gives(memory: int) -> None:
    model, batches = _net(), _batches()
    order = [["b"], ["c", "b"], ["e"], ["y", "x"]]
    with open_session(model, extra_outputs=list("abcdefg")) as session, Store(memory) as store:
        wanted = [session.run(feeds) | dict(feeds) for feeds in batches]
        stream = Stream(model, batches, [v for names in order for v in names], store, None)
        for names in order:
            stream.take(names)
            for k in range(len(batches)):
                for name in names:
                    np.testing.assert_allclose(stream.get(name, k), wanted[k][name], atol=1e-5)
            stream.release(names)
        assert not stream.live
        assert store.used == 0


def test_a_stream_sees_weights_that_change_before_their_turn() -> None:
    model, batches = _net(), _batches()
    with Store(1_000_000) as store:
        stream = Stream(model, batches, ["b", "y"], store, None)
        stream.take(["b"])
        tensor = next(t for t in model.graph.initializer if t.name == "w2")
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 3, "w2"))
        stream.take(["y"])
        with open_session(model) as session:
            for k, feeds in enumerate(batches):
                np.testing.assert_allclose(stream.get("y", k), session.run(feeds)["y"], atol=1e-4)


def test_an_input_of_another_content_goes_on() -> None:
    model, batches = _net(), _batches()
    with Store(1_000_000) as store:
        stream = Stream(model, batches, ["b", "y"], store, None)
        stream.take(["b"])
        for k in range(len(batches)):
            stream.replace("b", k, store.put(np.zeros_like(stream.get("b", k))))
        stream.take(["y"])
        assert not any(stream.get("y", k).any() for k in range(len(batches)))


# Whole repairs


def _output_errors(model: onnx.ModelProto, *others: onnx.ModelProto) -> list[float]:
    """Squared error of others' outputs on new samples, over the power of the model's own."""
    rng = np.random.default_rng(99)
    feeds = {"x": rng.standard_normal((64, 3, 8, 8)).astype(np.float32)}
    found = []
    for m in (model, *others):
        with open_session(m) as session:
            found.append(session.run(feeds)["y"].astype(np.float64))
    return [float(((y - found[0]) ** 2).sum() / (found[0] ** 2).sum()) for y in found[1:]]


def test_each_recipe_goes_further_than_the_one_before() -> None:
    model = _net()
    nodes = model.graph.node
    nodes[0].output[0], nodes[1].input[0] = "a0", "a0"
    result = pipeline.slim(model, ratio=0.5, criterion="l2")
    view = result.analysis.view(result.kept)
    done = cut(view)
    batches = _batches(16, 32)
    models = [
        refit(view, done.model, done.weights, batches, recipe=RECIPES[r])[0]
        for r in ("bias", "linear", "full")
    ]
    sliced, bias, linear, full = _output_errors(model, done.model, *models)
    assert sliced > bias > linear
    assert full <= linear * 1.02


def test_the_first_layer_moves_to_make_up_for_the_second() -> None:
    """Without a sum behind it: only Gauss-Newton touches what makes the channels."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((12, 3, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((4, 12, 3, 3)).astype(np.float32),
    }
    nodes: list[Any] = [
        ("Conv", ["x", "w1"], ["a"], {"pads": [1, 1, 1, 1]}),
        ("Sigmoid", ["a"], ["s"], {}),
        ("Mul", ["a", "s"], ["h"], {}),
        ("Conv", ["h", "w2"], ["y"], {"pads": [1, 1, 1, 1]}),
    ]
    model = model_of(nodes, weights, ["n", 3, 8, 8], ["n", 4, 8, 8])
    result = pipeline.slim(model, ratio=0.5, criterion="l2")
    view = result.analysis.view(result.kept)
    done = cut(view)
    before, after = (
        refit(view, done.model, done.weights, _batches(16, 16), recipe=RECIPES[r])[0]
        for r in ("linear", "full")
    )
    linear, full = _output_errors(model, before, after)
    assert full < 0.9 * linear

    def stored(m: onnx.ModelProto, name: str) -> bytes:
        return next(t for t in m.graph.initializer if t.name == name).SerializeToString()

    assert stored(before, "w1") == stored(done.model, "w1")
    assert stored(after, "w1") != stored(done.model, "w1")


def test_repair_is_the_same_again(tmp_path: Path) -> None:
    model = _net()
    result = pipeline.slim(model, ratio=0.5, criterion="l2")
    view = result.analysis.view(result.kept)
    done = cut(view)
    runs = [
        refit(view, done.model, done.weights, _batches(8, 8), memory=memory)[0].SerializeToString()
        for memory in (0, 10**9)
    ]
    assert runs[0] == runs[1]


def test_a_head_of_two_dense_layers_behind_a_mean_is_repaired() -> None:
    """The first of them is fitted at every position, but moves as the dense layer that it is."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((12, 3, 3, 3)).astype(np.float32),
        "w2": rng.standard_normal((16, 12)).astype(np.float32),
        "w3": rng.standard_normal((5, 16)).astype(np.float32),
    }
    nodes: list[Any] = [
        ("Conv", ["x", "w1"], ["a"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["a"], ["b"], {}),
        ("GlobalAveragePool", ["b"], ["c"], {}),
        ("Flatten", ["c"], ["d"], {}),
        ("Gemm", ["d", "w2"], ["e"], {"transB": 1}),
        ("Relu", ["e"], ["f"], {}),
        ("Gemm", ["f", "w3"], ["y"], {"transB": 1}),
    ]
    model = model_of(nodes, weights, ["n", 3, 8, 8], ["n", 5])
    sliced = pipeline.slim(model, ratio=0.5, criterion="l2", repair="none").model
    full = pipeline.slim(model, ratio=0.5, criterion="l2", calib=_batches(16, 32)).model
    before, after = _output_errors(model, sliced, full)
    assert after < 0.5 * before
