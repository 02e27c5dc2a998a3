"""Parameters, work, bytes: counted by hand, before and after, and by the model for budgets."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.zoo import ZOO
from onnxprune.axes.view import View
from onnxprune.cost.budget import cost_model
from onnxprune.cost.cost import cost_after, cost_before
from onnxprune.cost.parameters import parameters
from onnxprune.cost.work import macs, sizes_at_one
from onnxprune.cut.cut import cut
from onnxprune.errors import PruneError
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise
from tests.choosing import Analysed, analysed, model_of, shared, two_layers

BY_HAND = {
    # bias and batch norm count, shapes and scalars that steer do not
    "cifar10_resnet20": (271098, 40_551_040),
    "mnist8_cntk": (5994, 786_560),
}


def half(a: Analysed, seed: int = 0) -> dict[int, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {g.id: np.sort(rng.permutation(g.size)[: max(1, g.size // 2)]) for g in a.groups}


@pytest.mark.parametrize("name", BY_HAND)
def test_real_models(name: str) -> None:
    a = analysed(shared(name))
    cost = cost_before(a.facts, sizes_at_one(a.facts))
    assert (cost.params, cost.macs) == BY_HAND[name]
    assert cost.bytes == shared(name).stat().st_size


def test_a_small_net_by_hand() -> None:
    w = np.ones((6, 3, 3, 3), np.float32)
    proto = model_of(
        [
            ("Conv", ["x", "w", "b"], ["c"], {"pads": [1, 1, 1, 1], "strides": [2, 2]}),
            ("Clip", ["c", "low", "high"], ["r"], {}),
            ("Reshape", ["r", "shape"], ["y"], {}),
        ],
        {
            "w": w,
            "b": np.ones(6, np.float32),
            "low": np.float32(0),
            "high": np.float32(6),
            "shape": np.array([0, -1]),
            "unused": np.ones(100, np.float32),
        },
        ["batch", 3, 8, 8],
        ["batch", 96],
    )
    a = analysed(proto)
    assert a.facts.trace.binding.batch == 2, "the point of the test: work is told at batch 1"
    sizes = sizes_at_one(a.facts)
    cost = cost_before(a.facts, sizes)
    assert sizes.inputs == {"x": (1, 3, 8, 8)}
    assert cost.params == w.size + 6
    assert cost.macs == 6 * 4 * 4 * 27
    assert cost.nodes == 3
    assert cost.bytes == proto.ByteSize()


def test_quantisers_hold_no_parameters() -> None:
    proto = model_of(
        [
            ("DequantizeLinear", ["q", "scale", "zero"], ["w"], {"axis": 0}),
            ("Unsqueeze", ["bias_flat", "axes"], ["bias"], {}),
            ("MatMul", ["x", "w"], ["m"], {}),
            ("Add", ["m", "bias"], ["y"], {}),
        ],
        {
            "q": np.ones((4, 5), np.int8),
            "scale": np.ones(4, np.float32),
            "zero": np.zeros(4, np.int8),
            "bias_flat": np.ones(5, np.float32),
            "axes": np.array([0]),
        },
        ["n", 4],
        ["n", 5],
    )
    assert parameters(normalise(load(proto))) == 20 + 5


@pytest.mark.parametrize(("filling", "generated"), [(0.5, 16), (0.0, 0), (None, 0)])
def test_shared_and_generated_weights_count_once(filling: float | None, generated: int) -> None:
    """Zeros that are generated are states or padding, no weights."""
    value = None if filling is None else numpy_helper.from_array(np.array([filling], np.float32))
    shape = numpy_helper.from_array(np.array([4, 4]), "shape")
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [
            helper.make_node("ConstantOfShape", ["shape"], ["w"], value=value),
            helper.make_node("MatMul", ["x", "w"], ["a"]),
            helper.make_node("Add", ["a", "b"], ["c"]),
            helper.make_node("MatMul", ["c", "w"], ["d"]),
            helper.make_node("Add", ["d", "b"], ["y"]),
        ],
        "g",
        [info("x", TensorProto.FLOAT, ["n", 4])],
        [info("y", TensorProto.FLOAT, ["n", 4])],
        [shape, numpy_helper.from_array(np.ones(4, np.float32), "b")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    assert parameters(normalise(load(proto))) == generated + 4


def test_work_follows_the_view() -> None:
    a = analysed(two_layers(np.ones((8, 5), np.float32), np.ones((3, 8), np.float32)))
    sizes = sizes_at_one(a.facts)
    view = View.of(a.solution, a.groups, {0: [0, 1, 7]})
    assert macs(a.facts, sizes) == 8 * 5 + 3 * 8
    assert macs(a.facts, sizes, view) == 3 * 5 + 3 * 3


@pytest.mark.parametrize("name", sorted(ZOO))
def test_slim_file_costs_what_was_foretold(name: str) -> None:
    """The file itself, analysed again, agrees with the view, and the budget model with both."""
    a = analysed(ZOO[name](0))
    if not a.groups:
        pytest.skip("nothing to prune")
    sizes = sizes_at_one(a.facts)
    kept = half(a)
    view = View.of(a.solution, a.groups, kept)
    slim = cut(view).model
    after = cost_after(slim, view, sizes)
    try:
        b = analysed(slim)
    except PruneError as e:
        pytest.fail(f"the slim file can't be analysed: {e}")
    again = cost_before(b.facts, sizes_at_one(b.facts))
    assert (again.params, again.macs, again.nodes) == (after.params, after.macs, after.nodes)

    model = cost_model(a.solution, a.groups, sizes)
    counts = [len(kept[g.id]) for g in a.groups]
    before = cost_before(a.facts, sizes)
    helpers = 2  # scalars that the cut adds, such as the factor of a mean over fewer channels
    assert model.total("macs", model.full) == before.macs
    if name not in UNEVEN:
        assert model.total("macs", counts) == pytest.approx(after.macs)
        assert model.total("params", counts) == pytest.approx(after.params, abs=helpers)
    if name not in RECOMPUTED:
        assert model.total("params", model.full) == before.params
        assert model.total("bytes", model.full) == pytest.approx(before.bytes)


UNEVEN = {"gather_channels", "shared_vectors", "constant_nodes"}
"""An axis repeats some channels more often, or a vector is shared by nodes cut differently."""
RECOMPUTED = {"weight_norm", "weight_standardised"}
"""Weights that are stored only once a cut needs them."""


def test_budget_model_is_vectorised_and_differentiates() -> None:
    a = analysed(ZOO["mobilenet_v2"](0))
    model = cost_model(a.solution, a.groups, sizes_at_one(a.facts))
    rng = np.random.default_rng(0)
    plans = np.ceil(model.full * rng.uniform(0.2, 1, (1000, len(a.groups))))
    for what in ("params", "macs", "bytes"):
        totals = model.total(what, plans)
        assert totals.shape == (1000,)
        assert totals[7] == pytest.approx(float(model.total(what, plans[7])))
        step = 1e-4
        slope = [
            (model.total(what, plans[7] + step * e) - model.total(what, plans[7] - step * e))
            / (2 * step)
            for e in np.eye(len(a.groups))
        ]
        assert np.allclose(model.marginal(what, plans[7]), slope, rtol=1e-3)
        assert (model.marginal(what, plans[7]) > 0).all()
