"""Parameters: elements of the tensors that a file stores as weights.

Counted on the analysed copy of any file, the original or the slim one, so that the two numbers mean
the same. Shapes, indices, quantiser scales and zero points are no parameters; what a tensor is, is
read off the operators that use it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from onnx import numpy_helper

from onnxprune.graph.model import WEIGHT_TYPES, Constant, Model, Node

_QUANTISED_PAIR = (1, 2, 4, 5, 6, 7)

CONTROL: dict[str, tuple[int, ...]] = {
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "QLinearConv": _QUANTISED_PAIR,
    "QLinearMatMul": _QUANTISED_PAIR, "QLinearAdd": _QUANTISED_PAIR, "QLinearMul": _QUANTISED_PAIR,
    "ConvInteger": (2, 3), "MatMulInteger": (2, 3), "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeMatMul": (2, 3), "QGemm": (1, 2, 4, 5, 7, 8), "QLinearSigmoid": (1, 2, 3, 4),
    "QLinearLeakyRelu": (1, 2, 3, 4), "QLinearSoftmax": (1, 2, 3, 4),
    "QLinearAveragePool": (1, 2, 3, 4), "QLinearGlobalAveragePool": (1, 2, 3, 4),
    "QAttention": (3, 4, 6, 7), "Clip": (1, 2), "Pad": (2,), "Resize": (1, 2), "Upsample": (1,),
    "OneHot": (2,), "Dropout": (1, 2), "Range": (0, 1, 2), "NonMaxSuppression": (2, 3, 4),
}  # fmt: skip
"""Operands that steer an operator: bounds, scales, zero points, fillings. They hold no weights."""

MOVERS = frozenset({
    "Identity", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Flatten", "Cast", "Expand",
    "Gather", "Slice",
})  # fmt: skip
"""Operators behind which their first operand is still what it was."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor that holds parameters: all values of the analysed copy that stand for it."""

    values: tuple[str, ...]
    size: int
    """Elements."""


def is_control(node: Node, k: int) -> bool:
    """Does operand `k` only steer the node?"""
    if node.op == "QLinearConcat":
        return k < 2 or (k - 2) % 3 != 0
    return k in CONTROL.get(node.op, ())


def steers(value: str, model: Model) -> bool:
    """Is every use of a value, through nodes that only move it, a control operand?

    A value that nothing uses steers nothing, but holds no weight either: True.
    """
    for node, k in model.uses.get(value, ()):
        moved = k == 0 and node.op in MOVERS and not node.domain
        if moved and steers(node.outputs[0], model):
            continue
        if not is_control(node, k) and not _scales_a_product(node, model):
            return False
    return True


def _scales_a_product(node: Node, model: Model) -> bool:
    """Dynamic quantisation multiplies the input's scale with the weight's, before the product's."""
    if node.op != "Mul":
        return False
    made = (model.producer.get(i) for i in node.inputs)
    return any(
        p is not None and p.op == "DynamicQuantizeLinear" and i == p.outputs[1]
        for p, i in zip(made, node.inputs, strict=True)
    )


def weights(model: Model) -> Iterator[Weight]:
    """The tensors of a file that hold parameters; one that several nodes share comes once."""
    results = set(model.graph.outputs)
    for node in model.walk():
        for body in node.bodies.values():
            results.update(body.outputs)
    stored: dict[tuple[object, bool], list[Constant]] = {}
    for c in model.constants.values():
        if c.tensor.data_type in WEIGHT_TYPES:
            stored.setdefault((c.site, c.is_node), []).append(c)
    for same in stored.values():
        if any(c.value in results or not steers(c.value, model) for c in same):
            yield Weight(tuple(c.value for c in same), same[0].size)
    for node in model.walk():
        shape = born(node, model)
        if shape is not None and (node.outputs[0] in results or not steers(node.outputs[0], model)):
            yield Weight(node.outputs[:1], prod(shape))


def born(node: Node, model: Model) -> tuple[int, ...] | None:
    """The shape of a weight that a ConstantOfShape makes; None for any other node.

    Zeros are no weight: a state that a net starts from, or padding.
    """
    if node.op != "ConstantOfShape" or node.domain:
        return None
    shape = model.constants.get(node.inputs[0])
    filling = node.attrs.get("value")
    if shape is None or filling is None or filling.data_type not in WEIGHT_TYPES:
        return None
    if not numpy_helper.to_array(filling).any():
        return None
    return tuple(int(d) for d in model.array(shape).ravel())


def parameters(model: Model) -> int:
    """How many parameters a file has."""
    return sum(w.size for w in weights(model))
