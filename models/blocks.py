"""The blocks that networks are made of, for the zoo and for the generated graphs.

Convolutional blocks map x (N, C, H, W) to (N, out, H, W), attention blocks (N, T, C) to itself.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from models.builder import Cell, G, Tensor

# Batch normalisation as a node, folded into the convolution, or decomposed into Mul and Add.
Norm = Literal["node", "folded", "decomposed"]
Core = Literal["matmul", "einsum", "op"]


# Convolutions


def norm_of(g: G, x: str, norm: Norm) -> str:
    if norm == "folded":
        return x
    return g.batch_norm(x) if norm == "node" else g.affine(x)


def conv_norm(
    g: G,
    x: str,
    out: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: Norm = "node",
) -> str:
    bias = norm == "folded"
    y = g.conv(x, out, kernel, stride=stride, groups=groups, bias=bias)
    return norm_of(g, y, norm)


def conv_relu(
    g: G,
    x: str,
    out: int,
    kernel: int = 3,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: Norm = "node",
) -> str:
    return g.relu(conv_norm(g, x, out, kernel, stride=stride, groups=groups, norm=norm))


def head(g: G, x: str, classes: int = 10) -> str:
    """Global average pool, flatten, dense: (N, C, ...) -> (N, classes)."""
    return g.gemm(g.flatten(g.gap(x)), classes)


def basic_block(g: G, x: str, out: int, stride: int = 1, norm: Norm = "node") -> str:
    """ResNet's: two convolutions, and a projection where the shape changes."""
    y = conv_relu(g, x, out, stride=stride, norm=norm)
    y = conv_norm(g, y, out, norm=norm)
    if stride > 1 or g.size(x, 1) != out:
        x = conv_norm(g, x, out, 1, stride=stride, norm=norm)
    return g.relu(g.op("Add", y, x))


def preact_block(g: G, x: str, out: int, stride: int = 1) -> str:
    """Norm and activation come before each convolution; the sum is left bare."""
    before = g.relu(g.batch_norm(x))
    y = g.relu(g.batch_norm(g.conv(before, out, stride=stride, bias=False)))
    y = g.conv(y, out, bias=False)
    if stride > 1 or g.size(x, 1) != out:
        x = g.conv(before, out, 1, stride=stride, bias=False)
    return g.op("Add", y, x)


def bottleneck(
    g: G, x: str, width: int, out: int, *, stride: int = 1, groups: int = 1, norm: Norm = "node"
) -> str:
    """1x1, 3x3 (grouped in ResNeXt), 1x1."""
    y = conv_relu(g, x, width, 1, norm=norm)
    y = conv_relu(g, y, width, stride=stride, groups=groups, norm=norm)
    y = conv_norm(g, y, out, 1, norm=norm)
    if stride > 1 or g.size(x, 1) != out:
        x = conv_norm(g, x, out, 1, stride=stride, norm=norm)
    return g.relu(g.op("Add", y, x))


def padded_block(g: G, x: str, out: int) -> str:
    """Option A: the shortcut takes every second pixel and pads zeros on the channel axis."""
    y = conv_norm(g, conv_relu(g, x, out, stride=2), out)
    shortcut = g.slice(g.slice(x, 0, 2**31, 2, step=2), 0, 2**31, 3, step=2)
    extra = out - g.size(x, 1)
    before = extra // 2
    shortcut = g.pad(shortcut, [0, before, 0, 0], [0, extra - before, 0, 0])
    return g.relu(g.op("Add", y, shortcut))


def inverted_residual(
    g: G, x: str, out: int, *, stride: int = 1, expand: int = 3, se: bool = False
) -> str:
    """MobileNet's: expand, depthwise, project; linear at the narrow end."""
    c = g.size(x, 1)
    wide = c * expand
    y = g.clip(conv_norm(g, x, wide, 1), 0.0, 6.0)
    y = g.clip(conv_norm(g, y, wide, stride=stride, groups=wide), 0.0, 6.0)
    if se:
        y = squeeze_excite(g, y)
    y = conv_norm(g, y, out, 1)
    return g.op("Add", x, y) if stride == 1 and c == out else y


