"""The part of a changed model that the change can move, to be run on its own.

A sensitivity study runs a model hundreds of times, each time with other slices of a few weights
zeroed. What lies before these weights is the same every time: it is run once, and its results are
fed. The weights themselves are fed too, so one session does for all ratios of a group; all other
weights stay constants, which ONNX Runtime folds and packs as it likes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper

from onnxprune.graph.files import read_tensor
from onnxprune.graph.model import captured
from onnxprune.repair.cone import stored

Arrays = Mapping[str, np.ndarray]

_PACKED = frozenset((TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1))
"""Types of which ONNX Runtime holds two in a byte and numpy does not."""


@dataclass(frozen=True, eq=False)
class Behind:
    """The nodes of a changed model whose results the change can move, and what they need."""

    nodes: tuple[NodeProto, ...]
    weights: Mapping[str, TensorProto]
    """Stored tensors that the change has touched, to be fed."""
    constants: Mapping[str, TensorProto]
    """Stored tensors that it has not, and those of types that can't be fed."""
    own: bool
    """Are there any of these? Then the part is like no other."""
    reads: tuple[str, ...]
    """What nodes before give, or the caller: names of the original too."""
    outputs: tuple[str, ...]
    """Those of the wanted values that can move."""

    def is_like(self, other: Behind) -> bool:
        """Is it the same but for the content of the weights?"""
        return (
            not self.own
            and self.nodes == other.nodes
            and self.weights.keys() == other.weights.keys()
            and (self.reads, self.outputs) == (other.reads, other.outputs)
        )

    def arrays(self, folder: Path | None) -> dict[str, np.ndarray]:
        """The content of the weights."""
        return {name: read_tensor(t, folder) for name, t in self.weights.items()}


def behind(
    original: onnx.ModelProto,
    changed: onnx.ModelProto,
    touched: Set[str],
    wanted: Sequence[str],
    *,
    whole: bool = False,
) -> Behind:
    """Compare two models that differ in some weights, and in a few nodes perhaps.

    Args:
        touched: names of stored tensors that may have changed; those that the original has not
            are known to be new.
        wanted: values of the original that are asked for.
        whole: take all nodes, for a model in which something other than tensors would be fed.
    """
    tensors, before = stored(changed), stored(original)
    weights = {n for n in tensors if n in touched or n not in before}
    same = {n.SerializeToString(deterministic=True) for n in original.graph.node}
    nodes = [
        n for n in changed.graph.node if not (n.op_type == "Constant" and n.output[0] in tensors)
    ]
    reads = [[i for i in (*n.input, *captured(n)) if i] for n in nodes]
    start = [
        k for k, n in enumerate(nodes)
        if whole or weights & set(reads[k]) or n.SerializeToString(deterministic=True) not in same
    ]  # fmt: skip
    moved = _reached(nodes, reads, start)
    fixed = _constant(nodes, reads, tensors)
    made = {o: k for k in moved for o in nodes[k].output if o}
    given: dict[str, None] = {}
    needed, todo = set(moved), sorted(moved)
    while todo:
        for name in reads[todo.pop()]:
            if name in made or name in tensors:
                continue
            if name not in fixed:
                given[name] = None
            elif fixed[name] not in needed:
                needed.add(fixed[name])
                todo.append(fixed[name])
    read = {i for k in needed for i in reads[k]}
    packed = {n for n in weights & read if tensors[n].data_type in _PACKED}
    return Behind(
        tuple(nodes[k] for k in sorted(needed)),
        {n: tensors[n] for n in tensors if n in weights & read - packed},
        {n: tensors[n] for n in tensors if n in read - weights | packed},
        bool(packed),
        tuple(given),
        tuple(w for w in wanted if w in made),
    )


def _reached(
    nodes: Sequence[NodeProto], reads: Sequence[Sequence[str]], start: Sequence[int]
) -> set[int]:
    """Nodes that read, directly or not, what these give, and these."""
    readers: dict[str, list[int]] = {}
    for k, names in enumerate(reads):
        for name in names:
            readers.setdefault(name, []).append(k)
    found, todo = set(start), list(start)
    while todo:
        for o in nodes[todo.pop()].output:
            fresh = [k for k in readers.get(o, ()) if o and k not in found]
            found.update(fresh)
            todo += fresh
    return found


def _constant(
    nodes: Sequence[NodeProto], reads: Sequence[Sequence[str]], tensors: Mapping[str, TensorProto]
) -> dict[str, int]:
    """Values computed from stored tensors alone, and the nodes that give them."""
    found: dict[str, int] = {}
    todo = list(range(len(nodes)))
    while True:  # files may be unsorted: again, until nothing new is found
        new = [k for k in todo if all(i in tensors or i in found for i in reads[k])]
        if not new:
            return found
        found |= {o: k for k in new for o in nodes[k].output if o}
        done = set(new)
        todo = [k for k in todo if k not in done]


def part_of(changed: onnx.ModelProto, part: Behind, given: Sequence[Arrays]) -> onnx.ModelProto:
    """A model of its own: its inputs are `part.reads` and `part.weights`.

    `given` are examples of what is read; sizes that are the same in all of them are stated.
    """
    model = onnx.ModelProto()
    model.ir_version = max(4, changed.ir_version)  # before, stored tensors are inputs as well
    model.opset_import.extend(changed.opset_import)
    graph = model.graph
    graph.name = changed.graph.name or "behind"
    graph.node.extend(part.nodes)
    for name, tensor in part.constants.items():
        graph.initializer.add().CopyFrom(tensor)
        graph.initializer[-1].name = name
    for name in part.reads:
        arrays = [a[name] for a in given]
        kind = helper.np_dtype_to_tensor_dtype(arrays[0].dtype)
        sizes = [
            d if len(set(d)) == 1 else (None,) for d in zip(*(a.shape for a in arrays), strict=True)
        ]
        graph.input.append(helper.make_tensor_value_info(name, kind, [d[0] for d in sizes]))
    for name, tensor in part.weights.items():
        graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    graph.output.extend(onnx.ValueInfoProto(name=o) for o in part.outputs)
    return model
