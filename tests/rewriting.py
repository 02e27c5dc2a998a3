"""The same network written down in another way: other names, another order of nodes."""

import numpy as np
import onnx
from onnx import GraphProto

from onnxprune.graph.binding import free_inputs
from onnxprune.graph.model import captured


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    """A model that may be changed."""
    return onnx.ModelProto.FromString(model.SerializeToString())


def renamed(model: onnx.ModelProto, seed: int = 0) -> tuple[onnx.ModelProto, dict[str, str]]:
    """All nodes and tensors by other names, which sort in another order, but for the signature.

    Also returns what everything was called.
    """
    model = copied(model)
    fixed = {"", *(i.name for i in free_inputs(model.graph)), *(o.name for o in model.graph.output)}
    names = sorted(_names(model.graph) - fixed)
    order = np.random.default_rng(seed).permutation(len(names))
    new = {name: f"r{k}/{name[::-1]}" for name, k in zip(names, order, strict=True)}
    _rename(model.graph, new)
    return model, {n: name for name, n in new.items()}


def _names(graph: GraphProto) -> set[str]:
    found = {t.name for t in (*graph.initializer, *graph.input, *graph.output)}
    for node in graph.node:
        found |= {node.name, *node.input, *node.output}
        for a in node.attribute:
            if a.HasField("g"):
                found |= _names(a.g)
    return found


def _rename(graph: GraphProto, new: dict[str, str]) -> None:
    for named in (*graph.initializer, *graph.input, *graph.output, *graph.value_info, *graph.node):
        named.name = new.get(named.name, named.name)
    for node in graph.node:
        node.input[:] = [new.get(name, name) for name in node.input]
        node.output[:] = [new.get(name, name) for name in node.output]
        for a in node.attribute:
            if a.HasField("g"):
                _rename(a.g, new)


def reordered(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Nodes in another topological order, initializers in any."""
    rng, model = np.random.default_rng(seed), copied(model)
    graph = model.graph
    waiting = [graph.node[k] for k in rng.permutation(len(graph.node))]
    made = {"", *(t.name for t in (*graph.initializer, *graph.input))}
    nodes = []
    while waiting:
        node = next(n for n in waiting if made.issuperset({*n.input, *captured(n)}))
        waiting.remove(node)
        nodes.append(node)
        made.update(node.output)
    return _with(model, nodes, rng)


def shuffled(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """Nodes in any order at all, as some converters leave them."""
    rng, model = np.random.default_rng(seed), copied(model)
    nodes = [model.graph.node[k] for k in rng.permutation(len(model.graph.node))]
    return _with(model, nodes, rng)


def _with(
    model: onnx.ModelProto, nodes: list[onnx.NodeProto], rng: np.random.Generator
) -> onnx.ModelProto:
    stored = [model.graph.initializer[k] for k in rng.permutation(len(model.graph.initializer))]
    out = copied(model)
    for field, items in ((out.graph.node, nodes), (out.graph.initializer, stored)):
        del field[:]
        field.extend(items)
    return out