def squeeze_excite(g: G, x: str, reduction: int = 4) -> str:
    c = g.size(x, 1)
    y = g.relu(g.conv(g.gap(x), max(2, c // reduction), 1))
    return g.op("Mul", x, g.op("Sigmoid", g.conv(y, c, 1)))


def channel_shuffle(g: G, x: str, groups: int) -> str:
    """(g k) -> (k g) on the channel axis."""
    c, h, w = (g.size(x, axis) for axis in (1, 2, 3))
    y = g.reshape(x, [-1, groups, c // groups, h, w])
    return g.reshape(g.transpose(y, 0, 2, 1, 3, 4), [-1, c, h, w])


def shuffle_unit_v1(g: G, x: str, groups: int) -> str:
    """ShuffleNetV1: grouped 1x1, shuffle, depthwise, grouped 1x1, residual."""
    c = g.size(x, 1)
    y = channel_shuffle(g, conv_relu(g, x, c, 1, groups=groups), groups)
    y = conv_norm(g, conv_norm(g, y, c, groups=c), c, 1, groups=groups)
    return g.relu(g.op("Add", x, y))


def shuffle_unit_v2(g: G, x: str) -> str:
    """ShuffleNetV2: one half passes by, the other is convolved, then both are shuffled."""
    half = g.size(x, 1) // 2
    keep, y = g.split(x, [half, half])
    y = conv_norm(g, conv_relu(g, y, half, 1), half, groups=half)
    return channel_shuffle(g, g.concat(keep, conv_relu(g, y, half, 1)), 2)


def dense_layers(g: G, x: str, growth: int, layers: int) -> str:
    """DenseNet: each layer reads the concatenation of all before it."""
    for _ in range(layers):
        y = g.conv(g.relu(g.batch_norm(x)), 2 * growth, 1, bias=False)
        x = g.concat(x, g.conv(g.relu(g.batch_norm(y)), growth, bias=False))
    return x


def inception(g: G, x: str, widths: Sequence[int]) -> str:
    """Four branches side by side: 1x1, 3x3, 5x5 and pooled."""
    one, three, five, pooled = widths
    return g.concat(
        conv_relu(g, x, one, 1, norm="folded"),
        conv_relu(g, conv_relu(g, x, three // 2, 1, norm="folded"), three, norm="folded"),
        conv_relu(g, conv_relu(g, x, five // 2, 1, norm="folded"), five, 5, norm="folded"),
        conv_relu(g, g.pool(x, "Max", 3, 1), pooled, 1, norm="folded"),
    )


def fire(g: G, x: str, squeeze: int, expand: int) -> str:
    y = conv_relu(g, x, squeeze, 1, norm="folded")
    one = conv_relu(g, y, expand, 1, norm="folded")
    return g.concat(one, conv_relu(g, y, expand, norm="folded"))


def c2f(g: G, x: str, width: int, depth: int = 2) -> str:
    """YOLOv8's: split, a chain of residuals on one half, everything concatenated."""
    half = width // 2
    parts = [*g.split(g.silu(conv_norm(g, x, width, 1)), [half, half])]
    for _ in range(depth):
        y = g.silu(conv_norm(g, parts[-1], half))
        parts.append(g.op("Add", parts[-1], g.silu(conv_norm(g, y, half))))
    return g.silu(conv_norm(g, g.concat(*parts), width, 1))


def group_norm(g: G, x: str, groups: int) -> str:
    """GroupNorm: the operator from opset 21 on, before that as torch exports it."""
    shape, c = g.shape(x), g.size(x, 1)
    scale, shift = g.positive(c), g.weight(c, std=0.3)
    if g.opset >= 21:
        return g.op("GroupNormalization", x, scale, shift, num_groups=groups, like=x)
    # Groups as channels of an InstanceNorm that has nothing to learn.
    ones, zeros = np.ones(groups, g.dtype), np.zeros(groups, g.dtype)
    y = g.op("InstanceNormalization", g.reshape(x, [0, groups, -1]), ones, zeros, epsilon=1e-5)
    y = g.reshape(y, g.op("Shape", x), like=g.tensors[x])
    spatial = range(1, len(shape) - 1)
    return g.op("Add", g.op("Mul", y, g.unsqueeze(scale, *spatial)), g.unsqueeze(shift, *spatial))


def convnext_block(g: G, x: str, *, grn: bool = False) -> str:
    """Depthwise 7x7, channels last LayerNorm and two dense layers; GRN as in version 2."""
    c = g.size(x, 1)
    y = g.transpose(g.conv(x, c, 7, groups=c), 0, 2, 3, 1)
    y = g.gelu(g.linear(g.layer_norm(y), 4 * c))
    if grn:
        y = global_response_norm(g, y)
    y = g.linear(y, c)
    if not grn:
        y = g.op("Mul", y, g.positive(c))
    return g.op("Add", x, g.transpose(y, 0, 3, 1, 2))


def global_response_norm(g: G, x: str) -> str:
    """GRN over x (N, H, W, C): each channel against the mean channel."""
    c = g.size(x, -1)
    norm = g.reduce("L2", x, 1, 2)
    response = g.op("Div", norm, g.op("Add", g.reduce("Mean", norm, -1), 1e-6))
    y = g.op("Mul", g.op("Mul", x, response), g.weight(c, std=0.5))
    return g.sum([y, g.weight(c, std=0.3), x])


# Attention and what goes with it


def heads_of(g: G, x: str, heads: int) -> str:
    """(N, T, heads * D) -> (N, heads, T, D)."""
    return g.transpose(g.reshape(x, [0, 0, heads, g.size(x, 2) // heads]), 0, 2, 1, 3)


def rotary(g: G, x: str) -> str:
    """Rotary position embedding of x (N, heads, T, D), halves rotated."""
    t, d = g.size(x, 2), g.size(x, 3)
    angle = np.outer(np.arange(t), 10000.0 ** (-np.arange(d // 2) / (d // 2)))
    angle = np.concatenate([angle, angle], 1).astype(g.dtype)
    first, second = g.slice(x, 0, d // 2, 3), g.slice(x, d // 2, 2**31, 3)
    turned = g.concat(g.op("Neg", second), first, axis=3)
    return g.sum([g.op("Mul", x, np.cos(angle)), g.op("Mul", turned, np.sin(angle))])


def repeat_heads(g: G, x: str, times: int) -> str:
    """Grouped queries, as torch exports them: Unsqueeze, Expand, Reshape."""
    n, _, t, d = g.shape(x)
    wide = g.op("Expand", g.unsqueeze(x, 2), [1, 1, times, 1, 1])
    target = [0, g.size(x, 1) * times, g.size(x, 2), g.size(x, 3)]
    like = Tensor(g.tensors[x].elem, (n, g.size(x, 1) * times, t, d))
    return g.reshape(wide, target, like=like)


def attention(
    g: G,
    x: str,
    heads: int,
    *,
    kv_heads: int | None = None,
    fused: bool = False,
    turned: bool = False,
    causal: bool = False,
    bias: bool = True,
    core: Core = "matmul",
) -> str:
    """Self-attention over x (N, T, C).

    kv_heads: fewer keys and values than queries; fused: one matrix for q, k and v, split in 3;
    turned: rotary embedding; core: MatMuls and Softmax, Einsums, or the Attention operator.
    """
    c = g.size(x, 2)
    kv_heads = kv_heads or heads
    d = c // heads
    if fused:
        q, k, v = g.split(
            g.linear(x, (heads + 2 * kv_heads) * d, bias=bias),
            [heads * d, kv_heads * d, kv_heads * d],
            axis=2,
        )
    else:
        q = g.linear(x, heads * d, bias=bias)
        k, v = (g.linear(x, kv_heads * d, bias=bias) for _ in range(2))
    if core == "op" and not turned:
        y = g.op(
            "Attention",
            q,
            k,
            v,
            q_num_heads=heads,
            kv_num_heads=kv_heads,
            is_causal=int(causal),
            like=g.tensors[q],
        )
        return g.linear(y, c, bias=bias)
    q, k, v = heads_of(g, q, heads), heads_of(g, k, kv_heads), heads_of(g, v, kv_heads)
    if turned:
        q, k = rotary(g, q), rotary(g, k)
    if core == "op":
        y = g.op("Attention", q, k, v, is_causal=int(causal), like=g.tensors[q])
    else:
        if kv_heads < heads:
            k, v = (repeat_heads(g, h, heads // kv_heads) for h in (k, v))
        y = attend(g, q, k, v, d**-0.5, causal=causal, einsum=core == "einsum")
    y = g.reshape(g.transpose(y, 0, 2, 1, 3), [0, 0, heads * d])
    return g.linear(y, c, bias=bias)


def attend(
    g: G, q: str, k: str, v: str, scale: float, *, causal: bool = False, einsum: bool = False
) -> str:
    """softmax(scale q k^T) v over (N, heads, T, D)."""
    if einsum:
        logits = g.op("Einsum", q, k, equation="bhqd,bhkd->bhqk")
    else:
        logits = g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2))
    logits = g.op("Mul", logits, scale)
    if causal:
        t = g.size(q, 2)
        logits = g.op("Add", logits, np.triu(np.full((t, t), -1e4), 1).astype(g.dtype))
    weights = g.op("Softmax", logits, axis=3)
    if einsum:
        return g.op("Einsum", weights, v, equation="bhqk,bhkd->bhqd")
    return g.op("MatMul", weights, v)


def feed_forward(g: G, x: str, hidden: int) -> str:
    return g.linear(g.gelu(g.linear(x, hidden)), g.size(x, 2))


def swiglu(g: G, x: str, hidden: int) -> str:
    """Two dense layers side by side, one of them gating, as in Llama."""
    gate = g.silu(g.linear(x, hidden, bias=False))
    y = g.op("Mul", gate, g.linear(x, hidden, bias=False))
    return g.linear(y, g.size(x, -1), bias=False)


def glu(g: G, x: str, hidden: int) -> str:
    """One dense layer, cut in halves on the last axis: one gates the other."""
    a, b = g.halves(g.linear(x, 2 * hidden), axis=-1)
    return g.op("Mul", a, g.op("Sigmoid", b))


def encoder_layer(g: G, x: str, heads: int, hidden: int, **options: bool | int | str) -> str:
    """Pre-norm transformer layer; `options` as for `attention`."""
    x = g.op("Add", x, attention(g, g.layer_norm(x), heads, **options))  # type: ignore[arg-type]
    return g.op("Add", x, feed_forward(g, g.layer_norm(x), hidden))


# Recurrence


def sequence(g: G, kind: Cell, x: str, hidden: int, *, both: bool = False) -> str:
    """A recurrent layer (T, N, C) -> (T, N, D * hidden), its directions merged as torch does."""
    y = g.recurrent(kind, x, hidden, both=both)[0]
    if not both:
        return g.squeeze(y, 1)
    return g.reshape(g.transpose(y, 0, 2, 1, 3), [0, 0, -1])
