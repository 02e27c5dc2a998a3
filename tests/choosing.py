"""What the tests of cost/ and choose/ share: a model, analysed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxprune.axes.analyse import facts_of
from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Solution, groups
from onnxprune.choose.heads import resolve
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise

SHARED = Path(__file__).parents[2] / "shared" / "models"


@dataclass(frozen=True)
class Analysed:
    facts: Facts
    solution: Solution
    groups: list[Group]

    def by_name(self, name: str) -> Group:
        return next(g for g in self.groups if g.name == name)


def analysed(model: ModelProto | Path, **options: bool) -> Analysed:
    facts = facts_of(normalise(load(model)), **options)
    solution = resolve(facts, "auto", 0.5)
    return Analysed(facts, solution, groups(solution))


def shared(name: str) -> Path:
    """A real model, or the test is skipped."""
    path = SHARED / f"{name}.onnx"
    if not path.exists():
        pytest.skip(f"no {path}")
    return path


def model_of(
    nodes: Sequence[tuple[str, list[str], list[str], dict[str, object]]],
    weights: dict[str, np.ndarray],
    x: Sequence[int | str],
    y: Sequence[int | str] | None = None,
    opset: int = 21,
) -> ModelProto:
    """x -> nodes -> y; a node is (operator, inputs, outputs, attributes), named by its output."""
    made = [
        helper.make_node(op, ins, outs, name=f"node_{outs[0]}", **attributes)
        for op, ins, outs, attributes in nodes
    ]
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        made,
        "g",
        [info("x", TensorProto.FLOAT, x)],
        [info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(a, name) for name, a in weights.items()],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", opset)])


def two_layers(w1: np.ndarray, w2: np.ndarray, b1: np.ndarray | None = None) -> ModelProto:
    """x -> Gemm w1 (hidden, in) -> Relu -> Gemm w2 (out, hidden) -> y."""
    bias = ["b1"] if b1 is not None else []
    weights = {"w1": w1, "w2": w2} | ({"b1": b1} if b1 is not None else {})
    return model_of(
        [
            ("Gemm", ["x", "w1", *bias], ["h"], {"transB": 1}),
            ("Relu", ["h"], ["r"], {}),
            ("Gemm", ["r", "w2"], ["y"], {"transB": 1}),
        ],
        weights,
        ["n", w1.shape[1]],
        ["n", w2.shape[0]],
    )
