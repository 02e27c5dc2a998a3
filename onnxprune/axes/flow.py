"""If, Loop, Scan: a carried value keeps its channels, branches share those of the output."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.axes.labels import pinned
from onnxprune.axes.trace import live_branches
from onnxprune.graph.model import Node

if TYPE_CHECKING:
    from onnxprune.axes.walk import Walk


def control_flow(w: Walk, n: Node) -> None:
    if n.op == "If":
        if_(w, n)
    elif n.op == "Loop":
        loop(w, n)
    elif n.op == "Scan" and n.version >= 9:
        scan(w, n)
    else:
        for body in n.bodies.values():
            w.graph(body)
        raise w.refuse("is control flow of an unknown kind")


def unify(w: Walk, n: Node, a: str, b: str, why: str) -> bool:
    """State that two values are the same, axis by axis; pin both where shapes differ."""
    sa, sb = (
        (t.shapes.get(a) for t in (w.facts.trace, w.facts.other)),
        (t.shapes.get(b) for t in (w.facts.trace, w.facts.other)),
    )
    known = all(v in w.facts.axes or v in w.model.constants for v in (a, b))
    if not known or list(sa) != list(sb):
        w.pin(n, a, why)
        w.pin(n, b, why)
        return False
    for u, v in zip(w.get(a), w.get(b), strict=True):
        w.labels.same(u, v)
    return True


def if_(w: Walk, n: Node) -> None:
    for body in n.bodies.values():
        w.graph(body)
    w.pin(n, n.inputs[0], "If reads it as its condition")
    live = live_branches(n, w.facts.trace, w.facts.other)
    for k, o in enumerate(n.outputs):
        first = live[0].outputs[k]
        others = [b.outputs[k] for b in n.bodies.values() if b.outputs[k] != first]
        fine = first in w.facts.axes or first in w.model.constants
        if fine and w.facts.trace.shapes.get(o) == tuple(len(v) for v in w.get(first)):
            dead = {b.outputs[k] for b in n.bodies.values()} - {b.outputs[k] for b in live}
            shape = w.facts.trace.shapes.get
            agree = [
                unify(w, n, first, x, "the branches of If differ")
                for x in others
                if not (x in dead and shape(x) != shape(first))
            ]
            w.put(o, w.get(first))
            if not all(agree):
                w.pin(n, o, "the branches of If differ")
        else:
            for x in (first, *others):
                w.pin(n, x, "the branches of If differ")
            w.put_pinned(o)


def loop(w: Walk, n: Node) -> None:
    """A carried value has one set of channels from the first turn to the last."""
    body = n.bodies["body"]
    for i in n.inputs[:2]:
        w.pin(n, i, "Loop reads it as control")
    for inner in body.inputs[:2]:
        w.put_pinned(inner)
    carried = n.inputs[2:]
    for inner, outer in zip(body.inputs[2:], carried, strict=True):
        w.put(inner, list(w.get(outer)))
    w.graph(body)
    w.pin(n, body.outputs[0], "Loop reads it as its condition")
    for j, o in enumerate(n.outputs):
        inner = body.outputs[1 + j]
        if j < len(carried):
            if unify(w, n, carried[j], inner, "Loop carries it in another shape") and o:
                w.put(o, w.get(carried[j]))
            else:
                w.put_pinned(o)
        elif o and o in w.facts.trace.shapes:
            w.put(o, [pinned(w.shape(o)[0]), *w.get(inner)])


def scan(w: Walk, n: Node) -> None:
    body, m = n.bodies["body"], n.attrs["num_scan_inputs"]
    states = len(n.inputs) - m
    in_axes = n.attrs.get("scan_input_axes", [0] * m)
    for j, (inner, outer) in enumerate(zip(body.inputs, n.inputs, strict=True)):
        axes = list(w.get(outer))
        if j >= states:
            a = in_axes[j - states] % len(axes)
            w.pin_axis(n, axes[a], "Scan goes along this axis")
            del axes[a]
        w.put(inner, axes)
    w.graph(body)
    out_axes = n.attrs.get("scan_output_axes", [0] * (len(n.outputs) - states))
    for j, o in enumerate(n.outputs):
        inner = body.outputs[j]
        if j < states:
            if unify(w, n, n.inputs[j], inner, "Scan carries it in another shape") and o:
                w.put(o, w.get(n.inputs[j]))
            else:
                w.put_pinned(o)
        elif o and o in w.facts.trace.shapes:
            axes = list(w.get(inner))
            a = out_axes[j - states] % (len(axes) + 1)
            axes.insert(a, pinned(w.shape(o)[a]))
            w.put(o, axes)
