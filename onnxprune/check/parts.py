"""Parts of a model, run on their own: from values that are fed to values that are wanted."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ValueInfoProto, helper

from onnxprune.graph.model import captured
from onnxprune.runtime.session import Session, open_session


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """Nodes of a model that give `targets`."""

    targets: Sequence[str]
    nodes: Sequence[int]
    read: Collection[str]
    """All that the nodes read, weights too."""
    fed: frozenset[str]
    """What they read from outside, even where one of them gives it."""

    def called(self, value: str) -> str:
        """The name that what its nodes give under this name has, next to what is fed."""
        return f"{value}#given" if value in self.fed else value


class Whole:
    """A model, and where its values and weights are."""

    def __init__(self, model: onnx.ModelProto, folder: Path | None) -> None:
        graph = model.graph
        self.model, self.folder = model, folder
        self.producer = {o: k for k, n in enumerate(graph.node) for o in n.output if o}
        self.stored = {t.name: t for t in graph.initializer}
        self.sparse = {t.values.name: t for t in graph.sparse_initializer}
        self.inputs = {i.name for i in graph.input} - set(self.stored)

    def part(self, targets: Sequence[str], outside: Collection[str]) -> Part:
        """What gives `targets` where all of `outside` is fed."""
        nodes: set[int] = set()
        names: set[str] = set()
        todo = [self.producer[t] for t in targets]
        while todo:
            k = todo.pop()
            if k in nodes:
                continue
            nodes.add(k)
            node = self.model.graph.node[k]
            for i in {*node.input, *captured(node)} - names:
                names.add(i)
                if i not in outside and i in self.producer:
                    todo.append(self.producer[i])
        fed = frozenset(i for i in names if i in outside or i in self.inputs)
        return Part(targets, sorted(nodes), names, fed)

    def open(self, part: Part, fed: Mapping[str, np.ndarray], provider: str) -> Session:
        """The part as a model of its own, whose inputs are like `fed`.

        What a node gives under the name of something that is fed is renamed.
        """
        whole, model = self.model, onnx.ModelProto(ir_version=max(self.model.ir_version, 4))
        model.opset_import.extend(whole.opset_import)
        model.functions.extend(whole.functions)
        graph = model.graph
        graph.name = "part"
        graph.initializer.extend(t for name, t in self.stored.items() if name in part.read)
        graph.sparse_initializer.extend(t for name, t in self.sparse.items() if name in part.read)
        for k in part.nodes:
            node = graph.node.add()
            node.CopyFrom(whole.graph.node[k])
            for j, o in enumerate(node.output):
                node.output[j] = part.called(o)
        graph.output.extend(ValueInfoProto(name=part.called(o)) for o in part.targets)
        for name, array in fed.items():
            info = graph.input.add(name=name)
            info.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
        return open_session(model, provider=provider, folder=self.folder)
