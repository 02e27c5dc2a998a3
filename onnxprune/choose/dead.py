"""Lossless pruning: channels that are constant, or that nothing listens to.

A channel may go where each of its ends adds nothing: the weight that contracts it there is zero, or
the channel itself is. Where it is another constant, the consumer's bias takes over what it added.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Sink
from onnxprune.axes.solve import Group, Solution
from onnxprune.choose.constants import ConstantChannels
from onnxprune.choose.limits import Kept
from onnxprune.choose.rows import real_values
from onnxprune.graph.model import Node


@dataclass(frozen=True, eq=False)
class BiasShift:
    """What a consumer's bias must gain, for constant channels that no longer come in."""

    node: Node
    operand: int
    """Where the bias is; it may be left out there, and then it is to be made."""
    values: NDArray[np.float64]
    """(outputs of the original,) to add to the operand as it is stored (a Gemm's: before beta)."""


@dataclass(frozen=True, eq=False)
class Dead:
    """Kept channels by group, and the bias shifts that make up for those that were constant."""

    kept: dict[int, Kept]
    shifts: tuple[BiasShift, ...]


def dead_channels(solution: Solution, groups: Sequence[Group]) -> Dead:
    """Find all channels that can go without changing what the model computes.

    A weight counts as zero only where all of it is exactly 0, as seen through its zero point. At
    least one channel of every group stays.
    """
    constants = ConstantChannels(solution)
    search = _Search(solution, constants)
    kept = {g.id: np.arange(g.size) for g in groups}
    open_ = [g for g in groups if not search.is_fused(g)]
    found = True
    while found:  # what only fed channels that went is dead in turn
        found = False
        search.used.clear()
        for g in open_:
            have = kept[g.id].tolist()
            stays = [k for k in have if not search.adds_nothing(int(g.roots[k]))] or have[:1]
            if len(stays) < len(kept[g.id]):
                gone = np.setdiff1d(kept[g.id], stays)
                search.gone.update(g.roots[gone].tolist())
                kept[g.id] = np.array(stays, np.int64)
                found = True
    return Dead(kept, search.shifts())


