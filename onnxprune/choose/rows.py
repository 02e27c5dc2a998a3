"""A member's weight as (channels, rest): what criteria look at.

Quantised weights are seen at the values they stand for, half types in float32. Nothing is read
that is not asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.content import along, constant_value
from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Member
from onnxprune.cost.parameters import MOVERS, born, steers
from onnxprune.graph.model import Node

Rows = NDArray[np.floating]
"""(channels, rest) float32 or float64: all entries of a weight that belong to each channel."""

_SCALES: dict[tuple[str, int], tuple[int, int]] = {
    ("DequantizeLinear", 0): (1, 2), ("QLinearConv", 3): (4, 5), ("QLinearMatMul", 3): (4, 5),
    ("QLinearMatMul", 0): (1, 2), ("QGemm", 3): (4, 5), ("QLinearAdd", 0): (1, 2),
    ("QLinearAdd", 3): (4, 5), ("QLinearMul", 0): (1, 2), ("QLinearMul", 3): (4, 5),
    ("MatMulIntegerToFloat", 1): (3, 5), ("DynamicQuantizeMatMul", 1): (2, 3),
    ("ConvInteger", 1): (-1, 3), ("MatMulInteger", 1): (-1, 3),
}  # fmt: skip
"""(operator, operand) -> the operands with its scale and its zero point; -1 where there is none."""


def holds_weights(value: str, facts: Facts) -> bool:
    """Is a member's value a stored or computed weight (no scale, no zero point, not born equal)?"""
    node = facts.model.producer.get(value)
    if node is not None and born(node, facts.model) is not None:
        return False
    return not steers(value, facts.model)


def rows(member: Member, channels: int, facts: Facts) -> Rows:
    """The entries of a weight that belong to each of a group's channels.

    Where an axis repeats a channel (a flattened map, the gates of a recurrent unit) its entries
    stand in one row; rows of unequal length are filled up with zeros.
    """
    flat = rows_along(member.value, member.axis, facts)
    channel = member.channel
    if np.array_equal(channel, np.arange(channels)):
        return flat
    order = np.argsort(channel, kind="stable")
    order = order[channel[order] >= 0]
    count = np.bincount(channel[order], minlength=channels)
    most = int(count.max(initial=1))
    if (count == most).all():
        return flat[order].reshape(channels, -1)
    out = np.zeros((channels, most, flat.shape[1]), flat.dtype)
    nth = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    out[channel[order], nth] = flat[order]
    return out.reshape(channels, -1)


def rows_along(value: str, axis: int, facts: Facts) -> Rows:
    """(n, rest) all entries of a weight at each index of one of its axes."""
    array = real_values(value, facts)
    return np.moveaxis(array, axis, 0).reshape(array.shape[axis], -1)


def real_values(value: str, facts: Facts) -> NDArray[np.floating]:
    """A weight in float32 (float64 stays): half types converted, (q - zero point) * scale."""
    array = constant_value(value, facts)
    if array.dtype == np.float64 or array.dtype == np.float32:
        return array
    real = array.astype(np.float32)
    for operand, is_zero_point in _quantiser(value, facts):
        real = real - operand if is_zero_point else real * operand
    return real


def _quantiser(value: str, facts: Facts) -> list[tuple[NDArray[np.float32], bool]]:
    """What dequantises a value: its zero point (True), then its scale, broadcastable."""
    for node, k in facts.model.uses.get(value, ()):
        if k == 0 and node.op in MOVERS:
            behind = _quantiser(node.outputs[0], facts)
            if behind and all(operand.size == 1 for operand, _ in behind):
                return behind
        places = _SCALES.get((node.op, k))
        if places is None and node.op == "QLinearConcat" and k >= 2 and (k - 2) % 3 == 0:
            places = (k + 1, k + 2)
        if places is not None:
            rank = len(facts.trace.shapes[value])
            return [
                (along(operand, _axis(node, rank), facts.trace.shapes[value]), is_zero_point)
                for place, is_zero_point in ((places[1], True), (places[0], False))
                if (operand := _constant(node, place, facts)) is not None
            ]
    return []


def _constant(node: Node, k: int, facts: Facts) -> NDArray[np.float32] | None:
    if not 0 <= k < len(node.inputs):
        return None
    name = node.inputs[k]
    if name not in facts.constant and name not in facts.model.constants:
        return None
    return constant_value(name, facts).astype(np.float32)


def _axis(node: Node, rank: int) -> int:
    """Along which axis of its tensor a quantiser's vectors go."""
    if node.op == "DequantizeLinear":
        return int(node.attrs.get("axis", 1)) % max(rank, 1)
    columns = "MatMul" in node.op or (node.op == "QGemm" and not node.attrs.get("transB"))
    return rank - 1 if columns else 0
