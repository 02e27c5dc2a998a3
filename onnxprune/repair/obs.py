"""Block OBS: what is lost when a channel goes and all that stay make up for it.

For a layer with inputs u, weights W and H = (E[u u'] + ridge)^-1, removing the rows P of a channel
(its taps as one block) and refitting the rest costs

    tr(W_P' (H_PP)^-1 W_P),

after which W -= H_:P H_PP^-1 W_P and H -= H_:P H_PP^-1 H_P: . Channels go greedily, the cheapest
first; a group's cost is summed over all its consumers, each relative to the energy of what its
output ends in: the sum behind it, after the activation. That makes losses comparable across groups.
(Hassibi & Stork 1993; Frantar & Alistarh 2022, "Optimal Brain Compression"; OSSCAR, ZipLM.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np
from numpy.typing import NDArray
from scipy.linalg.lapack import dpotrf, dpotri

from onnxprune.axes.rules import ELEMENTWISE
from onnxprune.axes.solve import Group, Solution
from onnxprune.axes.view import View
from onnxprune.repair.consumers import Consumer, Target, layers, taps_of, target
from onnxprune.repair.fits import fold_of
from onnxprune.repair.jobs import LARGEST
from onnxprune.repair.moments import Moments
from onnxprune.repair.normal import weight_rows
from onnxprune.repair.rewrite import read_matrix
from onnxprune.repair.stream import Feeds
from onnxprune.repair.taps import (
    at_places,
    draw_places,
    groups_of,
    in_groups,
    places_per_map,
    rows_read,
)
from onnxprune.runtime.session import open_session

Array = NDArray[np.float64]
_RIDGE = 1e-2
_PART = 4
"""Every so manyth channel goes to see how well a refit does on samples that it has not seen."""
_SURE = 1e-6
"""Share of a layer's power below which an error is rounding."""
_STEPS = 96
"""Rounds in which a group's channels go; a large group loses several at a time."""


@dataclass(eq=False)
class _Layer:
    """A layer's inverse moments and refitted weights, downdated as channels go."""

    h: Array
    w: Array
    share: float
    """1 / the energy of what its output ends in."""
    unseen: float
    """See `_unseen`."""


@dataclass(frozen=True, eq=False)
class _Read:
    """A layer that reads channels of prunable groups."""

    layer: Consumer
    target: Target
    energy: str
    """The value whose energy its losses are relative to."""
    groups: int
    columns: NDArray[np.int64] | None = None
    """(channels, taps) of a layer that reads more columns than moments are affordable of: one set
    of moments stands for all taps then, as if others made up for a channel tap by tap.
    """

    @property
    def values(self) -> list[str]:
        return [self.layer.pooled or self.layer.data, self.layer.out, self.energy]


@dataclass(frozen=True, eq=False)
class _Seen:
    """What a layer reads and gives on samples to learn from, and on others to judge by."""

    fit: Moments
    held: Moments
    total: float
    """Energy of what its output ends in, summed over rows and channels."""

    @cached_property
    def all(self) -> Moments:
        return self.fit.plus(self.held)

    @property
    def energy(self) -> float:
        """Of what its output ends in, summed over channels."""
        return self.total / max(1, self.all.rows)


@dataclass(frozen=True, eq=False)
class Losses:
    """What channels lose, by group id; groups without a layer that can be followed are not in it.

    `by_group` has for each channel, (channels,), the loss at which it goes, never falling. `unseen`
    says how many times worse refits of the layers that read a group do on samples they have not
    seen, the mean over what these layers lose.
    """

    by_group: dict[int, Array]
    unseen: dict[int, float]


