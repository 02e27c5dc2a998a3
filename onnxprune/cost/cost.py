"""What a model costs, before and after: the numbers of the closing table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from onnxprune.axes.facts import Facts
from onnxprune.axes.view import View
from onnxprune.cost.parameters import parameters
from onnxprune.cost.work import Sizes, macs
from onnxprune.graph.files import load, stored_tensors
from onnxprune.graph.model import normalise
from onnxprune.graph.tensors import is_external, known_bytes


@dataclass(frozen=True, slots=True)
class Cost:
    """Parameters, multiply-accumulates at batch 1, bytes of the file with its data, nodes."""

    params: int
    macs: int
    bytes: int
    nodes: int


def cost_before(facts: Facts, sizes: Sizes) -> Cost:
    """The cost of the file as it came."""
    source = facts.model.source
    return Cost(parameters(facts.model), macs(facts, sizes), source.size, nodes(source.proto))


def cost_after(slim: ModelProto, view: View, sizes: Sizes) -> Cost:
    """The cost of a slim model, counted on the model itself; work as the view that made it says.

    Bytes are those of the model in memory and of the data that it names outside; a saved file may
    have a few more, where data is aligned.
    """
    source = load(slim)
    outside = sum(known_bytes(t) for t in stored_tensors(slim) if is_external(t))
    return Cost(
        parameters(normalise(source)), macs(view.facts, sizes, view), source.size + outside,
        nodes(slim),
    )  # fmt: skip


def nodes(proto: ModelProto) -> int:
    """Nodes of the graph and of all bodies; those of local functions where they are defined."""
    return _count(proto.graph.node) + sum(_count(f.node) for f in proto.functions)


def _count(found: Iterable[NodeProto]) -> int:
    return sum(1 + sum(_count(a.g.node) for a in n.attribute if a.HasField("g")) for n in found)
