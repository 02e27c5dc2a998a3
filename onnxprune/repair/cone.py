"""Parts of a model by name: what some values need, what is stored, who reads it."""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto

from onnxprune.graph.model import captured


def cone(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a model that these values need."""
    made = {o: n for n in model.graph.node for o in n.output if o}
    need, todo = set(), list(outputs)
    names = set(todo)
    while todo:
        node = made.get(todo.pop())
        if node is None or id(node) in need:
            continue
        need.add(id(node))
        reads = [*node.input, *captured(node)]
        names.update(reads)
        todo += [i for i in reads if i]
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.graph.name = model.graph.name
    part.graph.node.extend(n for n in model.graph.node if id(n) in need)
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in names)
    part.graph.input.extend(i for i in model.graph.input if i.name in names)
    part.graph.output.extend(onnx.ValueInfoProto(name=o) for o in dict.fromkeys(outputs))
    return part


def stored(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Stored tensors of the main graph by name, those of Constant nodes too."""
    store = {t.name: t for t in model.graph.initializer}
    for n in model.graph.node:
        for a in n.attribute if n.op_type == "Constant" else ():
            if a.name == "value":
                store[n.output[0]] = a.t
    return store


def readers(model: onnx.ModelProto, name: str) -> int:
    """How often a value is read: by nodes, in their bodies, as an output."""
    reads = [i for n in model.graph.node for i in (*n.input, *captured(n))]
    return [*reads, *(o.name for o in model.graph.output)].count(name)