def obs_scores(
    solution: Solution,
    groups: Sequence[Group],
    batches: Sequence[Feeds],
    most: float,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
    memory: int = 2_000_000_000,
) -> Losses:
    """Rank the channels of these groups, the cheapest going first.

    Channels beyond the share `most` are not ordered against each other: they stay longest. `memory`
    bounds the moments, in bytes: beyond it the samples are run again.
    """
    facts = solution.facts
    channel_of = {int(r): (g.id, k) for g in groups for k, r in enumerate(g.roots)}
    places: dict[Consumer, dict[int, NDArray[np.int64]]] = {}
    found = []
    for r in _reads(solution):
        roots = solution.roots(r.layer.data, _axis(r.layer, solution))
        if r.columns is not None and not r.layer.is_conv:
            roots = roots[r.columns[:, 0]]
        owners = [channel_of.get(int(x), (-1, -1)) for x in roots]
        places[r.layer] = {
            owner: np.array([k if o == owner else -1 for o, k in owners])
            for owner in sorted({o for o, _ in owners} - {-1})
        }
        if places[r.layer]:
            found.append(r)
    parts: dict[int, list[tuple[_Layer, NDArray[np.int64]]]] = {g.id: [] for g in groups}
    tell("looking at what each layer reads")
    for reads in _passes(found, solution, memory):
        stats = _statistics(solution, reads, batches, seed)
        for r in reads:
            if stats[r].all.finite and np.isfinite(stats[r].energy):
                taps = taps_of(r.layer, facts) if r.columns is None else 1
                for k, layer in enumerate(_layers(r, stats[r], solution)):
                    for owner, of in places[r.layer].items():
                        mine = of.reshape(r.groups, -1)[k]
                        if (mine >= 0).any():
                            own = _own(layer, places[r.layer])
                            parts[owner].append((own, np.repeat(mine, taps)))
    out = Losses({}, {})
    for g in groups:
        if parts[g.id]:
            tell(f"ranking {g.name}")
            readers = parts.pop(g.id)
            out.unseen[g.id] = _mean_unseen(readers, g.size)
            out.by_group[g.id] = _greedy(readers, g.size, int(np.ceil(g.size * most)))
    return out


def _mean_unseen(parts: Sequence[tuple[_Layer, NDArray[np.int64]]], size: int) -> float:
    """Over the layers that read a group, by what each loses."""
    if len(parts) == 1:
        return parts[0][0].unseen
    alive = np.ones(size, bool)
    lost = []
    for layer, of in parts:
        rows = [np.nonzero(of == j)[0] for j in range(size)]
        lost.append(layer.share * float(_costs(layer, rows, alive).sum()))
    factors = [layer.unseen for layer, _ in parts]
    return float(np.average(factors, weights=lost if sum(lost) > 0 else None))


def _own(layer: _Layer, shared: dict[int, NDArray[np.int64]]) -> _Layer:
    """A layer that one group may downdate: a copy where several groups are read by it."""
    if len(shared) == 1:
        return layer
    return _Layer(layer.h.copy(), layer.w.copy(), layer.share, layer.unseen)


def _reads(s: Solution) -> list[_Read]:
    """Layers that contract channels, and are small enough to solve for."""
    view, found = View.of(s, (), {}), []
    for c in layers(s.facts):
        shape = s.facts.trace.shapes
        inputs = shape[c.data][_axis(c, s)]
        groups = groups_of(inputs, c, shape[c.weight]) if c.is_conv else 1
        size = inputs // groups * taps_of(c, s.facts) + 1
        if inputs <= groups:
            continue  # a depthwise layer contracts nothing
        columns = None
        if size > LARGEST:
            of = np.unique(s.roots(c.data, _axis(c, s)), return_inverse=True)[1]
            columns = weight_rows(c, s.facts, np.arange(inputs) if c.is_conv else of)
            if groups > 1 or columns is None or len(columns) > LARGEST:
                continue
        t = target(c, view)
        found.append(_Read(c, t, _end(t.end, s), groups, columns))
    return found


def _axis(c: Consumer, s: Solution) -> int:
    return 1 if c.is_conv else len(s.facts.axes[c.data]) - 1


def _end(value: str, s: Solution) -> str:
    """Follow a value through activations that alone read it."""
    model = s.facts.model
    while True:
        users = model.uses.get(value, [])
        if len(users) != 1 or value in model.graph.outputs:
            return value
        node = users[0][0]
        plain = (node.domain, node.op) in ELEMENTWISE and len(node.inputs) == 1
        if not plain or node.site.path:
            return value
        value = node.outputs[0]


def _passes(found: Sequence[_Read], s: Solution, memory: int) -> Iterator[list[_Read]]:
    """Layers in runs whose moments fit into memory together."""
    mine: list[_Read] = []
    used = 0
    for r in found:
        inputs = s.facts.trace.shapes[r.layer.data][_axis(r.layer, s)] // r.groups
        size = inputs * taps_of(r.layer, s.facts) if r.columns is None else len(r.columns)
        need = 8 * r.groups * (size + 1) ** 2 * 3
        if mine and used + need > memory:
            yield mine
            mine, used = [], 0
        mine.append(r)
        used += need
    if mine:
        yield mine


