"""Zero-born axes: where what is removed is exactly 0 once the weights' removed slices are.

`facts.zero[value][k]` says: remove an index of axis k, and everything that lay there is 0 in the
masked original. That makes a sum (or, after a factor, a mean) over the axis exact, a range that
includes 0 (DynamicQuantizeLinear) unmoved, and a contraction safe without a mask. Of codes, 0 is
what they stand for: the zero point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from onnxprune.axes.facts import Facts
from onnxprune.axes.rules import ZERO_KEEPING, equation, offset, reduced_axes
from onnxprune.graph.model import Node

Axes = tuple[bool, ...]


def zero_axes(value: str, f: Facts) -> Axes:
    """Per axis: are its removed entries exactly 0 (those of a stored weight: once masked)?"""
    found = f.zero.get(value)
    if found is not None:
        return found
    rank = len(f.axes.get(value) or f.trace.shapes.get(value, ()))
    stored = value in f.derived or (value in f.model.constants and value not in f.unmasked)
    return (stored,) * rank


def _vector(value: str, f: Facts) -> bool:
    """A left-out operand, or a stored vector or matrix whose slices are masked."""
    return not value or all(zero_axes(value, f))


class _Lines:
    """The operands of an element-wise node, lined up with its output as numpy broadcasts."""

    def __init__(self, n: Node, f: Facts) -> None:
        self.out = [len(v) for v in f.axes[n.outputs[0]]]
        self.n, self.f = n, f

    def at(self, value: str, k: int) -> bool:
        """Does an operand carry output axis k, and is it 0 there?

        An operand without the axis puts its own value into removed channels.
        """
        axes = self.f.axes.get(value)
        if axes is None:
            return False
        j = k - offset(self.n, value, len(axes), len(self.out))
        return 0 <= j < len(axes) and len(axes[j]) == self.out[k] and zero_axes(value, self.f)[j]


def _elementwise(n: Node, f: Facts, values: tuple[str, ...], how: Callable[..., bool]) -> Axes:
    lines = _Lines(n, f)
    return tuple(how(lines.at(v, k) for v in values) for k in range(len(lines.out)))


def _channel(n: Node, f: Facts, axis: int, made: bool) -> Axes:
    return tuple(made and k == axis for k in range(len(f.axes[n.outputs[0]])))


def _filters(n: Node, f: Facts) -> Axes:
    """Convolutions and norms with weights: a filter of zeros and a bias of zero give zero."""
    weights = {"QLinearConv": (3, 8), "ConvInteger": (1,), "DeformConv": (1, 3)}.get(n.op, (1, 2))
    made = all(_vector(n.inputs[k], f) for k in weights if k < len(n.inputs))
    if n.op in ("FusedConv", "FusedGemm"):
        made = made and str(n.attrs.get("activation", "")) in ("", "Relu", "LeakyRelu", "Tanh")
        made = made and all(zero_axes(i, f)[1] for i in n.inputs[3:] if i)
    return _channel(n, f, 1, made)


def _gemm(n: Node, f: Facts) -> Axes:
    a, b = n.inputs[:2]
    bias = n.inputs[2] if len(n.inputs) > 2 else ""
    row = zero_axes(a, f)[1 if n.attrs.get("transA") else 0] and not bias
    column = zero_axes(b, f)[0 if n.attrs.get("transB") else 1]
    bias_axes = f.axes.get(bias, []) if bias else []
    if bias:
        column = (
            column
            and _vector(bias, f)
            and bool(bias_axes)
            and (len(bias_axes[-1]) == len(f.axes[n.outputs[0]][1]))
        )
    return row, column


def _matmul(n: Node, f: Facts) -> Axes:
    """A row is 0 where a's is, a column where b's is; batch axes where either is."""
    operands = _pair(n) if n.op == "QLinearMatMul" else n.inputs[:2]
    a, b = (zero_axes(v, f) for v in operands)
    if n.attrs.get("transA"):
        a = (*a[:-2], a[-1], a[-2])
    if n.attrs.get("transB"):
        b = (*b[:-2], b[-1], b[-2])
    rank = len(f.axes[n.outputs[0]])
    tail = ([a[-2]] if len(a) > 1 else []) + ([b[-1]] if len(b) > 1 else [])
    lines = _Lines(n, f)
    batch = []
    for k in range(rank - len(tail)):
        j = k - rank + len(tail)  # from the right, before the matrix
        batch.append(
            any(
                len(z) >= 2 - j and z[j - 2] and len(f.axes[v][j - 2]) == lines.out[k]
                for v, z in zip(operands, (a, b), strict=True)
            )
        )
    return (*batch, *tail)


def _pair(n: Node) -> tuple[str, str]:
    """The two operands of an operator on codes: each has its scale and zero point behind it."""
    return n.inputs[0], n.inputs[3]


def _einsum(n: Node, f: Facts) -> Axes:
    terms, right = equation(n)
    if "." in right:
        return (False,) * len(f.axes[n.outputs[0]])
    return tuple(
        any(c in t and zero_axes(v, f)[t.index(c)] for v, t in zip(n.inputs, terms, strict=True))
        for c in right
    )


def _recurrent(n: Node, f: Facts) -> Axes:
    """A unit without weights stays at 0 if it starts there."""
    states = (5, 6) if "LSTM" in n.op else (5,)
    made = all(_vector(n.inputs[k], f) for k in (1, 2, 3, 7) if k < len(n.inputs)) and all(
        zero_axes(n.inputs[k], f)[2] for k in states if k < len(n.inputs) and n.inputs[k]
    )
    return _channel(n, f, 3, made)


def _reduce(n: Node, f: Facts) -> Axes:
    z = zero_axes(n.inputs[0], f)
    gone = reduced_axes(n, f, len(z))
    if gone is None:
        return ()
    if n.attrs.get("keepdims", 1):
        return tuple(q and k not in gone for k, q in enumerate(z))
    return tuple(q for k, q in enumerate(z) if k not in gone)


def _pad(n: Node, f: Facts) -> Axes:
    """The filling, too, lies in removed channels."""
    value = float(n.attrs.get("value", 0.0))
    if len(n.inputs) > 2 and n.inputs[2]:
        fill = f.known(n.inputs[2])
        value = 1.0 if fill is None else float(fill.ravel()[0])
    return zero_axes(n.inputs[0], f) if value == 0 else ()


def _clip(n: Node, f: Facts) -> Axes:
    low, high = (
        float(n.attrs.get("min", float("-inf"))), float(n.attrs.get("max", float("inf")))
    )  # fmt: skip
    bounds = [low, high]
    for k, i in enumerate(n.inputs[1:3]):
        if i:
            v = f.known(i)
            if v is None or not v.size:
                return ()
            bounds[k] = float(v.ravel()[0])
    return zero_axes(n.inputs[0], f) if bounds[0] <= 0 <= bounds[1] else ()


def _pow(n: Node, f: Facts) -> Axes:
    exponent = f.known(n.inputs[1])
    if exponent is None or not (exponent > 0).all():
        return ()
    return _elementwise(n, f, n.inputs[:1], all)


def _gather(n: Node, f: Facts) -> Axes:
    z = zero_axes(n.inputs[0], f)
    axis = n.attrs.get("axis", 0) % max(len(z), 1)
    mid = len(f.axes[n.outputs[0]]) - len(z) + 1
    known = f.known(n.inputs[1]) is not None
    return (*z[:axis], *([z[axis] and known and mid == 1] * mid), *z[axis + 1 :])


def _concat(n: Node, f: Facts) -> Axes:
    parts = n.inputs[2::3] if n.op == "QLinearConcat" else n.inputs
    return tuple(all(z) for z in zip(*(zero_axes(i, f) for i in parts), strict=True))


def _transpose(n: Node, f: Facts) -> Axes:
    z = zero_axes(n.inputs[0], f)
    return tuple(z[k] for k in n.attrs.get("perm", range(len(z))[::-1]))


def _squeeze(n: Node, f: Facts) -> Axes:
    """Squeeze and Unsqueeze: the axes of more than one element, in order."""
    x = [
        z for z, v in zip(zero_axes(n.inputs[0], f), f.axes[n.inputs[0]], strict=True) if len(v) > 1
    ]
    rest = iter(x)
    return tuple(len(v) > 1 and next(rest) for v in f.axes[n.outputs[0]])


def blocks(a: Sequence[int], b: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest runs of axes of `a` and `b` with equal products."""
    out = []
    i = j = 0
    while i < len(a) or j < len(b):
        i0, j0, p, q = i, j, 1, 1
        if i < len(a):
            p, i = a[i], i + 1
        if j < len(b):
            q, j = b[j], j + 1
        while p != q:
            if p < q:
                p, i = p * a[i], i + 1
            else:
                q, j = q * b[j], j + 1
        # ones on one side only belong to this block
        while i < len(a) and a[i] == 1 and not (j < len(b) and b[j] == 1):
            i += 1
        while j < len(b) and b[j] == 1 and not (i < len(a) and a[i] == 1):
            j += 1
        out.append((range(i0, i), range(j0, j)))
    return out


