"""Loops that carry a sequence, traced turn by turn: no other way tells what its elements are.

That is how exporters write a scripted split, chunk or unbind.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import TensorProto

from onnxprune.graph.model import Graph, Node, walk

if TYPE_CHECKING:
    from onnxprune.axes.trace import Trace

MOST = 64
"""Turns that are followed."""


def trace_turns(
    n: Node,
    t: Trace,
    known: Callable[[str], np.ndarray | None],
    follow: Callable[[Graph], None],
) -> None:
    """Shapes, values and elements that a Loop with a known number of turns gives.

    `known` has small values, `follow` traces the body once. What the body makes has no known value
    afterwards, and no known shape where that changes from turn to turn.

    Raises:
        ValueError: the number of turns depends on the data, or the body can't be followed.
    """
    body, carried = n.bodies["body"], n.inputs[2:]
    tables: tuple[dict[str, Any], ...] = (t.shapes, t.types, t.values, t.sequences)
    trips = known(n.inputs[0]) if n.inputs[0] else None
    count = MOST + 1 if trips is None else int(trips.item())
    if count > MOST:
        raise ValueError("the number of turns depends on the data, or is large")
    inside = [*body.inputs]
    for node in walk(body):
        inside += [o for o in node.outputs if o]
        inside += [i for inner in node.bodies.values() for i in inner.inputs]

    def take(value: str) -> list[Any]:
        known(value)  # a stored number is a value from now on
        return [table.get(value) for table in tables]

    def give(value: str, facts: list[Any]) -> None:
        for table, fact in zip(tables, facts, strict=True):
            table.pop(value, None)
            if fact is not None:
                table[value] = fact

    state = [take(i) for i in carried]
    seen: list[dict[str, Any]] = []
    try:
        for turn in range(count):
            for value in inside:
                give(value, [None] * len(tables))
            give(body.inputs[0], [(), TensorProto.INT64, np.array(turn, np.int64), None])
            give(body.inputs[1], [(), TensorProto.BOOL, np.array(True), None])
            for inner, facts in zip(body.inputs[2:], state, strict=True):
                give(inner, facts)
            failed = len(t.failures)
            follow(body)
            seen.append({value: t.shapes.get(value) for value in inside})
            if len(t.failures) > failed:
                raise ValueError("its body could not be followed")
            if not (go_on := known(body.outputs[0])) and turn + 1 < count:
                why = "depends on the data" if go_on is None else "changes"
                raise ValueError(f"whether it goes on {why}")
            state = [take(o) for o in body.outputs[1:]]
    finally:
        for value in inside:
            same = len({turn.get(value) for turn in seen}) == 1
            shape, kind = (t.shapes.get(value), t.types.get(value)) if same else (None, None)
            give(value, [shape, kind, None, None])
    for k, o in enumerate(n.outputs):
        shape = t.shapes.get(body.outputs[1 + k])
        if o and k < len(carried):
            give(o, state[k])
        elif o and shape is not None:
            give(o, [(count, *shape), t.types[body.outputs[1 + k]], None, None])
