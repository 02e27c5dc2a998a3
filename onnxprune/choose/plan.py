"""The plan: which channels of which model stay. Final, checked, and enough to do it again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto

from onnxprune.axes.solve import Group
from onnxprune.axes.view import View
from onnxprune.choose.reading import Reader
from onnxprune.errors import Unreadable
from onnxprune.graph.model import Constant

SCHEMA = "onnxprune/plan/1"


@dataclass(frozen=True, slots=True)
class KeptChannels:
    """A group, and the sorted indices of its channels that stay."""

    id: int
    name: str
    channels: int
    kept: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TensorCut:
    """A stored weight that shrinks: per axis the sorted indices that stay.

    `nodes` is empty unless nodes that share the tensor cut it in different ways; then it says
    which of them this is for.
    """

    name: str
    shape: tuple[int, ...]
    kept: Mapping[int, tuple[int, ...]]
    nodes: tuple[str, ...] = ()


BIASED = frozenset(("Conv", "ConvTranspose", "Gemm", "FusedConv", "FusedGemm"))
"""Operators with a bias for third input."""


@dataclass(frozen=True, slots=True)
class AddedBias:
    """A bias that repair gave to a node that had none: the new tensor's name."""

    node: str
    tensor: str


@dataclass(frozen=True, slots=True)
class Analysis:
    """What the same groups follow from: choices made, and sizes that the user gave."""

    whole_groups: bool = False
    frozen: tuple[tuple[int, ...], ...] = ()
    """`Solution.frozen`: heads or dims, step by step."""
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """What `onnxprune apply` replays. The groups' kept channels rule; `tensors` follow from them
    and are there for scripts that cut a checkpoint of their own.
    """

    fingerprint: str
    """Of the model that it is for: `graph.files.fingerprint`."""
    groups: tuple[KeptChannels, ...]
    analysis: Analysis = Analysis()
    tensors: tuple[TensorCut, ...] = ()
    biases: tuple[AddedBias, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    """As they were given: JSON values by option name."""
    search: Mapping[str, Any] = field(default_factory=dict)
    """How the kept channels were found: what was tried and measured. Nothing is read from it."""

    @property
    def kept(self) -> dict[int, tuple[int, ...]]:
        """Kept channels by group id, for `View.of`."""
        return {g.id: g.kept for g in self.groups}


def plan_of(
    view: View,
    groups: Sequence[Group],
    kept: Mapping[int, ArrayLike],
    fingerprint: str,
    *,
    whole_groups: bool = False,
    options: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
    slim: ModelProto | None = None,
) -> Plan:
    """The plan of a view: `kept` is what the view was made of, `slim` the model that came of it."""
    binding = view.facts.trace.binding
    return Plan(
        fingerprint,
        tuple(
            KeptChannels(
                g.id, g.name, g.size,
                tuple(np.asarray(kept.get(g.id, np.arange(g.size)), np.int64).tolist()),
            )
            for g in groups
        ),
        Analysis(
            whole_groups, view.solution.frozen, dict(binding.fixed),
            {name: tuple(shape) for name, shape in binding.shapes.items()},
        ),
        tensor_cuts(view),
        () if slim is None else _added_biases(view, slim),
        dict(options or {}),
        dict(search or {}),
    )  # fmt: skip


def _added_biases(view: View, slim: ModelProto) -> tuple[AddedBias, ...]:
    """Third inputs of SLIM's nodes where the original's have none."""
    bare = {
        n.output[0] for n in view.facts.model.proto.graph.node
        if n.output and not any(n.input[2:3])
    }  # fmt: skip
    return tuple(
        AddedBias(n.name or n.output[0], n.input[2])
        for n in slim.graph.node
        if n.op_type in BIASED and n.output[0] in bare and any(n.input[2:3])
    )


def tensor_cuts(view: View) -> tuple[TensorCut, ...]:
    """Every weight of the file that shrinks, by the name that it has there."""
    model, facts = view.facts.model, view.facts
    uses: dict[object, list[Constant]] = {}
    for c in model.constants.values():
        if c.value in facts.axes:
            uses.setdefault((c.site, c.is_node), []).append(c)
    out = []
    for same in uses.values():
        ways: dict[bytes, list[Constant]] = {}
        for c in same:
            ways.setdefault(b"".join(m.tobytes() for m in view.masks(c.value)), []).append(c)
        for alike in ways.values():
            c = alike[0]
            if view.shrinks(c.value):
                labels = [n.label for d in alike for n, _ in model.uses.get(d.value, ())]
                nodes = tuple(dict.fromkeys(labels)) if len(ways) > 1 else ()
                out.append(TensorCut(c.name, c.dims, _kept_axes(view, c.value), nodes))
    for value in sorted(facts.derived):
        if view.shrinks(value):
            name, shape = model.in_file(value), facts.trace.shapes[value]
            out.append(TensorCut(name, shape, _kept_axes(view, value)))
    return tuple(out)


def _kept_axes(view: View, value: str) -> dict[int, tuple[int, ...]]:
    masks = enumerate(view.masks(value))
    return {k: tuple(np.flatnonzero(m).tolist()) for k, m in masks if not m.all()}


def check_plan(plan: Plan, fingerprint: str, groups: Sequence[Group]) -> None:
    """Raise Unreadable unless a plan is for this model and these are its groups."""
    if plan.fingerprint != fingerprint:
        raise Unreadable(
            "the plan is for another model",
            why=f"its fingerprint is {plan.fingerprint[:12]}..., the model's {fingerprint[:12]}...",
            hint="apply it to the file that it was made from, byte for byte",
        )
    known = {g.id: g for g in groups}
    for p in plan.groups:
        g = known.get(p.id)
        if g is None or (g.name, g.size) != (p.name, p.channels):
            found = "there is none" if g is None else f"here it is '{g.name}' with {g.size}"
            raise Unreadable(
                "the plan's groups are not the model's",
                where=f"group {p.id} '{p.name}' with {p.channels} channels", why=found,
                hint="was it edited, or made by another version of onnxprune?",
            )  # fmt: skip


def check_tensors(plan: Plan, view: View) -> None:
    """Raise Unreadable if a plan's tensors do not follow from its groups."""
    ours = {(t.name, t.nodes): t for t in tensor_cuts(view)}
    theirs = {(t.name, t.nodes): t for t in plan.tensors}
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            raise Unreadable(
                "the plan contradicts itself", where=f"tensor '{key[0]}'",
                why="its kept indices do not follow from the kept channels of the groups",
                hint="only the groups decide; make the plan again rather than edit its tensors",
            )  # fmt: skip


def to_json(plan: Plan) -> str:
    """A plan as JSON, a line per group and tensor."""
    data = asdict(plan)
    lists = {key: data.pop(key) for key in ("groups", "tensors", "biases")}
    options, search = data.pop("options"), data.pop("search")
    parts = [f'"schema": {json.dumps(SCHEMA)}']
    parts += [f"{json.dumps(k)}: {json.dumps(v)}" for k, v in data.items()]
    for key, rows in lists.items():
        lines = ",\n    ".join(json.dumps(row) for row in rows)
        parts.append(f'"{key}": [\n    {lines}\n  ]' if rows else f'"{key}": []')
    parts.append(f'"options": {json.dumps(options)}')
    if search:
        parts.append(f'"search": {json.dumps(search)}')
    return "{\n  " + ",\n  ".join(parts) + "\n}\n"


def from_json(text: str, where: str = "the plan") -> Plan:
    """A plan from JSON; raises Unreadable with the place and what is wrong there."""
    try:
        data = json.loads(text)
    except ValueError as error:
        raise Unreadable("the plan is not JSON", where=where, why=str(error)) from None
    top = Reader(data, where)
    schema = top.text("schema")
    if schema != SCHEMA:
        why = f"its schema is '{schema}', not '{SCHEMA}'"
        raise Unreadable("not a plan that this version reads", where=where, why=why)
    groups = tuple(_group(r) for r in top.rows("groups"))
    if len({g.id for g in groups}) != len(groups):
        raise Unreadable("the plan names a group twice", where=where)
    analysis = top.table("analysis")
    return Plan(
        top.text("fingerprint"),
        groups,
        Analysis(
            analysis.boolean("whole_groups"),
            tuple(analysis.lists("frozen")),
            {k: analysis.table("dims").integer(k) for k in analysis.table("dims").keys},
            {k: analysis.table("shapes").integers(k) for k in analysis.table("shapes").keys},
        ),
        tuple(_tensor(r) for r in top.rows("tensors")),
        tuple(AddedBias(r.text("node"), r.text("tensor")) for r in top.rows("biases")),
        dict(top.table("options").data),
        dict(top.table("search").data) if "search" in top.keys else {},
    )


def read_plan(path: Path) -> Plan:
    """A plan from a file.

    Raises:
        Unreadable: there is no such file, or it is no plan.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise Unreadable("the plan can't be read", where=str(path), why=str(e)) from e
    return from_json(text, str(path))


def _group(r: Reader) -> KeptChannels:
    channels = r.integer("channels")
    kept = r.indices("kept", channels)
    return KeptChannels(r.integer("id"), r.text("name"), channels, kept)


def _tensor(r: Reader) -> TensorCut:
    shape, table, kept = r.integers("shape"), r.table("kept"), {}
    for key in table.keys:
        if not key.isdecimal() or int(key) >= len(shape):
            raise table.wrong(key, f"an axis below {len(shape)}")
        kept[int(key)] = table.indices(key, shape[int(key)])
    return TensorCut(r.text("name"), shape, kept, r.texts("nodes"))
