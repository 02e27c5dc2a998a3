"""Who fixes channels, and why: for people, once everything has been decided."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from onnxprune.axes.components import components
from onnxprune.axes.labels import WINDOW, Pin, Vector
from onnxprune.axes.solve import Solution, stacked
from onnxprune.graph.model import WEIGHT_TYPES, Node

NO_RULE = "it meets an axis that no rule lets shrink"

_MOST = 64
"""Components that are asked for reasons."""
_FAR = 300
"""Values that are looked at upstream."""


@dataclass(frozen=True, eq=False)
class Fixed:
    """Channels that can't go: where, how many, and everyone who says so."""

    name: str
    channels: int
    why: tuple[str, ...]
    values: tuple[str, ...]


def reasons(s: Solution, value: str, axis: int) -> tuple[str, ...]:
    """Who fixes this axis, and why."""
    return _Reasons(s).of(s.facts.axes[value][axis], [value])


def fixed_groups(s: Solution) -> list[Fixed]:
    """Weight axes that stay, gathered by what ties them, with the reasons given by the nodes.

    Windows of convolutions are no channels and are not listed.
    """
    who, facts = _Reasons(s), s.facts
    table: dict[tuple[int, ...], tuple[list[str], Vector]] = {}
    for value, c in facts.model.constants.items():
        if value not in facts.axes or c.tensor.data_type not in WEIGHT_TYPES:
            continue
        for v in facts.axes[value]:
            if len(v) > 1 and v.any() and (s.root[v] == s.zero).all():
                key = tuple(np.unique(who.tied[v])[:8].tolist())
                table.setdefault(key, ([], v))[0].append(value)
    out = []
    for values, labels in table.values():
        why = who.of(labels, values)
        if all(WINDOW in w for w in why):
            continue
        names = tuple(dict.fromkeys(facts.model.in_file(v) for v in values))
        out.append(Fixed(names[0], len(labels), why, names))
    return out


class _Reasons:
    """Who pins what, by the components that labels form without any pin."""

    def __init__(self, s: Solution) -> None:
        labels = s.facts.labels
        self.facts = s.facts
        a, b = stacked(labels.same_a), stacked(labels.same_b)
        ties = (a != 0) & (b != 0)
        self.tied = components(labels.count, a[ties], b[ties])
        self.pins: dict[int, list[Pin]] = {}
        for pin in labels.pins:
            for c in np.unique(self.tied[pin.labels]).tolist():
                self.pins.setdefault(c, []).append(pin)
        self.parts: dict[int, list[int]] = {}
        """Component of a conjunction -> components of its two sides, and back."""
        x, p, q = (self.tied[stacked(v)] for v in (labels.both, labels.both_a, labels.both_b))
        for part in (p, q):
            pairs = np.unique(np.stack([x, part]), axis=1)
            for c, d in pairs.T.tolist():
                self.parts.setdefault(c, []).append(d)
                self.parts.setdefault(d, []).append(c)

    def of(self, labels: Vector, values: Sequence[str]) -> tuple[str, ...]:
        """Why these labels stay, which lie on axes of `values`."""
        todo = list(dict.fromkeys(self.tied[labels[labels != 0]].tolist()))[:_MOST]
        seen = set(todo)
        out: dict[str, None] = {}
        while todo:
            c = todo.pop(0)
            for p in self.pins.get(c, ()):
                out[f"{p.why} ({p.node})"] = None
            for d in self.parts.get(c, ()):
                if d not in seen:
                    seen.add(d)
                    todo.append(d)
        return tuple(out) or self._upstream(values, len(labels))

    @cached_property
    def _stated(self) -> dict[str, str]:
        """What each node says about axes that it does not let shrink."""
        beside = (WINDOW, "as control")  # other axes, other operands
        return {p.node: p.why for p in self.facts.labels.pins if not p.why.endswith(beside)}

    def _upstream(self, values: Sequence[str], size: int) -> tuple[str, ...]:
        """They met an axis that had been fixed before: by whom?"""
        model = self.facts.model
        todo = self._met(values, size)
        seen = set(todo)
        for value in todo:  # grows: breadth first
            node = model.producer.get(value)
            if value in model.graph.inputs and value in values:
                return ("it is an input of the model",)
            if value in model.graph.inputs:
                return (f"it meets input '{model.in_file(value)}' of the model",)
            if node is None or len(seen) > _FAR:
                break
            if node.label in self._stated:
                return (f"{self._stated[node.label]} ({node.label})",)
            before = self._fixed(node, size) or self._fixed(node)[:1]
            if not before and not any(i not in self.facts.constant for i in node.inputs if i):
                return (f"{node.op} makes it ({node.label})",)
            before = [i for i in before if i not in seen]
            seen.update(before)
            todo += before
        return (NO_RULE,)

    def _met(self, values: Sequence[str], size: int) -> list[str]:
        """Fixed axes of this size that these values, or what is made of them, meet first."""
        axes, uses, constant = self.facts.axes, self.facts.model.uses, self.facts.constant
        own = [v for v in values if v not in constant and _has(axes[v], size, free=False)]
        if own:
            return own
        todo = list(values)
        seen = set(todo)
        for value in todo:  # grows: breadth first
            users = [node for node, _ in uses.get(value, ())]
            met = [i for node in users for i in self._fixed(node, size)]
            if met or len(seen) > _FAR:
                return met
            made = [
                o for node in users for o in node.outputs if _has(axes.get(o, ()), size, free=True)
            ]
            made = [o for o in dict.fromkeys(made) if o not in seen]
            seen.update(made)
            todo += made
        return []

    def _fixed(self, node: Node, size: int | None = None) -> list[str]:
        """Operands, other than constants, with a fixed axis (of this size)."""
        facts = self.facts
        data = [i for i in node.inputs if i and i not in facts.constant]
        return [i for i in data if _has(facts.axes.get(i, ()), size, free=False)]


def _has(axes: Sequence[Vector], size: int | None, *, free: bool) -> bool:
    """Is there an axis of this size (or of any above 1) whose labels are all 0, or not?"""
    return any(
        len(v) == size or (size is None and len(v) > 1) for v in axes if bool(v.any()) == free
    )
