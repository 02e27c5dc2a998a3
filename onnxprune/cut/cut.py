"""Remove channels: weights, attributes and baked shapes, on a copy of the original file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import GraphProto, ValueInfoProto

from onnxprune.axes.view import Mask, View
from onnxprune.choose.dead import BiasShift
from onnxprune.cut.edits import Edits
from onnxprune.cut.fix_shape import shuffle
from onnxprune.cut.fixes import FIXES, counts, mean
from onnxprune.cut.shifts import shift_biases
from onnxprune.cut.weights import Stored, rewrite
from onnxprune.graph.model import Path


@dataclass(frozen=True)
class Cut:
    """A slim model, the weights it stores differently, and notes on nodes added or replaced."""

    model: onnx.ModelProto
    weights: tuple[Stored, ...]
    notes: tuple[str, ...]


def slice_out(array: np.ndarray, kept: list[Mask], value: str) -> np.ndarray:
    """Keep these indices of every axis."""
    for axis, mask in enumerate(kept):
        if not mask.all():
            array = np.compress(mask, array, axis=axis)
    return np.ascontiguousarray(array)


def cut(view: View, shifts: Sequence[BiasShift] = ()) -> Cut:
    """The slim model: everything that the view does not keep is gone.

    A view that keeps everything gives the original back, byte for byte. `shifts` carry the
    constants of removed channels into biases (see `choose.dead`).
    """
    if view.keep.all():
        same = onnx.ModelProto()
        same.CopyFrom(view.facts.model.source.proto)
        return Cut(same, (), ())
    edits = Edits(view.facts)
    if view.facts.model.inlined:
        edits.notes.append("local functions were inlined")
    for node in view.facts.model.walk():
        fix = FIXES.get((node.domain, node.op))
        if fix is not None:
            fix(node, view, edits)
        if node in view.facts.heads:
            counts(node, view, edits)
    for s in view.facts.shuffles:
        shuffle(s, view, edits)
    for node, axes in view.facts.means:
        mean(node, axes, view, edits)
    weights = rewrite(view, edits, slice_out)
    shift_biases(shifts, view, edits)
    stale_shapes(view, edits)
    return Cut(edits.finish(), tuple(weights), tuple(edits.notes))


def stale_shapes(view: View, edits: Edits) -> None:
    """Update the sizes that the file states for values that shrank."""
    model, facts = view.facts.model, view.facts
    where: dict[tuple[Path, str], str] = {}
    for value in facts.axes:
        if value not in model.constants and view.shrinks(value):
            node = model.producer.get(value)
            where[node.site.path if node else (), model.in_file(value)] = value
    body_inputs = {
        (body.path, model.in_file(i)): i
        for node in model.walk()
        for body in node.bodies.values()
        for i in body.inputs
        if i in facts.axes and view.shrinks(i)
    }
    where |= body_inputs
    for path in {p for p, _ in where}:
        graph: GraphProto = edits.graph(path)
        infos = [*graph.value_info, *(graph.output if path else ()), *(graph.input if path else ())]
        for info in infos:
            value = where.get((path, info.name), "")
            if value:
                _restate(info, view.cut_axes(value), view.shape(value))
    for node in model.walk():  # the elements of a sequence may have shrunk: inferred anew
        for o in node.outputs if "Sequence" in node.op else ():
            if o and o not in facts.axes:
                edits.unstate(o)
    for path in {(), *(c.site.path for c in model.constants.values())}:
        graph = edits.graph(path)
        stored = {t.name: t.dims for t in graph.initializer}
        for info in graph.value_info:
            if info.name in stored:
                dims = tuple(stored[info.name])
                _restate(info, [True] * len(dims), dims)


def _restate(info: ValueInfoProto, cut_axes: list[bool], shape: tuple[int, ...]) -> None:
    dims = info.type.tensor_type.shape.dim
    if len(dims) != len(shape):
        return
    for d, c, size in zip(dims, cut_axes, shape, strict=True):
        if c and d.HasField("dim_value"):
            d.dim_value = size
