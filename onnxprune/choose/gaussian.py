"""Channel statistics without data: a batch norm's output is N(beta, gamma^2) in every channel.

What lies between the norm and a consumer is run on that distribution, laid out on a grid: exact
for a rectifier up to the grid (E relu(gamma z + beta) = gamma phi(t) + beta Phi(t), t = beta /
gamma), and the same for any activation function. Terms of a sum are taken as independent. Only
the norm's own gamma and beta are trusted: where they are folded into weights, nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.axes.content import constant_value
from onnxprune.axes.facts import Facts
from onnxprune.axes.movers import MOVERS
from onnxprune.axes.rules import ELEMENTWISE
from onnxprune.axes.solve import Group, Solution
from onnxprune.choose.reads import Axis, Inputs, Moments, inputs, reads
from onnxprune.graph.model import Node

NORMS = frozenset(("BatchNormalization", "InstanceNormalization"))
"""Operators whose outputs have mean `bias` and standard deviation `scale` in each channel."""
_POOLS = frozenset(
    "MaxPool AveragePool GlobalAveragePool GlobalMaxPool LpPool ReduceMean Dropout".split()
)
"""Operators behind which every channel is what it was. A mean over positions takes some of its
spread away, about as much from each channel, and criteria compare channels.
"""

_GRID = np.linspace(-6, 6, 241)
_WEIGHT = np.exp(-(_GRID**2) / 2) / np.exp(-(_GRID**2) / 2).sum()


@dataclass(frozen=True, eq=False)
class _Grid:
    """(241, n) float32 values of n channels where a standard normal has the values of `_GRID`.

    `source` names the normal variables: values of one source move together, channel by channel.
    """

    values: NDArray[np.float32]
    source: str

    @property
    def moments(self) -> Moments:
        wide = self.values.astype(np.float64)
        return Moments(_WEIGHT @ wide, _WEIGHT @ wide**2)


def _normal(mean: NDArray[np.float64], spread: NDArray[np.float64], source: str) -> _Grid:
    return _Grid((mean + np.outer(_GRID, spread)).astype(np.float32), source)


def expected(solution: Solution, groups: Sequence[Group]) -> Inputs:
    """What the consumers of every group read, as far as norms before them tell."""
    found = reads(solution, groups)
    walk = _Walk(solution.facts)
    moments: dict[Axis, Moments] = {}
    for r in (r for each in found.values() for r in each):
        grid = walk.grid(r.value, r.axis)
        if grid is not None:
            moments[r.value, r.axis] = grid.moments
    return inputs(found, moments)


class _Walk:
    """Follows values back to norms; what was found once is remembered."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.known: dict[Axis, _Grid | None] = {}

    def grid(self, value: str, axis: int) -> _Grid | None:
        """The distribution along an axis; None where it can't be had."""
        key = value, axis
        if key not in self.known:
            node = self.facts.model.producer.get(value)
            known = node is not None and not node.domain and value in self.facts.axes
            self.known[key] = self._made(node, value, axis) if node and known else None
        return self.known[key]

    def _made(self, node: Node, value: str, axis: int) -> _Grid | None:
        if node.op in NORMS:
            return self._norm(node, value) if axis == 1 else None
        if node.op in MOVERS or node.op in _POOLS:
            return self._moved(node, value, axis)
        if ("", node.op) in ELEMENTWISE:
            return self._elementwise(node, axis - len(self.facts.axes[value]))
        return None

    def _norm(self, node: Node, value: str) -> _Grid | None:
        scale, bias = node.inputs[1:3]
        if scale not in self.facts.constant or bias not in self.facts.constant:
            return None
        gamma, beta = (constant_value(v, self.facts).astype(np.float64) for v in (scale, bias))
        return _normal(beta, np.abs(gamma), value)

    def _moved(self, node: Node, value: str, axis: int) -> _Grid | None:
        """An operator that only moves channels: they are found again by their labels."""
        labels = self.facts.axes[value][axis]
        out = np.zeros((len(_GRID), len(labels)), np.float32)
        missing = labels != 0
        source = value
        for i in node.inputs if node.op == "Concat" else node.inputs[:1]:
            for k, mine in enumerate(self.facts.axes.get(i, ())):
                first, at = np.unique(mine, return_index=True)
                where = np.minimum(np.searchsorted(first, labels), len(first) - 1)
                here = missing & (first[where] == labels) if len(first) else np.zeros(0, bool)
                if here.any() and (grid := self.grid(i, k)) is not None:
                    out[:, here] = grid.values[:, at[where[here]]]
                    missing = missing & ~here
                    if np.array_equal(mine, labels):
                        source = grid.source
        return None if missing.any() or not labels.any() else _Grid(out, source)

    def _elementwise(self, node: Node, axis: int) -> _Grid | None:
        """A function of one normal variable, or a sum of several; `axis` counts from the end."""
        active = [i for i in node.inputs if i and i not in self.facts.constant]
        grids: dict[str, _Grid] = {}
        for i in dict.fromkeys(active):
            rank = len(self.facts.axes.get(i, ()))
            grid = self.grid(i, rank + axis) if rank + axis >= 0 else None
            if grid is None:
                return None
            grids[i] = grid
        if len({g.source for g in grids.values()}) == 1:
            return self._function(node, axis, grids)
        if node.op not in ("Add", "Sum") or len(active) != len(node.inputs):
            return None
        parts = [g.moments for g in grids.values()]
        mean = np.sum([m.mean for m in parts], axis=0)
        spread = np.sqrt(np.sum([m.variance for m in parts], axis=0))
        return _normal(mean, spread, node.outputs[0])

    def _function(self, node: Node, axis: int, grids: dict[str, _Grid]) -> _Grid | None:
        """Run an operator on the grid: its points lie along a new axis in front of all others."""
        trace = self.facts.trace
        rank = max(len(trace.shapes.get(i, ())) for i in node.inputs if i)
        operands = {}
        for i in filter(None, node.inputs):
            if i in grids:
                values = grids[i].values
                shape = [len(_GRID), *[1] * (rank + axis), values.shape[1], *[1] * (-1 - axis)]
                operands[i] = values.reshape(shape)
            else:
                operands[i] = constant_value(i, self.facts)
        try:
            out = _evaluated(node, operands)
        except Exception:  # an operator in a version or type that onnx itself does not run
            return None
        channels = next(iter(grids.values())).values.shape[1]
        if out.size != len(_GRID) * channels:  # a constant that differs by position
            return None
        source = next(iter(grids.values())).source
        return _Grid(out.reshape(len(_GRID), channels).astype(np.float32), source)


def _evaluated(node: Node, operands: Mapping[str, np.ndarray]) -> np.ndarray:
    """The first output of a node by onnx's reference evaluator, which knows functions as well."""
    from onnx.reference import ReferenceEvaluator  # late: it loads every operator

    proto = helper.make_node(node.op, node.inputs, node.outputs[:1])
    proto.attribute.extend(node.proto.attribute)
    ports = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(a.dtype), None)
        for name, a in operands.items()
    ]
    out = helper.make_tensor_value_info(node.outputs[0], TensorProto.FLOAT, None)
    graph = helper.make_graph([proto], "node", ports, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", node.version)])
    (result,) = ReferenceEvaluator(model).run(None, dict(operands))
    return np.asarray(result)
