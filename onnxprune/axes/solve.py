"""Facts -> groups, once: connected components of the labels, and congruence of conjunctions.

Pure: it may be called again with other choices frozen (keep the heads whole, or their dims).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.components import components
from onnxprune.axes.facts import Facts
from onnxprune.axes.labels import Labels, Vector, distinct_pairs
from onnxprune.graph.model import WEIGHT_TYPES


@dataclass(frozen=True, slots=True)
class Member:
    """An axis of a weight that shrinks with a group.

    `role`: the weight 'creates' the channels (conv filters), 'contracts' them (input channels of
    the next layer), or 'follows' (bias, norm scale, element-wise constants).
    """

    value: str
    axis: int
    role: str
    channel: NDArray[np.int64]
    """Per index of the axis: which of the group's channels it belongs to, -1 for none."""


@dataclass(frozen=True, eq=False)
class Group:
    """Channels that live in the same axes and are interchangeable: ranked against each other."""

    id: int
    name: str
    roots: NDArray[np.int64]
    """The labels of its channels, in order."""
    members: tuple[Member, ...]
    values: tuple[str, ...]
    """All tensors that carry the channels, activations too."""

    @property
    def size(self) -> int:
        return len(self.roots)


@dataclass(eq=False)
class Solution:
    """Solved labels: `root[label]` is the channel a label stands for; `zero` means pinned."""

    facts: Facts
    root: NDArray[np.int64]
    edges: tuple[Vector, Vector]
    """Equal labels: what the facts say and what followed from it."""
    frozen: tuple[tuple[int, ...], ...] = ()
    """Choices made, step by step: a label for each channel that was kept by choice."""

    @property
    def zero(self) -> int:
        return int(self.root[0])

    def roots(self, value: str, axis: int) -> NDArray[np.int64]:
        return self.root[self.facts.axes[value][axis]]

    @cached_property
    def vectors(self) -> list[tuple[NDArray[np.int64], list[tuple[str, int]]]]:
        """Distinct label vectors that may shrink, and the axes that carry them."""
        seen: dict[int, tuple[Vector, list[tuple[str, int]]]] = {}
        for value, axes in self.facts.axes.items():
            for k, v in enumerate(axes):
                if id(v) not in seen:
                    seen[id(v)] = (v, [])
                seen[id(v)][1].append((value, k))
        out = []
        for v, where in seen.values():
            r = self.root[v]
            if (r != self.zero).any():
                out.append((r, where))
        return out


def stacked(parts: Sequence[Vector]) -> Vector:
    """Label vectors behind one another."""
    return np.concatenate(parts) if parts else np.zeros(0, np.int64)


def _close(labels: Labels, a: Vector, b: Vector) -> tuple[NDArray[np.int64], Vector, Vector]:
    """Components, then what conjunctions imply, until nothing new follows (two or three rounds)."""
    x, p, q = stacked(labels.both), stacked(labels.both_a), stacked(labels.both_b)
    while True:
        r = components(labels.count, a, b)
        if not len(x):
            return r, a, b
        zero = r[0]
        rx, rp, rq = r[x], r[p], r[q]
        new: list[tuple[Vector, Vector]] = []
        true = rx == zero  # both parts of what is always kept are always kept
        null = np.zeros(int(true.sum()), np.int64)
        new += [(p[true], null), (q[true], null)]
        for m, other in ((rp == zero, q), (rq == zero, p), (rp == rq, q)):
            new.append((x[m], other[m]))  # true AND b is b; b AND b is b
        live = (rp != zero) & (rq != zero)
        order = np.lexsort((np.arange(len(x)), rx))
        order = order[live[order]]
        if len(order) > 1:  # x = p AND q = p' AND q': the parts agree
            i, j = order[1:], order[:-1]
            m = rx[i] == rx[j]
            new += [(p[i][m], p[j][m]), (q[i][m], q[j][m])]
        own = ((rx == rp) | (rx == rq)) & (rp != rq) & live
        new.append((p[own], q[own]))  # x = x AND q: coarser, never wrong
        na, nb = stacked([u for u, _ in new]), stacked([v for _, v in new])
        fresh = r[na] != r[nb]
        if not fresh.any():
            return r, a, b
        a, b = np.concatenate([a, na[fresh]]), np.concatenate([b, nb[fresh]])


def solve(facts: Facts) -> Solution:
    """Solve what a walk has stated."""
    labels = facts.labels
    fixed = stacked([p.labels for p in labels.pins])
    a = np.concatenate([stacked(labels.same_a), fixed])
    b = np.concatenate([stacked(labels.same_b), np.zeros(len(fixed), np.int64)])
    if len(a) > 100_000:
        a, b = distinct_pairs(a, b)
    root, a, b = _close(labels, a, b)
    return Solution(facts, root, (a, b))


