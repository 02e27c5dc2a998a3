"""What channels hold without data, against drawn samples."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from models.zoo import ZOO
from onnxprune.repair.normal import Channels, walk
from tests.choosing import analysed, model_of

RNG = np.random.default_rng(0)
COV = np.array([[1.0, 0.6, -0.3], [0.6, 2.0, 0.1], [-0.3, 0.1, 0.25]])
MEAN = np.array([0.3, -1.0, 0.4])
DRAWN = RNG.multivariate_normal(MEAN, COV, 400_000)


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-x)))


FUNCTIONS: dict[str, tuple[list[tuple[str, list[str], list[str], dict[str, object]]],
                           Callable[[np.ndarray], np.ndarray]]] = {
    "nothing": ([("Identity", ["n"], ["v"], {})], lambda x: x),
    "relu": ([("Relu", ["n"], ["v"], {})], lambda x: np.maximum(x, 0)),
    "relu6": ([("Clip", ["n", "zero", "six"], ["v"], {})], lambda x: np.clip(x, 0, 6)),
    "prelu": ([("PRelu", ["n", "slope"], ["v"], {})],
              lambda x: np.where(x > 0, x, x * [0.1, 0.5, -1])),
    "silu": ([("Sigmoid", ["n"], ["s"], {}), ("Mul", ["n", "s"], ["v"], {})],
             lambda x: x * _sigmoid(x)),
    "tanh, scaled": ([("Tanh", ["n"], ["s"], {}), ("Mul", ["s", "slope"], ["v"], {})],
                     lambda x: np.tanh(x) * [0.1, 0.5, -1]),
}  # fmt: skip


def _behind_a_norm(nodes: list[tuple[str, list[str], list[str], dict[str, object]]],
                   last: str = "v") -> ModelProto:  # fmt: skip
    """x -> Conv -> BatchNormalization `n` -> nodes -> Conv -> y; the norm's outputs have the
    moments above: the filters are a root of the correlations.
    """
    spread = np.sqrt(np.diag(COV))
    root = np.linalg.cholesky(COV / np.outer(spread, spread)).astype(np.float32)
    weights = {
        "w": root[:, :, None, None], "gamma": spread, "beta": MEAN, "mean": RNG.normal(size=3),
        "var": np.full(3, 7.0), "zero": np.float32(0), "six": np.float32(6),
        "slope": np.array([0.1, 0.5, -1]).reshape(3, 1, 1), "out": np.ones((2, 3, 1, 1)),
    }  # fmt: skip
    return model_of(
        [
            ("Conv", ["x", "w"], ["c"], {}),
            ("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n"], {}),
            *nodes,
            ("Conv", [last, "out"], ["y"], {}),
        ],
        {k: np.asarray(a, np.float32) for k, a in weights.items()},
        ["b", 3, 4, 4],
        ["b", 2, 4, 4],
    )


def _found(model: ModelProto, *wanted: str) -> dict[str, Channels]:
    return dict(walk(analysed(model).facts, wanted))


@pytest.fixture(autouse=True)
def _no_image(monkeypatch: pytest.MonkeyPatch) -> None:
    """The colours of the input are independent, as the drawn samples are."""
    monkeypatch.setattr("onnxprune.repair.normal.IMAGE", 0.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_moments_behind_a_norm_are_those_of_samples(name: str) -> None:
    nodes, function = FUNCTIONS[name]
    mean, cov = _found(_behind_a_norm(nodes), "v")["v"].moments
    values = function(DRAWN)
    np.testing.assert_allclose(mean, values.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(cov, np.cov(values.T), atol=0.015)


def test_a_channel_that_does_not_vary_goes_with_no_other() -> None:
    model = _behind_a_norm([("Relu", ["n"], ["v"], {})])
    gamma = next(t for t in model.graph.initializer if t.name == "gamma")
    gamma.raw_data = np.array([1, 0, 1], np.float32).tobytes()
    mean, cov = _found(model, "v")["v"].moments
    np.testing.assert_allclose(cov[1], 0, atol=1e-12)
    assert mean[1] == 0  # relu(-1)
    assert cov[0, 0] > 0.1


def test_sums_products_and_parts_side_by_side() -> None:
    """Terms are taken as independent."""
    nodes = [
        ("Relu", ["n"], ["r"], {}),
        ("Conv", ["x", "w_"], ["c2"], {}),
        ("BatchNormalization", ["c2", "gamma", "beta", "mean", "var"], ["n2"], {}),
        ("Add", ["r", "n2"], ["sum"], {}),
        ("Mul", ["r", "n2"], ["product"], {}),
        ("Concat", ["r", "n2"], ["both"], {"axis": 1}),
        ("Split", ["both"], ["p", "q"], {"axis": 1, "num_outputs": 2}),
        ("Max", ["sum", "product", "p", "q"], ["v"], {}),
    ]
    model = _behind_a_norm(nodes)
    weight = next(t for t in model.graph.initializer if t.name == "w")
    other = onnx.TensorProto()
    other.CopyFrom(weight)
    other.name = "w_"
    model.graph.initializer.append(other)
    found = _found(model, "r", "n2", "sum", "product", "both", "q")
    (m, s), (m2, s2) = found["r"].moments, found["n2"].moments
    np.testing.assert_allclose(found["sum"].moments[0], m + m2)
    np.testing.assert_allclose(found["sum"].moments[1], s + s2, atol=1e-5)
    r = np.maximum(DRAWN, 0)
    product = r * DRAWN[RNG.permutation(len(DRAWN))]
    np.testing.assert_allclose(found["product"].moments[0], product.mean(axis=0), atol=0.02)
    np.testing.assert_allclose(found["product"].moments[1], np.cov(product.T), atol=0.05)
    np.testing.assert_allclose(found["both"].moments[1][:3, :3], s, atol=1e-5)
    np.testing.assert_allclose(found["both"].moments[1][:3, 3:], 0)
    np.testing.assert_allclose(found["q"].moments[0], m2)


def test_layers_carry_moments_and_flattened_maps_repeat_channels() -> None:
    rng = np.random.default_rng(1)
    w = rng.standard_normal((48, 5)).astype(np.float32)
    bias = rng.standard_normal(5).astype(np.float32)
    nodes = [
        ("Relu", ["n"], ["v"], {}),
        ("Flatten", ["v"], ["f"], {}),
        ("Gemm", ["f", "dense", "bias"], ["h"], {}),
        ("MatMul", ["h", "last"], ["m"], {}),
        ("Add", ["m", "bias"], ["k"], {}),
        ("ReduceSum", ["k"], ["z"], {}),
        ("Add", ["v", "z"], ["w2"], {}),
    ]
    model = _behind_a_norm(nodes, "w2")
    last = rng.standard_normal((5, 5)).astype(np.float32)
    for name, array in (("dense", w), ("bias", bias), ("last", last)):
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    found = _found(model, "v", "f", "h", "k")
    np.testing.assert_array_equal(found["f"].of, np.repeat(np.arange(3), 16))
    mean, cov = found["v"].moments
    table = w.reshape(3, 16, 5)  # positions are taken as independent
    np.testing.assert_allclose(found["h"].mean, mean @ table.sum(axis=1) + bias, rtol=1e-5)
    expected = np.einsum("cto,cd,dtp->op", table, cov, table)
    np.testing.assert_allclose(found["h"].cov, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found["k"].mean, found["h"].mean @ last + bias, rtol=1e-5)
    np.testing.assert_allclose(found["k"].cov, last.T @ expected @ last, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("groups", [1, 3, 6])
def test_convolutions_in_groups_are_those_of_the_full_weight(groups: int) -> None:
    rng = np.random.default_rng(2)
    w1 = rng.standard_normal((6, 3, 1, 1)).astype(np.float32)
    w2 = rng.standard_normal((12, 6 // groups, 3, 3)).astype(np.float32)
    full = np.zeros((12, 6, 3, 3), np.float32)
    for o in range(12):
        first = o // (12 // groups) * (6 // groups)
        full[o, first : first + 6 // groups] = w2[o]
    ones, zeros = np.ones(6, np.float32), np.zeros(6, np.float32)
    found = []
    for weight, count in ((w2, groups), (full, 1)):
        model = model_of(
            [
                ("Conv", ["x", "w1"], ["c"], {}),
                ("BatchNormalization", ["c", "ones", "zeros", "zeros", "ones"], ["n"], {}),
                ("Conv", ["n", "w2"], ["y"], {"group": count, "pads": [1, 1, 1, 1]}),
            ],
            {"w1": w1, "w2": weight, "ones": ones, "zeros": zeros},
            ["b", 3, 8, 8],
            ["b", 12, 8, 8],
        )
        found.append(_found(model, "y")["y"])
    np.testing.assert_allclose(found[0].cov, found[1].cov, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found[0].mean, found[1].mean, atol=1e-6)


def test_maps_that_are_cut_and_padded_keep_their_channels() -> None:
    nodes = [
        ("Slice", ["n", "start", "end", "axes", "steps"], ["half"], {}),
        ("Pad", ["half", "pads"], ["wide"], {}),
        ("Transpose", ["wide"], ["v"], {"perm": [0, 2, 3, 1]}),
        ("Transpose", ["v"], ["back"], {"perm": [0, 3, 1, 2]}),
        ("Slice", ["back", "one", "four", "axis", "one"], ["u"], {}),
    ]
    model = _behind_a_norm(nodes, "u")
    lists = {"start": [0, 0], "end": [4, 4], "axes": [2, 3], "steps": [2, 2],
             "pads": [0, 1, 0, 0, 0, 1, 0, 0], "one": [1], "four": [4], "axis": [1]}  # fmt: skip
    for name, entries in lists.items():
        model.graph.initializer.append(numpy_helper.from_array(np.array(entries, np.int64), name))
    found = _found(model, "n", "v", "u")
    mean, cov = found["n"].moments
    np.testing.assert_allclose(found["v"].mean, [0, *mean, 0])
    assert found["v"].axis == 3
    np.testing.assert_allclose(found["v"].cov[1:4, 1:4], cov, atol=1e-5)
    np.testing.assert_allclose(found["v"].cov[[0, 4]], 0)
    np.testing.assert_allclose(found["u"].cov, cov, atol=1e-5)


def test_rectified_without_norms_is_the_arc_cosine_kernel() -> None:
    """E[relu(a'u) relu(b'u)] = |a||b| (sin t + (pi - t) cos t) / 2 pi, a and b being rows [w, bias]
    and t the angle between them (Cho & Saul 2009, order 1).
    """
    rng = np.random.default_rng(3)
    w, b = rng.standard_normal((6, 5)).astype(np.float32), rng.standard_normal(5).astype(np.float32)
    model = model_of(
        [
            ("Gemm", ["x", "w", "b"], ["v"], {}),
            ("Relu", ["v"], ["u"], {}),
            ("Gemm", ["u", "w2"], ["y"], {}),
        ],
        {"w": w, "b": b, "w2": np.ones((5, 2), np.float32)}, ["n", 6], ["n", 2],
    )  # fmt: skip
    found = _found(model, "v", "u")
    rows = np.concatenate([w, b[None]]).T.astype(np.float64)
    np.testing.assert_allclose(found["v"].seen, rows @ rows.T, rtol=1e-4, atol=1e-4)
    size = np.linalg.norm(rows, axis=1)
    t = np.arccos(np.clip(rows @ rows.T / np.outer(size, size), -1, 1))
    kernel = np.outer(size, size) * (np.sin(t) + (np.pi - t) * np.cos(t)) / (2 * np.pi)
    assert not found["u"].trusted
    np.testing.assert_allclose(found["u"].seen, kernel, atol=0.01 * kernel.max())


def test_channels_that_are_still_go_with_no_other() -> None:
    """Rounding must not make correlations of them, which their powers would blow up."""
    cov = np.array([[1, 1e-5, 0.5], [1e-5, 1e-12, 3e-6], [0.5, 3e-6, 1]], np.float32)
    found = Channels.normally(np.zeros(3), cov, 1, True)
    rectified = Channels(found.normal, np.maximum(found.grid, 0), 1, found.of, True)
    assert np.abs(rectified.cov).max() < 1
    assert np.linalg.eigvalsh(rectified.cov.astype(np.float64)).min() > -1e-6


@pytest.mark.parametrize("name", ZOO)
def test_what_is_said_of_any_network_is_sound(name: str) -> None:
    """Right sizes, finite, variances that are not negative, and correlations that are."""
    facts = analysed(ZOO[name](0)).facts
    values = [o for n in facts.model.graph.nodes for o in n.outputs if o]
    for value, x in walk(facts, values):
        assert len(x.of) == facts.trace.shapes[value][x.axis]
        assert x.of.max() < len(x.mean)
        mean, cov = x.moments
        assert np.isfinite(mean).all()
        assert np.isfinite(cov).all()
        least = np.linalg.eigvalsh(cov)[0]
        assert least >= -1e-3 * max(np.trace(cov), 1e-9), (value, least)
