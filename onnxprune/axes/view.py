"""What is kept, axis by axis: a solution and the channels that go, as rules of the cut see it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.axes.labels import Vector
from onnxprune.axes.solve import Group, Solution

Mask = NDArray[np.bool_]


class View:
    """Read-only answers to: which indices of this axis are kept?"""

    def __init__(self, solution: Solution, keep: Mask) -> None:
        self.solution = solution
        self.keep = keep
        self._kept: dict[int, tuple[Vector, Mask]] = {}
        """By identity; the labels are held, or another vector could take their place."""

    @classmethod
    def of(
        cls, solution: Solution, groups: Sequence[Group], kept: Mapping[int, Sequence[int]]
    ) -> View:
        """The view of a plan: group id -> indices of the channels that are kept."""
        keep = np.ones(int(solution.root.max()) + 1, bool)
        for g in groups:
            if g.id in kept:
                keep[g.roots] = False
                keep[g.roots[np.asarray(kept[g.id], np.int64)]] = True
        keep[solution.zero] = True
        return cls(solution, keep)

    @property
    def facts(self) -> Facts:
        return self.solution.facts

    def mask(self, labels: Vector) -> Mask:
        """True where an index is kept."""
        found = self._kept.get(id(labels))
        if found is None:
            found = self._kept[id(labels)] = (labels, self.keep[self.solution.root[labels]])
        return found[1]

    def kept(self, value: str, axis: int) -> Mask:
        return self.mask(self.facts.axes[value][axis])

    def masks(self, value: str) -> list[Mask]:
        """Kept indices of every axis; [] where the value's axes are not known."""
        return [self.mask(v) for v in self.facts.axes.get(value, ())]

    def cut_axes(self, value: str) -> list[bool]:
        """Which axes of a value shrink."""
        return [not m.all() for m in self.masks(value)]

    def shrinks(self, value: str) -> bool:
        return any(self.cut_axes(value))

    def shape(self, value: str) -> tuple[int, ...]:
        """The size of a value after the cut, under the first binding."""
        masks = self.masks(value)
        if not masks:
            return self.facts.trace.shapes[value]
        return tuple(int(m.sum()) for m in masks)

    def moved(self, labels: Vector, index: Vector) -> Vector:
        """Where the kept entries of `index` lie once the axis has shrunk."""
        kept = self.mask(labels)
        position = np.cumsum(kept) - 1
        return position[index][kept[index]]
