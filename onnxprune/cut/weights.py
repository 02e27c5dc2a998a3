"""Stored tensors, cut or masked: one pass over every weight that shrinks, whoever uses it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, numpy_helper

from onnxprune.axes.content import constant_value
from onnxprune.axes.view import Mask, View
from onnxprune.cut.edits import Edits
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
    out += _derive(view, edits, transform)
    return out


def _derive(view: View, edits: Edits, transform: Transform) -> list[Stored]:
    """Weights computed from weights: their values are stored in the place of the computation."""
    facts, model = view.facts, view.facts.model
    outputs = set(model.graph.outputs)

    def read(value: str) -> bool:
        return bool(value) and (value in model.uses or value in outputs)

    out: list[Stored] = []
    gone: set[Node] = set()
    wanted = [v for v in facts.derived if read(v) and view.shrinks(v)]
    for value in sorted(wanted):
        producer = model.producer[value]
        masks, name = view.masks(value), model.in_file(value)
        new = transform(constant_value(value, facts), masks, value)
        edits.initializer(numpy_helper.from_array(new, name))
        edits.notes.append(f"{name} was computed from constants ({producer.op}): stored instead")
        out.append(Stored(name, name, value, tuple(masks)))
        if all(o in wanted for o in producer.outputs if read(o)):
            gone.add(producer)
        else:
            k = producer.outputs.index(value)
            edits.node(producer).output[k] = edits.unique(name)
    _remove_unread(gone, view, edits)
    return out


def _remove_unread(gone: set[Node], view: View, edits: Edits) -> None:
    """Remove nodes, and the constant computations and weights that only they have read."""
    model, facts = view.facts.model, view.facts
    outputs = set(model.graph.outputs)
    todo = sorted(gone, key=lambda n: n.site.index)
    for node in todo:
        edits.remove(node)
    while todo:
        for i in todo.pop().inputs:
            made = model.producer.get(i)
            if made is None or made in gone or not all(o in facts.constant for o in made.outputs):
                continue
            readers = [u for o in made.outputs for u, _ in model.uses.get(o, ())]
            if all(u in gone for u in readers) and not outputs & set(made.outputs):
                gone.add(made)
                todo.append(made)
                edits.remove(made)
    stored: dict[tuple[Site, bool], list[Constant]] = {}
    for c in model.constants.values():
        stored.setdefault((c.site, c.is_node), []).append(c)
    for same in stored.values():
        readers = [u for c in same for u, _ in model.uses.get(c.value, ())]
        if (
            readers
            and all(u in gone for u in readers)
            and not any(c.value in outputs for c in same)
        ):
            edits.drop(same[0])