def freeze(s: Solution, step: Sequence[int]) -> Solution:
    """Keep the channels that these labels stand for, and solve again."""
    chosen = np.unique(s.root[np.asarray(step, np.int64)])
    held = np.nonzero(np.isin(s.root, chosen))[0]
    a = np.concatenate([s.edges[0], held])
    b = np.concatenate([s.edges[1], np.zeros(len(held), np.int64)])
    root, a, b = _close(s.facts.labels, a, b)
    return Solution(s.facts, root, (a, b), (*s.frozen, tuple(step)))


@dataclass(frozen=True)
class Choice:
    """Channels that split in two ways: whole outer units (heads) or the same inner ones (dims)."""

    outer: NDArray[np.int64]
    inner: NDArray[np.int64]
    """Roots of the two sides."""


def choices(s: Solution) -> list[Choice]:
    """Conjunctions with two free parts, innermost first: one side of each must be frozen."""
    labels = s.facts.labels
    p, q = s.root[stacked(labels.both_a)], s.root[stacked(labels.both_b)]
    live = (p != s.zero) & (q != s.zero) & (p != q)
    if not live.any():
        return []
    p, q = p[live], q[live]
    n = int(s.root.max()) + 1
    comp = components(2 * n, p, n + q)
    outs, ins = np.unique(p), np.unique(q)
    both = np.intersect1d(outs, ins)
    found = []
    for c in np.unique(comp[outs]):
        outer, inner = outs[comp[outs] == c], ins[comp[n + ins] == c]
        found.append((Choice(outer, inner), bool(np.isin(inner, both).any())))
    plain = [c for c, nested in found if not nested]
    return plain or [found[0][0]]  # nested ones wait until what is inside them is decided


def labels_of(s: Solution, roots: NDArray[np.int64]) -> tuple[int, ...]:
    """One label for each root, for freezing."""
    first = np.full(int(s.root.max()) + 1, -1, np.int64)
    first[s.root[::-1]] = np.arange(len(s.root))[::-1]
    return tuple(int(v) for v in first[roots])


def groups(s: Solution) -> list[Group]:
    """Channels in families: those that live in exactly the same axes."""
    rng = np.random.default_rng(0)
    size = int(s.root.max()) + 1
    mark = np.zeros(size, np.uint64)
    for r, _ in s.vectors:
        mark[r] = mark[r] + np.uint64(rng.integers(1, 1 << 62))  # once, however often r has it
    mark[s.zero] = 0
    channels = np.nonzero(mark)[0]
    keys, family = np.unique(mark[channels], return_inverse=True)
    del keys
    of = np.full(size, -1, np.int64)
    of[channels] = family
    n = int(family.max()) + 1 if len(family) else 0
    carriers: list[list[tuple[str, int, NDArray[np.int64]]]] = [[] for _ in range(n)]
    for r, where in s.vectors:
        for f in np.unique(of[r]):
            if f >= 0:
                carriers[f] += [(value, k, r) for value, k in where]
    roles = _roles(s)
    out: list[Group] = []
    trace, consts = s.facts.trace, s.facts.model.constants
    made = []
    for f in range(n):
        first_seen = carriers[f][0][2]
        order = np.full(size, -1, np.int64)
        ordered = first_seen[of[first_seen] == f]
        _, at = np.unique(ordered, return_index=True)
        ordered = ordered[np.sort(at)]
        order[ordered] = np.arange(len(ordered))
        members = []
        for value, k, r in carriers[f]:
            weight = value in consts or value in s.facts.derived or _is_born(s.facts, value)
            if weight and trace.types.get(value) in WEIGHT_TYPES:
                role = _role(roles.get(value, ()), r, of, f)
                members.append(Member(value, k, role, order[r]))
        # parts of a shared vector that nothing reads are no channels
        read = any(value not in consts for value, _, _ in carriers[f])
        if not members or not (read or any(m.role != "follows" for m in members)):
            continue
        values = tuple(dict.fromkeys(value for value, _, _ in carriers[f]))
        made.append((ordered, tuple(members), values))
    for ordered, found, values in made:
        out.append(Group(len(out), _name(s.facts, found), ordered, found, values))
    return out


def _is_born(facts: Facts, value: str) -> bool:
    node = facts.model.producer.get(value)
    return node is not None and node.op == "ConstantOfShape" and value in facts.constant


def _roles(s: Solution) -> dict[str, list[tuple[str, NDArray[np.int64]]]]:
    out: dict[str, list[tuple[str, NDArray[np.int64]]]] = {}
    for role in s.facts.roles:
        out.setdefault(role.constant, []).append((role.role, s.root[role.labels]))
    return out


def _role(
    roles: Sequence[tuple[str, NDArray[np.int64]]], r: NDArray[np.int64], of: Vector, f: int
) -> str:
    mine = r[of[r] == f][:1]
    for role, labels in roles:
        if len(mine) and (labels == mine[0]).any():
            return role
    return "follows"


def _name(facts: Facts, members: Sequence[Member]) -> str:
    """A group is called after the weight that creates its channels."""
    best = next((m for m in members if m.role == "creates"), members[0])
    return facts.model.in_file(best.value)
