"""Sequences of tensors: an exporter's way to write unbind, chunk, stack and unrolled loops.

Every element is followed on its own. The axis that a sequence is split along never shrinks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from onnxprune.axes.labels import Vector, pinned
from onnxprune.graph.model import Node

if TYPE_CHECKING:
    from onnxprune.axes.trace import Shape, Trace
    from onnxprune.axes.walk import Walk

SEQUENCES = frozenset(
    "SequenceEmpty SequenceConstruct SplitToSequence SequenceInsert SequenceErase SequenceAt "
    "SequenceLength ConcatFromSequence".split()
)

T = TypeVar("T")


@dataclass(frozen=True)
class Element:
    """The labels of one tensor of a sequence, and where its removed entries are 0."""

    axes: list[Vector]
    zero: tuple[bool, ...]


def _bounds(size: int, split: np.ndarray | None) -> list[tuple[int, int]]:
    """First and last index (exclusive) of the pieces of an axis."""
    if split is None:
        ends = list(range(size + 1))
    elif split.ndim == 0:
        ends = [*range(0, size, int(split)), size]
    else:
        ends = [0, *np.cumsum(split).tolist()]
    return list(pairwise(ends))


def _edited(n: Node, elements: Sequence[T], new: T | None, at: np.ndarray | None) -> list[T]:
    """A sequence after SequenceInsert or SequenceErase."""
    out = list(elements)
    if n.op == "SequenceInsert":
        assert new is not None
        out.insert(len(out) if at is None else int(at), new)
    else:
        del out[-1 if at is None else int(at)]
    return out


def trace_sequence(n: Node, t: Trace, known: Sequence[np.ndarray | None]) -> None:
    """Shapes of the elements; `known` has the values of the operands that are known.

    Raises:
        ValueError: the elements depend on the data.
    """

    def need(k: int) -> np.ndarray | None:
        if k >= len(n.inputs) or not n.inputs[k]:
            return None
        if known[k] is None:
            raise ValueError("a position or size in a sequence depends on the data")
        return known[k]

    def tensor(value: str) -> tuple[int, Shape]:
        return t.types[value], t.shapes[value]

    out = n.outputs[0]
    if n.op == "SequenceEmpty":
        t.sequences[out] = []
    elif n.op == "SequenceConstruct":
        t.sequences[out] = [tensor(i) for i in n.inputs]
    elif n.op == "SplitToSequence":
        kind, shape = tensor(n.inputs[0])
        axis = n.attrs.get("axis", 0) % len(shape)
        split = need(1)
        rest = shape[axis + 1 :]
        gone = split is None and not n.attrs.get("keepdims", 1)
        t.sequences[out] = [
            (kind, (*shape[:axis], *(() if gone else (b - a,)), *rest))
            for a, b in _bounds(shape[axis], split)
        ]
    elif n.op in ("SequenceInsert", "SequenceErase"):
        insert = n.op == "SequenceInsert"
        new = tensor(n.inputs[1]) if insert else None
        t.sequences[out] = _edited(n, t.sequences[n.inputs[0]], new, need(2 if insert else 1))
    elif n.op == "SequenceLength":
        t.values[out] = np.array(len(t.sequences[n.inputs[0]]), np.int64)
        t.shapes[out], t.types[out] = (), 7
    elif n.op == "SequenceAt":
        position = need(1)
        assert position is not None
        t.types[out], t.shapes[out] = t.sequences[n.inputs[0]][int(position)]
    else:
        elements = t.sequences[n.inputs[0]]
        shape = elements[0][1]
        fresh = bool(n.attrs.get("new_axis", 0))
        axis = n.attrs["axis"] % (len(shape) + fresh)
        total = len(elements) if fresh else sum(s[axis] for _, s in elements)
        t.types[out] = elements[0][0]
        t.shapes[out] = (*shape[:axis], total, *shape[axis + (not fresh) :])


def walk_sequence(n: Node, w: Walk) -> None:
    """Labels of the elements: those of the tensors that they are or come from."""

    def element(value: str) -> Element:
        axes = w.get(value)
        return Element(axes, tuple(w.is_zero(value, k) for k in range(len(axes))))

    def elements() -> list[Element]:
        found = w.sequences.get(n.inputs[0])
        if found is None:
            raise w.refuse("reads a sequence that could not be followed")
        return found

    def position(k: int) -> np.ndarray | None:
        if k >= len(n.inputs) or not n.inputs[k]:
            return None
        return w.need(n, k, "positions")

    out = n.outputs[0]
    if n.op == "SequenceEmpty":
        w.sequences[out] = []
    elif n.op == "SequenceConstruct":
        w.sequences[out] = [element(i) for i in n.inputs]
    elif n.op == "SplitToSequence":
        x = element(n.inputs[0])
        axis = n.attrs.get("axis", 0) % len(x.axes)
        split = position(1)
        w.pin_axis(n, x.axes[axis], "SplitToSequence goes along this axis")
        gone = split is None and not n.attrs.get("keepdims", 1)
        w.sequences[out] = []
        for a, b in _bounds(len(x.axes[axis]), split):
            axes, zero = list(x.axes), list(x.zero)
            axes[axis : axis + 1] = [] if gone else [pinned(b - a)]
            zero[axis : axis + 1] = [] if gone else [False]
            w.sequences[out].append(Element(axes, tuple(zero)))
    elif n.op in ("SequenceInsert", "SequenceErase"):
        insert = n.op == "SequenceInsert"
        new = element(n.inputs[1]) if insert else None
        w.sequences[out] = _edited(n, elements(), new, position(2 if insert else 1))
    elif n.op == "SequenceLength":
        w.put_pinned(out)
    elif n.op == "SequenceAt":
        found = elements()[int(w.need(n, 1, "positions"))]
        w.put(out, found.axes)
        w.facts.zero[out] = found.zero
    else:
        parts = elements()
        fresh = bool(n.attrs.get("new_axis", 0))
        axis = n.attrs["axis"] % (len(parts[0].axes) + fresh)
        axes = list(parts[0].axes)
        for p in parts[1:]:
            for k, (one, other) in enumerate(zip(axes, p.axes, strict=True)):
                if fresh or k != axis:
                    w.labels.same(one, other)
        if fresh:
            axes.insert(axis, pinned(len(parts)))
        else:
            axes[axis] = np.concatenate([p.axes[axis] for p in parts])
        w.put(out, axes)
