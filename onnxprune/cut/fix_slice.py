"""Slice on an axis that shrinks: other bounds, or a Gather where the kept are not evenly spaced."""

from __future__ import annotations

import numpy as np

from onnxprune.axes.facts import Move
from onnxprune.axes.view import View
from onnxprune.cut.edits import Edits
from onnxprune.graph.model import Node


def _slice_of(index: np.ndarray, size: int) -> tuple[int, int, int] | None:
    """Bounds that pick these indices from an axis of this size, if any do."""
    if len(index) == 1:
        return int(index[0]), int(index[0]) + 1, 1
    step = int(index[1] - index[0])
    if step == 0 or not (np.diff(index) == step).all():
        return None
    last = int(index[-1])
    if step > 0:
        return int(index[0]), last + 1, step
    return int(index[0]), last - 1 if last else -size - 1, step


def slice_(n: Node, v: View, e: Edits) -> None:
    x = n.inputs[0]
    for move in v.facts.moves.get(n, ()):
        labels = v.facts.axes[x][move.axis]
        kept = v.mask(labels)
        if kept.all():
            continue
        want = v.moved(labels, move.index)
        rank = len(v.shape(x))
        at, old = _bounds(n, v, move, rank)
        size = int(kept.sum())
        if old is not None and np.array_equal(np.arange(size)[slice(*old)], want):
            continue
        bounds = _slice_of(want, size)
        if bounds is None:  # the kept ones are not evenly spaced: take them by index
            index = e.constant(want.astype(np.int64), n.label)
            e.after(n, 0, "Gather", [None, index], axis=move.axis)
            bounds = (0, size, 1)
        if "starts" in n.attrs:
            for name, b in (("starts", bounds[0]), ("ends", bounds[1])):
                now = next(list(a.ints) for a in e.node(n).attribute if a.name == name)
                now[at] = b
                e.set_attribute(n, name, now)
            if bounds[2] != 1:
                raise AssertionError("Slice of opset < 10 has no steps")
            continue
        _set_bounds(n, v, e, at, bounds)


def _bounds(
    n: Node, v: View, move: Move, rank: int
) -> tuple[int, tuple[int, int | None, int] | None]:
    """Which entry of the bounds is for this axis, and the bounds as they are if constant."""
    if "starts" in n.attrs:
        axes = n.attrs.get("axes", list(range(len(n.attrs["starts"]))))
        at = [a % rank for a in axes].index(move.axis)
        return at, (n.attrs["starts"][at], n.attrs["ends"][at], 1)
    count = v.facts.trace.shapes[n.inputs[1]][0]
    given = v.facts.known(n.inputs[3]) if len(n.inputs) > 3 and n.inputs[3] else None
    axes = list(range(count)) if given is None else [int(a) for a in given.ravel()]
    at = [a % rank for a in axes].index(move.axis)
    parts = [v.facts.known(i) for i in n.inputs[1:3]]
    steps = v.facts.known(n.inputs[4]) if len(n.inputs) > 4 and n.inputs[4] else None
    if (
        parts[0] is None
        or parts[1] is None
        or (steps is None and len(n.inputs) > 4 and n.inputs[4])
    ):
        return at, None
    step = 1 if steps is None else int(steps.ravel()[at])
    end: int | None = int(parts[1].ravel()[at])
    if step < 0 and end is not None and end < -(1 << 30):
        end = None
    return at, (int(parts[0].ravel()[at]), end, step)


def _set_bounds(n: Node, v: View, e: Edits, at: int, bounds: tuple[int, int, int]) -> None:
    """Several axes may be cut, so what an earlier one set must stay: all are set at once."""
    state = e.slices.setdefault(n, {})
    state[at] = bounds
    count = v.facts.trace.shapes[n.inputs[1]][0]
    mask = np.isin(np.arange(count), list(state))
    for k in range(3):
        values = np.array([state.get(j, (0, 0, 1))[k] for j in range(count)])
        position = (1, 2, 4)[k]
        if position < len(n.inputs) and n.inputs[position]:
            e.node(n).input[position] = n.proto.input[position]
            e.patch(n, position, mask, values)
        elif k == 2 and (values != 1).any():
            if len(n.inputs) <= 3 or not n.inputs[3]:
                e.set_input(n, 3, e.constant(np.arange(count), f"{n.label}_axes"))
            e.set_input(n, 4, e.constant(values, f"{n.label}_steps"))
