"""Weights that are constant, made random: what a network starts with can hide what a cut does.

A LayerScale of 1e-6, a head that starts at zero, gamma = 1 and beta = 0 let the outputs stay where
they are whatever is removed or mixed up.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.axes.content import constant_value
from onnxprune.axes.view import View
from onnxprune.check.copies import held_tensors
from onnxprune.check.probes import FLOATS
from onnxprune.cost.parameters import born
from onnxprune.cut.cut import slice_out
from onnxprune.cut.weights import Stored
from onnxprune.graph.files import read_tensor, write_tensor
from onnxprune.graph.model import Constant, Model, Node, graph_at

_WEIGHTED: dict[str, frozenset[int]] = {
    "Conv": frozenset((1, 2)), "ConvTranspose": frozenset((1, 2)), "Gemm": frozenset((1, 2)),
    "MatMul": frozenset((0, 1)), "Add": frozenset((0, 1)), "Mul": frozenset((0, 1)),
    "Sub": frozenset((0, 1)), "BatchNormalization": frozenset((1, 2)),
    "LayerNormalization": frozenset((1, 2)), "InstanceNormalization": frozenset((1, 2)),
    "GroupNormalization": frozenset((1, 2)), "RMSNormalization": frozenset((1,)),
    "SimplifiedLayerNormalization": frozenset((1,)), "SkipLayerNormalization": frozenset((2, 3, 4)),
    "LSTM": frozenset((1, 2, 3)), "GRU": frozenset((1, 2, 3)), "RNN": frozenset((1, 2, 3)),
    "Gather": frozenset((0,)), "FusedConv": frozenset((1, 2)), "FusedMatMul": frozenset((0, 1)),
    "Attention": frozenset((1, 2)), "BiasGelu": frozenset((1,)), "FastGelu": frozenset((1,)),
}  # fmt: skip
"""Operands that are weights: any value is as good as another (never a bound, exponent, divisor)."""

_MOST = 200_000_000
"""Elements of generated weights that are made random."""


def randomised(view: View) -> tuple[View, int]:
    """The same plan over the model with constant weights made random, and how many there were.

    Only weights of the main graph; the same model gives the same values.
    """
    model = view.facts.model
    found: dict[tuple[int, bool], Constant] = {}
    keep: set[tuple[int, bool]] = set()
    for c in model.constants.values():
        key = (c.site.index, c.is_node)
        if c.site.path or c.size < 2 or c.tensor.data_type not in FLOATS:
            continue
        users = model.uses.get(c.value, ())
        if any(k not in _WEIGHTED.get(node.op, ()) for node, k in users):
            keep.add(key)
        elif users and key not in found and _is_constant(model.array(c)):
            found[key] = c
    picked = {key: c for key, c in found.items() if key not in keep}
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    made = _generated(view)
    for k, n in enumerate(made):
        like = np.broadcast_to(np.float32(0), view.facts.trace.shapes[n.outputs[0]])
        _hold(proto.graph.node[n.site.index], _random(like, np.random.default_rng([1, k])))
    for k, c in enumerate(picked.values()):
        tensor = _tensor_at(proto, c)
        if tensor is not None:
            array = _random(model.array(c), np.random.default_rng(k))
            tensor.CopyFrom(write_tensor(tensor, array))
    constants = {
        v: replace(c, tensor=_tensor_at(proto, c) or c.tensor) for v, c in model.constants.items()
    }
    facts = replace(view.facts, model=replace(model, proto=proto, constants=constants, _arrays={}))
    return View(replace(view.solution, facts=facts), view.keep), len(picked) + len(made)


def _generated(view: View) -> list[Node]:
    """ConstantOfShape nodes of the main graph that stand for float32 weights, all of one value."""
    model, types = view.facts.model, view.facts.trace.types
    found = [
        n for n in model.graph.nodes
        if born(n, model) is not None
        and types.get(n.outputs[0]) == TensorProto.FLOAT
        and all(k in _WEIGHTED.get(u.op, ()) for u, k in model.uses.get(n.outputs[0], ()))
    ]  # fmt: skip
    total = sum(int(np.prod(view.facts.trace.shapes[n.outputs[0]])) for n in found)
    return found if total <= _MOST else []


def _hold(node: NodeProto, array: np.ndarray) -> None:
    """Make a node a Constant with this content."""
    node.op_type = "Constant"
    del node.input[:]
    del node.attribute[:]
    node.attribute.append(helper.make_attribute("value", numpy_helper.from_array(array)))


def _tensor_at(proto: onnx.ModelProto, c: Constant) -> TensorProto | None:
    """Where a constant is stored; None for Constant nodes that hold plain numbers."""
    graph = graph_at(proto, c.site.path)
    if not c.is_node:
        return graph.initializer[c.site.index]
    return next((a.t for a in graph.node[c.site.index].attribute if a.name == "value"), None)


def _is_constant(array: np.ndarray) -> bool:
    flat = array.ravel()
    return bool((flat == flat[0]).all())


def _random(like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values of order 1, or of 1/sqrt(fan-in) for matrices and filters."""
    fan_in = like.size / max(like.shape)
    values = rng.uniform(0.5, 1.5, like.shape) * rng.choice((-1, 1), like.shape) / np.sqrt(fan_in)
    return np.asarray(values.astype(np.float32).astype(like.dtype))


def carried(
    before: View, after: View, slim: onnx.ModelProto, stored: tuple[Stored, ...]
) -> onnx.ModelProto:
    """A slim model with the weights of `after` put in where it had those of `before`.

    `stored` is what cutting by the plan writes. A weight of `slim` that is not what the plan makes
    of the original's stays: nothing that is wrong in it may be put right here.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(slim)
    tensors = held_tensors(copy)
    written = {s.name for s in stored}
    old, new = before.facts.model, after.facts.model
    nodes = {n.output[0]: n for n in copy.graph.node if n.op_type == "ConstantOfShape"}
    for n in _generated(before):
        value = n.outputs[0]
        node = nodes.get(old.in_file(value))
        if node is not None:
            full = new.proto.graph.node[n.site.index].attribute[0].t
            _hold(node, slice_out(numpy_helper.to_array(full), before.masks(value), value))
    parts = [(s.name, s.value) for s in stored]
    parts += [(c.name, v) for v, c in old.constants.items()
              if not c.site.path and c.name not in written]  # fmt: skip
    for name, value in parts:
        tensor = tensors.get(name)
        if tensor is None or (value in old.constants and _same(old, new, value)):
            continue
        kept = before.masks(value)
        was = slice_out(constant_value(value, before.facts), kept, value)
        folder = old.source.folder
        if tensor.data_type in FLOATS and np.array_equal(was, read_tensor(tensor, folder)):
            now = slice_out(constant_value(value, after.facts), kept, value)
            tensor.CopyFrom(write_tensor(tensor, now))
    return copy


def _same(old: Model, new: Model, value: str) -> bool:
    a, b = old.constants[value].tensor, new.constants[value].tensor
    return bool(a.raw_data == b.raw_data and a.float_data == b.float_data)
