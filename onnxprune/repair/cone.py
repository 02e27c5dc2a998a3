"""Parts of a model by name: what some values need, what is stored, who reads it."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto

from onnxprune.graph.model import captured


def cone(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a model that these values need."""
    ends = [n for n in model.graph.node if set(n.output) & set(outputs)]
    return part(model, upstream(model, ends, ()), outputs)


def upstream(
    model: onnx.ModelProto, nodes: Sequence[NodeProto], given: Collection[str]
) -> list[NodeProto]:
    """These nodes and all that they need but the values `given`, in the order of the model."""
    made = {o: k for k, n in enumerate(model.graph.node) for o in n.output if o}
    need = {made[o] for n in nodes for o in n.output if o}
    todo = [i for n in nodes for i in (*n.input, *captured(n))]
    while todo:
        value = todo.pop()
        k = made.get(value)
        if k is None or k in need or value in given:
            continue
        need.add(k)
        todo += [*model.graph.node[k].input, *captured(model.graph.node[k])]
    return [model.graph.node[k] for k in sorted(need)]


def part(
    model: onnx.ModelProto, nodes: Sequence[NodeProto], outputs: Sequence[str],
    inputs: Sequence[ValueInfoProto] = (),
) -> onnx.ModelProto:  # fmt: skip
    """A model of some of a model's nodes; `inputs` are values that the other nodes made."""
    reads = {i for n in nodes for i in (*n.input, *captured(n))} | set(outputs)
    given = {i.name for i in inputs}
    found = onnx.ModelProto()
    found.ir_version = model.ir_version
    found.opset_import.extend(model.opset_import)
    found.functions.extend(model.functions)
    found.graph.name = model.graph.name
    found.graph.node.extend(nodes)
    initializers = (t for t in model.graph.initializer if t.name in reads - given)
    found.graph.initializer.extend(initializers)
    found.graph.input.extend(i for i in model.graph.input if i.name in reads - given)
    found.graph.input.extend(inputs)
    found.graph.output.extend(onnx.ValueInfoProto(name=o) for o in dict.fromkeys(outputs))
    return found


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
