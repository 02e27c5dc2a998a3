"""Shapes of the operators that ONNX Runtime contributes: onnx itself can't infer them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.graph.model import Node

Shape = tuple[int, ...]

# Contributed operators whose shapes are those of a standard operator on some of their inputs.
AS_STANDARD: dict[str, tuple[str, Sequence[int]]] = {
    "FusedConv": ("Conv", (0, 1)),
    "FusedGemm": ("Gemm", (0, 1, 2)),
    "QLinearConv": ("Conv", (0, 3)),
    "QLinearMatMul": ("MatMul", (0, 3)),
    "ConvInteger": ("Conv", (0, 1)),
    "QLinearAdd": ("Add", (0, 3)),
    "QLinearMul": ("Add", (0, 3)),
    "QLinearAveragePool": ("AveragePool", (0,)),
    "QLinearSoftmax": ("Identity", (0,)),
    "BiasAdd": ("Identity", (0,)),
    "BiasGelu": ("Identity", (0,)),
    "BiasSoftmax": ("Identity", (0,)),
    "FastGelu": ("Identity", (0,)),
    "QuickGelu": ("Identity", (0,)),
    "Gelu": ("Identity", (0,)),
    "QLinearSigmoid": ("Identity", (0,)),
    "QLinearLeakyRelu": ("Identity", (0,)),
    "LayerNormalization": ("Identity", (0,)),
    "RotaryEmbedding": ("Identity", (0,)),
    "GroupNorm": ("Identity", (0,)),
    "MatMulIntegerToFloat": ("MatMul", (0, 1)),
    "DynamicQuantizeMatMul": ("MatMul", (0, 1)),
    "Inverse": ("Identity", (0,)),
}
KEPT_ATTRS = frozenset(
    "pads strides dilations group kernel_shape auto_pad transA transB ceil_mode".split()
)


def _fused_matmul(n: Node, s: list[Shape]) -> list[Shape]:
    a, b = list(s[0]), list(s[1])
    if n.attrs.get("transA"):
        a[-1], a[-2] = a[-2], a[-1]
    if n.attrs.get("transB"):
        b[-1], b[-2] = b[-2], b[-1]
    batch = np.broadcast_shapes(tuple(a[:-2]), tuple(b[:-2]))
    return [(*batch, a[-2], b[-1])]


def _attention(n: Node, s: list[Shape]) -> list[Shape]:
    sizes = n.attrs.get("qkv_hidden_sizes")
    hidden = sizes[2] if sizes else s[1][-1] // 3
    return [(*s[0][:-1], hidden)]


def _multi_head(n: Node, s: list[Shape]) -> list[Shape]:
    heads = n.attrs["num_heads"]
    q = s[0]
    if len(q) == 5:  # packed (batch, sequence, heads, 3, size)
        return [(q[0], q[1], q[2] * q[4])]
    v = s[2] if len(s) > 2 and s[2] else q
    hidden = v[-1] if len(v) == 3 else v[1] * v[3]
    if len(s) > 1 and len(s[1]) == 5:
        hidden = heads * s[1][4]
    return [(q[0], q[1], hidden)]


def _group_query(n: Node, s: list[Shape]) -> list[Shape]:
    heads, kv = n.attrs["num_heads"], n.attrs["kv_num_heads"]
    q = s[0]
    packed = len(s) < 2 or not s[1]
    size = q[-1] // (heads + 2 * kv) if packed else q[-1] // heads
    past = s[3] if len(s) > 3 else ()
    total = past[2] if len(past) == 4 else q[1]
    cache = (q[0], kv, max(total, q[1]), size)
    return [(q[0], q[1], heads * size), cache, cache]


def _nbits(n: Node, s: list[Shape]) -> list[Shape]:
    return [(*s[0][:-1], n.attrs["N"])]


def _pool_all(n: Node, s: list[Shape]) -> list[Shape]:
    if n.attrs.get("channels_last"):
        return [(s[0][0], *([1] * (len(s[0]) - 2)), s[0][-1])]
    return [(*s[0][:2], *([1] * (len(s[0]) - 2)))]


def _concat(n: Node, s: list[Shape]) -> list[Shape]:
    parts = s[2::3]
    axis = n.attrs["axis"] % len(parts[0])
    return [tuple(sum(p[k] for p in parts) if k == axis else d for k, d in enumerate(parts[0]))]


def _embed(n: Node, s: list[Shape]) -> list[Shape]:
    return [(*s[0], s[2][-1]), (s[0][0],), (*s[0], s[2][-1])]


def _split_half(n: Node, s: list[Shape]) -> list[Shape]:
    return [(*s[0][:-1], s[0][-1] // 2)]


def _qgemm(n: Node, s: list[Shape]) -> list[Shape]:
    return [(s[0][1 if n.attrs.get("transA") else 0], s[3][0 if n.attrs.get("transB") else 1])]


def _same(n: Node, s: list[Shape]) -> list[Shape]:
    return [s[0]] * len(n.outputs)


def _lstm(n: Node, s: list[Shape]) -> list[Shape]:
    (time, batch), (directions, hidden) = s[0][:2], s[2][:2]
    state = (directions, batch, hidden)
    return [(time, *state), state, state]


def _where(n: Node, s: list[Shape]) -> list[Shape]:
    return [np.broadcast_shapes(s[0], s[1], s[4])]


def _skip(n: Node, s: list[Shape]) -> list[Shape]:
    stat = (*s[0][:-1], 1)
    return [s[0], stat, stat, s[0]]


TYPED_LIKE = {
    "QLinearConcat": 1, "EmbedLayerNormalization": 2, "QLinearWhere": 1, "DequantizeLinear": 1,
    "QuantizeLinear": 2,
}  # fmt: skip
"""The operand whose element type the first output has, where it is not the first."""

CONTRIB_SHAPES: dict[str, Callable[[Node, list[Shape]], list[Shape]]] = {
    "FusedMatMul": _fused_matmul,
    "TransposeMatMul": _fused_matmul,
    "Attention": _attention,
    "QAttention": _attention,
    "MultiHeadAttention": _multi_head,
    "GroupQueryAttention": _group_query,
    "MatMulNBits": _nbits,
    "QLinearGlobalAveragePool": _pool_all,
    "QLinearConcat": _concat,
    "EmbedLayerNormalization": _embed,
    "BiasSplitGelu": _split_half,
    "QGemm": _qgemm,
    "DynamicQuantizeLSTM": _lstm,
    "QLinearWhere": _where,
    "QuantizeLinear": _same,
    "DequantizeLinear": _same,
    "BiasDropout": _same,
    "SkipGroupNorm": _same,
    "SimplifiedLayerNormalization": _skip,
    "SkipLayerNormalization": _skip,
    "SkipSimplifiedLayerNormalization": _skip,
}
