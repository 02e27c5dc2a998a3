"""Who fixes a channel, and why: what `inspect`, `explain` and the report tell."""

from collections.abc import Callable

import pytest

from models.builder import G
from onnxprune.axes.analyse import facts_of
from onnxprune.axes.reasons import fixed_groups, reasons
from onnxprune.axes.solve import groups, solve
from onnxprune.explain import explain
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise


def behind_a_norm(g: G, x: str) -> str:
    return g.linear(g.layer_norm(g.linear(x, 12)), 7)


def through_a_reshape(g: G, x: str) -> str:
    return g.linear(g.reshape(g.layer_norm(g.linear(x, 12)), [-1, 2, 6]), 7)


def on_a_residual_stream(g: G, x: str) -> str:
    x = g.linear(x, 12)
    return g.linear(g.op("Add", g.layer_norm(x), g.linear(g.relu(g.linear(x, 9)), 12)), 7)


@pytest.mark.parametrize("build", [behind_a_norm, through_a_reshape, on_a_residual_stream])
def test_the_norm_that_fixes_channels_is_named(build: Callable[[G, str], str]) -> None:
    g = G(0)
    model = g.model(y=build(g, g.input("x", ["N", 5])))
    norm = next(n.name for n in model.graph.node if n.op_type == "LayerNormalization")
    last = [n.input[1] for n in model.graph.node if n.op_type in ("MatMul", "Gemm")][-1]
    s = solve(facts_of(normalise(load(model))))
    axis = 1 if s.facts.axes[last][0].size == 7 else 0
    assert reasons(s, last, axis) == (f"LayerNormalization mixes this axis ({norm})",)
    assert all("no rule" not in why for f in fixed_groups(s) for why in f.why)


def test_inputs_and_outputs_are_named() -> None:
    g = G(0)
    s = solve(facts_of(normalise(load(g.model(y=g.conv(g.input("x", ["N", 3, 8, 8]), 4))))))
    weight = next(c for c in s.facts.model.constants if len(s.facts.axes[c]) == 4)
    assert reasons(s, weight, 1) == ("it meets input 'x' of the model",)
    assert reasons(s, "x", 1) == ("it is an input of the model",)
    assert reasons(s, weight, 0) == ("it is an output of the model (y)",)


def test_a_dynamic_axis_is_no_size() -> None:
    g = G(0)
    x = g.relu(g.conv(g.input("x", ["N", 3, "H", 8]), 4))
    s = solve(facts_of(normalise(load(g.model(y=g.conv(x, 4))))))
    (found,) = explain(s, groups(s), "x")["tensors"]
    assert [a["size"] for a in found["axes"]] == ["N", 3, "H", 8]
    assert found["axes"][0]["what"].startswith("dynamic, analysed at ")
    (inner,) = (t for t in explain(s, groups(s), x)["tensors"] if t["role"] == "tensor")
    assert inner["axes"][0]["size"] == "dynamic"
    assert inner["axes"][1]["what"].startswith("may shrink")
