"""Apply a spec line: unify what has the same letters, pin what is mixed, note what ends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxprune.axes.facts import Role, Sink, Work
from onnxprune.axes.labels import WINDOW, Vector, pinned
from onnxprune.axes.spec import Axis, Spec, bind, expand, parse
from onnxprune.graph.model import Node

if TYPE_CHECKING:
    from onnxprune.axes.walk import Walk

Live = Callable[[Axis], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Found:
    """One operand of a node, its axes named by the spec."""

    index: int
    is_output: bool
    axes: list[Axis]
    labels: list[Vector]


def apply(n: Node, text: str, w: Walk) -> None:
    """State what a spec line says; see `axes/spec.py`."""
    spec = parse(text)
    found = _operands(n, spec, w)
    size = bind(
        [(f.axes, [len(v) for v in f.labels]) for f in found],
        {"g": int(n.attrs.get("group", 1))},
        text,
    )

    def sizes(letters: tuple[str, ...]) -> list[int]:
        return [int(x) if x.isdigit() else size[x] for x in letters]

    def live(axis: Axis) -> tuple[str, ...]:
        """The letters that count: a factor of size 1 drops out (depthwise needs no rule)."""
        return tuple(x for x, d in zip(axis.letters, sizes(axis.letters), strict=True) if d > 1)

    named: dict[tuple[str, ...], Vector] = {}
    for f in found:
        for axis, v in zip(f.axes, f.labels, strict=True):
            if f.is_output or len(v) == 1:
                continue
            if axis.mixed or not axis.letters:
                why = "mixes this axis" if axis.letters or not axis.many else WINDOW
                w.pin_axis(n, v, f"{n.op} {why}")
                continue
            key = live(axis)
            if int(np.prod(sizes(key))) != len(v):
                raise w.refuse(f"'{text}' does not fit sizes {[len(x) for x in f.labels]}")
            if key in named:
                w.labels.same(named[key], v)
            else:
                named[key] = v
    for f in found:
        for axis, v in zip(f.axes, f.labels, strict=True):
            key = live(axis)
            if f.is_output and key and not axis.mixed and key not in named and len(v) > 1:
                named[key] = w.labels.axis(int(np.prod(sizes(key))))
    _relate(named, sizes, size.get("g", 1) > 1, w)
    for f in found:
        if f.is_output:
            w.put(
                n.outputs[f.index],
                [
                    named[live(a)] if a.letters and not a.mixed and len(v) > 1 else v
                    for a, v in zip(f.axes, f.labels, strict=True)
                ],
            )
    _note_roles(n, found, spec, live, w)
    if spec.contracts:
        _note_work(n, found, spec, w)


def _operands(n: Node, spec: Spec, w: Walk) -> list[Found]:
    """Line the axes of a node's operands up with a spec; control operands are pinned."""
    found: list[Found] = []
    for k, (value, operand) in enumerate(zip(n.inputs, spec.inputs, strict=False)):
        if not value:
            continue
        if operand is None:
            w.pin(n, value, f"{n.op} reads it as control")
            continue
        labels = w.get(value)
        if not labels or (len(labels) == 1 == len(labels[0]) and len(operand) != 1):
            continue  # a scalar in a vector's place
        axes = expand(operand, [len(v) for v in labels], spec.text)
        found.append(Found(k, False, axes, labels))
    for extra in n.inputs[len(spec.inputs) :]:
        if extra:
            raise w.refuse(f"has an operand '{extra}' that its rule does not name")
    for k, value in enumerate(n.outputs):
        if not value:
            continue
        operand = spec.outputs[k] if k < len(spec.outputs) else None
        if k == 0:
            w.shape(value)  # refused where it is not known
        w.put_pinned(value)
        if operand is not None and value in w.facts.trace.shapes:
            axes = expand(operand, w.shape(value), spec.text)
            found.append(Found(k, True, axes, w.facts.axes[value]))
    return found


def _relate(
    named: dict[tuple[str, ...], Vector],
    sizes: Callable[[tuple[str, ...]], list[int]],
    grouped: bool,
    w: Walk,
) -> None:
    """Unify products with their own factors: (4 h) with h, (g o) with (g i) group by group."""
    keys = list(named)
    for j, a in enumerate(keys):
        for b in keys[j + 1 :]:
            if not (set(a) <= set(b) or set(b) <= set(a)) or (grouped and "g" in a + b):
                continue
            big, small = (a, b) if len(a) > len(b) else (b, a)
            shape = [s if x in small else 1 for x, s in zip(big, sizes(big), strict=True)]
            w.labels.same(named[big].reshape(sizes(big)), named[small].reshape(shape))
    if not grouped:
        return
    group = named.get(("g",))
    for key in keys:
        if len(key) != 2 or key[0] != "g":
            continue
        if ("g",) in named or w.whole_groups:
            outer, inner = w.labels.split(named[key], sizes(key))
        else:  # the same channels of every group: a ragged choice would give wrong numbers
            table = named[key].reshape(sizes(key))
            w.labels.same(table, table[:1])
            outer, inner = pinned(len(table)), table[0]
        if group is None:
            group = outer
        else:
            w.labels.same(group, outer)
        if (key[1],) in named:
            w.labels.same(named[(key[1],)], inner)


def _note_roles(n: Node, found: list[Found], spec: Spec, live: Live, w: Walk) -> None:
    """Which weights create channels here, which contract them, and where channels end."""
    alive = {x for f in found if f.is_output for a in f.axes for x in a.letters}
    for f in found:
        if f.is_output:
            continue
        for j, (axis, v) in enumerate(zip(f.axes, f.labels, strict=True)):
            letters = live(axis)
            if axis.mixed or not letters or len(v) == 1:
                continue
            ends = axis.contracted or letters[-1] not in alive
            if ends:
                w.facts.sinks.append(Sink(n, f.index, j, v))
            if spec.contracts and len(f.labels) > 1:
                for c in w.origin.get(n.inputs[f.index], ()):
                    w.facts.roles.append(Role(c, "contracts" if ends else "creates", v))


def _note_work(n: Node, found: list[Found], spec: Spec, w: Walk) -> None:
    """Multiply-accumulates: the output's axes, and the contracted ones once each."""
    if n.op in ("LSTM", "GRU", "RNN"):
        x = w.get(n.inputs[0])
        for weight in n.inputs[1:3]:
            w.facts.work.append(Work(n, (x[0], x[1], *w.get(weight))))
        return
    ins = [f for f in found if not f.is_output]
    if any(a.many and not a.letters for o in spec.inputs if o for a in o):
        # a convolution: windows slide over the first operand
        over = w.get(n.inputs[0] if n.op == "ConvTranspose" else n.outputs[0])
        weight_axes = next(f.labels for f in ins if f.index and len(f.labels) > 1)
        w.facts.work.append(Work(n, (*over, *weight_axes[1:])))
        return
    done = {x for f in found if f.is_output for a in f.axes for x in a.letters}
    over = list(w.get(n.outputs[0]))
    for f in ins:
        for a, v in zip(f.axes, f.labels, strict=True):
            if a.letters and not set(a.letters) & done and not a.mixed:
                done.update(a.letters)
                over.append(v)
    w.facts.work.append(Work(n, tuple(over)))
