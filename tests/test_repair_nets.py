"""Repair on whole networks: what it restores, what it leaves alone, and what it can't do."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models.zoo import ZOO
from onnxprune import pipeline
from onnxprune.repair.calibration import calibration
from onnxprune.runtime.session import open_session
from tests.choosing import model_of

MODELS = Path(__file__).parents[1] / "models"
Net = tuple[onnx.ModelProto, dict[str, np.ndarray]]
FIRST = np.array([2.0] * 4 + [1.0] * 4)
"""Scores that keep the first half of eight channels."""


def _w(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return rng.standard_normal(shape).astype(np.float32)


def _copies(*shape: int) -> np.ndarray:
    """A weight whose last four outputs (axis 0) are multiples of the first four."""
    w = _w(4, *shape)
    factors = np.array([0.5, 1.5, 2.0, 0.8], np.float32).reshape(4, *[1] * len(shape))
    return np.concatenate([w, factors * w[::-1]])


def _combinations(*shape: int) -> np.ndarray:
    """A weight whose last four outputs (axis 0) are mixtures of the first four."""
    w = _w(4, *shape)
    return np.concatenate([w, np.tensordot(_w(4, 4), w, axes=1)])


def _conv() -> Net:
    """Convolutions, padding in the consumer, Relu between: removed ones are scaled kept ones."""
    weights = {"w1": _copies(3, 3, 3), "b1": _copies(), "w2": _w(5, 8, 3, 3), "b2": _w(5)}
    nodes = [
        ("Conv", ["x", "w1", "b1"], ["h"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["h"], ["r"], {}),
        ("Conv", ["r", "w2", "b2"], ["y"], {"pads": [1, 0, 2, 1], "strides": [2, 1]}),
    ]
    return model_of(nodes, weights, ["n", 3, 8, 8], ["n", 5, "h", "w"]), {"w1": FIRST}


def _gemm() -> Net:
    weights = {"w1": _combinations(6), "w2": _w(8, 5), "b2": _w(5)}
    nodes = [
        ("Gemm", ["x", "w1"], ["h"], {"transB": 1}),
        ("Gemm", ["h", "w2", "b2"], ["y"], {}),
    ]
    return model_of(nodes, weights, ["n", 6], ["n", 5]), {"w1": FIRST}


def _gemm_shifted() -> Net:
    """The removed channels are kept ones and a constant: a bias that was not there takes it up."""
    model, scores = _gemm()
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(2 + _w(8), "b1"))
    graph.node[0].input.append("b1")
    del graph.node[1].input[2]
    return model, scores


def _matmul() -> Net:
    weights = {"w1": _copies(6).T.copy(), "b1": _copies(), "w2": _w(8, 5), "b2": _w(5)}
    nodes = [
        ("MatMul", ["x", "w1"], ["m1"], {}),
        ("Add", ["m1", "b1"], ["h"], {}),
        ("Relu", ["h"], ["r"], {}),
        ("MatMul", ["r", "w2"], ["m2"], {}),
        ("Add", ["b2", "m2"], ["y"], {}),
    ]
    return model_of(nodes, weights, ["n", 7, 6], ["n", 7, 5]), {"w1": FIRST}


def _flatten() -> Net:
    weights = {"w1": _copies(2, 3, 3), "w2": _w(5, 8 * 36), "b2": _w(5)}
    nodes = [
        ("Conv", ["x", "w1"], ["h"], {"pads": [1, 1, 1, 1]}),
        ("Relu", ["h"], ["r"], {}),
        ("Flatten", ["r"], ["f"], {}),
        ("Gemm", ["f", "w2", "b2"], ["y"], {"transB": 1}),
    ]
    return model_of(nodes, weights, ["n", 2, 6, 6], ["n", 5]), {"w1": FIRST}


def _residual(norm: bool = False) -> Net:
    """The first term loses what none of its channels has; the second can make up for it."""
    weights = {"w1": np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), "w2": _combinations(4, 1, 1)}
    weights |= {"p": _w(5, 4, 1, 1), "q": _w(5, 8, 1, 1)}
    weights |= {"gamma": np.abs(_w(5)) + 0.5, "beta": _w(5), "mean": _w(5), "var": _w(5) ** 2 + 1}
    nodes = [
        ("Conv", ["x", "w1"], ["h1"], {}),
        ("Conv", ["h1", "p"], ["y1"], {}),
        ("Conv", ["x", "w2"], ["h2"], {}),
        ("Conv", ["h2", "q"], ["y2"], {}),
        ("BatchNormalization", ["y2", "gamma", "beta", "mean", "var"], ["bn"], {"epsilon": 0.3}),
        ("Add", ["y1", "bn"] if norm else ["y2", "y1"], ["y"], {}),
    ]
    if not norm:
        del nodes[4]
        weights = {k: w for k, w in weights.items() if w.ndim > 1}
    scores = {"w1": np.array([2.0, 2.0, 1.0, 1.0]), "w2": FIRST}
    return model_of(nodes, weights, ["n", 4, 5, 5], ["n", 5, 5, 5]), scores


NETS: dict[str, Callable[[], Net]] = {
    "conv": _conv, "gemm": _gemm, "gemm, a new bias": _gemm_shifted, "matmul": _matmul,
    "flatten": _flatten, "residual": _residual, "residual, norm": lambda: _residual(True),
}  # fmt: skip


def _samples(model: onnx.ModelProto, count: int, seed: int) -> list[dict[str, np.ndarray]]:
    """Batches of 32 for the input x."""
    shape = [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((32, *shape), np.float32)} for _ in range(count)]


def _run(model: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> np.ndarray:
    with open_session(model) as session:
        return next(iter(session.run(feeds).values()))


def _errors(model: onnx.ModelProto, *others: onnx.ModelProto) -> list[float]:
    """How far others are from a model on new inputs, as a share of its outputs' norm."""
    (feeds,) = _samples(model, 1, seed=99)
    want = _run(model, feeds)
    return [float(np.linalg.norm(_run(m, feeds) - want) / np.linalg.norm(want)) for m in others]


