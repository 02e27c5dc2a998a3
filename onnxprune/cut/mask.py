"""The masked original: full size, and every removed slice of its weights zero.

It is what the slim model must reproduce. A `Mul` by the kept channels is put only where two
operands of which neither is exactly zero there are contracted with each other.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx

from onnxprune.axes.content import along
from onnxprune.axes.facts import Facts, Sink
from onnxprune.axes.view import Mask, View
from onnxprune.axes.zero import zero_axes
from onnxprune.cut.edits import Edits
from onnxprune.cut.weights import rewrite
from onnxprune.graph.model import WEIGHT_TYPES, Node

_ZERO_POINT: dict[tuple[str, int], int] = {
    ("DequantizeLinear", 0): 2, ("QLinearConv", 3): 5, ("QLinearMatMul", 3): 5,
    ("QLinearMatMul", 0): 2, ("QGemm", 3): 5, ("QLinearAdd", 0): 2, ("QLinearAdd", 3): 5,
    ("QLinearMul", 0): 2, ("QLinearMul", 3): 5, ("ConvInteger", 1): 3, ("MatMulInteger", 1): 3,
    ("DynamicQuantizeLSTM", 1): 9, ("DynamicQuantizeLSTM", 2): 11,
    ("MatMulInteger", 0): 2, ("MatMulIntegerToFloat", 1): 5, ("DynamicQuantizeMatMul", 1): 3,
}  # fmt: skip
"""(operator, operand) -> the operand that holds its zero point."""

_MASKED_TYPES = WEIGHT_TYPES | {onnx.TensorProto.INT32}


_MOVES = frozenset("Gather Transpose Reshape Identity Slice Squeeze Unsqueeze Flatten".split())


def zero_point(value: str, facts: Facts) -> np.ndarray | None:
    """What stands for 0 in a quantised constant; None for plain 0."""
    for node, k in facts.model.uses.get(value, ()):
        z = _ZERO_POINT.get((node.op, k))
        if node.op in _MOVES and k == 0:
            point = zero_point(node.outputs[0], facts)
            if point is not None and point.size == 1:
                return point.reshape(-1)
        if node.op == "QLinearConcat" and k >= 2 and (k - 2) % 3 == 0:
            z = k + 2
        c = facts.model.constants.get(node.inputs[z]) if z and z < len(node.inputs) else None
        if c is None:
            continue
        point = facts.model.array(c)
        if point.size == 1:
            return point.reshape(-1)
        rank = len(facts.trace.shapes[value])
        if node.op == "DynamicQuantizeLSTM":  # one for each direction, or each of its gates
            return point.reshape(facts.trace.shapes[value][0], 1, -1)
        rows = node.op == "QGemm" and not node.attrs.get("transB")
        axis = rank - 1 if rows or "MatMul" in node.op else 0
        if node.op == "DequantizeLinear":
            axis = node.attrs.get("axis", 1) % rank
        return along(point, axis, facts.trace.shapes[value])
    return None


def masked(view: View, weights: Mapping[str, np.ndarray] | None = None) -> onnx.ModelProto:
    """The original with the removed slices of all its weights set to zero.

    `weights` (by value name, of the size they have after the cut) take the place of what the
    original keeps: so a slim model's own, repaired weights are brought back to full size.
    """
    facts = view.facts
    edits = Edits(facts)

    def blank(array: np.ndarray, kept: list[Mask], value: str) -> np.ndarray:
        if weights is not None and value in weights:
            array = np.array(array)
            array[np.ix_(*kept)] = weights[value]
        if value in facts.unmasked or facts.trace.types.get(value) not in _MASKED_TYPES:
            return array
        out = np.array(array)
        point = zero_point(value, facts)
        zero = np.zeros(1, out.dtype) if point is None else point.astype(out.dtype)
        for axis, mask in enumerate(kept):
            if not mask.all():
                shape = [1] * out.ndim
                shape[axis] = mask.size
                out = np.where(mask.reshape(shape), out, zero)
        return out.astype(array.dtype)

    rewrite(view, edits, blank)
    for node in facts.model.walk():
        if node.op == "ConstantOfShape" and not node.domain:
            _mask_born(node, view, edits)
    done: set[tuple[Node, int]] = set()
    for sink in facts.sinks:
        _mask_sink(sink, view, edits, done)
    return edits.finish()


def _mask_born(node: Node, view: View, edits: Edits) -> None:
    """Channels made by ConstantOfShape have no stored slice to zero: a Mul does it."""
    o = node.outputs[0]
    dtype = view.facts.trace.types.get(o, 1)
    if not view.shrinks(o) or dtype not in _MASKED_TYPES:
        return
    for axis, mask in enumerate(view.masks(o)):
        if not mask.all():
            edits.after(
                node, 0, "Mul", [None, _factor(mask, axis, len(view.masks(o)), dtype, edits)]
            )


def _factor(mask: Mask, axis: int, rank: int, dtype: int, edits: Edits) -> str:
    shape = [1] * rank
    shape[axis] = mask.size
    kind = onnx.helper.tensor_dtype_to_np_dtype(dtype)
    return edits.constant(mask.reshape(shape).astype(kind), "mask")


def _mask_sink(sink: Sink, view: View, edits: Edits, done: set[tuple[Node, int]]) -> None:
    """Two activations are contracted: one of them must be zero where channels are removed."""
    node, facts = sink.node, view.facts
    mask = view.mask(sink.labels)
    if mask.all():
        return
    partners = [s for s in facts.sinks_of(node) if s.labels is sink.labels or _equal(s, sink, view)]
    if len(partners) < 2 or any(
        zero_axes(s.node.inputs[s.operand], facts)[s.axis] for s in partners
    ):
        return
    first = partners[0]
    key = (node, first.operand * 16 + first.axis)
    if key in done:
        return
    done.add(key)
    value, k = node.inputs[first.operand], first.operand
    rank, dtype = len(facts.axes[value]), facts.trace.types.get(value, 1)
    codes = dtype in (onnx.TensorProto.UINT8, onnx.TensorProto.INT8)
    kind = onnx.TensorProto.INT32 if codes else dtype
    factor = _factor(view.mask(first.labels), first.axis, rank, kind, edits)
    inputs = edits.node(node).input
    if not codes:
        edits.set_input(node, k, edits.before(node, "Mul", [factor, inputs[k]]))
        return
    # Codes stand for 0 where they are the zero point, and no Mul takes them.
    wide = edits.before(node, "Cast", [inputs[k]], to=kind)
    z = _ZERO_POINT.get((node.op, k))
    point = inputs[z] if z is not None and z < len(inputs) else ""
    if point:
        point = edits.before(node, "Cast", [point], to=kind)
        wide = edits.before(node, "Sub", [wide, point])
    wide = edits.before(node, "Mul", [factor, wide])
    if point:
        wide = edits.before(node, "Add", [wide, point])
    edits.set_input(node, k, edits.before(node, "Cast", [wide], to=dtype))


def _equal(a: Sink, b: Sink, view: View) -> bool:
    """The same channels, though perhaps not as often: query heads share key heads."""
    root = view.solution.root
    return np.array_equal(np.unique(root[a.labels]), np.unique(root[b.labels]))
