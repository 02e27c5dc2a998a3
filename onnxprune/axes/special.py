"""Operators that need more than a line: quantisers, group normalisation, fused attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.axes.facts import Role, Sink, Work
from onnxprune.axes.labels import Vector, pinned
from onnxprune.axes.movers import join
from onnxprune.axes.rules import MS
from onnxprune.graph.model import Node

if TYPE_CHECKING:
    from onnxprune.axes.walk import Walk


def quantise(n: Node, w: Walk) -> None:
    """Scales and zero points go along one axis, or there is one for each of its blocks: then whole
    blocks go.
    """
    x = w.get(n.inputs[0])
    rank = len(x)
    axis = n.attrs.get("axis", 1) % max(rank, 1)
    for i in n.inputs[1:]:
        scale = w.get(i) if i else []
        if not i or not scale:
            continue
        if len(scale) == 1 and rank and len(scale[0]) == len(x[axis]):
            w.labels.same(scale[0], x[axis])
        elif len(scale) == 1 and len(scale[0]) == 1:
            continue
        elif len(scale) == rank:
            for a, b in zip(scale, x, strict=True):
                if len(a) == len(b):
                    w.labels.same(a, b)
                elif len(a) > 1 and len(a) * n.attrs.get("block_size", 0) == len(b):
                    w.labels.same(b.reshape(len(a), -1), a[:, None])
                else:
                    w.pin_axis(n, a, f"{n.op} has one scale per block")
                    w.pin_axis(n, b, f"{n.op} has one scale per block")
        else:
            raise w.refuse("its scales fit no axis")
    w.put(n.outputs[0], x)


def dynamic_quantise(n: Node, w: Walk) -> None:
    """The range always includes 0, so channels that are exactly zero change nothing."""
    w.pin_range(n, n.inputs[0])
    w.put(n.outputs[0], w.get(n.inputs[0]))
    for o in n.outputs[1:]:
        w.put_pinned(o)


def qlinear_concat(n: Node, w: Walk) -> None:
    join(n, w, n.inputs[2::3])


def group_norm(n: Node, w: Walk) -> None:
    """Each group keeps or loses all of its channels."""
    x = w.get(n.inputs[0])
    groups = n.attrs["num_groups"]
    table = x[1].reshape(groups, -1)
    w.labels.same(table, table[:, :1])
    for i in n.inputs[1:]:
        v = w.get(i)[0]
        w.labels.same(v, x[1] if len(v) == len(x[1]) else table[:, 0])
    for v in x[2:]:
        w.pin_axis(n, v, "GroupNormalization mixes this axis")
    w.put(n.outputs[0], x)
    w.facts.heads[n] = {"num_groups": table[:, 0]}


def group_norm_last(n: Node, w: Walk) -> None:
    """com.microsoft GroupNorm and SkipGroupNorm: channels last, the skip per pixel or per image."""
    x = w.get(n.inputs[0])
    if not n.attrs.get("channels_last", 1):
        raise w.refuse("has its channels first")
    table = x[-1].reshape(n.attrs["groups"], -1)
    w.labels.same(table, table[:, :1])
    for i in filter(None, n.inputs[1:]):
        weight = w.get(i)
        w.labels.same(weight[-1], x[-1])
        for a, b in zip(weight[:-1], x, strict=False):  # (n c), (n 1 1 c), (n h w c)
            if len(a) == len(b):
                w.labels.same(a, b)
    for v in x[1:-1]:
        w.pin_axis(n, v, f"{n.op} mixes this axis")
    for o in n.outputs:
        w.put(o, x)
    w.facts.heads[n] = {"groups": table[:, 0]}


# -- attention ------------------------------------------------------------------------------------


def _heads(n: Node, w: Walk, axis: Vector, count: int) -> tuple[Vector, Vector]:
    """A hidden axis as (heads, size)."""
    if len(axis) % count:
        raise w.refuse(f"{len(axis)} channels are not {count} heads")
    size = len(axis) // count
    if count == 1:
        return pinned(1), axis
    if size == 1:
        return axis, pinned(1)
    outer, inner = w.labels.split(axis, [count, size])
    return outer, inner


def _attend(
    n: Node, w: Walk, q: list[Vector], k: list[Vector], v: list[Vector], names: dict[str, str]
) -> list[Vector]:
    """softmax(q k) v on (batch, heads, time, size); returns (batch, heads, time, size of v).

    Query heads share key heads in runs (grouped queries); the sizes of q and k are one, and are
    contracted, whether an operand has them alone in its last axis or behind its heads.
    """
    for operand, size in enumerate((q[3], k[3])):
        if n.op == "Attention" and n.domain:
            break  # its own weight makes all three
        x = w.get(n.inputs[operand])
        labels = np.tile(size, len(x[-1]) // len(size))
        w.facts.sinks.append(Sink(n, operand, len(x) - 1, labels))
    w.labels.same(q[3], k[3])
    w.labels.same(k[1], v[1])
    w.labels.same(q[1].reshape(len(k[1]), -1), k[1][:, None])
    for axis in (k[2], v[2], q[2]):
        w.pin_axis(n, axis, f"{n.op} mixes over time")
    for axis in (q[0], k[0], v[0]):
        w.pin_axis(n, axis, f"{n.op} goes over a batch")
    counted = {"q": q[1], "kv": k[1], "size": q[3]}
    w.facts.heads[n] = {name: counted[what] for name, what in names.items()} | {"size": q[3]}
    w.facts.work.append(Work(n, (q[0], q[1], q[2], k[2], q[3])))
    w.facts.work.append(Work(n, (q[0], q[1], q[2], k[2], v[3])))
    return [q[0], q[1], q[2], v[3]]


def _pin_rest(n: Node, w: Walk, inputs: Sequence[str], heads: Vector | None = None) -> None:
    """Control operands; a mask of (batch, heads, time, time) goes with the heads that it has."""
    for i in filter(None, inputs):
        axes = w.get(i)
        if heads is not None and len(axes) == 4 and len(axes[1]) > 1:
            if len(axes[1]) == len(heads):
                w.labels.same(axes[1], heads)
            else:
                w.pin_axis(n, heads, f"{n.op} reads a mask with other heads")
            axes = [axes[0], *axes[2:]]
        for v in axes:
            w.pin_axis(n, v, f"{n.op} reads it as control")


def attention(n: Node, w: Walk) -> None:
    """ai.onnx Attention: (batch, heads, time, size), or (batch, time, heads * size)."""
    q, k, v = (w.get(i) for i in n.inputs[:3])
    names = {}
    if len(q) == 3:
        hq, hk = n.attrs["q_num_heads"], n.attrs["kv_num_heads"]
        (q1, q3), (k1, k3), (v1, v3) = (
            _heads(n, w, x[2], h) for x, h in ((q, hq), (k, hk), (v, hk))
        )
        names = {"q_num_heads": "q", "kv_num_heads": "kv"}
        q4, k4, v4 = [q[0], q1, q[1], q3], [k[0], k1, k[1], k3], [v[0], v1, v[1], v3]
    else:
        q4, k4, v4 = q, k, v
    for i in n.inputs[3:]:
        if not i:
            continue
        mask = w.get(i)
        if i in n.inputs[4:6] and len(mask) == 4:  # past key, past value: heads and sizes line up
            other = k4 if i == n.inputs[4] else v4
            w.labels.same(mask[1], other[1])
            w.labels.same(mask[3], other[3])
            w.pin_axis(n, mask[0], "Attention goes over a batch")
            w.pin_axis(n, mask[2], "Attention mixes over time")
        elif len(mask) == 4 and len(mask[1]) == len(q4[1]) and i == n.inputs[3]:
            w.labels.same(mask[1], q4[1])
            w.pin_axis(n, mask[0], "Attention reads it as its mask")
            w.pin_axis(n, mask[2], "Attention reads it as its mask")
            w.pin_axis(n, mask[3], "Attention reads it as its mask")
        else:
            w.pin(n, i, "Attention reads it as its mask")
    out = _attend(n, w, q4, k4, v4, names)
    w.put(n.outputs[0], out if len(q) == 4 else [q[0], q[1], w.labels.merge([out[1], out[3]])])
    for o, x in zip(n.outputs[1:3], (k4, v4), strict=False):
        if o and o in w.facts.trace.shapes:
            w.put(o, [x[0], x[1], pinned(w.shape(o)[2]), x[3]])
    for o in n.outputs[3:]:
        w.put_pinned(o)
        if o and o in w.facts.trace.shapes and w.rank(o) == 4:
            w.facts.axes[o][1] = out[1]


def ms_attention(n: Node, w: Walk) -> None:
    """com.microsoft Attention: one weight (input, q | k | v), heads inside each part."""
    heads = n.attrs["num_heads"]
    x, weight = w.get(n.inputs[0]), w.get(n.inputs[1])
    w.labels.same(x[2], weight[0])
    w.facts.sinks += [Sink(n, 0, 2, x[2]), Sink(n, 1, 0, weight[0])]
    total = len(weight[1])
    sizes = n.attrs.get("qkv_hidden_sizes") or [total // 3] * 3
    if sum(sizes) != total or n.attrs.get("do_rotary") or n.attrs.get("unidirectional", 0) > 1:
        raise w.refuse("has a packed weight of an unknown layout")
    if len(n.inputs) > 2 and n.inputs[2]:
        w.labels.same(w.get(n.inputs[2])[0], weight[1])
    ends = np.cumsum([0, *sizes])
    parts = [weight[1][a:b] for a, b in pairwise(ends.tolist())]
    (q1, q3), (k1, k3), (v1, v3) = (_heads(n, w, p, heads) for p in parts)
    _pin_rest(n, w, n.inputs[3:], q1)
    if any(n.inputs[4:5]):
        for v in parts:
            w.pin_axis(n, v, "Attention continues a cache that the caller holds")
    t = [x[0], q1, x[1], q3]
    out = _attend(n, w, t, [x[0], k1, x[1], k3], [x[0], v1, x[1], v3], {"num_heads": "q"})
    for part, name in zip(parts, ("q_hidden", "k_hidden", "v_hidden"), strict=True):
        w.facts.heads[n][name] = part
    for c in w.origin.get(n.inputs[1], ()):
        w.facts.roles.append(Role(c, "contracts", weight[0]))
        w.facts.roles.append(Role(c, "creates", weight[1]))
    w.facts.work.append(Work(n, (x[0], x[1], weight[0], weight[1])))
    w.put(n.outputs[0], [x[0], x[1], w.labels.merge([out[1], out[3]])])
    for o in n.outputs[1:]:
        w.put_pinned(o)
        if o:
            for v in parts:
                w.pin_axis(n, v, "Attention returns a cache")


def multi_head(n: Node, w: Walk) -> None:
    """com.microsoft MultiHeadAttention on separate (batch, time, hidden) operands."""
    heads = n.attrs["num_heads"]
    x = [w.get(i) if i else [] for i in n.inputs[:3]]
    if [len(v) for v in x] != [3, 3, 3]:
        raise w.refuse("has packed queries, keys or values")
    (q1, q3), (k1, k3), (v1, v3) = (_heads(n, w, v[2], heads) for v in x)
    if len(n.inputs) > 3 and n.inputs[3]:
        w.labels.same(w.get(n.inputs[3])[0], np.concatenate([v[2] for v in x]))
    _pin_rest(n, w, n.inputs[4:], q1)
    if any(n.inputs[6:8]) or any(n.outputs[1:]):
        for v in x:
            w.pin_axis(n, v[2], "MultiHeadAttention keeps a cache")
    q, k, v = x
    out = _attend(
        n, w, [q[0], q1, q[1], q3], [k[0], k1, k[1], k3], [v[0], v1, v[1], v3], {"num_heads": "q"}
    )
    w.put(n.outputs[0], [q[0], q[1], w.labels.merge([out[1], out[3]])])
    for o in n.outputs[1:]:
        w.put_pinned(o)


def group_query(n: Node, w: Walk) -> None:
    """com.microsoft GroupQueryAttention: whole key heads with their queries, never dims."""
    hq, hk = n.attrs["num_heads"], n.attrs["kv_num_heads"]
    packed = not (len(n.inputs) > 2 and n.inputs[1] and n.inputs[2])
    if packed:
        raise w.refuse("has packed queries, keys and values")
    q, k, v = (w.get(i) for i in n.inputs[:3])
    (q1, q3), (k1, k3), (v1, v3) = (_heads(n, w, x[2], h) for x, h in ((q, hq), (k, hk), (v, hk)))
    if n.attrs.get("do_rotary"):
        w.pin_axis(n, q3, "its rotary table turns pairs of dims")
    for size in (q3, k3, v3):
        w.pin_axis(n, size, "GroupQueryAttention wants heads of a multiple of 8")
    w.labels.same(k3, v3)
    for i, axes in zip(n.inputs[3:5], ((k1, k3), (v1, v3)), strict=False):
        if i and w.rank(i) == 4:
            cache = w.get(i)
            w.labels.same(cache[1], axes[0])
            w.labels.same(cache[3], axes[1])
            w.pin_axis(n, cache[0], "GroupQueryAttention goes over a batch")
            w.pin_axis(n, cache[2], "GroupQueryAttention mixes over time")
    _pin_rest(n, w, n.inputs[5:], q1)
    names = {"num_heads": "q", "kv_num_heads": "kv"}
    out = _attend(n, w, [q[0], q1, q[1], q3], [k[0], k1, k[1], k3], [v[0], v1, v[1], v3], names)
    w.put(n.outputs[0], [q[0], q[1], w.labels.merge([out[1], out[3]])])
    for o, axes in zip(n.outputs[1:3], ((k1, k3), (v1, v3)), strict=False):
        if o and o in w.facts.trace.shapes:
            shape = w.shape(o)
            w.put(o, [k[0], axes[0], pinned(shape[2]), axes[1]])
    for o in n.outputs[3:]:
        w.put_pinned(o)


def rotary(n: Node, w: Walk) -> None:
    """RotaryEmbedding turns pairs of dims: whole heads only."""
    x = w.get(n.inputs[0])
    for axis in (x[0], x[-2]):
        w.pin_axis(n, axis, "RotaryEmbedding has a position for each")
    if len(x) == 4:
        w.pin_axis(n, x[3], "RotaryEmbedding turns pairs of dims")
        w.put(n.outputs[0], x)
    else:
        count = n.attrs.get("num_heads", 0)
        if not count:
            raise w.refuse("does not say how many heads it has")
        heads, size = _heads(n, w, x[2], count)
        w.pin_axis(n, size, "RotaryEmbedding turns pairs of dims")
        w.put(n.outputs[0], [x[0], x[1], w.labels.merge([heads, size])])
        w.facts.heads[n] = {"num_heads": heads}
    _pin_rest(n, w, n.inputs[1:])


SPECIAL: dict[tuple[str, str], Callable[[Node, Walk], None]] = {
    ("", "QuantizeLinear"): quantise,
    ("", "DequantizeLinear"): quantise,
    (MS, "QuantizeLinear"): quantise,
    (MS, "DequantizeLinear"): quantise,
    ("", "DynamicQuantizeLinear"): dynamic_quantise,
    (MS, "QLinearConcat"): qlinear_concat,
    ("", "GroupNormalization"): group_norm,
    (MS, "GroupNorm"): group_norm_last,
    (MS, "SkipGroupNorm"): group_norm_last,
    ("", "Attention"): attention,
    (MS, "Attention"): ms_attention,
    (MS, "MultiHeadAttention"): multi_head,
    (MS, "GroupQueryAttention"): group_query,
    ("", "RotaryEmbedding"): rotary,
    (MS, "RotaryEmbedding"): rotary,
}
