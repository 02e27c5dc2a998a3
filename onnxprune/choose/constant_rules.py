"""What operators make of constant channels: one short rule each; no rule, nothing known."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from onnx import helper

from onnxprune.axes.rules import ELEMENTWISE
from onnxprune.graph.model import Node

if TYPE_CHECKING:
    from onnxprune.choose.constants import ConstantChannels

Array = NDArray[np.floating]
Found = dict[int, float]
"""Channel (its root) -> the constant that it holds."""
Rule = Callable[[Node, "ConstantChannels"], Found]

_MOVERS = frozenset({
    "Identity", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Split",
    "Slice", "Gather", "Tile", "Expand", "DepthToSpace", "SpaceToDepth", "Concat",
    "MaxPool", "GlobalMaxPool", "GlobalAveragePool",
})  # fmt: skip
"""What gives, for a constant channel, the same constant (padding of MaxPool never wins)."""


def rule(node: Node) -> Rule:
    if node.domain or not node.outputs or not node.inputs or node.bodies:
        return _unknown
    if node.op in _RULES:
        return _RULES[node.op]
    if node.op in _MOVERS:
        return _moved
    return _elementwise if ("", node.op) in ELEMENTWISE else _unknown


def _unknown(node: Node, c: ConstantChannels) -> Found:
    return {}


def _moved(node: Node, c: ConstantChannels) -> Found:
    """An entry of the output is one of the input (or an extreme or mean of such)."""
    data = [i for i in node.inputs if i] if node.op == "Concat" else [node.inputs[0]]
    out = {}
    for r in {r for i in data for r in c.of.get(i, ())}:
        found = {c.at(i, r) for i in data if r in c.carried(i)}
        if len(found) == 1 and (value := found.pop()) is not None:
            out[r] = value
    return out


def _cast(node: Node, c: ConstantChannels) -> Found:
    kinds = (1, 10, 11, 16)
    return _moved(node, c) if node.attrs.get("to") in kinds else {}


def _elementwise(node: Node, c: ConstantChannels) -> Found:
    """Evaluate the operator on the constants, a channel an entry."""
    from onnx.reference import ReferenceEvaluator  # late: it loads every operator

    picks = ELEMENTWISE["", node.op]
    data = [k for k, i in enumerate(node.inputs) if i and (picks is None or k in picks)]
    operands = [node.inputs[k] for k in data]
    out: Found = {}
    if node.op == "Mul":
        for i in operands:
            out |= dict.fromkeys(_zeros(i, c), 0.0)
    roots, rows = [], []
    for r in sorted({r for i in operands for r in c.of.get(i, ())}):
        row = [c.at(i, r) for i in operands]
        if None not in row and r not in out:
            roots.append(r)
            rows.append(row)
    if not roots:
        return out
    feeds: dict[str, Array | None] = {}
    for k, (i, name) in enumerate(zip(node.inputs, node.proto.input, strict=True)):
        if k in data:
            kind = helper.tensor_dtype_to_np_dtype(c.facts.trace.types[i])
            feeds[name] = np.array([row[data.index(k)] for row in rows]).astype(kind)
        elif i:
            feeds[name] = c.facts.known(i)
    if any(v is None for v in feeds.values()):
        return out
    try:
        evaluator = ReferenceEvaluator(node.proto, opsets={"": node.version})
        results = evaluator.run(None, feeds)
    except Exception:  # the reference does not have this form of the operator: nothing is known
        return out
    result = np.asarray(next(iter(results)))
    if result.shape == (len(roots),):
        held = zip(roots, result.astype(np.float64).tolist(), strict=True)
        out |= {r: v for r, v in held if np.isfinite(v)}
    return out


def _zeros(value: str, c: ConstantChannels) -> list[int]:
    """Channels on which an operand is exactly 0."""
    if not c.is_stored(value):
        return [r for r, v in c.of.get(value, {}).items() if v == 0]
    if (c.content(value) != 0).all():
        return []
    return [r for r in c.carried(value) if c.at(value, r) == 0]


def _average_pool(node: Node, c: ConstantChannels) -> Found:
    """Zeros of the padding are averaged in only if the operator is told to."""
    found = _moved(node, c)
    return _only_zero(found) if node.attrs.get("count_include_pad") else found


def _resize(node: Node, c: ConstantChannels) -> Found:
    fills = node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    return {} if fills or node.attrs.get("mode", "nearest") == "cubic" else _moved(node, c)


def _pad(node: Node, c: ConstantChannels) -> Found:
    """Constants survive where the filling is the same; channels born here are the filling."""
    if node.attrs.get("mode", "constant") != "constant":
        return {}
    fill = node.attrs.get("value", 0.0)
    if len(node.inputs) > 2 and node.inputs[2]:
        known = c.facts.known(node.inputs[2])
        if known is None or known.size != 1:
            return {}
        fill = known.item()
    born = c.carried(node.outputs[0]) - c.carried(node.inputs[0])
    same = {r: v for r, v in _moved(node, c).items() if v == fill}
    return same | dict.fromkeys(born, float(fill))


def _only_zero(found: Found) -> Found:
    return {r: v for r, v in found.items() if v == 0}


def live_inputs(node: Node, c: ConstantChannels) -> NDArray[np.bool_]:
    """(channels of the first operand,) False where they are constantly 0."""
    axis = c.axes(node.inputs[0])
    k = 1 if "Conv" in node.op else len(axis) - 1
    zero = [r for r, v in c.of.get(node.inputs[0], {}).items() if v == 0]
    return np.asarray(~np.isin(axis[k], zero))


def _bias(node: Node, k: int, size: int, c: ConstantChannels) -> Array | None:
    """A bias operand, (size,); zeros where it is left out, None where it is not constant."""
    if len(node.inputs) <= k or not node.inputs[k]:
        return np.zeros(size)
    if not c.is_stored(node.inputs[k]):
        return None
    bias = c.content(node.inputs[k]).astype(np.float64)
    if bias.ndim > 1 and bias.size != bias.shape[-1]:
        return None
    return np.asarray(np.broadcast_to(bias.ravel(), (size,))) if bias.size in (1, size) else None


def _conv(node: Node, c: ConstantChannels) -> Found:
    if not c.is_stored(node.inputs[1]) or not c.axes(node.outputs[0]):
        return {}
    w = c.content(node.inputs[1])
    groups = int(node.attrs.get("group", 1))
    used = (w != 0).reshape(w.shape[0], w.shape[1], -1).any(axis=2)
    live = live_inputs(node, c).reshape(groups, -1)
    if node.op == "ConvTranspose":  # (groups, inputs, outputs) -> (groups, outputs, inputs)
        used = used.reshape(groups, -1, w.shape[1]).transpose(0, 2, 1)
    else:
        used = used.reshape(groups, -1, w.shape[1])
    fixed = ~(used & live[:, None, :]).any(axis=2).ravel()
    bias = _bias(node, 2, fixed.size, c)
    return {} if bias is None else c.collapse(node.outputs[0], 1, fixed, bias)


def _matmul(node: Node, c: ConstantChannels) -> Found:
    weight, out = node.inputs[1], node.outputs[0]
    if not c.is_stored(weight) or not c.axes(out) or node.attrs.get("transA"):
        return {}
    w = c.content(weight)
    if w.ndim != 2:
        return {}
    w = w.T if node.attrs.get("transB") else w
    fixed = ~((w != 0) & live_inputs(node, c)[:, None]).any(axis=0)
    bias = _bias(node, 2, fixed.size, c)
    if bias is None:
        return {}
    return c.collapse(out, len(c.axes(out)) - 1, fixed, bias * node.attrs.get("beta", 1.0))


def _batch_norm(node: Node, c: ConstantChannels) -> Found:
    """(x - mean) * scale / sqrt(variance + epsilon) + bias, with running statistics."""
    if len([o for o in node.outputs if o]) > 1 or not all(map(c.is_stored, node.inputs[1:5])):
        return {}
    out: Found = {}
    for r in {*c.of.get(node.inputs[0], ()), *_zeros(node.inputs[1], c)}:
        scale, bias, mean, variance = (c.at(i, r) for i in node.inputs[1:5])
        x = c.at(node.inputs[0], r)
        if scale == 0 and bias is not None:
            out[r] = bias
            continue
        if x is None or scale is None or bias is None or mean is None or variance is None:
            continue
        out[r] = (x - mean) * scale / sqrt(variance + node.attrs.get("epsilon", 1e-5)) + bias
    return out


_RULES: dict[str, Rule] = {
    "Conv": _conv, "ConvTranspose": _conv, "Gemm": _matmul, "MatMul": _matmul,
    "BatchNormalization": _batch_norm, "AveragePool": _average_pool, "Pad": _pad,
    "Resize": _resize, "Upsample": _resize, "Cast": _cast,
}  # fmt: skip
