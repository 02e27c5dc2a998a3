"""What thousands of candidate plans would cost: products of kept counts, as arrays.

Every cost is a sum of terms, a constant times the sizes of some axes, and every such size is a
linear function of how many channels each group keeps. That is all that an allocation needs, and
it couples the groups as they are coupled: a convolution's work depends on both of its sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from onnx import helper

from onnxprune.axes.facts import Facts
from onnxprune.axes.labels import Vector
from onnxprune.axes.solve import Group, Solution
from onnxprune.cost.parameters import weights
from onnxprune.cost.work import Sizes
from onnxprune.graph.model import WEIGHT_TYPES, Constant, Node
from onnxprune.graph.tensors import known_bytes

Array = NDArray[np.float64]
Quantity = Literal["params", "macs", "bytes"]


@dataclass(frozen=True, eq=False)
class Terms:
    """A sum of products: `factor[t] * prod(sizes[index[t]])`."""

    factor: Array
    index: NDArray[np.int64]
    """(terms, degree) axes, filled up with the axis whose size is always 1."""


@dataclass(frozen=True, eq=False)
class CostModel:
    """Costs of a model as functions of the kept counts of its groups, in the groups' order.

    Exact where every channel of a group occurs equally often in an axis (else at the mean), and
    where no stored vector is shared by nodes that are cut differently. Weights that a cut stores
    in the place of their computation (weight norm) are counted as stored from the beginning.
    """

    full: Array
    """(groups,) channels of each."""
    base: Array
    """(axes,) indices that stay whatever is kept; the last axis is the one of size 1."""
    slope: Array
    """(axes, groups) indices of an axis for each kept channel of a group."""
    terms: dict[Quantity, Terms]

    def sizes(self, kept: ArrayLike) -> Array:
        """(..., groups) kept counts -> (..., axes) sizes."""
        return np.asarray(self.base + np.asarray(kept, np.float64) @ self.slope.T)

    def total(self, what: Quantity, kept: ArrayLike) -> Array:
        """(..., groups) kept counts -> (...,) cost."""
        t = self.terms[what]
        return np.asarray(self.sizes(kept)[..., t.index].prod(axis=-1) @ t.factor)

    def marginal(self, what: Quantity, kept: ArrayLike) -> Array:
        """(groups,) kept counts -> (groups,) what one more channel of each group costs there.

        The derivative of the total: to first order what one channel less saves.
        """
        t = self.terms[what]
        sizes = self.sizes(kept)[t.index]
        by_axis = np.zeros(len(self.base))
        for k in range(t.index.shape[1]):
            others = np.delete(sizes, k, axis=1).prod(axis=1)
            np.add.at(by_axis, t.index[:, k], t.factor * others)
        return np.asarray(by_axis @ self.slope)


class _Axes:
    """Distinct axes that may shrink, numbered as they are met."""

    def __init__(self, solution: Solution, groups: Sequence[Group]) -> None:
        self.root = solution.root
        self.group = np.full(int(solution.root.max()) + 1, -1, np.int64)
        for j, g in enumerate(groups):
            self.group[g.roots] = j
        self.channels = np.array([g.size for g in groups], np.float64)
        self.numbers: dict[bytes, int] = {}
        self.seen: dict[int, int | None] = {}
        self.base: list[float] = []
        self.slope: list[Array] = []

    def number(self, labels: Vector) -> int | None:
        """The number of an axis; None for one that stays as it is."""
        if id(labels) not in self.seen:
            self.seen[id(labels)] = self._number(labels)
        return self.seen[id(labels)]

    def _number(self, labels: Vector) -> int | None:
        if not labels.any():
            return None
        of = self.group[self.root[labels]]
        count = np.bincount(of + 1, minlength=len(self.channels) + 1)
        if count[0] == len(of):
            return None
        key = count.tobytes()
        if key not in self.numbers:
            self.numbers[key] = len(self.base)
            self.base.append(float(count[0]))
            self.slope.append(count[1:] / self.channels)
        return self.numbers[key]


def _terms(products: Iterable[tuple[float, list[int]]], one: int) -> Terms:
    merged: dict[tuple[int, ...], float] = {}
    for factor, axes in products:
        key = tuple(sorted(axes))
        merged[key] = merged.get(key, 0.0) + factor
    degree = max((len(k) for k in merged), default=0)
    index = np.full((len(merged), max(degree, 1)), one, np.int64)
    for t, key in enumerate(merged):
        index[t, : len(key)] = key
    return Terms(np.array(list(merged.values()), np.float64), index)


def cost_model(solution: Solution, groups: Sequence[Group], sizes: Sizes) -> CostModel:
    """Costs as functions of what is kept of `groups`; nothing else is assumed to shrink."""
    facts, model = solution.facts, solution.facts.model
    axes = _Axes(solution, groups)

    def product(vectors: Iterable[Vector], factor: float) -> tuple[float, list[int]]:
        found = []
        for labels in vectors:
            number = axes.number(labels)
            if number is None:
                factor *= sizes.of(labels)
            else:
                found.append(number)
        return factor, found

    macs = [product(w.axes, float(w.times)) for w in facts.work]
    made, spent = _recomputed(facts, axes)
    params = [product(facts.axes[v], 1.0) for v, _ in made]
    for w in weights(model):
        if not spent.issuperset(w.values):
            known = w.values[0] in facts.axes
            params.append(product(facts.axes.get(w.values[0], ()), 1.0 if known else w.size))
    stored: dict[object, Constant] = {}
    for c in model.constants.values():
        if c.size:
            stored.setdefault((c.site, c.is_node), c)
    data = [product(facts.axes[v], width) for v, width in made]
    for c in stored.values():
        scale = 1 if c.value in facts.axes else c.size
        data.append(product(facts.axes.get(c.value, ()), scale * known_bytes(c.tensor) / c.size))
    frame = model.source.size - sum(known_bytes(c.tensor) for c in stored.values())
    one = len(axes.base)
    terms: dict[Quantity, Terms] = {
        "params": _terms(params, one),
        "macs": _terms(macs, one),
        "bytes": _terms([*data, (float(frame), [])], one),
    }
    slope = np.array([*axes.slope, np.zeros(len(groups))]).reshape(one + 1, len(groups))
    return CostModel(axes.channels, np.array([*axes.base, 1.0]), slope, terms)


def _recomputed(facts: Facts, axes: _Axes) -> tuple[list[tuple[str, float]], set[str]]:
    """Weights computed from constants that will be stored, with the bytes of an entry, and the
    constants that nothing else reads: they are spent once the result is stored.
    """
    made = []
    inside: set[Node] = set()
    for value in sorted(facts.derived):
        dtype = facts.trace.types.get(value, 0)
        if dtype in WEIGHT_TYPES and any(axes.number(v) is not None for v in facts.axes[value]):
            made.append((value, float(helper.tensor_dtype_to_np_dtype(dtype).itemsize)))
            todo = [value]
            while todo:
                node = facts.model.producer.get(todo.pop())
                if node is not None and node not in inside:
                    inside.add(node)
                    todo += [i for i in node.inputs if i]
    read = {i for n in inside for i in n.inputs if i in facts.model.constants}
    spent = {i for i in read if all(u in inside for u, _ in facts.model.uses[i])}
    return made, spent
