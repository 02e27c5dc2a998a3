"""The analysed copy of a model: light nodes and constants that remember where they came from.

Everything that makes a graph easy to reason about happens here and only here: names are unique over
all bodies, nodes are sorted, Constant nodes are constants like any other, local functions are
inlined, and a vector that several nodes share is one constant per use (each use may be cut
differently). The protobuf is never changed: nodes and constants refer to it by their *site*.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import Unreadable
from onnxprune.graph.files import Source, read_tensor

Path = tuple[tuple[int, str], ...]
"""The way down to a graph: (node index, attribute name) pairs; () is the main graph."""

WEIGHT_TYPES = frozenset({
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.UINT4,
    TensorProto.INT16, TensorProto.UINT16,
    TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ,
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Site:
    """Where something stands in the file: the index of a node (or initializer) in a graph."""

    path: Path
    index: int


@dataclass(eq=False, slots=True)
class Constant:
    """One use of a tensor stored in the file (a matrix used twice is one constant, not two)."""

    value: str
    """Its name in the analysed copy."""
    name: str
    """Its name in the file."""
    tensor: TensorProto
    site: Site
    is_node: bool
    """Stored by a Constant node rather than as an initializer."""

    @property
    def dims(self) -> tuple[int, ...]:
        return tuple(self.tensor.dims)

    @property
    def size(self) -> int:
        n = 1
        for d in self.tensor.dims:
            n *= d
        return n


@dataclass(eq=False, slots=True)
class Node:
    """One operator; `inputs` and `outputs` are names of the analysed copy ("" = left out)."""

    op: str
    domain: str
    version: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attrs: dict[str, Any]
    bodies: dict[str, Graph]
    site: Site
    proto: NodeProto

    @property
    def label(self) -> str:
        """How people are told about this node."""
        return self.proto.name or (self.outputs[0] if self.outputs else self.op)


@dataclass(eq=False, slots=True)
class Graph:
    """A graph or body: its nodes in topological order."""

    path: Path
    proto: GraphProto
    inputs: list[str]
    outputs: list[str]
    nodes: list[Node]


@dataclass(eq=False)
class Model:
    """The analysed copy."""

    source: Source
    proto: onnx.ModelProto
    """What sites refer to: the file's own protobuf, or its copy with local functions inlined."""
    inlined: bool
    graph: Graph
    constants: dict[str, Constant]
    opsets: dict[str, int]
    names: dict[str, str]
    """Name in the analysed copy -> name in the file, where they differ."""
    uses: dict[str, list[tuple[Node, int]]] = field(default_factory=dict)
    producer: dict[str, Node] = field(default_factory=dict)
    _arrays: dict[tuple[Site, bool], np.ndarray] = field(default_factory=dict)

    def array(self, constant: Constant) -> np.ndarray:
        """The content of a constant, read once (external data is mapped, not loaded)."""
        key = (constant.site, constant.is_node)
        if key not in self._arrays:
            self._arrays[key] = read_tensor(constant.tensor, self.source.folder)
        return self._arrays[key]

    def forget_arrays(self) -> None:
        """Give the memory of what `array` has read back; it is read again when it is needed."""
        self._arrays.clear()

    def in_file(self, value: str) -> str:
        """The name that a value has in the file."""
        return self.names.get(value, value)

    def walk(self) -> Iterator[Node]:
        """All nodes, those of bodies before the node that owns them."""
        return walk(self.graph)

    def between(self, first: Node, last: Node) -> Iterator[Node]:
        """The chain of single readers from one node up to, not including, another."""
        while first is not last:
            yield first
            first = self.uses[first.outputs[0]][0][0]


def walk(graph: Graph) -> Iterator[Node]:
    """All nodes of a graph, those of bodies before the node that owns them."""
    for node in graph.nodes:
        for body in node.bodies.values():
            yield from walk(body)
        yield node


def graph_at(proto: onnx.ModelProto, path: Path) -> GraphProto:
    """The graph that a path leads to."""
    graph = proto.graph
    for index, name in path:
        graph = next(a.g for a in graph.node[index].attribute if a.name == name)
    return graph


def captured(node: NodeProto) -> set[str]:
    """Names that the bodies of a node read from outside."""
    out: set[str] = set()
    for a in node.attribute:
        if a.type == AttributeProto.GRAPH:
            inner: set[str] = set()
            made = {i.name for i in a.g.input} | {i.name for i in a.g.initializer}
            for n in a.g.node:
                inner.update(n.input)
                inner |= captured(n)
                made.update(n.output)
            inner |= {o.name for o in a.g.output}
            out |= inner - made
    return out


def _order(graph: GraphProto) -> Iterable[int]:
    """Node indices in topological order (converters write files that are not sorted)."""
    made: dict[str, int] = {}
    for k, n in enumerate(graph.node):
        for o in n.output:
            if o:
                made[o] = k
    needs: list[list[int]] = []
    is_sorted = True
    for k, n in enumerate(graph.node):
        names: Iterable[str] = n.input
        if any(a.type == AttributeProto.GRAPH for a in n.attribute):
            names = {*n.input, *captured(n)}
        need = [made[i] for i in names if i in made]
        is_sorted = is_sorted and all(j < k for j in need)
        needs.append(need)
    if is_sorted:
        return range(len(needs))
    order: list[int] = []
    state = [0] * len(needs)  # 0 new, 1 open, 2 done
    for root in range(len(needs)):
        stack = [root]
        while stack:
            k = stack[-1]
            if state[k] == 2:
                stack.pop()
                continue
            state[k] = 1
            todo = [j for j in needs[k] if state[j] != 2]
            if any(state[j] == 1 for j in todo):
                raise Unreadable(
                    "the graph has a cycle", where=f"node {graph.node[k].name or k}",
                    why="a node needs its own output", hint="check the model with onnx.checker",
                )  # fmt: skip
            if todo:
                stack.extend(todo)
            else:
                state[k] = 2
                order.append(k)
                stack.pop()
    return order


