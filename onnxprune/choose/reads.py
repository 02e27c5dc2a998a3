"""What the consumers of a group read: a weight that contracts its channels, and their statistics.

A channel matters as far as its consumers listen to it *and* as far as it varies. The first is in
the weights; the second are two numbers a channel, its mean and its mean square, from calibration
data (`choose.activity`) or from what a batch norm says of it (`choose.gaussian`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Sink
from onnxprune.axes.solve import Group, Solution
from onnxprune.graph.model import Node

Array = NDArray[np.float64]
Axis = tuple[str, int]
"""A value of the analysed copy, and one of its axes."""


@dataclass(frozen=True, eq=False)
class Moments:
    """(n,) mean and mean square of the entries at each index of an axis."""

    mean: Array
    square: Array

    @property
    def variance(self) -> Array:
        """(n,) how far the entries spread around their own mean."""
        return np.asarray(np.maximum(self.square - self.mean**2, 0))

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.mean).all() and np.isfinite(self.square).all())


@dataclass(frozen=True, eq=False)
class Read:
    """A stored weight that contracts a group's channels, and the activation that carries them."""

    node: Node
    operand: int
    """The activation: which input of the node."""
    axis: int
    source: NDArray[np.int64]
    """(n,) channel of the group at each index of the activation's axis, -1 for none."""
    weight: str
    weight_axis: int
    channel: NDArray[np.int64]
    """(m,) the same of the weight's axis; shorter where a grouped convolution repeats it."""

    @property
    def value(self) -> str:
        return self.node.inputs[self.operand]

    def at_weight(self, x: Moments) -> Moments:
        """(m,) the moments that meet each index of the weight's axis, from those of the
        activation's (n,). Where the two do not run alike, the mean over a channel's indices.
        """
        if np.array_equal(self.source, self.channel):
            return x
        mine = self.source >= 0
        count = np.maximum(np.bincount(self.source[mine]), 1)

        def spread(values: Array) -> Array:
            mean = np.bincount(self.source[mine], values[mine]) / count
            return np.where(self.channel >= 0, mean[self.channel], 0.0)

        return Moments(spread(x.mean), spread(x.square))


Inputs = Mapping[int, tuple[tuple[Read, Moments], ...]]
"""By group id: what its consumers read, with moments as `Read.at_weight` gives them."""


def reads(solution: Solution, groups: Sequence[Group]) -> dict[int, tuple[Read, ...]]:
    """All reads by group id; a group that only meets other activations has none."""
    facts = solution.facts
    size = int(solution.root.max()) + 1
    owner, place = np.full(size, -1), np.full(size, -1)
    for g in groups:
        owner[g.roots] = g.id
        place[g.roots] = np.arange(g.size)

    def channels(sink: Sink, group: int) -> NDArray[np.int64]:
        roots = solution.root[sink.labels]
        return np.where(owner[roots] == group, place[roots], -1)

    out: dict[int, list[Read]] = {g.id: [] for g in groups}
    for node in facts.model.walk():
        sinks = facts.sinks_of(node)
        stored = [s for s in sinks if node.inputs[s.operand] in facts.constant]
        for x in (s for s in sinks if s not in stored):
            for w in stored:
                both = set(owner[solution.root[x.labels]]) & set(owner[solution.root[w.labels]])
                for g in sorted(both - {-1}):
                    weight = node.inputs[w.operand]
                    out[int(g)].append(
                        Read(node, x.operand, x.axis, channels(x, int(g)),
                             weight, w.axis, channels(w, int(g)))
                    )  # fmt: skip
    return {g: tuple(found) for g, found in out.items()}


def inputs(found: Mapping[int, Sequence[Read]], moments: Mapping[Axis, Moments]) -> Inputs:
    """Reads with their moments; those whose activation has none are left out."""
    return {
        g: tuple(
            (r, r.at_weight(moments[r.value, r.axis]))
            for r in each
            if (r.value, r.axis) in moments and moments[r.value, r.axis].is_finite
        )
        for g, each in found.items()
    }
