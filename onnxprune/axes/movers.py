"""Operators that only move data: each axis' index map is the rule and, later, the fix.

Nothing of the size of a tensor is moved: an operator acts on the indices of one axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.axes.facts import Move
from onnxprune.axes.labels import Vector, pinned
from onnxprune.axes.reshape import reshape
from onnxprune.graph.model import Node

if TYPE_CHECKING:
    from onnxprune.axes.walk import Walk

Mover = Callable[[Node, "Walk"], None]


def _take(n: Node, w: Walk, labels: Vector, axis: int, index: Vector) -> Vector:
    """Index an axis' labels and remember the map; a piece of one element can't shrink away."""
    out = labels[index]
    if labels.any():
        w.facts.moves.setdefault(n, []).append(Move(axis, index))
        if len(index) == 1:
            w.pin_axis(n, out, f"{n.op} picks one element")
    return out


def transpose(n: Node, w: Walk) -> None:
    x = w.get(n.inputs[0])
    perm = n.attrs.get("perm", range(len(x))[::-1])
    w.put(n.outputs[0], [x[k] for k in perm])


def _axes_operand(n: Node, w: Walk) -> list[int] | None:
    if "axes" in n.attrs:
        return list(n.attrs["axes"])
    if len(n.inputs) > 1 and n.inputs[1]:
        return [int(a) for a in w.need(n, 1, "axes").ravel()]
    return None


def unsqueeze(n: Node, w: Walk) -> None:
    rank = w.rank(n.outputs[0])
    axes = {a % rank for a in _axes_operand(n, w) or ()}
    x = iter(w.get(n.inputs[0]))
    w.put(n.outputs[0], [pinned(1) if k in axes else next(x) for k in range(rank)])


def squeeze(n: Node, w: Walk) -> None:
    x = w.get(n.inputs[0])
    axes = _axes_operand(n, w)
    gone = (
        {k for k, v in enumerate(x) if len(v) == 1} if axes is None else {a % len(x) for a in axes}
    )
    w.put(n.outputs[0], [v for k, v in enumerate(x) if k not in gone])


def concat(n: Node, w: Walk) -> None:
    join(n, w, list(n.inputs))


def join(n: Node, w: Walk, values: Sequence[str]) -> None:
    """Concatenate `values` along the node's axis."""
    axis = n.attrs.get("axis", 1) % w.rank(n.outputs[0])  # it had a default before opset 4
    parts = [w.get(i) for i in values]
    out: list[Vector] = []
    for k in range(len(parts[0])):
        if k == axis:
            out.append(np.concatenate([p[k] for p in parts]))
            continue
        first = parts[0][k]
        for p in parts[1:]:
            w.labels.same(first, p[k])
        out.append(first)
    w.put(n.outputs[0], out)


def split(n: Node, w: Walk) -> None:
    x = w.get(n.inputs[0])
    axis = n.attrs.get("axis", 0) % len(x)
    start = 0
    for o in n.outputs:
        size = w.shape(o)[axis] if o else 0
        piece = x[axis][start : start + size]
        start += size
        if size == 1:
            w.pin_axis(n, piece, "Split takes one element")
        w.put(o, [piece if k == axis else v for k, v in enumerate(x)])


def slice_(n: Node, w: Walk) -> None:
    x = list(w.get(n.inputs[0]))
    rank = len(x)
    bounds: list[Sequence[int | None]] = []
    if "starts" in n.attrs:
        starts, ends = n.attrs["starts"], n.attrs["ends"]
        axes = n.attrs.get("axes", list(range(len(starts))))
        bounds = [starts, ends, axes, [1] * len(starts)]
    else:
        count = w.shape(n.inputs[1])[0]
        for k, default in ((1, None), (2, None), (3, list(range(count))), (4, [1] * count)):
            if k < len(n.inputs) and n.inputs[k]:
                bounds.append(_entries(n.inputs[k], count, w))
            else:
                bounds.append(default or [None] * count)
    out_shape = w.shape(n.outputs[0])
    if None in bounds[2]:
        raise w.refuse("its axes depend on the input")
    for start, end, axis, step in zip(*bounds, strict=True):
        assert axis is not None
        axis %= rank
        if start is None or end is None or step is None:
            if len(x[axis]) > 1:
                w.pin_axis(n, x[axis], "Slice has bounds that depend on the input")
            x[axis] = pinned(out_shape[axis])
            continue
        index = np.arange(len(x[axis]))[_slice(start, end, step)]
        if len(index) != len(x[axis]) or step != 1:
            x[axis] = _take(n, w, x[axis], axis, index)
    w.put(n.outputs[0], x)


def _slice(start: int, end: int, step: int) -> slice:
    """ONNX bounds as a Python slice: a negative step may run past the front."""
    return slice(start, None if step < 0 and end < -(1 << 30) else end, step)


def _entries(value: str, count: int, w: Walk) -> list[int | None]:
    """The entries of an operand; None where they differ between the bindings."""
    known = w.known(value)
    if known is not None:
        return [int(v) for v in known.ravel()]
    a, b = w.facts.trace.values.get(value), w.facts.other.values.get(value)
    if a is None or b is None or a.shape != b.shape:
        return [None] * count
    return [int(p) if p == q else None for p, q in zip(a.ravel(), b.ravel(), strict=True)]


