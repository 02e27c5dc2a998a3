"""What channels hold without data: means and covariances, carried through the network.

A batch norm says what every channel behind it holds on the training data: N(beta, gamma^2). How
the channels of a layer go together follows from its filters and from how *their* inputs go
together, so covariances are carried from layer to layer:

* a layer with weights W makes W S W' of a covariance S, with neighbouring positions of a map alike
  by `NEARBY` for each step;
* a norm sets mean and spread, and leaves correlations as they are;
* what follows (any element-wise function f) is run on the normal distribution laid out on a grid,
  and its covariance is the series of Mehler: with a_k the Hermite coefficients of f,
  cov(f(x), f(y)) = sum_k a_k(x) a_k(y) corr(x, y)^k. For a rectifier with zero means that is the
  arc-cosine kernel (Cho & Saul 2009); with any mean, the rectified Gaussian.

Where norms are folded away, means and spreads can't be carried: errors grow from layer to layer.
There, each layer's inputs are taken as independent and alike, and its bias as the weight of one
more of them: what it makes is N(0, W W' + b b'). Of such channels only E[x x'] means something, not
how it splits into means and spreads. Filters that are multiples of each other then give channels
that are, and are merged exactly: that is neuron merging (Kim et al. 2020) with one partner, and
"leave before you leave" (Park et al. 2022) with several.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.content import constant_value
from onnxprune.axes.facts import Facts
from onnxprune.axes.labels import Vector
from onnxprune.axes.movers import MOVERS
from onnxprune.axes.operators import run_operator
from onnxprune.axes.rules import ELEMENTWISE
from onnxprune.graph.model import Node
from onnxprune.repair.consumers import Consumer, layers
from onnxprune.repair.rewrite import read_matrix

Array = NDArray[np.float64]
Cov = NDArray[np.float32]
"""Covariances are single: they are large, and no more exact than that."""

NEARBY = 0.6
"""Correlation of neighbouring positions of a map. Measured on CIFAR-10 networks: 0.4 to 0.8."""
IMAGE = 0.9
"""The same of an image, and the correlation of its colours."""
UNSURE_NEARBY = 0.3
"""The same where no norm says what a map holds."""

_GRID = np.linspace(-6, 6, 241)
_WEIGHT = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()
_TERMS = 8
_STILL = 1e-4
"""Of the largest spread: below, a covariance in single precision is but rounding."""
LARGEST = 4800
"""Channels up to which covariances are affordable."""


def _hermite() -> Array:
    """(terms + 1, grid) normalised Hermite polynomials, times the weight of each grid point."""
    rows = [np.ones_like(_GRID), _GRID]
    for k in range(2, _TERMS + 1):
        rows.append((_GRID * rows[-1] - np.sqrt(k - 1) * rows[-2]) / np.sqrt(k))
    return np.asarray(np.stack(rows) * _WEIGHT)


_HERMITE = _hermite()


@dataclass(frozen=True, eq=False)
class Normal:
    """n normal variables: (n,) mean, (n, n) covariance."""

    mean: Array
    cov: Cov

    @cached_property
    def spread(self) -> Array:
        """(n,) standard deviations."""
        return np.sqrt(np.maximum(self.cov.diagonal(), 0).astype(np.float64))

    @property
    def corr(self) -> Cov:
        """(n, n) correlations; a variable that hardly varies goes with no other."""
        varies = self.spread > _STILL * self.spread.max(initial=0)
        inverse = np.divide(1, self.spread, where=varies, out=np.zeros_like(self.spread))
        return np.clip(_times(self.cov, inverse), -1, 1)


@dataclass(frozen=True, eq=False)
class Channels:
    """The channels of a value: functions of normal variables, along one axis."""

    normal: Normal
    grid: Array
    """(n, points): each channel where its variable is mean + spread * point."""
    axis: int
    of: NDArray[np.int64]
    """The channel at each index of the axis: a flattened map repeats them."""
    trusted: bool
    """Norms before it say what it holds; else only second moments, up to a scale, mean anything."""

    @classmethod
    def normally(cls, mean: Array, cov: Cov, axis: int, trusted: bool) -> Channels:
        normal = Normal(mean, cov)
        grid = mean[:, None] + normal.spread[:, None] * _GRID
        return cls(normal, grid, axis, np.arange(len(mean)), trusted)

    @cached_property
    def _coefficients(self) -> Array:
        """(n, terms + 1)."""
        return self.grid @ _HERMITE.T

    @property
    def mean(self) -> Array:
        """(n,)."""
        return self._coefficients[:, 0]

    @cached_property
    def variance(self) -> Array:
        """(n,)."""
        return np.asarray(np.maximum(self.grid**2 @ _WEIGHT - self.mean**2, 0))

    @cached_property
    def cov(self) -> Cov:
        """(n, n); the terms that are left out of the series are taken as one more."""
        a, corr = self._coefficients[:, 1:], self.normal.corr
        rest = self.variance - np.cumsum(a**2, axis=1).T  # (terms, n) after each term
        out, power = _times(corr, a[:, 0]), corr
        for k in range(1, _TERMS + 1):
            if rest[k - 1].max() <= 1e-4 * self.variance.max():
                break
            power = power * corr
            out += _times(power, a[:, k] if k < _TERMS else np.sqrt(np.maximum(rest[-1], 0)))
        np.fill_diagonal(out, self.variance)
        return out

    @property
    def moments(self) -> tuple[Array, Cov]:
        return self.mean, self.cov

    @cached_property
    def seen(self) -> Cov:
        """(n, n) what there is to fit to: covariances, or E[x x'] where means are not known."""
        if self.trusted:
            return self.cov
        return np.asarray(self.cov + np.outer(self.mean, self.mean).astype(np.float32))

    @property
    def is_rectified(self) -> bool:
        """Nothing below 0."""
        return bool(self.grid.min(initial=0) >= 0)


def _times(table: Cov, scale: Array) -> Cov:
    """A new table, its rows and columns scaled."""
    narrow = scale.astype(np.float32)
    out = table * narrow
    out *= narrow[:, None]
    return out


def walk(facts: Facts, wanted: Sequence[str]) -> Iterator[tuple[str, Channels]]:
    """The channels of these values, in the order of the graph; those that can't be had are left
    out. Each is forgotten when nothing needs it any more.
    """
    steps = _Walk(facts)
    left = set(wanted)
    for name in facts.model.graph.inputs:
        steps.enter(name)
        if name in left and name in steps.of:
            yield name, steps.of[name]
    nodes = _needed(facts, left)
    readers = Counter(i for n in nodes for i in set(n.inputs))
    for node in nodes:
        steps.node(node)
        for o in node.outputs:
            if o in left and o in steps.of:
                yield o, steps.of[o]
        for i in set(node.inputs):
            readers[i] -= 1
            if not readers[i]:
                steps.of.pop(i, None)


def _needed(facts: Facts, wanted: set[str]) -> list[Node]:
    """The nodes of the main graph that these values come from, in order."""
    need = set(wanted)
    found = []
    for node in reversed(facts.model.graph.nodes):
        if need & set(node.outputs):
            need.update(node.inputs)
            found.append(node)
    return found[::-1]


class _Walk:
    """Follows channels through the graph, as far as there are rules."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.of: dict[str, Channels] = {}
        self.layers = {c.node: c for c in layers(facts)}

    def enter(self, name: str) -> None:
        """An input: standard normal; the colours of an image go together."""
        shape = self.facts.trace.shapes.get(name, ())
        if len(shape) < 2:
            return
        readers = {n.op for n, _ in self.facts.model.uses.get(name, ())}
        axis = 1 if readers & {"Conv", "BatchNormalization"} else len(shape) - 1
        if shape[axis] > LARGEST:
            return
        alike = IMAGE if len(shape) == 4 and shape[axis] == 3 else 0.0
        cov = np.full((shape[axis], shape[axis]), alike, np.float32)
        np.fill_diagonal(cov, 1)
        self.of[name] = Channels.normally(np.zeros(len(cov)), cov, axis, False)

    def node(self, node: Node) -> None:
        """Find the channels of a node's outputs, where that can be done."""
        if node.domain or not node.outputs or node.outputs[0] in self.of:
            return
        if node in self.layers:
            self.layer(self.layers[node])
        elif node.op in _NORMS:
            self.norm(node)
        elif node.op in MOVERS or node.op in _POOLS:
            for o in node.outputs:
                self.moved(node, o)
        elif ("", node.op) in ELEMENTWISE:
            self.elementwise(node)

    def active(self, node: Node) -> list[str]:
        return [i for i in node.inputs if i and i not in self.facts.constant]

    # layers

    def layer(self, c: Consumer) -> None:
        """A layer with its bias: W mean + b, and W S W' summed over taps."""
        facts, x = self.facts, self.of.get(c.data)
        shape, rank = facts.trace.shapes.get(c.data), len(facts.trace.shapes.get(c.out, ()))
        if not shape or not rank:
            return
        inner, axis = (1, 1) if c.is_conv else (len(shape) - 1, rank - 1)
        if x is not None and x.axis != inner:
            x = None
        of = np.arange(shape[inner]) if x is None else x.of
        rows = weight_rows(c, facts, of)
        if rows is None or max(len(of), facts.trace.shapes[c.out][axis]) > LARGEST:
            return
        w = weight_of(c, facts)[:, rows]
        bias = _bias(c, facts, w.shape[0] * w.shape[3])
        if x is not None and x.trusted:
            means, covs = x.moments
            mean = np.einsum("gc,gco->go", means.reshape(w.shape[:2]), w.sum(axis=2)).ravel() + bias
            cov = _carried(_mixed(w, c, facts, NEARBY), covs)
            self.of[c.out] = Channels.normally(mean, cov, axis, True)
        else:
            image = x is not None and c.data in facts.model.graph.inputs
            known = x.cov if x is not None and image else None
            cov = _carried(_mixed(w, c, facts, IMAGE if image else UNSURE_NEARBY), known)
            cov += np.outer(bias, bias).astype(np.float32)
            self.of[c.out] = Channels.normally(np.zeros(len(bias)), cov, axis, False)

    def norm(self, node: Node) -> None:
        """A norm sets the mean and the spread of every channel."""
        facts, x = self.facts, self.of.get(node.inputs[0])
        if len(node.inputs) < 2 or not set(node.inputs[1:3]) <= facts.constant:
            return
        gamma = constant_value(node.inputs[1], facts).astype(np.float64)
        if gamma.ndim != 1:
            return
        beta = np.zeros(len(gamma))
        if node.op != "RMSNormalization" and len(node.inputs) > 2 and node.inputs[2]:
            beta = constant_value(node.inputs[2], facts).astype(np.float64)
        rank = len(facts.trace.shapes.get(node.inputs[0], ()))
        last = node.op in ("LayerNormalization", "RMSNormalization")
        axis = rank - 1 if last else 1
        shape = facts.trace.shapes.get(node.outputs[0], ())
        if axis >= len(shape) or len(gamma) != shape[axis] or beta.shape != gamma.shape:
            return
        known = x is not None and x.axis == axis and len(x.normal.mean) == len(gamma)
        cov = np.zeros((len(gamma), len(gamma)), np.float32)
        if x is not None and known:
            cov = _times(Normal(*x.moments).corr, gamma)
        np.fill_diagonal(cov, gamma**2)
        self.of[node.outputs[0]] = Channels.normally(beta, cov, axis, True)

    # what moves channels and does not change them

    def moved(self, node: Node, o: str) -> None:
        """Channels that only moved are found again by their labels; new ones hold 0."""
        axes = self.facts.axes
        parts = [i for i in self.active(node) if i in self.of and i in axes]
        if o not in axes or not parts or (node.op == "Concat" and len(parts) < len(node.inputs)):
            return
        joined = node.attrs.get("axis", 1) % len(axes[o]) if node.op == "Concat" else -1
        if all(self.of[i].axis == joined for i in parts):
            self.of[o] = _side_by_side([self.of[i] for i in parts])
            return
        held = np.concatenate([axes[i][self.of[i].axis] for i in parts])
        for axis, labels in enumerate(axes[o]):
            at = _find(labels, held)
            if at is None:
                continue
            x = self.of[parts[0]] if len(parts) == 1 else _side_by_side([self.of[i] for i in parts])
            if (at >= 0).all() and len(at) > len(held):  # each is repeated: a flattened map
                made = Channels(x.normal, x.grid, axis, x.of[at], x.trusted)
            else:
                made = _taken(x, x.of[at], at >= 0, axis)
            self.of[o] = made
            return

    # element-wise

    def elementwise(self, node: Node) -> None:
        """A function of one value, or a sum or product of independent ones."""
        names = list(dict.fromkeys(self.active(node)))
        xs = [self.of[i] for i in names if i in self.of]
        if not xs or len(xs) < len(names):
            return
        first = xs[0]
        ranks = {len(self.facts.trace.shapes.get(i, ())) for i in (*names, node.outputs[0])}
        if len(ranks) > 1 or any(not _alike(x, first) for x in xs):
            return
        if all(x.normal is first.normal for x in xs):
            self.function(node, dict(zip(names, xs, strict=True)), ranks.pop())
        elif node.op in _JOINS and len(names) == len([i for i in node.inputs if i]):
            mean, cov = reduce(_JOINS[node.op], (x.moments for x in xs))
            trusted = all(x.trusted for x in xs)
            self.of[node.outputs[0]] = Channels.normally(mean, cov, first.axis, trusted)

    def function(self, node: Node, xs: dict[str, Channels], rank: int) -> None:
        """Run an operator on the grid: its points lie along a new axis in front of all others."""
        x = next(iter(xs.values()))
        n, after = len(x.grid), rank - 1 - x.axis
        operands: list[np.ndarray | None] = []
        for i in node.inputs:
            if i in xs:
                points = xs[i].grid.T.astype(np.float32)
                operands.append(points.reshape(len(_GRID), *[1] * x.axis, n, *[1] * after))
            else:
                operands.append(constant_value(i, self.facts) if i else None)
        try:
            out = run_operator(node, operands)[0]
        except Exception:  # a version or type that onnx itself does not run
            return
        if out.size == len(_GRID) * n and out.dtype.kind == "f":
            grid = out.reshape(len(_GRID), n).T.astype(np.float64)
            if np.isfinite(grid).all():
                self.of[node.outputs[0]] = Channels(x.normal, grid, x.axis, x.of, x.trusted)


_NORMS = frozenset(
    ("BatchNormalization", "InstanceNormalization", "LayerNormalization", "RMSNormalization")
)
_POOLS = frozenset(
    ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool", "ReduceMean")
)
"""Every channel stays what it was; what a mean takes off its spread, it takes off all alike."""


Moments = tuple[Array, Cov]


def _sum(a: Moments, b: Moments) -> Moments:
    return a[0] + b[0], a[1] + b[1]


def _product(a: Moments, b: Moments) -> Moments:
    return a[0] * b[0], a[1] * b[1] + _times(a[1], b[0]) + _times(b[1], a[0])


_JOINS: dict[str, Callable[[Moments, Moments], Moments]] = {
    "Add": _sum, "Sum": _sum, "Mul": _product,
}  # fmt: skip
"""Moments of sums and products of independent values."""


def _alike(a: Channels, b: Channels) -> bool:
    return a.axis == b.axis and np.array_equal(a.of, b.of) and len(a.grid) == len(b.grid)


def _find(labels: Vector, held: Vector) -> NDArray[np.int64] | None:
    """Where each of these labels is among those held, -1 for none; None if none is."""
    if not len(held):
        return None
    order = np.argsort(held, kind="stable")
    where = np.minimum(np.searchsorted(held[order], labels), len(held) - 1)
    at = np.where((held[order][where] == labels) & (labels != 0), order[where], -1)
    return at if (at >= 0).any() else None


def _side_by_side(parts: Sequence[Channels]) -> Channels:
    """Concatenated channels: between the parts nothing is known."""
    size = sum(len(p.mean) for p in parts)
    cov, start = np.zeros((size, size), np.float32), 0
    for p in parts:
        stop = start + len(p.mean)
        cov[start:stop, start:stop] = p.cov
        start = stop
    mean = np.concatenate([p.mean for p in parts])
    made = Channels.normally(mean, cov, parts[0].axis, all(p.trusted for p in parts))
    offsets = np.cumsum([0, *(len(p.mean) for p in parts[:-1])])
    of = np.concatenate([p.of + k for p, k in zip(parts, offsets, strict=True)])
    return Channels(made.normal, made.grid, made.axis, of, made.trusted)


def _taken(x: Channels, at: NDArray[np.int64], there: NDArray[np.bool_], axis: int) -> Channels:
    """Some channels of a value, in another order; those that are not there hold 0."""
    mean = np.where(there, x.normal.mean[at], 0)
    cov = _times(x.normal.cov[np.ix_(at, at)], there.astype(np.float64))
    grid: Array = np.where(there[:, None], x.grid[at], np.float64(0))
    return Channels(Normal(mean, cov), grid, axis, np.arange(len(at)), x.trusted)


def weight_of(c: Consumer, facts: Facts) -> Array:
    """(groups, rows, outputs of a group) a layer's weight in the original, as a matrix."""
    array = facts.model.array(facts.model.constants[c.weight]).astype(np.float64)
    matrix = read_matrix(array, c, c.groups)
    return np.asarray(matrix.reshape(c.groups, -1, matrix.shape[-1]))


def weight_rows(c: Consumer, facts: Facts, of: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """(channels of a group, taps) which row belongs to which channel and tap, `of` being the
    channel at each index of what the layer reads.

    A layer that reads a flattened map has the map's positions for taps. None where the channels
    are not repeated alike.
    """
    shape = facts.trace.shapes[c.weight]
    if c.is_conv:
        taps = int(np.prod(shape[2:]))
        alone = np.array_equal(of, np.arange(len(of))) and len(of) % c.groups == 0
        return np.arange(len(of) // c.groups * taps).reshape(-1, taps) if alone else None
    count = int(of.max(initial=-1)) + 1
    if len(of) != shape[c.axis] or not count or (np.bincount(of) * count != len(of)).any():
        return None
    return np.argsort(of, kind="stable").reshape(count, -1)


def _bias(c: Consumer, facts: Facts, outputs: int) -> Array:
    """(outputs,) a layer's stored bias, or zeros."""
    node = c.add or c.node
    name = node.inputs[c.bias] if c.bias is not None and len(node.inputs) > c.bias else ""
    if not name or name not in facts.constant:
        return np.zeros(outputs)
    return np.broadcast_to(constant_value(name, facts).astype(np.float64).ravel(), (outputs,))


def _mixed(w: Array, c: Consumer, facts: Facts, alike: float) -> Array:
    """Weights (groups, channels, taps, outputs) as if positions were independent, for a
    convolution whose neighbouring positions are `alike`.
    """
    if not c.is_conv:
        return w
    table = np.ones((1, 1))
    for size in facts.trace.shapes[c.weight][2:]:
        table = np.kron(table, alike ** np.abs(np.arange(size)[:, None] - np.arange(size)))
    root = np.linalg.cholesky(table + 1e-9 * np.eye(len(table)))
    return np.asarray(root.T @ w)  # (s, t) @ (t, outputs)


def _carried(w: Array, cov: Cov | None) -> Cov:
    """(outputs, outputs) sum over taps of W_t' S W_t, for w (groups, channels, taps, outputs).

    Without a covariance the inputs are independent, of spread 1.
    """
    groups, channels, taps, outputs = w.shape
    narrow = w.astype(np.float32)
    if cov is None:
        flat = narrow.reshape(groups, -1, outputs)
        out = np.zeros((groups, outputs, groups, outputs), np.float32)
        out[np.arange(groups), :, np.arange(groups)] = np.swapaxes(flat, 1, 2) @ flat
        return out.reshape(groups * outputs, -1)
    s = cov.reshape(groups, channels, -1)
    total = np.zeros((groups, groups * outputs, outputs), np.float32)
    for t in range(taps):
        mine = np.ascontiguousarray(narrow[:, :, t])
        half = np.swapaxes(mine, 1, 2) @ s  # (groups, outputs, all channels)
        half = half.reshape(groups * outputs, groups, channels).swapaxes(0, 1)
        total += half @ mine
    return total.swapaxes(0, 1).reshape(groups * outputs, -1)
