"""Stored tensors, cut or masked: one pass over every weight that shrinks, whoever uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.axes.facts import Facts
from onnxprune.axes.trace import run_operator
from onnxprune.cut.edits import Edits
from onnxprune.cut.view import Mask, View
from onnxprune.graph.model import Constant, Node, Site

Transform = Callable[[np.ndarray, list[Mask], str], np.ndarray]
"""(content, kept indices per axis, value name) -> new content."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight of the slim file: its name there, and what it is made of."""

    name: str
    original: str
    value: str
    """In the analysed copy."""
    kept: tuple[Mask, ...]


def rewrite(view: View, edits: Edits, transform: Transform) -> list[Stored]:
    """Apply a transform to every stored tensor that shrinks; returns what was written.

    A vector that several nodes share becomes one tensor per way of cutting it.
    """
    model, facts = view.facts.model, view.facts
    uses: dict[tuple[Site, bool], list[Constant]] = {}
    for c in model.constants.values():
        if c.value in facts.axes:
            uses.setdefault((c.site, c.is_node), []).append(c)
    out: list[Stored] = []
    for same in uses.values():
        ways: dict[bytes, list[Constant]] = {}
        for c in same:
            key = b"".join(m.tobytes() for m in view.masks(c.value))
            ways.setdefault(key, []).append(c)
        whole = [c for c in same if not view.shrinks(c.value)]
        if len(whole) == len(same):
            continue
        content = model.array(same[0])
        in_place = not whole
        for cs in ways.values():
            c = cs[0]
            if not view.shrinks(c.value):
                continue
            masks = view.masks(c.value)
            new = transform(content, masks, c.value)
            if in_place:
                edits.store(c, new)
                name, in_place = c.name, False
            else:
                name = edits.unique(c.name)
                tensor = TensorProto()
                tensor.CopyFrom(numpy_helper.from_array(new, name))
                tensor.data_type = c.tensor.data_type
                edits.initializer(tensor)
                for d in cs:
                    for node, k in model.uses.get(d.value, ()):
                        edits.set_input(node, k, name)
                edits.notes.append(f"{c.name} is cut in several ways: {name} is one of them")
            out += [Stored(name, c.name, d.value, tuple(masks)) for d in cs]
    out += [_derive(v, view, edits, transform) for v in sorted(facts.derived) if view.shrinks(v)]
    return out


def _derive(value: str, view: View, edits: Edits, transform: Transform) -> Stored:
    """A weight computed from weights: its value is stored in the place of the computation."""
    facts = view.facts
    content = constant_value(value, facts)
    masks = view.masks(value)
    producer = facts.model.producer[value]
    name = facts.model.in_file(value)
    proto = edits.node(producer)
    k = producer.outputs.index(value)
    if len([o for o in producer.outputs if o]) == 1:
        edits.remove(producer)
    else:
        proto.output[k] = edits.unique(name)
    edits.initializer(numpy_helper.from_array(transform(content, masks, value), name))
    edits.notes.append(f"{name} was computed from constants ({producer.op}): stored as a weight")
    return Stored(name, name, value, tuple(masks))


def constant_value(value: str, facts: Facts) -> np.ndarray:
    """The content of a value that is computed from constants alone."""
    model = facts.model
    done: dict[str, np.ndarray] = {}

    def get(name: str) -> np.ndarray:
        if name in done:
            return done[name]
        if name in model.constants:
            return model.array(model.constants[name])
        if name in facts.trace.values:
            return facts.trace.values[name]
        node = model.producer[name]
        results = run_operator(node, [get(i) if i else None for i in node.inputs])
        done.update(zip(node.outputs, results, strict=False))
        return done[name]

    return get(value)


def dead_code(view: View, edits: Edits) -> None:
    """Remove constant computations that nothing reads any more since their result is stored."""
    model, facts = view.facts.model, view.facts
    gone: set[Node] = {model.producer[v] for v in facts.derived if view.shrinks(v)}
    todo = list(gone)
    outputs = set(model.graph.outputs)
    while todo:
        for i in todo.pop().inputs:
            node = model.producer.get(i)
            if node is None or node in gone or not all(o in facts.constant for o in node.outputs):
                continue
            read = [u for o in node.outputs for u, _ in model.uses.get(o, ())]
            if all(u in gone for u in read) and not outputs & set(node.outputs):
                gone.add(node)
                todo.append(node)
                edits.remove(node)
