"""The walk: once over the graph in order, every node states its facts about labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto

from onnxprune.axes.apply import apply
from onnxprune.axes.facts import Facts
from onnxprune.axes.flow import control_flow
from onnxprune.axes.labels import Vector, pinned
from onnxprune.axes.movers import MOVERS
from onnxprune.axes.operators import can_run
from onnxprune.axes.reshape import find_shuffle
from onnxprune.axes.rules import ELEMENTWISE, PINNED, SPECS, SUMS, UNMASKED_OPERANDS, offset
from onnxprune.axes.sequences import SEQUENCES, Element, walk_sequence
from onnxprune.axes.spec import SpecError
from onnxprune.axes.special import SPECIAL
from onnxprune.axes.trace import Trace
from onnxprune.axes.zero import zero_axes, zero_born
from onnxprune.graph.model import Graph, Model, Node, walk


class Refused(Exception):
    """A node can't be pruned through; everything it touches is pinned with this reason."""


class Unshaped(Refused):
    """The same, because of a shape that could not be had further up: told there."""


_PRODUCTS = frozenset(("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum"))
"""Computed from constants alone they are still followed by their own rule."""
_ALIKE = frozenset(("Split", "LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"))
"""Operators all of whose outputs are 0 where the first is."""


class Walk:
    """The state of one walk. Rules read shapes and labels here and state facts."""

    def __init__(self, model: Model, trace: Trace, other: Trace, whole_groups: bool) -> None:
        self.model = model
        self.facts = Facts(model, trace, other)
        self.labels = self.facts.labels
        self.whole_groups = whole_groups
        """May grouped convolutions lose whole groups (else the same channels of every group)."""
        self.origin: dict[str, tuple[str, ...]] = {}
        """Constant value -> the file's constants that it is made of."""
        self.skip: set[Node] = set()
        """Nodes inside a shuffle that was taken as one."""
        self.sequences: dict[str, list[Element]] = {}

    # -- what rules ask -----------------------------------------------------------------------

    def shape(self, value: str) -> tuple[int, ...]:
        shape = self.facts.trace.shapes.get(value)
        if shape is None:
            raise Unshaped(f"the shape of '{value}' is not known")
        return shape

    def rank(self, value: str) -> int:
        return len(self.shape(value))

    def known(self, value: str) -> np.ndarray | None:
        return self.facts.known(value) if value else None

    def need(self, node: Node, k: int, what: str) -> np.ndarray:
        """The constant value of an operand that the rule can't do without."""
        value = self.known(node.inputs[k])
        if value is None:
            raise Refused(f"its {what} depend on the input")
        return value

    @staticmethod
    def refuse(why: str) -> Refused:
        return Refused(why)

    def get(self, value: str) -> list[Vector]:
        """Labels of a value; a constant's are born here."""
        found = self.facts.axes.get(value)
        if found is None:
            c = self.model.constants.get(value)
            if c is None:
                raise Unshaped(f"the shape of '{value}' is not known")
            index = c.tensor.data_type == TensorProto.INT64  # positions and sizes, never channels
            found = [pinned(d) if index else self.labels.axis(d) for d in c.dims]
            self.facts.axes[value] = found
            self.facts.constant.add(value)
            self.origin[value] = (value,)
        return found

    # -- what rules state ---------------------------------------------------------------------

    def put(self, value: str, axes: Sequence[Vector]) -> None:
        if value:
            self.facts.axes[value] = list(axes)

    def put_pinned(self, value: str) -> None:
        shape = self.facts.trace.shapes.get(value)
        if value and shape is not None:
            self.put(value, [pinned(d) for d in shape])

    def pin(self, node: Node, value: str, why: str) -> None:
        """Pin every axis of a value, or of all elements of a sequence."""
        if not value:
            return
        for element in self.sequences.get(value, ()):
            for v in element.axes:
                self.labels.pin(v, why, node.label)
        if value in self.facts.axes or value in self.model.constants:
            for v in self.get(value):
                self.labels.pin(v, why, node.label)

    def pin_axis(self, node: Node, labels: Vector, why: str) -> None:
        self.labels.pin(labels, why, node.label)

    # -- the walk -----------------------------------------------------------------------------

    def graph(self, g: Graph) -> None:
        for node in g.nodes:
            try:
                self.node(node)
                self.note_zero(node)
            except (Refused, SpecError) as e:
                self.refused(node, str(e), count=not isinstance(e, Unshaped))
            except (IndexError, KeyError, ValueError) as e:
                # a node that breaks its own operator's contract: treated like an unknown one
                self.refused(node, f"the node could not be understood ({e!r:.80})")
            if node.inputs and not node.bodies:
                self.note_constant(node)

    def refused(self, node: Node, why: str, count: bool = True) -> None:
        name = f"{node.domain}.{node.op}" if node.domain else node.op
        if count:
            self.facts.unknown[f"{name}: {why}"] += 1
        for i in node.inputs:
            self.pin(node, i, f"{name} {why}")
        for body in node.bodies.values():
            for inner in walk(body):
                for i in inner.inputs:
                    self.pin(node, i, f"inside {name}, {why}")
            for o in body.outputs:
                self.pin(node, o, f"inside {name}, {why}")
        for o in node.outputs:
            self.put_pinned(o)

    def note_constant(self, node: Node) -> None:
        """Follow what is computed from constants alone."""
        ins = [i for i in node.inputs if i]
        if node.op in SEQUENCES:  # their labels are those of the weight itself
            return
        if ins and all(i in self.facts.constant or i in self.model.constants for i in ins):
            found = tuple(dict.fromkeys(c for i in ins for c in self.origin.get(i, ())))
            for o in node.outputs:
                if o:
                    self.facts.constant.add(o)
                    self.origin.setdefault(o, found)
        for k in UNMASKED_OPERANDS.get(node.op, ()):
            if k < len(node.inputs):
                self.facts.unmasked.update(self.origin.get(node.inputs[k], ()))

    def node(self, n: Node) -> None:
        if n in self.skip:
            return
        if n.bodies:
            control_flow(self, n)
            return
        key = (n.domain, n.op)
        if n.op in SEQUENCES and not n.domain:
            walk_sequence(n, self)
            return
        for i in n.inputs:
            if i:
                self.get(i)
        if n.op in ("Shape", "Size") and not n.domain:
            if n.op == "Size" and not self.facts.is_static(n.outputs[0]):
                self.pin(n, n.inputs[0], "Size counts it")
            for o in n.outputs:
                self.put_pinned(o)
        elif n.op == "Range" and not n.domain:
            self.range(n)
        elif key in PINNED:
            self.hold(n, PINNED[key])
        elif self.derives(n):
            for i in n.inputs:
                self.pin(n, i, f"{n.op} computes a weight from it")
            for o in n.outputs:
                if o:
                    self.put(o, [self.labels.axis(d) for d in self.shape(o)])
                    self.facts.derived.add(o)
                    self.origin[o] = (o,)
        elif key in SPECIAL:
            SPECIAL[key](n, self)
        elif key in ELEMENTWISE:
            data = ELEMENTWISE[key]
            for k, i in enumerate(n.inputs):
                if data is not None and k not in data:
                    self.pin(n, i, f"{n.op} reads it as control")
            picks = [i for k, i in enumerate(n.inputs) if i and (data is None or k in data)]
            self.elementwise(n, picks)
        elif not n.domain and n.op in MOVERS:
            if n.op == "Reshape" and (found := find_shuffle(n, self)) is not None:
                self.skip.update(found.nodes[1:])
                self.facts.shuffles.append(found)
                return
            for i in n.inputs[1:] if n.op != "Concat" else ():
                self.pin(n, i, f"{n.op} reads it as control")
            MOVERS[n.op](n, self)
        elif key in SPECS:
            rule = SPECS[key]
            apply(n, rule if isinstance(rule, str) else rule(n, self), self)
        else:
            raise Refused("has no rule")

    def hold(self, n: Node, why: str) -> None:
        """A known operator that nothing can be pruned through."""
        for i in n.inputs:
            self.pin(n, i, f"{n.op} {why}")
        for o in n.outputs:
            self.put_pinned(o)

    def range(self, n: Node) -> None:
        """A table of positions: a constant, where both bindings give the same."""
        out = n.outputs[0]
        if self.facts.is_static(out):
            self.put(out, [self.labels.axis(d) for d in self.shape(out)])
            self.facts.derived.add(out)
        else:
            self.put_pinned(out)

    def derives(self, n: Node) -> bool:
        """Does the node compute a weight from weights in a way that labels can't follow?"""
        ins = [i for i in n.inputs if i]
        if n.domain or not ins or not all(i in self.facts.constant for i in ins):
            return False
        if n.op in MOVERS or n.op in _PRODUCTS:
            return False
        if n.op in ("QuantizeLinear", "DequantizeLinear"):
            return False
        if (n.domain, n.op) in ELEMENTWISE:
            return any(i in self.facts.derived for i in ins)
        # a sum that meets an activation at once (distances to a codebook) needs no new weight
        users = [u for o in n.outputs for u, _ in self.model.uses.get(o, ())]
        meets = all(
            any(
                i not in self.facts.constant
                and i not in n.outputs
                and i not in self.model.constants
                for i in u.inputs
                if i
            )
            for u in users
        )
        return not (n.op in SUMS and users and meets) and can_run(n)

    def is_zero(self, value: str, axis: int) -> bool:
        """Is what is removed from this axis exactly 0?"""
        return zero_axes(value, self.facts)[axis]

    def pin_range(self, node: Node, value: str) -> None:
        """A range that is found while running, and includes 0, is moved by all but zeros."""
        for k, v in enumerate(self.get(value)):
            if not self.is_zero(value, k):
                self.pin_axis(node, v, f"{node.op} takes its range over all channels")

    def note_zero(self, node: Node) -> None:
        """Follow where removed entries are exactly 0."""
        zero = zero_born(node, self.facts)
        # the answer is for the first output; those of other kinds (masks, caches) have none
        alike = node.outputs if node.op in _ALIKE else node.outputs[:1]
        for o in alike if any(zero) else ():
            if o in self.facts.axes:
                rank = len(self.facts.axes[o])
                # Y of a recurrent net has a time axis that Y_h does not have
                self.facts.zero[o] = zero if len(zero) == rank else zero[len(zero) - rank :]

    def elementwise(self, n: Node, inputs: Sequence[str]) -> None:
        """Unify what broadcasting lines up; activations name the output's labels."""
        shape = self.shape(n.outputs[0])
        out: list[Vector | None] = [None] * len(shape)
        for i in sorted(inputs, key=lambda i: i in self.facts.constant):
            axes = self.get(i)
            first = offset(n, i, len(axes), len(shape))
            for k, v in enumerate(axes, first):
                have = out[k]
                if len(v) > 1 and have is not None:
                    self.labels.same(have, v)
                elif len(v) > 1:
                    out[k] = v
        for o in n.outputs:
            self.put(o, [pinned(d) if v is None else v for v, d in zip(out, shape, strict=True)])


def analyse(model: Model, trace: Trace, other: Trace, *, whole_groups: bool = False) -> Facts:
    """Walk a model once and return what its nodes state.

    `trace` and `other` are the shapes under two bindings of the symbolic dimensions; axes that
    differ between them are dynamic and never shrink. Graph inputs and outputs never change.
    """
    w = Walk(model, trace, other, whole_groups)
    for i in model.graph.inputs:
        w.put_pinned(i)
    w.graph(model.graph)
    for o in model.graph.outputs:
        for element in w.sequences.get(o, ()):
            for v in element.axes:
                w.labels.pin(v, "it is an output of the model", o)
        if o in w.facts.axes or o in model.constants:
            for v in w.get(o):
                w.labels.pin(v, "it is an output of the model", o)
    if other is not trace:
        for value, axes in w.facts.axes.items():
            a, b = trace.shapes.get(value), other.shapes.get(value)
            for k, v in enumerate(axes):
                if b is None or a is None or len(a) != len(b):
                    w.labels.pin(v, "its rank is dynamic", value)
                elif a[k] != b[k]:
                    w.labels.pin(v, "its size is dynamic", value)
    return w.facts
