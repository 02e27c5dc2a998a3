"""What a model costs, before and after: the numbers of the closing table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from onnx import ModelProto, NodeProto

from onnxprune.axes.facts import Facts
from onnxprune.axes.view import View
from onnxprune.cost.parameters import parameters
from onnxprune.cost.work import Sizes, macs
from onnxprune.graph.files import load, stored_tensors
from onnxprune.graph.model import normalise
from onnxprune.graph.tensors import is_external, known_bytes, wants_data_file

_PAGE, _LINE, _PAGED = 4096, 64, 1 << 20
"""What `graph.files.save` aligns tensors to in a data file, and from which size to pages."""
_ENTRY = 64
"""Bytes by which a tensor's location, offset and length may grow where the file is saved."""


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

    Bytes are those of the file that will be saved and of its data file, at most.
    """
    source = load(slim)
    return Cost(
        parameters(normalise(source)), macs(view.facts, sizes, view),
        source.size + _in_data_file(slim), nodes(slim),
    )  # fmt: skip


def _in_data_file(model: ModelProto) -> int:
    """Bytes that a saved model takes beyond those in memory: what lies in its data file, how that
    is aligned there (see `graph.files.save`), and a few for each tensor to say where.
    """
    apart = [t for t in stored_tensors(model) if wants_data_file(t)]
    end = 0
    for t in apart:
        size = known_bytes(t)
        end = ceil(end / (page := _PAGE if size >= _PAGED else _LINE)) * page + size
    inside = sum(known_bytes(t) for t in apart if not is_external(t))
    return max(0, end - inside) + _ENTRY * len(apart)


def nodes(proto: ModelProto) -> int:
    """Nodes of the graph and of all bodies; those of local functions where they are defined."""
    return _count(proto.graph.node) + sum(_count(f.node) for f in proto.functions)


def _count(found: Iterable[NodeProto]) -> int:
    return sum(1 + sum(_count(a.g.node) for a in n.attribute if a.HasField("g")) for n in found)