def _attribute(a: AttributeProto) -> Any:
    kind = a.type
    if kind == AttributeProto.INT:
        return a.i
    if kind == AttributeProto.INTS:
        return list(a.ints)
    if kind == AttributeProto.FLOAT:
        return a.f
    if kind == AttributeProto.STRING:
        return a.s.decode("utf-8", "replace")
    if kind == AttributeProto.STRINGS:
        return [s.decode("utf-8", "replace") for s in a.strings]
    return helper.get_attribute_value(a)


def _constant_tensor(node: NodeProto) -> TensorProto | None:
    """What a Constant node holds, as a tensor; None for strings and sparse values."""
    for a in node.attribute:
        if a.name == "value":
            return a.t
        if a.name in ("value_float", "value_floats"):
            v: Any = a.f if a.name == "value_float" else list(a.floats)
            return numpy_helper.from_array(np.array(v, np.float32))
        if a.name in ("value_int", "value_ints"):
            v = a.i if a.name == "value_int" else list(a.ints)
            return numpy_helper.from_array(np.array(v, np.int64))
    return None


class _Reader:
    """Reads graphs into the analysed copy; `env` maps names in scope to unique names."""

    def __init__(self, opsets: dict[str, int]) -> None:
        self.opsets = opsets
        self.constants: dict[str, Constant] = {}
        self.names: dict[str, str] = {}
        self.taken: set[str] = set()
        self.used: set[str] = set()

    def unique(self, name: str) -> str:
        value, k = name, 0
        while value in self.taken:
            k += 1
            value = f"{name}~{k}"
        self.taken.add(value)
        if value != name:
            self.names[value] = name
        return value

    def define(self, env: dict[str, str], name: str) -> str:
        if not name:
            return ""
        env[name] = self.unique(name)
        return env[name]

    def use(self, env: dict[str, str], name: str) -> str:
        """The value that a name stands for; a shared vector becomes a constant of its own."""
        value = env.get(name, name)
        c = self.constants.get(value)
        if c is None:
            return value
        if value not in self.used or sum(d > 1 for d in c.tensor.dims) > 1:
            self.used.add(value)
            return value
        clone = self.unique(c.name)
        self.names[clone] = c.name
        self.constants[clone] = Constant(clone, c.name, c.tensor, c.site, c.is_node)
        return clone

    def graph(self, g: GraphProto, path: Path, outer: dict[str, str]) -> Graph:
        env = dict(outer)
        for k, t in enumerate(g.initializer):
            v = self.define(env, t.name)
            self.constants[v] = Constant(v, t.name, t, Site(path, k), False)
        inits = {t.name for t in g.initializer}
        inputs = [self.define(env, i.name) for i in g.input if i.name not in inits]
        nodes: list[Node] = []
        for k in _order(g):
            proto = g.node[k]
            domain = "" if proto.domain == "ai.onnx" else proto.domain
            if proto.op_type == "Constant" and not domain:
                tensor = _constant_tensor(proto)
                if tensor is not None:
                    v = self.define(env, proto.output[0])
                    self.constants[v] = Constant(v, proto.output[0], tensor, Site(path, k), True)
                    continue
            ins = tuple(self.use(env, i) for i in proto.input)
            attrs: dict[str, Any] = {}
            bodies: dict[str, Graph] = {}
            for a in proto.attribute:
                if a.type == AttributeProto.GRAPH:
                    bodies[a.name] = self.graph(a.g, (*path, (k, a.name)), env)
                else:
                    attrs[a.name] = _attribute(a)
            outs = tuple(self.define(env, o) for o in proto.output)
            version = self.opsets.get(domain, 1)
            nodes.append(
                Node(proto.op_type, domain, version, ins, outs, attrs, bodies, Site(path, k), proto)
            )
        outputs = [self.use(env, o.name) for o in g.output]
        return Graph(path, g, inputs, outputs, nodes)


def normalise(source: Source) -> Model:
    """The analysed copy of a model; `source` is not changed.

    Raises:
        Unreadable: the graph has a cycle, or its local functions can't be inlined.
    """
    proto, inlined = source.proto, False
    if proto.functions:
        try:
            proto, inlined = onnx.inliner.inline_local_functions(proto), True
        except Exception as e:
            raise Unreadable(
                "local functions can't be inlined", why=str(e)[:200],
                hint="inline them with onnx.inliner, or export without functions",
            ) from e  # fmt: skip
    opsets = {("" if o.domain == "ai.onnx" else o.domain): o.version for o in proto.opset_import}
    opsets.setdefault("", 17)
    reader = _Reader(opsets)
    graph = reader.graph(proto.graph, (), {})
    model = Model(source, proto, inlined, graph, reader.constants, opsets, reader.names)
    for node in walk(graph):
        for k, i in enumerate(node.inputs):
            if i:
                model.uses.setdefault(i, []).append((node, k))
        for o in node.outputs:
            if o:
                model.producer[o] = node
    return model