def gather(n: Node, w: Walk) -> None:
    x = w.get(n.inputs[0])
    axis = n.attrs.get("axis", 0) % max(len(x), 1)
    index = w.known(n.inputs[1])
    if index is None:
        w.pin_axis(n, x[axis], "Gather looks it up by index")
        mid = list(w.get(n.inputs[1]))
        if n.inputs[1] in w.facts.constant:
            mid = [pinned(len(v)) for v in mid]
    else:
        index = index % len(x[axis])
        table = n.inputs[0] in w.facts.constant and index.size > 4 * len(x[axis])
        if table:  # relative positions: rows that are read all over the place
            w.pin_axis(n, x[axis], "Gather reads it as a table")
            mid = [pinned(d) for d in index.shape]
        elif index.ndim == 1:
            mid = [_take(n, w, x[axis], axis, index)]
        else:
            w.pin_axis(n, x[axis][index.ravel()], "Gather picks single elements")
            mid = [pinned(d) for d in index.shape]
            if x[axis].any():
                w.facts.moves.setdefault(n, []).append(Move(axis, index))
    w.put(n.outputs[0], [*x[:axis], *mid, *x[axis + 1 :]])


def pad(n: Node, w: Walk) -> None:
    x = list(w.get(n.inputs[0]))
    pads = n.attrs.get("pads", n.attrs.get("paddings"))
    amounts: list[int | None]
    if pads is not None:
        amounts, axes = list(pads), list(range(len(x)))
    else:
        count = w.shape(n.inputs[1])[0]
        amounts = _entries(n.inputs[1], count, w)
        axes = list(range(len(x)))
        if len(n.inputs) > 3 and n.inputs[3]:
            axes = [int(a) % len(x) for a in w.need(n, 3, "axes").ravel()]
    half = len(axes)
    shape = w.shape(n.outputs[0])
    for q, k in enumerate(axes):
        before, after = amounts[q], amounts[q + half]
        if before == 0 and after == 0:
            continue
        if not x[k].any():
            x[k] = pinned(shape[k])
        elif (
            before is None
            or after is None
            or before < 0
            or after < 0
            or (n.attrs.get("mode", "constant") != "constant")
        ):
            w.pin_axis(n, x[k], "Pad changes this axis in a way that can't be followed")
            x[k] = pinned(shape[k])
        else:  # channels are born here, and may go like any others
            index = np.concatenate([[-1] * before, np.arange(len(x[k])), [-1] * after])
            w.facts.moves.setdefault(n, []).append(Move(k, index.astype(np.int64)))
            x[k] = np.concatenate([w.labels.fresh(before), x[k], w.labels.fresh(after)])
    w.put(n.outputs[0], x)


def tile(n: Node, w: Walk) -> None:
    repeats = _entries(n.inputs[1], w.rank(n.inputs[0]), w)
    shape = w.shape(n.outputs[0])
    out = []
    for v, r, d in zip(w.get(n.inputs[0]), repeats, shape, strict=True):
        if r is None:
            w.pin_axis(n, v, "Tile repeats it as often as the input says")
            out.append(pinned(d))
        else:
            out.append(v if r == 1 else np.tile(v, r) if len(v) > 1 else pinned(d))
    w.put(n.outputs[0], out)


def expand(n: Node, w: Walk) -> None:
    """An axis that is only repeated is born here: as many as its consumers want."""
    x, shape = w.get(n.inputs[0]), w.shape(n.outputs[0])
    out = []
    for k, d in enumerate(shape):
        j = k - (len(shape) - len(x))
        v = x[j] if j >= 0 else pinned(1)
        out.append(v if len(v) == d else w.labels.axis(d))
    w.put(n.outputs[0], out)


def constant_of_shape(n: Node, w: Walk) -> None:
    w.pin(n, n.inputs[0], "ConstantOfShape reads it as control")
    w.put(n.outputs[0], [w.labels.axis(d) for d in w.shape(n.outputs[0])])


def resize(n: Node, w: Walk) -> None:
    out = []
    shape = w.shape(n.outputs[0])
    for v, d in zip(w.get(n.inputs[0]), shape, strict=True):
        if len(v) != d:
            w.pin_axis(n, v, f"{n.op} interpolates along it")
            v = pinned(d)
        out.append(v)
    w.put(n.outputs[0], out)


def depth_to_space(n: Node, w: Walk) -> None:
    x, b = w.get(n.inputs[0]), n.attrs["blocksize"]
    if n.attrs.get("mode", "DCR") == "DCR":
        table = x[1].reshape(b * b, -1)
    else:
        table = x[1].reshape(-1, b * b).T
    w.labels.same(table, table[:1])
    for v in x[2:]:
        w.pin_axis(n, v, "DepthToSpace fills it")
    shape = w.shape(n.outputs[0])
    w.put(n.outputs[0], [x[0], table[0].copy(), *(pinned(d) for d in shape[2:])])


def space_to_depth(n: Node, w: Walk) -> None:
    x, b = w.get(n.inputs[0]), n.attrs["blocksize"]
    for v in x[2:]:
        w.pin_axis(n, v, "SpaceToDepth empties it")
    shape = w.shape(n.outputs[0])
    w.put(n.outputs[0], [x[0], np.tile(x[1], b * b), *(pinned(d) for d in shape[2:])])


MOVERS: dict[str, Mover] = {
    "Transpose": transpose,
    "Unsqueeze": unsqueeze,
    "Squeeze": squeeze,
    "Concat": concat,
    "Split": split,
    "Slice": slice_,
    "Gather": gather,
    "Pad": pad,
    "Tile": tile,
    "Expand": expand,
    "ConstantOfShape": constant_of_shape,
    "Resize": resize,
    "Upsample": resize,
    "DepthToSpace": depth_to_space,
    "SpaceToDepth": space_to_depth,
    "Reshape": reshape,
    "Flatten": reshape,
}