class _Search:
    """Where channels end, and what they add there; `gone` are the channels removed so far."""

    def __init__(self, solution: Solution, constants: ConstantChannels) -> None:
        self.solution, self.facts, self.constants = solution, solution.facts, constants
        self.gone: set[int] = set()
        self.ends: dict[int, dict[Node, list[Sink]]] = {}
        for s in self.facts.sinks:
            for r in np.unique(solution.root[s.labels]).tolist():
                self.ends.setdefault(r, {}).setdefault(s.node, []).append(s)
        self.used: dict[tuple[Node, int, int], NDArray[np.bool_]] = {}
        """Which indices of a contracted weight axis are used; stale ones only claim more use."""
        self.counted = {
            int(r)
            for table in self.facts.heads.values()
            for labels in table.values()
            for r in np.unique(solution.root[labels])
        }
        """Channels that a fused operator (attention, group norm) counts."""
        self.ranged: set[int] = set()
        """Channels that a dynamic quantiser takes its range over: any but 0 matters there."""
        for node in self.facts.model.walk():
            if node.op == "DynamicQuantizeLinear":
                self.ranged |= constants.carried(node.inputs[0]) - set(self._zero(node.inputs[0]))

    def _zero(self, value: str) -> list[int]:
        return [r for r, v in self.constants.of.get(value, {}).items() if v == 0]

    def is_fused(self, group: Group) -> bool:
        """Does a fused operator use the channels in ways not seen here?"""
        return not self.counted.isdisjoint(group.roots.tolist())

    def adds_nothing(self, root: int) -> bool:
        """Can a channel go, with or without a shift of its consumers' biases?"""
        ends = self.ends.get(root)
        if not ends or root in self.ranged:
            return False
        return all(self._end(node, sinks, root) for node, sinks in ends.items())

    def _end(self, node: Node, sinks: list[Sink], root: int) -> bool:
        stored = [s for s in sinks if self.constants.is_stored(node.inputs[s.operand])]
        active = [s for s in sinks if s not in stored]
        if stored and all(self._is_zero(s, root) for s in stored):
            return True
        held = [self.constants.at(node.inputs[s.operand], root) for s in active]
        if 0.0 in held:
            return True
        if len(active) != 1 or len(stored) != 1 or held[0] is None:
            return False
        return self._shift(node, active[0], stored[0], root) is not None

    def _is_zero(self, sink: Sink, root: int) -> bool:
        """Is a weight 0 all along a channel, outputs that went already left out?"""
        value = sink.node.inputs[sink.operand]
        axes = self.constants.axes(value)
        key = (sink.node, sink.operand, sink.axis)
        if key not in self.used:
            w, gone = real_values(value, self.facts) != 0, list(self.gone)
            for k, axis in enumerate(axes):
                if k != sink.axis:
                    w = np.compress(~np.isin(axis, gone), w, axis=k)
            self.used[key] = w.any(axis=tuple(k for k in range(w.ndim) if k != sink.axis))
        return not self.used[key][axes[sink.axis] == root].any()

    def _shift(
        self, node: Node, x: Sink, weight: Sink, root: int
    ) -> tuple[int, NDArray[np.float64]] | None:
        """(bias operand, what a constant channel adds to each output); None where places differ."""
        if node.domain or node.op not in ("Conv", "Gemm") or x.operand != 0 or weight.operand != 1:
            return None
        size = self._bias_size(node)
        held = self.constants.at(node.inputs[0], root)
        if size is None or held is None:
            return None
        w = self.constants.content(node.inputs[1]).astype(np.float64)
        if node.op == "Gemm":
            beta = float(node.attrs.get("beta", 1.0))
            if beta == 0 or node.attrs.get("transA"):
                return None
            w = w if node.attrs.get("transB") else w.T
            mine = self.constants.axes(node.inputs[0])[1] == root
            return 2, w[:, mine].sum(axis=1) * held * node.attrs.get("alpha", 1.0) / beta
        if any(node.attrs.get("pads", ())) or node.attrs.get("auto_pad", "NOTSET") not in (
            "NOTSET", "VALID",
        ):  # fmt: skip
            return None  # zeros of the padding stand where the constant does not
        groups = int(node.attrs.get("group", 1))
        mine = (self.constants.axes(node.inputs[0])[1] == root).reshape(groups, 1, -1)
        taps = w.reshape(groups, -1, w.shape[1], int(np.prod(w.shape[2:]))).sum(axis=3)
        return 2, (taps * mine).sum(axis=2).ravel() * held

    def _bias_size(self, node: Node) -> int | None:
        """How long a node's bias is, or would be; None where it can't be changed."""
        outputs = self.facts.shape(node.outputs[0])
        if outputs is None:
            return None
        if len(node.inputs) > 2 and node.inputs[2]:
            bias = self.facts.model.constants.get(node.inputs[2])
            if bias is None or bias.dims != (outputs[1],):
                return None
        return outputs[1]

    def shifts(self) -> tuple[BiasShift, ...]:
        """What the consumers of all channels that went must gain, a shift per node."""
        total: dict[Node, tuple[int, NDArray[np.float64]]] = {}
        self.used.clear()
        for root in sorted(self.gone):
            for node, sinks in self.ends[root].items():
                stored = [s for s in sinks if self.constants.is_stored(node.inputs[s.operand])]
                if all(self._is_zero(s, root) for s in stored) and stored:
                    continue
                active = [s for s in sinks if s not in stored]
                held = [self.constants.at(node.inputs[s.operand], root) for s in active]
                if 0.0 in held:
                    continue
                found = self._shift(node, active[0], stored[0], root)
                assert found is not None, "a channel went whose constant has nowhere to go"
                have = total.get(node)
                total[node] = found if have is None else (found[0], have[1] + found[1])
        return tuple(BiasShift(node, k, values) for node, (k, values) in total.items())
