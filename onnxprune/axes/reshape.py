"""Reshape: both shapes are cut into the smallest blocks of equal product, and each block is
split, merged or regrouped. Three in a row that only permute one axis are a Gather in disguise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.axes.facts import Shuffle
from onnxprune.axes.labels import Vector, pinned
from onnxprune.axes.zero import blocks, zero_axes
from onnxprune.graph.model import Node

if TYPE_CHECKING:
    from onnxprune.axes.walk import Walk

_QUANTISERS = frozenset(("QuantizeLinear", "DequantizeLinear"))


def reshape(n: Node, w: Walk) -> None:
    """Cut both shapes into the smallest blocks of equal product; split, merge or regroup inside."""
    x = w.get(n.inputs[0])
    a, b = w.shape(n.inputs[0]), w.shape(n.outputs[0])
    out = [pinned(d) for d in b]
    if 0 in a or 0 in b:
        w.pin(n, n.inputs[0], "it is empty")
        w.put(n.outputs[0], out)
        return
    for ia, ib in blocks(a, b):
        live = [k for k in ia if a[k] > 1]
        made = [k for k in ib if b[k] > 1]
        if not any(x[k].any() for k in live):
            continue
        if not (len(live) == 1 == len(made)) and not _lines_up(n, w, ia, ib):
            for k in live:
                w.pin_axis(n, x[k], "Reshape folds a dynamic axis into it")
            continue
        parts: list[Vector] | None
        if len(live) == 1:
            parts = w.labels.split(x[live[0]], [b[k] for k in made])
        elif len(made) == 1:
            parts = [w.labels.merge([x[k] for k in live])]
        else:
            parts = w.labels.regroup([x[k] for k in live], [b[k] for k in made])
        if parts is None:
            for k in live:
                w.pin_axis(n, x[k], "Reshape cuts it at uneven places")
            continue
        for k, v in zip(made, parts, strict=True):
            out[k] = v
    w.put(n.outputs[0], out)


def _lines_up(n: Node, w: Walk, ia: range, ib: range) -> bool:
    """Is a block of axes the same block under the other binding?"""
    a, b = (w.facts.other.shapes.get(v) for v in (n.inputs[0], n.outputs[0]))
    if w.facts.other is w.facts.trace:
        return True
    if a is None or b is None or len(a) <= ia[-1] or len(b) <= ib[-1]:
        return False
    here_a, here_b = w.shape(n.inputs[0]), w.shape(n.outputs[0])
    labelled = [k for k in ia if w.get(n.inputs[0])[k].any()]
    if any(a[k] != here_a[k] for k in labelled):
        return True  # a dynamic axis: pinned after the walk
    return int(np.prod([a[k] for k in ia])) == int(np.prod([b[k] for k in ib])) and (
        len(here_b) == len(b)
    )


def find_shuffle(n: Node, w: Walk) -> Shuffle | None:
    """Reshape, Transpose, Reshape that only permute one axis: a Gather in disguise."""
    x = w.get(n.inputs[0])
    if not any(v.any() for v in x):
        return None
    turn = _reader(n, "Transpose", w)
    last = None if turn is None else _reader(turn, "Reshape", w)
    if turn is None or last is None:
        return None
    first, value, end = n, n.inputs[0], last.outputs[0]
    shape = w.shape(value)
    mid = w.shape(first.outputs[0])
    if w.facts.trace.shapes.get(end) != shape or first.site.path != last.site.path:
        return None
    perm = list(turn.attrs.get("perm", range(len(mid))[::-1]))
    for axis, size in enumerate(shape):
        span = _span(mid, shape, axis)
        if span is None or size == 1:
            continue
        lo, hi = span
        if [k for k in perm if not lo <= k < hi] != [
            k for k in range(len(mid)) if not lo <= k < hi
        ]:
            continue
        inner = perm[lo:hi]
        if sorted(inner) != list(range(lo, hi)):
            continue
        index = np.arange(size).reshape(mid[lo:hi]).transpose([k - lo for k in inner]).ravel()
        if np.array_equal(index, np.arange(size)):
            continue
        for inside in (first.outputs[0], turn.outputs[0]):
            w.put_pinned(inside)
        w.put(end, [v[index] if k == axis else v for k, v in enumerate(x)])
        w.facts.zero[end] = zero_axes(value, w.facts)
        return Shuffle((first, turn, last), value, axis, index)
    return None


def _reader(n: Node, op: str, w: Walk) -> Node | None:
    """The only reader of a node, if it is `op`; quantisers of one scale may lie in between."""
    while True:
        out = n.outputs[0]
        uses = w.model.uses.get(out, [])
        if len(uses) != 1 or uses[0][1] or out in w.model.graph.outputs:
            return None
        n = uses[0][0]
        if n.op == op and not n.domain:
            return n
        scales = [w.shape(i) for i in n.inputs[1:] if i]
        if n.op not in _QUANTISERS or any(int(np.prod(s)) > 1 for s in scales):
            return None


def _span(mid: Sequence[int], shape: Sequence[int], axis: int) -> tuple[int, int] | None:
    """The axes of `mid` that axis `axis` of `shape` was split into, all others being untouched."""
    tail = len(shape) - axis - 1
    lo, hi = axis, len(mid) - tail
    if hi - lo < 2 or tuple(mid[:lo]) != tuple(shape[:axis]):
        return None
    if tuple(mid[hi:]) != tuple(shape[axis + 1 :]):
        return None
    return (lo, hi) if int(np.prod(mid[lo:hi])) == shape[axis] else None
