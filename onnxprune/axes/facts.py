"""What one walk over a model states. Nothing here is decided yet."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from onnxprune.axes.labels import Labels, Vector
from onnxprune.axes.trace import Trace
from onnxprune.graph.model import Model, Node


@dataclass(frozen=True, slots=True)
class Move:
    """An index map of one axis: output index j is input index `index[j]` (-1: born here)."""

    axis: int
    index: Vector


@dataclass(frozen=True, slots=True)
class Sink:
    """Channels that a node contracts: operand `operand`, axis `axis`, and their labels."""

    node: Node
    operand: int
    axis: int
    labels: Vector


@dataclass(frozen=True, slots=True)
class Role:
    """What an operator does with an axis of a weight: 'creates' or 'contracts' channels."""

    constant: str
    role: str
    labels: Vector


@dataclass(frozen=True, slots=True)
class Work:
    """Multiply-accumulates of a node: the product of the sizes of these axes, times `times`."""

    node: Node
    axes: tuple[Vector, ...]
    times: int = 1


@dataclass(frozen=True, slots=True)
class Shuffle:
    """Reshape, Transpose, Reshape that together permute one axis of `value`."""

    nodes: tuple[Node, Node, Node]
    value: str
    axis: int
    index: Vector


@dataclass(eq=False)
class Facts:
    """The statements of a walk."""

    model: Model
    trace: Trace
    other: Trace
    """The same under another binding; what differs between the two is dynamic."""
    labels: Labels = field(default_factory=Labels)
    axes: dict[str, list[Vector]] = field(default_factory=dict)
    """Labels by value name, a vector per axis; a value without an entry is unknown (pinned)."""
    constant: set[str] = field(default_factory=set)
    """Values computed from the file's constants alone."""
    derived: set[str] = field(default_factory=set)
    """Constants computed from constants by something that mixes: a new weight if they shrink."""
    zero: dict[str, tuple[bool, ...]] = field(default_factory=dict)
    """Per axis of a value: what is removed there is exactly 0 once the weights are masked."""
    moves: dict[Node, list[Move]] = field(default_factory=dict)
    shuffles: list[Shuffle] = field(default_factory=list)
    means: list[tuple[Node, tuple[int, ...]]] = field(default_factory=list)
    """ReduceMean nodes over axes that may shrink, exact after a factor."""
    heads: dict[Node, dict[str, Vector]] = field(default_factory=dict)
    """Fused attention: the labels of its counts (num_heads, kv_num_heads, head_size ...)."""
    sinks: list[Sink] = field(default_factory=list)
    roles: list[Role] = field(default_factory=list)
    work: list[Work] = field(default_factory=list)
    unmasked: set[str] = field(default_factory=set)
    """Constants that must not be zeroed in a masked model (divisors, scales)."""
    unknown: Counter[str] = field(default_factory=Counter)
    """Operators without a rule, and why, with how often."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the sizes that the model was walked with."""

    @cached_property
    def _sinks_by_node(self) -> dict[Node, list[Sink]]:
        out: dict[Node, list[Sink]] = {}
        for s in self.sinks:
            out.setdefault(s.node, []).append(s)
        return out

    def sinks_of(self, node: Node) -> list[Sink]:
        """Where channels end at a node (complete once the walk is over)."""
        return self._sinks_by_node.get(node, [])

    def shape(self, value: str) -> tuple[int, ...] | None:
        return self.trace.shapes.get(value)

    def is_static(self, value: str) -> bool:
        """Is a known value the same under both bindings?"""
        if value in self.model.constants:
            return True
        a, b = self.trace.values.get(value), self.other.values.get(value)
        return a is not None and b is not None and a.shape == b.shape and np.array_equal(a, b)

    def known(self, value: str) -> np.ndarray | None:
        """The value of a constant index list or size, the same under both bindings; else None."""
        c = self.model.constants.get(value)
        if c is not None:
            return self.model.array(c)
        return self.trace.values[value] if self.is_static(value) else None