def _reshape(n: Node, f: Facts) -> Axes:
    """An output axis is 0 where all axes that were folded into its block are."""
    x, z = f.axes[n.inputs[0]], zero_axes(n.inputs[0], f)
    a, b = f.trace.shapes[n.inputs[0]], f.trace.shapes[n.outputs[0]]
    out = [False] * len(b)
    for ia, ib in blocks(a, b) if 0 not in (*a, *b) else ():
        made = all(z[k] for k in ia if x[k].any()) and any(x[k].any() for k in ia)
        for k in ib:
            out[k] = made
    return tuple(out)


def _attention(n: Node, f: Facts) -> Axes:
    """What attention returns is a weighted sum of the values."""
    v = zero_axes(n.inputs[2], f)
    if len(v) == 4:
        return False, v[1], False, v[3]
    return (False, False, v[2]) if len(v) == 3 else ()


def _attention_packed(n: Node, f: Facts) -> Axes:
    return _channel(n, f, 2, all(_vector(i, f) for i in n.inputs[1:3]))


def _same(n: Node, f: Facts) -> Axes:
    return zero_axes(n.inputs[0], f)


def _space(n: Node, f: Facts) -> Axes:
    if n.attrs.get("channels_last"):
        return ()
    z = zero_axes(n.inputs[0], f)
    return tuple(q and k < 2 for k, q in enumerate(z))


