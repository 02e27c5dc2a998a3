"""Zero-born values: where removed channels are exactly zero once their weights' slices are.

That is what makes a sum (or, after a factor, a mean) over channels exact, and a contraction with
another activation safe without a mask.
"""

from __future__ import annotations

from collections.abc import Callable

from onnxprune.axes.facts import Facts
from onnxprune.axes.rules import ZERO_KEEPING, ZERO_MAKING
from onnxprune.graph.model import Node

_KEEPING_ACTIVATIONS = frozenset(("", "Relu", "LeakyRelu", "Tanh"))


def is_zero(value: str, f: Facts) -> bool:
    """Are the removed entries of a value exactly 0 (those of a stored weight: once masked)?"""
    return (
        not value
        or value in f.zero_born
        or value in f.derived
        or (value in f.model.constants and value not in f.unmasked)
    )


def zero_born(n: Node, f: Facts) -> bool:
    """Are the removed entries of this node's outputs exactly 0?"""

    def zero(value: str) -> bool:
        return is_zero(value, f)

    op = n.op
    if not n.inputs or not n.outputs or n.outputs[0] not in f.axes:
        return False
    if op in ZERO_MAKING:
        return all(zero(n.inputs[k]) for k in ZERO_MAKING[op] if k < len(n.inputs))
    if op in ("Gemm", "FusedGemm") and f.axes[n.outputs[0]][0].any() and not zero(n.inputs[0]):
        return False
    if op == "Gemm":
        return all(zero(i) for i in n.inputs[1:])
    if op in ("FusedConv", "FusedGemm"):
        return zero(n.inputs[1]) and zero(n.inputs[2] if len(n.inputs) > 2 else "") and str(n.attrs.get("activation", "")) in _KEEPING_ACTIVATIONS and all(
            zero(i) for i in n.inputs[3:]
        )
    if op in ("MatMul", "FusedMatMul"):
        return _matmul(n, f, zero)
    if op == "Einsum":
        return all(zero(i) for i in n.inputs)
    if op == "Concat":
        return all(zero(i) for i in n.inputs)
    if op in ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"):
        return zero(n.inputs[0])
    if op == "Clip":
        low, high = _bounds(n, f)
        return zero(n.inputs[0]) and low <= 0 <= high
    if op == "Pad":  # the filling, too, lies in removed channels
        fill = f.known(n.inputs[2]) if len(n.inputs) > 2 and n.inputs[2] else None
        value = float(fill.ravel()[0]) if fill is not None else n.attrs.get("value", 0.0)
        return zero(n.inputs[0]) and value == 0 and (fill is not None or not n.inputs[2:3] or not n.inputs[2])
    if op == "ConstantOfShape":
        return True  # a mask multiplies it: see cut/mask.py
    if op == "Expand":
        return zero(n.inputs[0]) and _carries(n.inputs[0], n, f)
    if op == "Mul":
        return any(_carries(i, n, f) and zero(i) for i in n.inputs)
    if op == "Div":
        return zero(n.inputs[0]) and _carries(n.inputs[0], n, f)
    if op == "Pow":
        exponent = f.known(n.inputs[1])
        return zero(n.inputs[0]) and exponent is not None and bool((exponent > 0).all())
    if op in ("Add", "Sub", "Sum", "Max", "Min"):
        return all(zero(i) and _carries(i, n, f) for i in n.inputs)
    if op == "Where":
        return all(zero(i) and _carries(i, n, f) for i in n.inputs[1:])
    return op in ZERO_KEEPING and zero(n.inputs[0])


def _carries(value: str, n: Node, f: Facts) -> bool:
    """Does an operand have every axis of the output that may shrink (no broadcast over it)?

    An operand without the axis would put its own value into removed channels.
    """
    out = f.axes[n.outputs[0]]
    axes = f.axes.get(value)
    if axes is None:
        return False
    offset = len(out) - len(axes)
    return not any(
        v.any() and (k < offset or len(axes[k - offset]) != len(v)) for k, v in enumerate(out)
    )


def _matmul(n: Node, f: Facts, zero: Callable[[str], bool]) -> bool:
    """A row is 0 where a's is, a column where b's is; batch axes where either is."""
    out = f.axes[n.outputs[0]]
    a, b = n.inputs[:2]
    if len(out) < 2:
        return zero(a) or zero(b)
    live = [bool(v.any()) for v in out]
    return (
        (not live[-1] or zero(b))
        and (not live[-2] or zero(a))
        and (not any(live[:-2]) or zero(a) or zero(b))
    )


def _bounds(n: Node, f: Facts) -> tuple[float, float]:
    bounds = [float(n.attrs.get("min", float("-inf"))), float(n.attrs.get("max", float("inf")))]
    for k, i in enumerate(n.inputs[1:3]):
        if i:
            v = f.known(i)
            if v is None or not v.size:
                return 1.0, 1.0
            bounds[k] = float(v.ravel()[0])
    return bounds[0], bounds[1]
