"""Profiles of several models on the layers of their files: where the time went, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from onnxprune.bench.data import LayerRow
from onnxprune.bench.fused import Names, Ran, names_of, ran
from onnxprune.bench.models import Contestant, Work
from onnxprune.bench.reasons import Side, reasons
from onnxprune.runtime.placement import NodeTime

ADDED = "(added: {})"
"""The layer of what ONNX Runtime added with an operator: layout changes, casts."""

_NOTABLE = 0.01
"""Share of a model's time from which a layer deserves a reason."""


@dataclass(frozen=True, eq=False)
class Profiled:
    """A model, what it has to do, and what it spent on that."""

    name: str
    names: Names
    work: Mapping[str, Work]
    ran: Sequence[Ran]


def profiled(
    contestant: Contestant, work: Mapping[str, Work], events: Sequence[NodeTime]
) -> Profiled:
    """A model's profile on its file's nodes."""
    names = names_of(contestant)
    return Profiled(contestant.name, names, work, ran(events, names, work))


def layer_rows(models: Sequence[Profiled], provider: str) -> tuple[LayerRow, ...]:
    """Layers in the order of the first model, joined with those of the others.

    What is fused in one model and not in another is one layer in both; what ONNX Runtime added
    (layout changes, casts) comes last, by operator.
    """
    number: dict[str, int] = {}
    edges = [
        (number.setdefault(_parts_of(r)[0], len(number)), number.setdefault(part, len(number)))
        for model in models for r in model.ran for part in _parts_of(r)
    ]  # fmt: skip
    pairs = np.array(edges, int).reshape(-1, 2).T
    graph = coo_array((np.ones(pairs.shape[1]), tuple(pairs)), shape=(len(number), len(number)))
    component = connected_components(graph, directed=False)[1]
    members: dict[int, list[str]] = {}
    for part, k in number.items():
        members.setdefault(int(component[k]), []).append(part)
    layers: dict[int, dict[str, list[Ran]]] = {}
    for model in models:
        for r in model.ran:
            layer = layers.setdefault(int(component[number[_parts_of(r)[0]]]), {})
            layer.setdefault(model.name, []).append(r)
    totals = {m.name: sum(r.ms for r in m.ran) for m in models}
    rows = [_row(found, members[k], models, totals, provider) for k, found in layers.items()]
    added = {ADDED.format(r.event.op) for model in models for r in model.ran if not r.parts}
    return tuple(sorted(rows, key=lambda row: row.name in added))


def _parts_of(r: Ran) -> tuple[str, ...]:
    """Nodes of the file, or what stands for all that were added with one operator."""
    return r.parts or (ADDED.format(r.event.op),)


def _row(
    found: Mapping[str, Sequence[Ran]],
    parts: Sequence[str],
    models: Sequence[Profiled],
    totals: Mapping[str, float],
    provider: str,
) -> LayerRow:
    works = {m.name: [m.work[p] for p in parts if p in m.work] for m in models}
    macs = {name: sum(w.macs for w in terms) for name, terms in works.items() if terms}
    main = {name: max(terms, key=lambda w: w.macs) for name, terms in works.items() if terms}
    ms = {name: sum(r.ms for r in rs) for name, rs in found.items()}
    first = models[0]
    if main:
        node = next(iter(main.values())).node
        name, op = node.label, node.op
    else:
        name, op = parts[0], next(iter(found.values()))[0].event.op
        known = [m.names.by_output[name] for m in models if name in m.names.by_output]
        name = known[0].name if known and known[0].name else name
    widths = {m: w.widths for m, w in main.items()}
    why: list[str] = []
    for model in models[1:]:
        notable = ms.get(first.name, 0) >= _NOTABLE * totals[first.name]
        if notable and model.name in ms and first.name in macs and macs.get(model.name):
            why += reasons(
                Side(ms[first.name], macs[first.name], widths[first.name], found[first.name]),
                Side(ms[model.name], macs[model.name], widths[model.name], found[model.name]),
                provider,
            )
    return LayerRow(name, op, ms, macs, widths, tuple(dict.fromkeys(why)))
