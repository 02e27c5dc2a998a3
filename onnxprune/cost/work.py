"""Multiply-accumulates at batch 1, from the same specs that the labels come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod

from onnxprune.axes.facts import Facts, Work
from onnxprune.axes.labels import Vector
from onnxprune.axes.trace import Trace, trace
from onnxprune.axes.view import View


@dataclass(frozen=True, eq=False)
class Sizes:
    """The sizes at which work is counted: those of the inputs, and of axes that depend on them."""

    inputs: Mapping[str, tuple[int, ...]]
    """Shape by input name, as the file has it; what multiply-accumulates were counted for."""
    moved: Mapping[int, int]
    """Sizes of axes that are others than in the facts, by the identity of their label vector."""

    def of(self, labels: Vector) -> int:
        return self.moved.get(id(labels), len(labels))


def trace_at_one(facts: Facts) -> Trace:
    """Shapes at batch 1: the walk may have needed a batch of 2 to tell dynamic axes from static.

    For a graph that refuses a batch of 1, those that it was walked with.
    """
    walked = facts.trace
    if walked.binding.batch != 1 and facts.other is not walked:
        again = trace(facts.model, replace(walked.binding, batch=1), _hints(facts))
        if len(again.failures) <= len(walked.failures):
            return again
    return walked


def sizes_at_one(facts: Facts, one: Trace | None = None) -> Sizes:
    """The sizes of a model's axes at batch 1; all others as in the facts.

    `one` is what `trace_at_one` gives, for who asks about several walks over one trace.
    """
    model = facts.model
    one = trace_at_one(facts) if one is None else one
    inputs = {model.in_file(i): one.shapes[i] for i in model.graph.inputs if i in one.shapes}
    return Sizes(inputs, {} if one is facts.trace else _moved(facts, one))


def sizes_at(facts: Facts, shapes: Mapping[str, tuple[int, ...]]) -> Sizes | None:
    """The sizes of all axes at these input shapes; None where they can't be told."""
    walked = facts.trace
    here = trace(facts.model, replace(walked.binding, shapes=dict(shapes)), _hints(facts))
    return None if len(here.failures) > len(walked.failures) else Sizes(shapes, _moved(facts, here))


def _moved(facts: Facts, here: Trace) -> dict[int, int]:
    """The axes that have another size in a trace than in the facts."""
    return {
        id(labels): size
        for value, axes in facts.axes.items()
        if value in here.shapes
        for labels, size in zip(axes, here.shapes[value], strict=False)
        if len(labels) != size
    }


def _hints(facts: Facts) -> dict[str, tuple[int, tuple[int, ...]]]:
    """What was the same under both bindings is so under a third."""
    a, b = facts.trace, facts.other
    return {v: (a.types[v], d) for v, d in a.shapes.items() if b.shapes.get(v) == d}


def macs(facts: Facts, sizes: Sizes, view: View | None = None) -> int:
    """Multiply-accumulates of the model, or of what a view keeps of it; loop bodies once."""
    return sum(macs_of_work(w, sizes, view) for w in facts.work)


def macs_of_work(work: Work, sizes: Sizes, view: View | None) -> int:
    """Multiply-accumulates of one term of a node's work."""

    def size(labels: Vector) -> int:
        if view is not None and not (kept := view.mask(labels)).all():
            return int(kept.sum())
        return sizes.of(labels)

    return work.times * prod(size(v) for v in work.axes)