@pytest.mark.parametrize("net", NETS)
def test_what_kept_channels_can_express_is_restored(net: str) -> None:
    model, scores = NETS[net]()
    calib = _samples(model, 16, seed=1)
    how = {"ratio": 0.5, "scores": scores, "criterion": "l2"}
    sliced = pipeline.slim(model, repair="none", **how)
    repaired = pipeline.slim(model, calib=calib, **how)
    assert repaired.verdict is not None
    assert repaired.verdict.passed
    before, after = _errors(model, sliced.model, repaired.model)
    assert before > 0.2
    assert after < 0.02


def _weights(model: onnx.ModelProto) -> dict[str, bytes]:
    return {t.name: t.SerializeToString() for t in model.graph.initializer}


@pytest.mark.parametrize("name", ["resnet", "bert", "densenet", "conv_bn", "float16"])
def test_repair_changes_only_weights_and_biases_of_layers(name: str) -> None:
    model = ZOO[name](0)
    analysis = pipeline.analyze(model)
    shapes = {i.name: analysis.facts.trace.shapes[i.name] for i in model.graph.input}
    rng = np.random.default_rng(0)
    types = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    calib = [
        {k: (rng.integers(0, 2, s) if types[k] in (6, 7) else rng.standard_normal(s)).astype(
            onnx.helper.tensor_dtype_to_np_dtype(types[k])) for k, s in shapes.items()}
        for _ in range(9)
    ]  # fmt: skip
    sliced = pipeline.slim(model, ratio=0.5, criterion="l2", repair="none")
    repaired = pipeline.slim(model, ratio=0.5, criterion="l2", calib=calib)
    unrepaired = pipeline.slim(model, ratio=0.5, criterion="l2", calib=calib, repair="none")
    assert unrepaired.model.SerializeToString() == sliced.model.SerializeToString()
    assert {k: list(v) for k, v in repaired.kept.items()} == {
        k: list(v) for k, v in sliced.kept.items()
    }
    layers = repaired.report.repair["layers"]
    assert layers
    assert all(r["after"] <= r["before"] for r in layers)
    before, after = _weights(sliced.model), _weights(repaired.model)
    touched = {n for n in after if after[n] != before.get(n)}
    multiply = [n for n in repaired.model.graph.node if n.op_type in ("Conv", "Gemm", "MatMul")]
    made = {o for n in multiply for o in n.output}
    biased = [n for n in repaired.model.graph.node if n.op_type == "Add" and made & set(n.input)]
    assert touched
    assert touched <= {i for n in (*multiply, *biased) for i in n.input}
    assert set(before) <= set(after)


def test_noise_that_can_not_be_fitted_leaves_the_sliced_weights() -> None:
    model, scores = _gemm()
    calib = [
        {"x": b["x"][:1]} for b in _samples(model, 2, seed=1)
    ]  # one sample to fit, one to judge
    calib[1]["x"] = np.zeros_like(calib[1]["x"])
    how = {"ratio": 0.5, "scores": scores, "criterion": "l2"}
    sliced = pipeline.slim(model, repair="none", **how)
    repaired = pipeline.slim(model, calib=calib, **how)
    (layer,) = repaired.report.repair["layers"]
    assert layer["after"] == layer["before"] > 0
    assert _weights(repaired.model) == _weights(sliced.model)


# Trained networks


def _accuracy(name: str, ratio: float, calibrated: bool) -> float:
    path = MODELS / f"digits_{name}.onnx"
    calib = None
    if calibrated:
        calib = calibration(MODELS / "digits_calib.npz", pipeline.source_of(path), 512)
    repair = "auto" if calibrated else "none"
    result = pipeline.slim(path, ratio=ratio, calib=calib, repair=repair)
    data = np.load(MODELS / "digits_test.npz")
    logits = _run(result.model, {"x": data["x"]})
    return float((logits.argmax(axis=1) == data["y"]).mean())


def test_the_digits_resnet_keeps_its_accuracy_only_with_repair() -> None:
    assert _accuracy("resnet", 0.7, True) >= 0.97
    assert _accuracy("resnet", 0.7, False) < 0.85


def test_the_digits_lstm_keeps_its_accuracy_with_calibration() -> None:
    assert _accuracy("lstm", 0.5, True) >= 0.85
