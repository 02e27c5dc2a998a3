"""What an edit has left without a reader goes: nodes, constants, and what is stated of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, NodeProto


def drop_unread(model: onnx.ModelProto, before: onnx.ModelProto) -> None:
    """Remove in place what nothing reads, unless it is in `before` and was not read there either.

    Scopes are not told apart: a name that is read anywhere is read.
    """
    read, graphs = Counter(_reads(model.graph)), list(_graphs(model.graph))
    read_before = set(_reads(before.graph))
    idle = {name for graph in _graphs(before.graph) for name in _made(graph)} - read_before
    gone: set[str] = set()

    def unread(names: list[str]) -> bool:
        return not any(read[name] for name in names) and not idle.issuperset(names)

    def sweep(graph: GraphProto) -> bool:
        size = len(graph.node)
        for k in reversed(range(size)):
            node = graph.node[k]
            outputs = [name for name in node.output if name]
            if outputs and unread(outputs):
                read.subtract(_node_reads(node))
                gone.update(outputs)
                del graph.node[k]
        return len(graph.node) < size

    while sum(sweep(graph) for graph in graphs):
        graphs = list(_graphs(model.graph))
    for graph in graphs:
        gone.update(t.name for t in graph.initializer if unread([t.name]))
    for graph in graphs if gone else ():
        for field in (graph.initializer, graph.input, graph.value_info):
            for k in reversed(range(len(field))):
                if field[k].name in gone:
                    del field[k]


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for a in node.attribute:
            if a.type == AttributeProto.GRAPH:
                yield from _graphs(a.g)


def _made(graph: GraphProto) -> Iterator[str]:
    yield from (t.name for t in graph.initializer)
    for node in graph.node:
        yield from node.output


def _reads(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from _node_reads(node)
    yield from (o.name for o in graph.output)
    for note in graph.quantization_annotation:
        yield from (entry.value for entry in note.quant_parameter_tensor_names)


def _node_reads(node: NodeProto) -> Iterator[str]:
    yield from node.input
    for a in node.attribute:
        if a.type == AttributeProto.GRAPH:
            yield from _reads(a.g)