_RULES: dict[str, Callable[[Node, Facts], Axes]] = {
    **dict.fromkeys(
        "Conv ConvInteger QLinearConv ConvTranspose DeformConv FusedConv BatchNormalization "
        "InstanceNormalization".split(),
        _filters,
    ),
    **dict.fromkeys(("Gemm",), _gemm),
    **dict.fromkeys(
        "MatMul FusedMatMul TransposeMatMul MatMulInteger QLinearMatMul".split(), _matmul
    ),
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _recurrent),
    **dict.fromkeys(
        ("Add", "Sub", "Sum", "Max", "Min"), lambda n, f: _elementwise(n, f, n.inputs, all)
    ),
    **dict.fromkeys(("Squeeze", "Unsqueeze"), _squeeze),
    **dict.fromkeys(("Reshape", "Flatten"), _reshape),
    **dict.fromkeys(("Concat", "QLinearConcat"), _concat),
    **dict.fromkeys(("Attention", "MultiHeadAttention", "GroupQueryAttention"), _attention),
    **dict.fromkeys(
        "MaxPool AveragePool LpPool GlobalAveragePool GlobalMaxPool GlobalLpPool DepthToSpace "
        "SpaceToDepth Resize Upsample QLinearAveragePool "
        "QLinearGlobalAveragePool".split(),
        _space,
    ),
    **dict.fromkeys(
        "Split Slice Tile QuantizeLinear DequantizeLinear DynamicQuantizeLinear".split(), _same
    ),
    **dict.fromkeys([f"Reduce{k}" for k in "Sum Mean L1 L2 SumSquare Max Min".split()], _reduce),
    "Mul": lambda n, f: _elementwise(n, f, n.inputs, any),
    "QLinearAdd": lambda n, f: _elementwise(n, f, _pair(n), all),
    "QLinearMul": lambda n, f: _elementwise(n, f, _pair(n), any),
    "QLinearLeakyRelu": _same,
    # 0 / 0 is no zero
    "Div": lambda n, f: _elementwise(n, f, n.inputs, lambda z: list(z) == [True, False]),
    "Where": lambda n, f: _elementwise(n, f, n.inputs[1:], all),
    "Expand": lambda n, f: _elementwise(n, f, n.inputs[:1], all),
    "BiasGelu": lambda n, f: _elementwise(n, f, n.inputs, all),
    "FastGelu": lambda n, f: _elementwise(n, f, n.inputs, all),
    "BiasAdd": lambda n, f: _elementwise(n, f, n.inputs, all),
    "PRelu": lambda n, f: _elementwise(n, f, n.inputs[:1], all),
    "Einsum": _einsum,
    "Pow": _pow,
    "Clip": _clip,
    "Pad": _pad,
    "Gather": _gather,
    "Transpose": _transpose,
    # a mask multiplies what ConstantOfShape makes: see cut/mask.py
    "ConstantOfShape": lambda n, f: (True,) * len(f.axes[n.outputs[0]]),
}


def zero_born(n: Node, f: Facts) -> Axes:
    """Per axis of a node's first output: are removed entries exactly 0? () where nothing is known.

    Other outputs of the same shape (Split, Dropout) share the answer.
    """
    if not n.inputs or not n.outputs or n.outputs[0] not in f.axes:
        return ()
    if n.op == "Attention" and n.domain:
        return _attention_packed(n, f)
    rule = _RULES.get(n.op)
    if rule is not None:
        return rule(n, f)
    return _elementwise(n, f, n.inputs[:1], all) if n.op in ZERO_KEEPING else ()
