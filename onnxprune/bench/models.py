"""The models that take part: their files, and what they cost at the sizes that are measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from onnx import ModelProto

from onnxprune.axes.analyse import facts_of
from onnxprune.axes.facts import Facts
from onnxprune.bench.data import ModelRow
from onnxprune.cost.cost import nodes
from onnxprune.cost.work import macs_of_work, sizes_at
from onnxprune.errors import PruneError, UsageError
from onnxprune.graph.files import Source, load, save
from onnxprune.graph.model import Node, normalise

Shapes = Mapping[str, tuple[int, ...]]

_CHANNELS_SECOND = frozenset((
    "Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv", "DeformConv",
))  # fmt: skip
"""Operators whose channels are axis 1; those of all others are the last axis."""


@dataclass(frozen=True, eq=False)
class Work:
    """What a node has to do: multiply-accumulates, and its channels in and out."""

    node: Node
    macs: int
    widths: tuple[int, int]


@dataclass(frozen=True, eq=False)
class Contestant:
    """A model that takes part."""

    name: str
    source: Source

    @property
    def row(self) -> ModelRow:
        path = self.source.path
        shown = None if path is None else str(path)
        return ModelRow(self.name, shown, self.source.size, nodes(self.source.proto))

    @cached_property
    def facts(self) -> Facts | None:
        """What the analysis says about it; None where it can't be analysed."""
        try:
            return facts_of(normalise(self.source))
        except PruneError:
            return None

    def work(self, shapes: Shapes) -> dict[str, Work]:
        """What each node that multiplies has to do, by its first output's name in the file.

        Empty where that is not known at these input shapes.
        """
        facts = self.facts
        sizes = None if facts is None else sizes_at(facts, shapes)
        if facts is None or sizes is None:
            return {}
        found: dict[str, Work] = {}
        for term in facts.work:
            node, key = term.node, facts.model.in_file(term.node.outputs[0])
            so_far = found[key].macs if key in found else 0
            macs = so_far + macs_of_work(term, sizes, None)
            found[key] = Work(node, macs, _widths(node, facts))
        return found

    def written(self, out: Path) -> Contestant:
        """The same from a file: a model in memory is written to `out` first."""
        if self.source.path is not None:
            return self
        save(self.source.proto, out, self.source.folder)
        return Contestant(self.name, load(out))


def contestants(models: Mapping[str, Source | ModelProto | Path]) -> tuple[Contestant, ...]:
    """Models by the names that a report gives them; raises Unreadable, UsageError."""
    if not models:
        raise UsageError("no model to measure")
    return tuple(
        Contestant(name, model if isinstance(model, Source) else load(model))
        for name, model in models.items()
    )


def short_names(paths: Sequence[Path]) -> list[str]:
    """Names for files, as short as tells them apart: the file's, with folders where needed."""
    names = []
    for k, path in enumerate(paths):
        parts = path.parts
        others = [p.parts for j, p in enumerate(paths) if j != k and p != path]
        length = 1
        while length < len(parts) and any(p[-length:] == parts[-length:] for p in others):
            length += 1
        name = "/".join(parts[-length:])
        again = sum(p == path for p in paths[:k])
        names.append(f"{name} ({again + 1})" if again else name)
    return names


def _widths(node: Node, facts: Facts) -> tuple[int, int]:
    axis = 1 if node.op in _CHANNELS_SECOND else -1
    return _along(facts.shape(node.inputs[0]), axis), _along(facts.shape(node.outputs[0]), axis)


def _along(shape: tuple[int, ...] | None, axis: int) -> int:
    return shape[axis] if shape and len(shape) > axis else 0