def _statistics(
    s: Solution, found: Sequence[_Read], batches: Sequence[Feeds], seed: int
) -> dict[_Read, _Seen]:
    """What each layer reads and gives in the original, in one pass."""
    facts, model = s.facts, s.facts.model
    stats: dict[_Read, tuple[Moments, Moments]] = {}
    energy = dict.fromkeys(found, 0.0)
    count = places_per_map(batches)
    weights = {
        r: read_matrix(model.array(model.constants[r.layer.weight]), r.layer)
        for r in found if r.layer.pooled
    }  # fmt: skip
    values = sorted({v for r in found for v in r.values})
    names = [model.in_file(v) for v in values]
    inputs = {i.name for i in model.proto.graph.input}
    outputs = {o.name for o in model.proto.graph.output}
    asked = [n for n in dict.fromkeys(names) if n not in inputs]
    extra = [n for n in asked if n not in outputs]
    with open_session(
        model.proto, optimise=True, extra_outputs=extra, folder=model.source.folder
    ) as session:
        for k, feeds in enumerate(batches):
            got = {**feeds, **session.run(feeds, asked)}
            for r in found:
                c, shape = r.layer, facts.trace.shapes[r.layer.weight]
                x, y = got[model.in_file(c.pooled or c.data)], got[model.in_file(c.out)]
                end = got[model.in_file(r.energy)]
                places: list[NDArray[np.int64]] = []
                rows = y.reshape(-1, y.shape[-1])
                if c.pooled:
                    rows = np.moveaxis(x, 1, -1).reshape(-1, x.shape[1]) @ weights[r]
                if c.is_conv:
                    rng = np.random.default_rng([seed, c.order, k])
                    taps_each = 1 if r.columns is None else r.columns.shape[1]
                    places = draw_places(y.shape, max(1, count // taps_each), rng)
                    rows = at_places(y, places)
                taps, rows = rows_read(x, c, shape, places), in_groups(rows, r.groups)
                if r.columns is not None:
                    taps, rows = _tap_by_tap(taps, r.columns)
                if r not in stats:
                    shape_of = partial(Moments, taps.shape[-1] + 1, rows.shape[-1], taps.shape[:-2])
                    stats[r] = shape_of(), shape_of()
                stats[r][fold_of(k, len(batches)) == 0].add(taps, rows)
                channels = y.shape[1] if c.is_conv else y.shape[-1]
                energy[r] += (
                    float(np.mean(np.square(end, dtype=np.float64)))
                    * channels
                    * len(rows if rows.ndim == 2 else rows[0])
                )
    return {r: _Seen(*stats[r], energy[r]) for r in found}


def _tap_by_tap(taps: np.ndarray, columns: NDArray[np.int64]) -> tuple[np.ndarray, np.ndarray]:
    """(rows * taps, channels) of (rows, columns); there are no targets."""
    channels = np.swapaxes(taps[:, columns], 1, 2).reshape(-1, len(columns))
    return channels, np.zeros((len(channels), 1), np.float32)


def _wide_layer(r: _Read, seen: _Seen, s: Solution) -> _Layer:
    """A layer as one of as many outputs as channels: what channels are worth is the same for all
    weights W with the same W W'.
    """
    facts, c, m = s.facts, r.layer, seen.all
    assert r.columns is not None
    w = read_matrix(facts.model.array(facts.model.constants[c.weight]), c)
    scale = np.ones(w.shape[1]) if r.target.scale is None else r.target.scale
    alike = np.zeros((len(r.columns), len(r.columns)))
    for tap in r.columns.T:
        mine = w[tap] * scale.astype(np.float32)
        alike += mine @ mine.T
    values, vectors = np.linalg.eigh(alike)
    root = vectors * np.sqrt(np.maximum(values, 0))
    h = _inverse(m.g / max(1, m.rows))
    return _Layer(h, np.pad(root, ((0, 1), (0, 0))), 1.0 / max(seen.energy, 1e-30), 1.0)


def _held(g: Array) -> Array:
    """(D,) the pull on each row of a layer with these moments, hardly any on the last, the bias."""
    hold = np.full(len(g), _RIDGE * np.trace(g[:-1, :-1]) / max(1, len(g) - 1) + 1e-12)
    hold[-1] = 1e-10
    return hold


def _inverse(g: Array) -> Array:
    """Of moments with their pulls, by the two halves of a Cholesky inverse."""
    half, failed = dpotrf(g + np.diag(_held(g)), lower=True, clean=True)
    if failed:
        raise np.linalg.LinAlgError("moments are not positive")
    lower, _ = dpotri(half, lower=True, overwrite_c=True)
    return np.asarray(lower + lower.T - np.diag(lower.diagonal()))


def _layers(r: _Read, seen: _Seen, s: Solution) -> Iterator[_Layer]:
    """The layer, one for each of its groups, in the units of what its output ends in."""
    if r.columns is not None:
        yield _wide_layer(r, seen, s)
        return
    facts, c, m = s.facts, r.layer, seen.all
    weight = facts.model.array(facts.model.constants[c.weight]).astype(np.float64)
    w0 = read_matrix(weight, c, r.groups).reshape(r.groups, -1, m.outputs)
    w0 = np.concatenate([w0, np.zeros((r.groups, 1, m.outputs))], axis=1)
    scale = np.ones(r.groups * m.outputs) if r.target.scale is None else r.target.scale
    unseen = _unseen(seen, w0.reshape(*m.lead, *w0.shape[1:]), taps_of(c, facts))
    share = 1.0 / max(seen.energy, 1e-30)
    rows = max(1, m.rows)
    for k in range(r.groups):
        g = (m.g if r.groups == 1 else m.g[k]) / rows
        t = (m.r if r.groups == 1 else m.r[k]) / rows
        h = _inverse(g)
        w = h @ (t + _held(g)[:, None] * w0[k])
        yield _Layer(h, w * scale.reshape(r.groups, -1)[k], share, unseen)


def _unseen(seen: _Seen, w0: Array, taps: int) -> float:
    """The error of a refit on samples that it has not seen over that on those it has, at least 1.

    A layer with few rows for each column fits them too well to tell what a channel is worth.
    Measured with every fourth channel gone: it hardly depends on which go, and how many.
    """
    if not (seen.fit.rows and seen.held.rows):
        return 1.0
    channels = (seen.fit.size - 1) // taps
    gone = np.arange(channels) % _PART == min(_PART, channels) - 1
    keep = np.append(np.repeat(~gone, taps), True)
    fit, held = seen.fit.columns(keep), seen.held.columns(keep)
    w = fit.ridge(w0[..., keep, :], _RIDGE)
    least = _SURE * seen.all.t / seen.all.rows
    known, new = (max(m.error(w), 0.0) + least for m in (fit, held))
    return max(1.0, new / known) if known > 0 else 1.0


def _greedy(parts: Sequence[tuple[_Layer, NDArray[np.int64]]], size: int, count: int) -> Array:
    """The loss at which each channel goes, the cheapest going first."""
    scores = np.full(size, np.inf)
    alive = np.ones(size, bool)
    rows = [[np.nonzero(of == j)[0] for j in range(size)] for _, of in parts]
    worst, gone, count = 0.0, 0, min(count, size - 1)
    while gone < count:
        costs = np.zeros(size)
        for (layer, _), mine in zip(parts, rows, strict=True):
            costs += layer.share * _costs(layer, mine, alive)
        costs[~alive] = np.inf
        some = max(1, min(count - gone, size // _STEPS))
        go = np.argsort(costs, kind="stable")[:some].tolist()
        for j in go:
            worst = max(worst, float(costs[j]))
            scores[j] = worst + gone * 1e-12  # in the order in which they go
            alive[j] = False
            gone += 1
        for (layer, _), mine in zip(parts, rows, strict=True):
            _remove(layer, np.concatenate([mine[j] for j in go]))
    rest = ~np.isfinite(scores)
    if rest.any():
        scores[rest] = worst * 2 + 1
    return scores


def _costs(layer: _Layer, rows: Sequence[NDArray[np.int64]], alive: NDArray[np.bool_]) -> Array:
    """tr(W_P' H_PP^-1 W_P) of every channel that is still there."""
    out = np.zeros(len(rows))
    live = [j for j in np.nonzero(alive)[0].tolist() if len(rows[j])]
    sizes: dict[int, list[int]] = {}
    for j in live:
        sizes.setdefault(len(rows[j]), []).append(j)
    for same in sizes.values():  # nearly always one size: solved together
        index = np.array([rows[j] for j in same])
        block = layer.h[index[:, :, None], index[:, None, :]]
        w = layer.w[index]
        block = block + 1e-14 * np.trace(block, axis1=1, axis2=2)[:, None, None] * np.eye(
            index.shape[1]
        )
        out[same] = np.einsum("kbo,kbo->k", w, np.linalg.solve(block, w))
    return out


def _remove(layer: _Layer, rows: NDArray[np.int64]) -> None:
    if not len(rows):
        return
    block = layer.h[np.ix_(rows, rows)]
    across = np.linalg.solve(block + 1e-14 * np.trace(block) * np.eye(len(rows)), layer.h[rows])
    layer.w -= across.T @ layer.w[rows]
    layer.h -= across.T @ layer.h[rows]
    layer.w[rows] = 0
    layer.h[rows] = 0
    layer.h[:, rows] = 0
