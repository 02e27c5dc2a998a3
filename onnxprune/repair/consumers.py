"""Layers that multiply with a stored weight, and what each should give after the cut.

A layer's target is what it gave in the original; where its output only flows into a sum with
something that is already computed, the target is the sum's, so that it also makes up for what went
wrong in the other term.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from onnxprune.axes.facts import Facts
from onnxprune.axes.view import View
from onnxprune.graph.model import Model, Node

LAYERS = ("Conv", "ConvTranspose", "MatMul", "Gemm")
"""Operators that `layers` may find."""


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
    groups: int = 1
    """In how many groups it convolves, in the original."""
    add: Node | None = None
    """The sum behind it that adds its bias, for an operator that has none of its own."""
    pooled: str = ""
    """The map (samples, channels, ...) whose mean over all positions it reads, if it does: as both
    are linear, it can be fitted as if it read each position."""

    @property
    def data(self) -> str:
        return self.node.inputs[0]

    @property
    def out(self) -> str:
        """Its output, the bias included."""
        return (self.add or self.node).outputs[0]

    @property
    def is_conv(self) -> bool:
        return self.node.op in ("Conv", "ConvTranspose")


@dataclass(frozen=True, eq=False)
class Target:
    """What a consumer's output should be: its own in the original, corrected by a sum's other term.

    out' = out0 + (term0 - term') / scale
    """

    term: str = ""
    """The other term of the sum that the output flows into; "" if there is none."""
    scale: np.ndarray | None = None
    """What a batch norm behind the output multiplies by, per channel of the original."""
    end: str = ""
    """The sum; where there is none, the output behind a batch norm."""


def layers(facts: Facts) -> list[Consumer]:
    """All layers of the main graph that can be fitted, in order: convolutions in groups too."""
    found = []
    for order, n in enumerate(facts.model.graph.nodes):
        if n.domain or len(n.inputs) < 2 or n.inputs[1] not in facts.model.constants:
            continue
        weight, groups = n.inputs[1], n.attrs.get("group", 1)
        rank = len(facts.axes.get(weight, ()))
        if n.op == "Conv" and rank >= 3:
            found.append(Consumer(n, weight, 1, 2, order, groups))
        elif n.op == "ConvTranspose" and rank >= 3 and _has_plain_pads(n, facts):
            found.append(Consumer(n, weight, 0, 2, order, groups))
        elif n.op == "MatMul" and rank == 2 and len(facts.axes.get(n.inputs[0], ())) >= 2:
            found.append(_with_bias(Consumer(n, weight, 0, None, order), facts.model))
        elif n.op == "Gemm" and _plain(n):
            found.append(Consumer(n, weight, 1 if n.attrs.get("transB") else 0, 2, order))
    found = [c for c in found if facts.trace.types.get(c.weight) in (1, 10, 11)]
    return [c if c.is_conv else replace(c, pooled=_pooled(c, facts)) for c in found]


def taps_of(c: Consumer, facts: Facts) -> int:
    """How many weights a consumer has for each input and output channel."""
    return int(np.prod(facts.trace.shapes[c.weight][2:])) if c.is_conv else 1


def _pooled(c: Consumer, facts: Facts) -> str:
    """The map that a dense layer reads the mean of; "" if it reads something else."""
    model, shapes = facts.model, facts.trace.shapes
    value = c.data
    while True:
        node = model.producer.get(value)
        if node is None or node.domain or len(model.uses.get(value, [])) != 1:
            return ""
        source = node.inputs[0]
        size, wide = shapes.get(source, ()), shapes.get(value, ())
        if node.op in ("Identity", "Dropout"):
            value = source
        elif node.op in ("Flatten", "Reshape", "Squeeze") and len(size) > 2 == len(wide):
            if size[:2] != wide or set(size[2:]) != {1}:
                return ""
            value = source
        elif node.op == "GlobalAveragePool" and len(size) > 2:
            return source
        elif node.op == "ReduceMean" and len(size) > 2 and (len(wide) > 2 or value == c.data):
            axes = node.attrs.get("axes")
            if axes is None and len(node.inputs) > 1:
                known = facts.known(node.inputs[1])
                axes = None if known is None else known.tolist()
            wanted = set(range(2, len(size)))
            return source if axes and {a % len(size) for a in axes} == wanted else ""
        else:
            return ""


def _plain(n: Node) -> bool:
    ones = n.attrs.get("alpha", 1.0) == 1.0 and n.attrs.get("beta", 1.0) == 1.0
    return ones and not n.attrs.get("transA")


def _has_plain_pads(n: Node, facts: Facts) -> bool:
    """Whether a transposed convolution says its pads, and none is larger than its kernel."""
    kernel = facts.trace.shapes[n.inputs[1]][2:]
    pads = n.attrs.get("pads", [0] * (2 * len(kernel)))
    reach = [d * (k - 1) for d, k in zip(n.attrs.get("dilations", [1] * len(kernel)), kernel,
                                         strict=True)]  # fmt: skip
    stated = n.attrs.get("auto_pad", "NOTSET") in ("NOTSET", "") and "output_shape" not in n.attrs
    return stated and all(p <= r for p, r in zip(pads, [*reach, *reach], strict=True))


def _with_bias(c: Consumer, model: Model) -> Consumer:
    """With the stored vector that is added to its output and to nothing else, as its bias."""
    users = model.uses.get(c.node.outputs[0], [])
    if len(users) != 1 or c.node.outputs[0] in model.graph.outputs:
        return c
    node, k = users[0]
    if node.op != "Add" or node.domain:
        return c
    other = model.constants.get(node.inputs[1 - k])
    width = model.constants[c.weight].dims[1]
    if other is None or other.dims[-1:] != (width,) or any(d != 1 for d in other.dims[:-1]):
        return c
    return replace(c, bias=1 - k, add=node)


def target(c: Consumer, view: View) -> Target:
    """Follow a consumer's output through a batch norm into a sum, where nothing else reads it."""
    model, facts = view.facts.model, view.facts
    value, scale = c.out, None
    while True:
        users = model.uses.get(value, [])
        if len(users) != 1 or value in model.graph.outputs:
            return Target("", scale, value)
        node, k = users[0]
        if node.op == "BatchNormalization" and k == 0 and scale is None and not node.domain:
            parts = [model.constants.get(i) for i in (node.inputs[1], node.inputs[4])]
            if parts[0] is None or parts[1] is None:
                return Target("", None, value)
            gamma, var = (model.array(p).astype(np.float64) for p in parts if p is not None)
            scale = gamma / np.sqrt(var + node.attrs.get("epsilon", 1e-5))
            value = node.outputs[0]
            continue
        if node.op in ("Identity", "Dropout") and k == 0:
            value = node.outputs[0]
            continue
        if node.op != "Add" or node.domain:
            return Target("", scale, value)
        term = node.inputs[1 - k]
        shape = facts.trace.shapes.get(value)
        if term in facts.constant and facts.trace.shapes.get(node.outputs[0]) == shape:
            value = node.outputs[0]  # a bias: it changes both sides alike
            continue
        same = facts.trace.shapes.get(term) == shape
        if not same or not _is_ready(term, c, model):
            return Target("", scale, value)
        if scale is not None and (np.abs(scale) < 1e-6).any():
            return Target("", scale, value)
        return Target(term, scale, node.outputs[0])


def _is_ready(value: str, c: Consumer, model: Model) -> bool:
    """Whether a value is final when a layer's turn comes: no later layer has a part in it."""
    place = {n: k for k, n in enumerate(model.graph.nodes)}
    todo, seen = [value], set()
    while todo:
        node = model.producer.get(todo.pop())
        if node is None or node in seen or place.get(node, c.order) < c.order:
            continue
        if node is c.node or node.op in LAYERS:
            return False
        seen.add(node)
        todo += [i for i in node.inputs if i]
    return True
