"""Small images of what stayed and what went: first filters, weight maps, kept channels.

Bytes, not images: whoever draws them picks the colours. A few kilobytes a weight, at most
`FILTERS` + `MAPS` of them, and only when a report that shows them is asked for.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group
from onnxprune.axes.view import View
from onnxprune.choose.rows import real_values
from onnxprune.graph.model import Node

FILTERS = 2
"""Layers of filters that are shown."""
EACH = 64
"""Filters that are shown of those that stayed, and of those that went."""
LARGEST = 32
"""Height and width up to which a filter is shown."""
MAPS = 12
"""Weight maps that are shown."""
CELLS = 48
"""Rows and columns of a map."""
SMALLEST = 4
"""Channels on both sides from which a map is worth a look."""


def pictures(view: View, groups: Sequence[Group]) -> dict[str, Any]:
    """What of a model is worth seeing, as the report carries it (key `pictures`)."""
    layers = list(_layers(view.facts))
    seeing = [x for x in layers if _sees_an_image(x, view.facts)]
    shrinking = [x for x in layers if _has_map(x, view)]
    spread = np.linspace(0, len(shrinking) - 1, min(MAPS, len(shrinking))).round().astype(int)
    return {
        "kept": {str(g.id): _bits(view.keep[g.roots]) for g in groups},
        "filters": [_filters(x, view) for x in seeing[:FILTERS]],
        "maps": [_map(shrinking[k], view) for k in spread.tolist()],
    }


@dataclass(frozen=True)
class _Layer:
    """A node that multiplies with a weight, and the axes of the channels that the weight creates
    and contracts (None where it contracts but one).
    """

    node: Node
    weight: str
    out: int
    into: int | None


def _layers(facts: Facts) -> Iterator[_Layer]:
    role = {id(r.labels): r.role for r in facts.roles}
    seen = set()
    for work in facts.work:
        for weight in work.node.inputs[1:]:
            if weight in seen or weight not in facts.constant:
                continue
            roles = [role.get(id(labels)) for labels in facts.axes.get(weight, ())]
            if "creates" in roles:
                seen.add(weight)
                into = roles.index("contracts") if "contracts" in roles else None
                yield _Layer(work.node, weight, roles.index("creates"), into)


def _sees_an_image(x: _Layer, facts: Facts) -> bool:
    """Are these filters of one or three channels, and no depthwise ones?"""
    shape = facts.trace.shapes[x.weight]
    small = len(shape) == 4 and all(1 < s <= LARGEST for s in shape[2:])
    return small and x.out == 0 and shape[1] in (1, 3) and x.node.attrs.get("group", 1) == 1


def _filters(x: _Layer, view: View) -> dict[str, Any]:
    """Filters (n, height, width, channels), the strongest first: those that stayed, then the rest.

    128 is zero; each filter fills the range on its own.
    """
    w = real_values(x.weight, view.facts).astype(np.float32)
    strength = (w * w).sum((1, 2, 3))
    kept = view.kept(x.weight, 0)
    stay, go = (np.nonzero(m)[0] for m in (kept, ~kept))
    stay, go = (k[np.argsort(-strength[k], kind="stable")] for k in (stay, go))
    shown = w[np.concatenate([stay[:EACH], go[:EACH]])].transpose(0, 2, 3, 1)
    peak = np.abs(shown).max(axis=(1, 2, 3), keepdims=True)
    return {
        **_named(x, view.facts),
        "kept": len(stay),
        "removed": len(go),
        "shown": [len(stay[:EACH]), len(go[:EACH])],
        "shape": list(shown.shape),
        "data": _bytes(128 + 127 * shown / np.maximum(peak, 1e-30)),
    }


def _has_map(x: _Layer, view: View) -> bool:
    shape = view.facts.trace.shapes[x.weight]
    wide = x.into is not None and min(shape[x.out], shape[x.into]) >= SMALLEST
    return wide and view.shrinks(x.weight)


def _map(x: _Layer, view: View) -> dict[str, Any]:
    """Root mean squares of a weight, output channels (rows) by input channels (columns).

    Both axes are ordered: what stays, the strongest first, then what goes. So the slim weight is
    the upper left corner, `kept` says where it ends.
    """
    assert x.into is not None
    w = real_values(x.weight, view.facts).astype(np.float32)
    power = np.moveaxis(w * w, (x.out, x.into), (0, 1))
    power = power.reshape(*power.shape[:2], -1).mean(axis=2)
    masks = view.kept(x.weight, x.out), view.kept(x.weight, x.into)
    ends = []
    for axis, keep in enumerate(masks):
        order = np.lexsort((-power.sum(1 - axis), ~keep))
        starts, end = _cells(int(keep.sum()), len(keep))
        count = np.diff([*starts, len(keep)])
        power = np.add.reduceat(np.take(power, order, axis), starts, axis)
        power = power / (count[:, None] if axis == 0 else count)
        ends.append(end)
    rms = np.sqrt(power)
    return {
        **_named(x, view.facts),
        "rows": [int(masks[0].sum()), len(masks[0])],
        "columns": [int(masks[1].sum()), len(masks[1])],
        "shape": list(rms.shape),
        "kept": ends,
        "data": _bytes(255 * rms / max(float(rms.max()), 1e-30)),
    }


def _cells(kept: int, size: int) -> tuple[NDArray[np.int64], int]:
    """Where the cells of an axis start, and how many hold what is kept: none holds both."""
    cells = min(CELLS, size)
    mine = min(max(1, round(cells * kept / size)), cells - (kept < size))
    starts = [np.arange(mine) * kept // mine]
    if kept < size:
        starts.append(kept + np.arange(cells - mine) * (size - kept) // (cells - mine))
    return np.concatenate(starts), mine


def _named(x: _Layer, facts: Facts) -> dict[str, str]:
    return {"layer": x.node.label, "op": x.node.op, "weight": facts.model.in_file(x.weight)}


def _bytes(values: NDArray[np.floating]) -> str:
    return b64encode(values.round().astype(np.uint8).tobytes()).decode("ascii")


def _bits(keep: NDArray[np.bool_]) -> str:
    """A bit a channel, 1 where it is kept; the first is the highest bit of the first byte."""
    return np.packbits(keep).tobytes().hex()
