"""Which tensors are compared: the outputs, and what lies before outputs that jump."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.axes.facts import Facts
from onnxprune.axes.view import View
from onnxprune.graph.model import Node, walk

CHOOSING = frozenset((
    "ArgMax", "ArgMin", "TopK", "NonMaxSuppression", "NonZero", "Unique", "Compress", "Hardmax",
))  # fmt: skip
"""Operators of which a tiny change of the input can make another output."""

FLOATS = frozenset((
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
))  # fmt: skip


def probes(view: View, slim: onnx.ModelProto) -> dict[str, str]:
    """Tensors to compare besides the outputs: name in the file -> name in the analysed copy.

    For every output that is no float, or that depends on a choice (ArgMax, NMS), these are the
    last continuous tensors before it that both models have.
    """
    model, types, chosen = view.facts.model, view.facts.trace.types, jumping(view.facts)
    names = comparable(view)
    there = {names[o] for o in produced(slim) & names.keys()}

    def smooth(value: str) -> bool:
        return value not in chosen and types.get(value) in FLOATS and value in there

    found: dict[str, str] = {}
    todo = [o for o in model.graph.outputs if o in chosen or types.get(o) not in FLOATS]
    seen = set(todo)
    while todo:
        producer = model.producer.get(todo.pop())
        for i in reads(producer) if producer else ():
            if i in seen or i in view.facts.constant or i not in model.producer:
                continue
            seen.add(i)
            if smooth(i):
                found[model.in_file(i)] = i
            else:
                todo.append(i)
    return found


def jumping(facts: Facts) -> set[str]:
    """Values of the main graph that depend on a choice."""
    types = facts.trace.types
    chosen: set[str] = set()
    for node in facts.model.graph.nodes:
        inner = [n for body in node.bodies.values() for n in walk(body)]
        picks = any(
            n.op in CHOOSING and any(types.get(i) in FLOATS for i in n.inputs)
            for n in (node, *inner)
        )
        if picks or any(i in chosen for i in reads(node)):
            chosen.update(node.outputs)
    return chosen


def reads(node: Node) -> Iterator[str]:
    """What a node reads, its bodies included."""
    yield from (i for i in node.inputs if i)
    for body in node.bodies.values():
        for inner in walk(body):
            yield from (i for i in inner.inputs if i)
        yield from body.outputs


def produced(proto: onnx.ModelProto) -> set[str]:
    """Names that nodes of the main graph give."""
    return {o for node in proto.graph.node for o in node.output if o}


def comparable(view: View) -> dict[str, str]:
    """Values that the cut leaves the same but for removed channels, in the order of the graph.

    Name in the file -> name in the analysed copy; what nodes of the main graph give. The inside of
    a channel shuffle is left out: only the shuffle as a whole keeps its meaning.
    """
    inner = {o for s in view.facts.shuffles for n in s.nodes[:2] for o in n.outputs}
    model = view.facts.model
    values = (o for n in model.graph.nodes for o in n.outputs if o and o not in inner)
    return {model.in_file(o): o for o in values}


def kept_part(view: View, value: str, array: np.ndarray) -> np.ndarray:
    """The part of a full-size tensor that the slim model still has."""
    masks = view.masks(value)
    if len(masks) == array.ndim:
        for axis, mask in enumerate(masks):
            if not mask.all():
                array = np.compress(mask, array, axis=axis)
    return array
