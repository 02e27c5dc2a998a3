"""Who contracts removed channels, and what each consumer's output should be after the cut.

A consumer is a Conv, Gemm or MatMul with a stored weight. Its target is what it gave in the
original; where its output only flows into a sum with something that is already computed, the
target is the sum's, so that it also makes up for what went wrong in the other term.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxprune.axes.facts import Facts
from onnxprune.axes.view import View
from onnxprune.graph.model import Node


@dataclass(frozen=True, eq=False)
class Consumer:
    """A node that contracts channels with a stored weight."""

    node: Node
    weight: str
    axis: int
    """The weight's contracted axis."""
    bias: int | None
    """The operand that is (or may become) its bias; None where it can't have one."""
    order: int
    """Its place in the graph."""

    @property
    def data(self) -> str:
        return self.node.inputs[0]

    @property
    def out(self) -> str:
        return self.node.outputs[0]

    @property
    def is_conv(self) -> bool:
        return self.node.op == "Conv"


@dataclass(frozen=True, eq=False)
class Target:
    """What a consumer's output should be: its own in the original, corrected by a sum's other term.

    out' = out0 + (term0 - term') / scale
    """

    term: str = ""
    """The other term of the sum that the output flows into; "" if there is none."""
    scale: np.ndarray | None = None
    """What a batch norm in between multiplies by, per channel of the original."""


def consumers(facts: Facts) -> list[Consumer]:
    """All consumers of the main graph, in order."""
    found = []
    for order, n in enumerate(facts.model.graph.nodes):
        if n.domain or len(n.inputs) < 2 or n.inputs[1] not in facts.model.constants:
            continue
        weight = n.inputs[1]
        rank = len(facts.axes.get(weight, ()))
        if n.op == "Conv" and rank >= 3 and n.attrs.get("group", 1) == 1:
            found.append(Consumer(n, weight, 1, 2, order))
        elif n.op == "MatMul" and rank == 2 and len(facts.axes.get(n.inputs[0], ())) >= 2:
            found.append(Consumer(n, weight, 0, None, order))
        elif n.op == "Gemm" and _plain(n):
            found.append(Consumer(n, weight, 1 if n.attrs.get("transB") else 0, 2, order))
    return [c for c in found if facts.trace.types.get(c.weight) in (1, 10, 11)]


def taps_of(c: Consumer, facts: Facts) -> int:
    """How many weights a consumer has for each input and output channel."""
    return int(np.prod(facts.trace.shapes[c.weight][2:])) if c.is_conv else 1


def _plain(n: Node) -> bool:
    ones = n.attrs.get("alpha", 1.0) == 1.0 and n.attrs.get("beta", 1.0) == 1.0
    return ones and not n.attrs.get("transA")


def target(c: Consumer, view: View) -> Target:
    """Follow a consumer's output through a batch norm into a sum, where nothing else reads it."""
    model, facts = view.facts.model, view.facts
    place = {n: k for k, n in enumerate(model.graph.nodes)}
    value, scale = c.out, None
    while True:
        users = model.uses.get(value, [])
        if len(users) != 1 or value in model.graph.outputs:
            return Target()
        node, k = users[0]
        if node.op == "BatchNormalization" and k == 0 and scale is None and not node.domain:
            parts = [model.constants.get(i) for i in (node.inputs[1], node.inputs[4])]
            if parts[0] is None or parts[1] is None:
                return Target()
            gamma, var = (model.array(p).astype(np.float64) for p in parts if p is not None)
            scale = gamma / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
            value = node.outputs[0]
            continue
        if node.op != "Add" or node.domain:
            return Target()
        term = node.inputs[1 - k]
        made = model.producer.get(term)
        same = facts.trace.shapes.get(term) == facts.trace.shapes.get(value)
        if not same or made is None or place.get(made, c.order) >= c.order:
            return Target()
        if scale is not None and (np.abs(scale) < 1e-6).any():
            return Target()
        return Target(term, scale)
