"""Lossless pruning: the outputs stay, whatever was made dead; and what is not certain stays too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import ModelProto, helper, numpy_helper

from models.zoo import ZOO, feeds
from onnxprune.axes.solve import Group
from onnxprune.axes.view import View
from onnxprune.choose.constants import ConstantChannels
from onnxprune.choose.dead import BiasShift, Dead, dead_channels
from onnxprune.cut.cut import cut
from tests.choosing import Analysed, analysed, model_of, shared

ort = pytest.importorskip("onnxruntime")
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def run(model: ModelProto, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return session.run(None, inputs)


def shifted(model: ModelProto, shifts: Sequence[BiasShift]) -> ModelProto:
    """The original with the biases shifted: its outputs are wrong until the channels are gone."""
    out = ModelProto()
    out.CopyFrom(model)
    stored = {t.name: t for t in out.graph.initializer}
    for shift in shifts:
        node = out.graph.node[shift.node.site.index]
        assert not shift.node.site.path
        old = node.input[shift.operand] if len(node.input) > shift.operand else ""
        bias = numpy_helper.to_array(stored[old]) if old else np.float32(0)
        new = (bias + shift.values).astype(np.float32)
        name = f"{node.output[0]}_shifted"
        out.graph.initializer.append(numpy_helper.from_array(new, name))
        del node.input[shift.operand :]
        node.input.append(name)
    return out


def signature(g: Group) -> object:
    """A group is the same where its first matrix is cut alike: biases have other names now."""
    m = next((m for m in g.members if m.role != "follows"), g.members[0])
    return m.value, m.axis, m.channel.tobytes()


def slimmed(model: ModelProto) -> tuple[ModelProto, Dead, Analysed]:
    a = analysed(model)
    dead = dead_channels(a.solution, a.groups)
    b = analysed(shifted(model, dead.shifts))
    same = {signature(g): g.id for g in b.groups}
    kept = {same[signature(g)]: dead.kept[g.id] for g in a.groups}
    return cut(View.of(b.solution, b.groups, kept)).model, dead, a


def removed(a: Analysed, dead: Dead) -> int:
    return sum(g.size - len(dead.kept[g.id]) for g in a.groups)


def close(a: Sequence[np.ndarray], b: Sequence[np.ndarray]) -> bool:
    return all(
        np.allclose(p, q, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(p).max(initial=0))))
        for p, q in zip(a, b, strict=True)
        if p.dtype.kind == "f"
    )


def numb(model: ModelProto, seed: int, share: float = 0.4) -> ModelProto:
    """Zero some outputs or some inputs of every matrix and filter that is stored."""
    rng = np.random.default_rng(seed)
    out = ModelProto()
    out.CopyFrom(model)
    for t in out.graph.initializer:
        w = numpy_helper.to_array(t)
        if w.ndim >= 2 and w.dtype == np.float32 and max(w.shape) > 1:
            w, axis = w.copy(), int(rng.integers(2))
            gone = rng.permutation(w.shape[axis])[: int(share * w.shape[axis])]
            w[(slice(None),) * axis + (gone,)] = 0
            t.CopyFrom(numpy_helper.from_array(w, t.name))
    return out


def by_name(name: str) -> ModelProto:
    model = ZOO[name](0)
    onnx.checker.check_model(model)
    return model


# ---- whole networks ---------------------------------------------------------------------------

SKIPPED = {"constant_of_shape", "group_norm", "if_conv", "loop_conv", "scan_cell"}
"""No stored weight to make zero, or shapes of its own."""


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", sorted(set(ZOO) - SKIPPED))
def test_outputs_stay(name: str, seed: int) -> None:
    model = numb(ZOO[name](0), seed)
    slim, dead, _ = slimmed(model)
    del dead
    inputs = feeds(model, seed)
    try:
        before = run(model, inputs)
    except Exception as e:
        pytest.skip(f"the original does not run: {e}")
    if any(np.isnan(v).any() for v in before if v.dtype.kind == "f"):
        pytest.skip("the original itself is not finite")
    assert close(before, run(slim, inputs))


def test_something_is_found_in_most_networks() -> None:
    """The test above is not vacuous."""
    hits, shifts = [], 0
    for name in sorted(set(ZOO) - SKIPPED):
        for seed in range(3):
            a = analysed(numb(ZOO[name](0), seed))
            dead = dead_channels(a.solution, a.groups)
            shifts += len(dead.shifts)
            if removed(a, dead):
                hits.append(name)
    assert len(set(hits)) > 0.6 * len(ZOO), sorted(set(ZOO) - set(hits))
    assert shifts > 20


def test_nothing_is_found_in_live_networks() -> None:
    for name in ("resnet", "mlp", "mobilenet_v2", "lstm", "densenet"):
        a = analysed(ZOO[name](0))
        assert removed(a, dead_channels(a.solution, a.groups)) == 0


def test_a_real_network_with_dead_channels() -> None:
    path = shared("road_seg_adas_0001")
    model = onnx.load(path)
    slim, dead, a = slimmed(model)
    assert removed(a, dead) > 100
    inputs = {"data": RNG.uniform(0, 255, (1, 512, 896, 3)).astype(np.float32)}
    assert close(run(model, inputs), run(slim, inputs))


# ---- one thing at a time ----------------------------------------------------------------------


def conv_net(pads: int, bias: bool, act: str = "Relu", **weights: np.ndarray) -> ModelProto:
    """x (3) -> conv 1x1 -> act -> conv 3x3 (pads) -> y (4); 6 hidden channels."""
    held = {"w1": normal(6, 3, 1, 1), "b1": normal(6), "w2": normal(4, 6, 3, 3)} | weights
    if bias:
        held["b2"] = normal(4)
    return model_of(
        [
            ("Conv", ["x", "w1", "b1"], ["c"], {}),
            (act, ["c"], ["r"], {}),
            ("Conv", ["r", "w2", *(["b2"] if bias else [])], ["y"], {"pads": [pads] * 4}),
        ],
        held,
        ["n", 3, 8, 8],
    )


def dead_filters(*gone: int) -> np.ndarray:
    w = normal(6, 3, 1, 1)
    w[list(gone)] = 0
    return w


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("act", ["Relu", "Sigmoid", "HardSwish", "Softplus"])
def test_constants_move_to_the_consumers_bias(bias: bool, act: str) -> None:
    model = conv_net(0, bias, act, w1=dead_filters(1, 4), b1=np.abs(normal(6)) + 0.5)
    slim, dead, _ = slimmed(model)
    assert dead.kept[0].tolist() == [0, 2, 3, 5]
    assert [s.values.shape for s in dead.shifts] == [(4,)]
    x = {"x": normal(2, 3, 8, 8)}
    assert close(run(model, x), run(slim, x))
    plain = analysed(model)
    naked = cut(View.of(plain.solution, plain.groups, dead.kept)).model
    assert not close(run(model, x), run(naked, x)), "without the shift it must be wrong"


def test_padding_keeps_constants_unless_they_are_zero() -> None:
    b1 = np.array([1, 0.5, -0.5, 1, 0, 1], np.float32)
    a = analysed(conv_net(1, True, w1=dead_filters(1, 2, 4), b1=b1))
    dead = dead_channels(a.solution, a.groups)
    assert dead.kept[0].tolist() == [0, 1, 3, 5]  # 1 is 0.5, 2 and 4 are 0 after the Relu
    assert dead.shifts == ()
    a = analysed(conv_net(1, True, "Sigmoid", w1=dead_filters(4), b1=b1))
    assert dead_channels(a.solution, a.groups).kept[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_unheard_channels_go_whatever_they_hold() -> None:
    w2 = normal(4, 6, 3, 3)
    w2[:, [0, 5]] = 0
    a = analysed(conv_net(1, False, w2=w2))
    dead = dead_channels(a.solution, a.groups)
    assert dead.kept[0].tolist() == [1, 2, 3, 4]
    assert dead.shifts == ()


def test_almost_zero_is_not_zero() -> None:
    w1, w2 = dead_filters(1), normal(4, 6, 3, 3)
    w1[1, 0], w2[:, 0], w2[3, 0, 1, 1] = 1e-30, 0, 1e-30
    a = analysed(conv_net(0, True, w1=w1, w2=w2))
    assert len(dead_channels(a.solution, a.groups).kept[0]) == 6


def test_one_channel_always_stays() -> None:
    model = conv_net(1, True, w2=np.zeros((4, 6, 3, 3), np.float32))
    slim, dead, _ = slimmed(model)
    assert dead.kept[0].tolist() == [0]
    x = {"x": normal(1, 3, 8, 8)}
    assert close(run(model, x), run(slim, x))


def test_a_matmul_has_no_bias_to_shift() -> None:
    def net(b1: np.ndarray) -> Analysed:
        w1 = normal(5, 6)
        w1[:, 2] = 0
        nodes = [
            ("Gemm", ["x", "w1", "b1"], ["h"], {}),
            ("Relu", ["h"], ["r"], {}),
            ("MatMul", ["r", "w2"], ["y"], {}),
        ]
        return analysed(model_of(nodes, {"w1": w1, "b1": b1, "w2": normal(6, 3)}, ["n", 5]))

    a = net(np.ones(6, np.float32))
    assert len(dead_channels(a.solution, a.groups).kept[0]) == 6
    a = net(np.zeros(6, np.float32))
    assert len(dead_channels(a.solution, a.groups).kept[0]) == 5


def test_gemm_scales_its_bias() -> None:
    w1 = normal(6, 5)
    w1[3] = 0
    model = model_of(
        [
            ("Gemm", ["x", "w1", "b1"], ["h"], {"transB": 1}),
            ("Gemm", ["h", "w2", "b2"], ["y"], {"transB": 1, "alpha": 0.5, "beta": 3.0}),
        ],
        {"w1": w1, "b1": normal(6), "w2": normal(4, 6), "b2": normal(4)},
        ["n", 5],
    )
    slim, dead, _ = slimmed(model)
    assert len(dead.kept[0]) == 5
    x = {"x": normal(2, 5)}
    assert close(run(model, x), run(slim, x))


def test_dead_chains_fall_one_after_another() -> None:
    """A unit that only feeds units that nobody hears is dead too."""
    w2, w3 = normal(6, 6), normal(3, 6)
    w3[:, :3] = 0  # nobody hears 0, 1, 2 of the second layer
    w2[3:, 4] = 0  # and 4 of the first feeds only those
    model = model_of(
        [
            ("Gemm", ["x", "w1"], ["h"], {"transB": 1}),
            ("Relu", ["h"], ["r"], {}),
            ("Gemm", ["r", "w2"], ["g"], {"transB": 1}),
            ("Relu", ["g"], ["s"], {}),
            ("Gemm", ["s", "w3"], ["y"], {"transB": 1}),
        ],
        {"w1": normal(6, 5), "w2": w2, "w3": w3},
        ["n", 5],
    )
    slim, dead, a = slimmed(model)
    assert dead.kept[a.by_name("w1").id].tolist() == [0, 1, 2, 3, 5]
    assert dead.kept[a.by_name("w2").id].tolist() == [3, 4, 5]
    x = {"x": normal(2, 5)}
    assert close(run(model, x), run(slim, x))


def test_a_sum_needs_both_sides_constant() -> None:
    wa, wb = dead_filters(1, 2), dead_filters(2, 3)
    model = model_of(
        [
            ("Conv", ["x", "wa", "b"], ["p"], {}),
            ("Conv", ["x", "wb"], ["q"], {}),
            ("Add", ["p", "q"], ["s"], {}),
            ("Conv", ["s", "w2"], ["y"], {}),
        ],
        {"wa": wa, "wb": wb, "b": normal(6), "w2": normal(4, 6, 1, 1)},
        ["n", 3, 8, 8],
    )
    slim, dead, _ = slimmed(model)
    assert dead.kept[0].tolist() == [0, 1, 3, 4, 5]
    x = {"x": normal(2, 3, 8, 8)}
    assert close(run(model, x), run(slim, x))


def test_every_consumer_must_agree() -> None:
    """Deaf in one branch, heard in another: it stays."""
    w2 = normal(4, 6, 1, 1)
    w2[:, 2] = 0
    model = model_of(
        [
            ("Conv", ["x", "w1"], ["c"], {}),
            ("Conv", ["c", "w2"], ["p"], {}),
            ("Conv", ["c", "w3"], ["q"], {}),
            ("Add", ["p", "q"], ["y"], {}),
        ],
        {"w1": normal(6, 3, 1, 1), "w2": w2, "w3": normal(4, 6, 1, 1)},
        ["n", 3, 8, 8],
    )
    a = analysed(model)
    assert len(dead_channels(a.solution, a.groups).kept[0]) == 6


def test_dynamic_quantisers_see_constants() -> None:
    """Their range is over all channels: only exact zeros may go unheard."""
    w1 = normal(6, 5)
    w1[[1, 2]] = 0
    q = RNG.integers(-99, 99, (6, 3)).astype(np.int8)
    q[[1, 4]] = 0
    nodes = [
        ("Gemm", ["x", "w1"], ["h"], {"transB": 1}),
        ("Relu", ["h"], ["r"], {}),
        ("DynamicQuantizeLinear", ["r"], ["d", "scale", "zero"], {}),
        ("MatMulInteger", ["d", "q", "zero"], ["i"], {}),
        ("Cast", ["i"], ["f"], {"to": 1}),
        ("Mul", ["f", "scale"], ["y"], {}),
    ]
    a = analysed(model_of(nodes, {"w1": w1, "q": q}, ["n", 5]))
    kept = dead_channels(a.solution, a.groups).kept
    # 4 is unheard but sets the range; what is 0 is not followed through the quantiser: 2 stays
    assert [v.tolist() for v in kept.values()] == [[0, 2, 3, 4, 5]]


def test_constants_through_batch_norm_and_pools() -> None:
    scale = np.array([1, 0, 1, 1, 1, 1], np.float32)
    model = model_of(
        [
            ("Conv", ["x", "w1"], ["c"], {}),
            ("BatchNormalization", ["c", "scale", "b", "mean", "var"], ["n1"], {}),
            ("LeakyRelu", ["n1"], ["r"], {"alpha": 0.3}),
            ("MaxPool", ["r"], ["p"], {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}),
            ("AveragePool", ["p"], ["q"], {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("GlobalAveragePool", ["q"], ["g"], {}),
            ("Flatten", ["g"], ["f"], {}),
            ("Gemm", ["f", "w2"], ["y"], {"transB": 1}),
        ],
        {
            "w1": dead_filters(4), "scale": scale, "b": normal(6), "mean": normal(6),
            "var": np.abs(normal(6)) + 0.1, "w2": normal(3, 6),
        },
        ["n", 3, 8, 8],
    )  # fmt: skip
    slim, dead, a = slimmed(model)
    assert dead.kept[0].tolist() == [0, 2, 3, 5]
    held = ConstantChannels(a.solution).of["f"]
    x, watched = {"x": normal(2, 3, 8, 8)}, ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.append(helper.make_tensor_value_info("f", 1, None))
    flat = run(watched, x)[1:]
    for k in (1, 4):
        assert np.allclose(flat[0][:, k], held[int(a.groups[0].roots[k])], rtol=1e-5)
    assert close(run(model, x), run(slim, x))


def test_tied_channels_must_all_be_constant() -> None:
    """A grouped consumer ties 0 with 3, 1 with 4, 2 with 5: one half of a pair is not enough."""
    w1 = normal(6, 3, 1, 1)
    w1[[0, 1, 4]] = 0
    model = model_of(
        [("Conv", ["x", "w1"], ["c"], {}), ("Conv", ["c", "w2"], ["y"], {"group": 2})],
        {"w1": w1, "w2": normal(4, 3, 1, 1)},
        ["n", 3, 8, 8],
    )
    slim, dead, a = slimmed(model)
    assert a.groups[0].size == 3
    assert dead.kept[0].tolist() == [0, 2]
    x = {"x": normal(2, 3, 8, 8)}
    assert close(run(model, x), run(slim, x))


def test_counted_padding_of_an_average_pool() -> None:
    model = model_of(
        [
            ("Conv", ["x", "w1", "b1"], ["c"], {}),
            ("AveragePool", ["c"], ["p"], {
                "kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1,
            }),
            ("Conv", ["p", "w2"], ["y"], {}),
        ],
        {"w1": dead_filters(1), "b1": np.ones(6, np.float32), "w2": normal(4, 6, 1, 1)},
        ["n", 3, 8, 8],
    )  # fmt: skip
    a = analysed(model)
    assert len(dead_channels(a.solution, a.groups).kept[0]) == 6
