"""Labels: which prunable channel does each index of an axis belong to?

A label is an integer. 0 is pinned: never removed. Any other label is an atom (one channel) or a
conjunction `a AND b` (kept when both are): a Reshape that splits an axis C into (H, D) makes fresh
h and d with c[i, j] = h[i] AND d[j]. Statements about labels are collected here as arrays and
solved once, in `axes/solve.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.int64]
"""The labels of one axis, a label per index."""

_LARGE = 100_000
LONGEST = 2_000_000
"""Elements of an axis that is still followed through a Reshape that splits or folds it."""
WINDOW = "slides over this axis"
"""Why the axes of a convolution's window stay: they are no channels."""


def distinct_pairs(a: Vector, b: Vector) -> tuple[Vector, Vector]:
    """Pairs of labels, sorted, each once (labels are below 2**31)."""
    pairs = np.sort((a << 32) | b)  # np.unique hashes: twenty times slower on millions
    first = np.ones(len(pairs), bool)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    pairs = pairs[first]
    return pairs >> 32, pairs & 0xFFFFFFFF


def pinned(size: int) -> Vector:
    """An axis that never shrinks."""
    return np.zeros(size, np.int64)


@dataclass(frozen=True)
class Pin:
    """Labels that a node says can't go, and why."""

    labels: Vector
    why: str
    node: str


@dataclass
class Labels:
    """All labels of a model and what is known about them."""

    count: int = 1
    same_a: list[Vector] = field(default_factory=list)
    same_b: list[Vector] = field(default_factory=list)
    both: list[Vector] = field(default_factory=list)
    both_a: list[Vector] = field(default_factory=list)
    both_b: list[Vector] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)

    def fresh(self, size: int) -> Vector:
        """New atoms."""
        self.count += size
        return np.arange(self.count - size, self.count, dtype=np.int64)

    def axis(self, size: int) -> Vector:
        """New atoms for an axis; an axis of one element can't shrink."""
        return self.fresh(size) if size > 1 else pinned(size)

    def same(self, a: Vector, b: Vector) -> None:
        """State that labels are equal, element by element (numpy broadcasting)."""
        if a is b:
            return
        a, b = (x.ravel() for x in np.broadcast_arrays(a, b))
        differ = a != b
        if not differ.any():
            return
        a, b = a[differ], b[differ]
        if a.size > _LARGE:  # a flattened map repeats each pair for every position
            a, b = distinct_pairs(a, b)
        self.same_a.append(a)
        self.same_b.append(b)

    def pin(self, labels: Vector, why: str, node: str) -> None:
        """State that labels can't go."""
        labels = labels[labels != 0]
        if labels.size > 4096:
            labels = np.unique(labels)
        if labels.size:
            self.pins.append(Pin(labels, why, node))

    def conjunction(self, a: Vector, b: Vector) -> Vector:
        """Labels of `a AND b`, element by element; 0 is neutral."""
        a, b = (x.ravel() for x in np.broadcast_arrays(a, b))
        out = np.where(a == 0, b, a)
        need = (a != 0) & (b != 0) & (a != b)
        if need.any():
            pairs, where = np.unique(np.stack([a[need], b[need]]), axis=1, return_inverse=True)
            new = self.fresh(pairs.shape[1])
            self.both.append(new)
            self.both_a.append(pairs[0])
            self.both_b.append(pairs[1])
            out = out.copy()
            out[need] = new[where.ravel()]
        return out

    def split(self, labels: Vector, sizes: Sequence[int]) -> list[Vector]:
        """Labels of one axis, for the several axes it is reshaped to."""
        live = [k for k, d in enumerate(sizes) if d > 1]
        out = [pinned(d) for d in sizes]
        if not live or not labels.any():
            return out
        if len(live) > 1 and len(labels) > LONGEST:
            self.pin(labels, "cut out of an axis of millions", "")
            return out
        if len(live) == 1:
            out[live[0]] = labels
            return out
        first = live[0]
        table = labels.reshape(sizes[first], -1)
        rest_sizes = [d for k, d in enumerate(sizes) if k != first]
        if (table == table[:1]).all():
            rest = self.split(table[0], rest_sizes)
            return [*rest[:first], out[first], *rest[first:]]
        if (table == table[:, :1]).all():
            out[first] = table[:, 0].copy()
            return out
        outer, inner = self.fresh(table.shape[0]), self.fresh(table.shape[1])
        self.same(table.ravel(), self.conjunction(outer[:, None], inner[None, :]))
        rest = self.split(inner, rest_sizes)
        return [*rest[:first], outer, *rest[first:]]

    def merge(self, parts: Sequence[Vector]) -> Vector:
        """Labels of several axes, for the one axis they are flattened to."""
        out = parts[0]
        for part in parts[1:]:
            if out.any() and part.any():
                ua, ia = np.unique(out, return_inverse=True)
                ub, ib = np.unique(part, return_inverse=True)
                if len(out) * len(part) > LONGEST:  # tokens by tokens: no channels there
                    self.pin(ua, "folded into an axis of millions", "")
                    self.pin(ub, "folded into an axis of millions", "")
                    out = pinned(len(out) * len(part))
                    continue
                table = self.conjunction(ua[:, None], ub[None, :]).reshape(len(ua), len(ub))
                out = table[ia.ravel()][:, ib.ravel()].ravel()
            elif out.any():
                out = np.repeat(out, len(part))
            elif part.any():
                out = np.tile(part, len(out))
            else:
                out = pinned(len(out) * len(part))
        return out

    def regroup(self, parts: Sequence[Vector], sizes: Sequence[int]) -> list[Vector] | None:
        """Labels of several axes, for several others with the same product.

        Input axes are split where an output boundary falls inside them; None if none falls evenly.
        """
        todo = list(parts)
        out: list[Vector] = []
        for size in sizes:
            take: list[Vector] = []
            have = 1
            while have < size:
                part = todo.pop(0)
                if size % (have * len(part)) == 0:
                    take.append(part)
                    have *= len(part)
                elif size % have == 0 and len(part) % (size // have) == 0:
                    head, tail = self.split(part, [size // have, len(part) * have // size])
                    take.append(head)
                    todo.insert(0, tail)
                    have = size
                else:
                    return None
            out.append(self.merge(take) if take else pinned(size))
        return out
