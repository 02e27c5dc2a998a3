"""Edits on a copy of the original file, collected by site and carried out at the end.

What is not edited stays byte for byte as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from onnxprune.axes.facts import Facts
from onnxprune.cut.unread import drop_unread
from onnxprune.graph.files import write_tensor
from onnxprune.graph.model import Constant, Model, Node, Path, Site, graph_at
from onnxprune.graph.tensors import add_tensor, header, known_bytes, without

_LARGE = 1 << 16
"""Bytes from which a weight is copied only if it stays as it is."""


class Edits:
    """A copy of a model and the changes made to it."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.model: Model = facts.model
        self.proto, self._empty = _without_weights(self.model.proto)
        self.notes: list[str] = []
        self._graphs: dict[Path, GraphProto] = {}
        self._nodes: dict[Site, NodeProto] = {}
        self._before: dict[Site, list[NodeProto]] = {}
        self._after: dict[Site, list[NodeProto]] = {}
        self._gone: set[Site] = set()
        self._dropped: set[tuple[Path, str]] = set()
        self._inputs: dict[Path, dict[str, ValueInfoProto]] = {}
        self._taken = set(self.model.names) | {
            self.model.in_file(v) for v in (*facts.trace.shapes, *self.model.constants)
        }
        self._pool: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self.slices: dict[Node, dict[int, tuple[int, int, int]]] = {}
        """Bounds set so far, by Slice and entry."""

    # -- finding things ------------------------------------------------------------------------

    def graph(self, path: Path) -> GraphProto:
        if path not in self._graphs:
            self._graphs[path] = graph_at(self.proto, path)
        return self._graphs[path]

    def node(self, n: Node) -> NodeProto:
        """The node in the copy that an analysed node stands for."""
        if n.site not in self._nodes:
            self._nodes[n.site] = self.graph(n.site.path).node[n.site.index]
        return self._nodes[n.site]

    def tensor(self, c: Constant) -> TensorProto:
        """The stored tensor in the copy that a constant stands for."""
        graph = self.graph(c.site.path)
        if not c.is_node:
            if not c.site.path:
                self._fill(c.site.index)
            return graph.initializer[c.site.index]
        node = graph.node[c.site.index]
        for a in node.attribute:
            if a.name == "value":
                return a.t
        tensor = TensorProto()  # a Constant with value_floats: from now on a tensor
        tensor.CopyFrom(c.tensor)
        del node.attribute[:]
        node.attribute.append(helper.make_attribute("value", tensor))
        return node.attribute[0].t

    def stored(self, name: str) -> TensorProto:
        """The tensor that a name of the copy stands for, in the main graph or a Constant."""
        for k, tensor in enumerate(self.proto.graph.initializer):
            if tensor.name == name:
                self._fill(k)
                return tensor
        return next(
            self.tensor(c) for c in self.model.constants.values() if c.name == name and c.is_node
        )

    def _fill(self, k: int) -> None:
        """Copy the values of a weight that was left without."""
        if k in self._empty:
            self._empty.remove(k)
            self.proto.graph.initializer[k].CopyFrom(self.model.proto.graph.initializer[k])

    # -- changing things -----------------------------------------------------------------------

    def unique(self, base: str) -> str:
        """A name that nothing in the file has."""
        name, k = f"{base}_slim", 0
        while name in self._taken:
            k += 1
            name = f"{base}_slim{k}"
        self._taken.add(name)
        return name

    def constant(self, array: np.ndarray, base: str) -> str:
        """A new initializer; equal small ones are shared."""
        array = np.asarray(array, order="C")  # (not ascontiguousarray: a scalar stays one)
        key = (array.dtype.str, array.shape, array.tobytes()) if array.size <= 4096 else None
        if key is not None and key in self._pool:
            return self._pool[key]
        name = self.unique(base)
        self.initializer(numpy_helper.from_array(array, name))
        if key is not None:
            self._pool[key] = name
        return name

    def initializer(self, tensor: TensorProto) -> None:
        add_tensor(self.proto, tensor)

    def store(self, c: Constant, array: np.ndarray) -> None:
        """Replace the content of a stored tensor; its name, type and notes stay."""
        if not c.is_node and not c.site.path:
            self._empty.discard(c.site.index)
        self.tensor(c).CopyFrom(write_tensor(c.tensor, array))
        info = None if c.is_node else self._input(c.site.path, c.name)
        if info is not None:  # old files, and some new ones, list initializers as inputs too
            for d, size in zip(info.type.tensor_type.shape.dim, array.shape, strict=False):
                d.dim_value = size

    def _input(self, path: Path, name: str) -> ValueInfoProto | None:
        if path not in self._inputs:
            self._inputs[path] = {i.name: i for i in self.graph(path).input}
        return self._inputs[path].get(name)

    def set_input(self, n: Node, k: int, name: str) -> None:
        proto = self.node(n)
        while len(proto.input) <= k:
            proto.input.append("")
        proto.input[k] = name

    def set_attribute(self, n: Node, name: str, value: Any) -> None:
        """Set or replace an attribute; None takes it away."""
        proto = self.node(n)
        for k, a in enumerate(proto.attribute):
            if a.name == name:
                if value is None:
                    del proto.attribute[k]
                else:
                    a.CopyFrom(helper.make_attribute(name, value))
                return
        if value is not None:
            proto.attribute.append(helper.make_attribute(name, value))

    def before(self, n: Node, op: str, inputs: list[str], **attributes: Any) -> str:
        """Put a new node before one; returns its output."""
        out = self.unique(inputs[-1] or op)
        new = helper.make_node(op, inputs, [out], name=out, **attributes)
        self._before.setdefault(n.site, []).append(new)
        return out

    def after(self, n: Node, k: int, op: str, inputs: list[str | None], **attributes: Any) -> None:
        """Put a new node between output `k` of a node and all that read it (None: that output)."""
        proto = self.node(n)
        name = proto.output[k]
        inner = self.unique(name)
        proto.output[k] = inner
        inputs_ = [inner if i is None else i for i in inputs]
        new = helper.make_node(op, inputs_, [name], name=f"{inner}/{op}", **attributes)
        self._after.setdefault(n.site, []).insert(0, new)

    def scalar(self, value: float, dtype: int, base: str) -> str:
        """A new scalar constant of an element type of ONNX."""
        return self.constant(np.array(value).astype(helper.tensor_dtype_to_np_dtype(dtype)), base)

    def replace(self, n: Node, op: str, inputs: list[str], **attributes: Any) -> None:
        """Make a node another operator, with the same name and outputs."""
        proto = self.node(n)
        proto.op_type = op
        proto.domain = ""
        del proto.input[:]
        proto.input.extend(inputs)
        del proto.attribute[:]
        proto.attribute.extend(helper.make_attribute(a, v) for a, v in attributes.items())

    def bypass(self, n: Node) -> None:
        """Take a node out: what reads its output reads its first input."""
        name = self.node(n).input[0]
        for user, k in self.model.uses.get(n.outputs[0], ()):
            self.set_input(user, k, name)
        self.remove(n)

    def rename(self, n: Node) -> None:
        """Give a node's output a name of its own."""
        proto = self.node(n)
        proto.output[0] = self.unique(proto.output[0])
        for user, k in self.model.uses.get(n.outputs[0], ()):
            self.set_input(user, k, proto.output[0])

    def unstate(self, value: str) -> None:
        """Take out what the file states of a value's shape: it can be inferred."""
        name, node = self.model.in_file(value), self.model.producer[value]
        infos = self.graph(node.site.path).value_info
        for k in reversed(range(len(infos))):
            if infos[k].name == name:
                del infos[k]

    def remove(self, n: Node) -> None:
        self.node(n)
        self._gone.add(n.site)

    def drop(self, c: Constant) -> None:
        """Take a stored tensor out of the file."""
        if c.is_node:
            self._gone.add(c.site)
        else:
            self._dropped.add((c.site.path, c.name))

    def patch(self, n: Node, k: int, mask: np.ndarray, values: np.ndarray) -> None:
        """Make entries of an integer operand (a Reshape target, Slice bounds) what they must be.

        A constant operand becomes another constant; where parts of it are dynamic they stay so,
        and a Where puts the new entries in.
        """
        mask, values = np.asarray(mask, bool), np.asarray(values)
        value = n.inputs[k]
        known = self.facts.known(value)
        if known is not None:
            new = np.where(mask, values, known.ravel()).astype(known.dtype).reshape(known.shape)
            if not np.array_equal(new, known):
                self.set_input(n, k, self.constant(new, self.model.in_file(value)))
            return
        if not mask.any() or self._patch_parts(value, mask, values):
            return
        dtype = helper.tensor_dtype_to_np_dtype(self.facts.trace.types.get(value, 7))
        name = self.node(n).input[k]
        put = [self.constant(mask, f"{name}_where"), self.constant(values.astype(dtype), name)]
        self.set_input(n, k, self.before(n, "Where", [*put, name]))
        self.notes.append(f"Where before {n.label}: part of its {n.op} operand stays dynamic")

    def _patch_parts(self, value: str, mask: np.ndarray, values: np.ndarray) -> bool:
        """Patch the pieces of a Concat that makes an operand for one reader; was that possible?"""
        concat = self.model.producer.get(value)
        if concat is None or concat.op != "Concat" or len(self.model.uses[value]) != 1:
            return False
        if value in self.model.graph.outputs:
            return False
        new, start = {}, 0
        for k, part in enumerate(concat.inputs):
            size = int(np.prod(self.facts.trace.shapes[part]))
            here = slice(start, start + size)
            start += size
            if mask[here].any():
                known = self.facts.known(part)
                if known is None:
                    return False
                new[k] = np.where(mask[here], values[here], known.ravel()).astype(known.dtype)
        for k, array in new.items():
            self.set_input(concat, k, self.constant(array, self.model.in_file(concat.inputs[k])))
        return True

    # -- finishing -----------------------------------------------------------------------------

    def finish(self) -> onnx.ModelProto:
        """Carry out insertions and removals, innermost graphs and last nodes first.

        What they leave without a reader goes too.
        """
        for k in sorted(self._empty):
            self._fill(k)
        sites = {*self._before, *self._after, *self._gone}
        for path in {*(s.path for s in sites), *(p for p, _ in self._dropped)}:
            self.graph(path)  # found now: indices are about to move
        order = sorted(sites, key=lambda s: (-len(s.path), s.path, -s.index))
        for site in order:
            nodes = self._graphs[site.path].node
            for new in reversed(self._after.get(site, [])):
                nodes.insert(site.index + 1, new)
            if site in self._gone:
                del nodes[site.index]
            for new in reversed(self._before.get(site, [])):
                nodes.insert(site.index, new)
        for path in {path for path, _ in self._dropped}:
            graph = self._graphs[path]
            for stored in (graph.initializer, graph.input):
                for k in reversed(range(len(stored))):
                    if (path, stored[k].name) in self._dropped:
                        del stored[k]
        drop_unread(self.proto, self.model.proto)
        return self.proto


def _without_weights(model: onnx.ModelProto) -> tuple[onnx.ModelProto, set[int]]:
    """A copy in which large weights have no values yet, and which of the initializers they are."""
    copy = onnx.ModelProto()
    if any(len(UnknownFieldSet(m)) for m in (model, model.graph)):  # of a newer onnx: all is kept
        copy.CopyFrom(model)
        return copy, set()
    copy = without(model, "graph")
    copy.graph.CopyFrom(without(model.graph, "initializer"))
    empty = set()
    for k, tensor in enumerate(model.graph.initializer):
        if known_bytes(tensor) < _LARGE:
            copy.graph.initializer.append(tensor)
        else:
            copy.graph.initializer.append(header(tensor))
            copy.graph.initializer[k].dims.extend(tensor.dims)
            empty.add(k)
    return copy, empty
