"""What values that are computed from the file's constants alone hold."""

from __future__ import annotations

import numpy as np

from onnxprune.axes.facts import Facts
from onnxprune.axes.operators import run_operator
from onnxprune.graph.model import Node


def constant_value(value: str, facts: Facts) -> np.ndarray:
    """The content of a constant, or of what nodes compute from constants alone."""
    model = facts.model
    done: dict[str, np.ndarray] = {}

    def get(name: str) -> np.ndarray:
        if name in done:
            return done[name]
        if name in model.constants:
            return model.array(model.constants[name])
        if name in facts.trace.values:
            return facts.trace.values[name]
        node = model.producer[name]
        inputs = [get(i) if i else None for i in node.inputs]
        if node.op == "DequantizeLinear":  # onnx's own has the newest forms only
            results = [_dequantised(node, *inputs)]
        else:
            results = run_operator(node, inputs)
        done.update(zip(node.outputs, results, strict=False))
        return done[name]

    return get(value)


def along(operand: np.ndarray, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """A quantiser's scale or zero point, made to broadcast over a tensor of `shape`.

    A scalar, a vector along `axis`, or a tensor with an entry per block of that axis.
    """
    rank = len(shape)
    if operand.size == 1:
        return operand.reshape(())
    if operand.ndim < rank:
        return np.expand_dims(operand, [j for j in range(rank) if j != axis])
    blocks = operand.shape[axis]
    return np.repeat(operand, -(-shape[axis] // blocks), axis).take(np.arange(shape[axis]), axis)


def _dequantised(
    node: Node, q: np.ndarray | None, scale: np.ndarray | None, zero: np.ndarray | None = None
) -> np.ndarray:
    """(q - zero) * scale, in the type of the scale."""
    assert q is not None
    assert scale is not None
    axis = int(node.attrs.get("axis", 1)) % max(q.ndim, 1)
    wide = q.astype(np.float32)
    if zero is not None:
        wide = wide - along(zero.astype(np.float32), axis, q.shape)
    return np.asarray(wide * along(scale.astype(np.float32), axis, q.shape)).astype(scale.dtype)
