"""Channels that hold one constant wherever they are: found where they are made, then followed.

A filter that is zero throughout gives its bias, whatever comes in; batch norm, activations and
pools turn a constant into another. What is not certain is not said.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.content import constant_value
from onnxprune.axes.solve import Solution
from onnxprune.choose.constant_rules import Array, Found, rule


class ConstantChannels:
    """`of[value][root]`: the constant that every entry of a value on this channel holds."""

    def __init__(self, solution: Solution) -> None:
        self.solution = solution
        self.facts = solution.facts
        self.of: dict[str, dict[int, float]] = {}
        self._contents: dict[str, Array] = {}
        self._roots: dict[str, list[NDArray[np.int64]]] = {}
        for node in self.facts.model.graph.nodes:  # in bodies of If and Loop nothing is claimed
            found = rule(node)(node, self)
            for o in (node.outputs if node.op == "Split" else node.outputs[:1]) if found else ():
                plain = self.carried(o) - self.crossed(o)
                self.of[o] = {r: v for r, v in found.items() if r in plain}

    def axes(self, value: str) -> list[NDArray[np.int64]]:
        """The channel that each index of each axis belongs to."""
        if value not in self._roots:
            self._roots[value] = [self.solution.root[v] for v in self.facts.axes.get(value, ())]
        return self._roots[value]

    def carried(self, value: str) -> set[int]:
        """All channels of a value that may go."""
        found = {int(r) for axis in self.axes(value) for r in np.unique(axis)}
        return found - {self.solution.zero}

    def crossed(self, value: str) -> set[int]:
        """Channels on two axes of a value at once (a covariance): nothing is claimed of them."""
        seen: set[int] = set()
        twice: set[int] = set()
        for axis in self.axes(value):
            mine = set(np.unique(axis).tolist())
            twice |= seen & mine
            seen |= mine
        return twice

    def is_stored(self, value: str) -> bool:
        return value in self.facts.constant or value in self.facts.model.constants

    def content(self, value: str) -> Array:
        """What a stored or computed constant holds."""
        if value not in self._contents:
            self._contents[value] = constant_value(value, self.facts)
        return self._contents[value]

    def at(self, value: str, root: int) -> float | None:
        """The constant that a value holds on a channel; None where it may vary."""
        if not self.is_stored(value):
            return self.of.get(value, {}).get(root)
        array = self.content(value)
        places = [k for k, axis in enumerate(self.axes(value)) if (axis == root).any()]
        if len(places) > 1:
            return None
        for k in places:
            array = np.compress(self.axes(value)[k] == root, array, axis=k)
        first = array.ravel()[:1]
        return float(first[0]) if first.size and (array == first[0]).all() else None

    def collapse(self, value: str, axis: int, fixed: NDArray[np.bool_], held: Array) -> Found:
        """Constants by channel from constants by index: all indices of a channel must agree."""
        roots = self.axes(value)[axis]
        out = {}
        for r in np.unique(roots[fixed]):
            mine = roots == r
            if fixed[mine].all() and np.ptp(held[mine]) == 0:
                out[int(r)] = float(held[mine][0])
        return out
