"""Block OBS: what is lost when a channel goes and all that stay make up for it.

For a consumer with inputs u, weights W and H = (E[u u'] + ridge)^-1, removing the rows P of a
channel (its taps as one block) and refitting the rest costs

    tr(W_P' (H_PP)^-1 W_P),

after which W -= H_:P H_PP^-1 W_P and H -= H_:P H_PP^-1 H_P: . Channels go greedily, the cheapest
first; a group's cost is summed over all its consumers, each relative to the power of its output.
(Hassibi & Stork 1993; Frantar & Alistarh 2022, "Optimal Brain Compression"; OSSCAR, ZipLM.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

from onnxprune.axes.solve import Group, Solution
from onnxprune.repair.consumers import Consumer, consumers, taps_of
from onnxprune.repair.linear import HELD_OUT, LARGEST, PLACES, Feeds
from onnxprune.repair.moments import Moments
from onnxprune.repair.rewrite import read_matrix
from onnxprune.repair.taps import at_places, conv_taps, draw_places
from onnxprune.runtime.session import open_session

Array = NDArray[np.float64]
_RIDGE = 1e-2


@dataclass(eq=False)
class _Layer:
    """A consumer's inverse moments and refitted weights, downdated as channels go."""

    h: Array
    w: Array
    share: float
    """1 / the power of its output."""


def obs_scores(
    solution: Solution,
    groups: Sequence[Group],
    batches: Sequence[Feeds],
    most: float,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> dict[int, Array]:
    """(channels,) scores by group id: the loss at which each channel goes, never falling.

    Groups without a consumer that can be followed have no entry. Channels beyond the share `most`
    are not ordered against each other: they stay longest.
    """
    facts = solution.facts
    found = [c for c in consumers(facts) if _columns(c, solution) <= LARGEST]
    tell("looking at what each layer reads")
    stats = _statistics(solution, found, batches, seed)
    found = [c for c in found if np.isfinite(stats[c].g).all() and np.isfinite(stats[c].r).all()]
    out: dict[int, Array] = {}
    for g in groups:
        parts = []
        for c in found:
            roots = solution.root[facts.axes[c.weight][c.axis]]
            channel = {int(r): k for k, r in enumerate(g.roots)}
            of = np.array([channel.get(int(r), -1) for r in roots])
            if (of >= 0).any():
                parts.append((_layer(c, stats[c], solution), np.repeat(of, taps_of(c, facts))))
        if parts:
            tell(f"ranking {g.name}")
            out[g.id] = _greedy(parts, g.size, int(np.ceil(g.size * most)))
    return out


def _columns(c: Consumer, s: Solution) -> int:
    return int(s.facts.trace.shapes[c.weight][c.axis]) * taps_of(c, s.facts) + 1


def _statistics(
    s: Solution, found: Sequence[Consumer], batches: Sequence[Feeds], seed: int
) -> dict[Consumer, Moments]:
    """Moments of every consumer's input and output in the original, in one pass."""
    facts, model = s.facts, s.facts.model
    stats: dict[Consumer, Moments] = {}
    for c in found:
        shape = facts.trace.shapes[c.weight]
        stats[c] = Moments(_columns(c, s), shape[0] if c.is_conv or c.axis == 1 else shape[1])
    values = sorted({v for c in found for v in (c.data, c.out)})
    names = [model.in_file(v) for v in values]
    inputs = {i.name for i in model.proto.graph.input}
    outputs = {o.name for o in model.proto.graph.output}
    asked = [n for n in names if n not in inputs]
    extra = [n for n in asked if n not in outputs]
    with open_session(
        model.proto, optimise=True, extra_outputs=extra, folder=model.source.folder
    ) as session:
        for k, feeds in enumerate(batches):
            if len(batches) > 1 and k % HELD_OUT == HELD_OUT - 1:
                continue
            got = {**feeds, **session.run(feeds, asked)}
            for c, m in stats.items():
                x, y = got[model.in_file(c.data)], got[model.in_file(c.out)]
                if c.is_conv:
                    kernel = facts.trace.shapes[c.weight][2:]
                    rng = np.random.default_rng([seed, c.order])
                    places = draw_places(y.shape[2:], PLACES, rng)
                    m.add(conv_taps(x, c.node, kernel, places), at_places(y, places))
                else:
                    m.add(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]))
    return stats


def _layer(c: Consumer, m: Moments, s: Solution) -> _Layer:
    model = s.facts.model
    weight = model.array(model.constants[c.weight]).astype(np.float64)
    w0 = read_matrix(weight, c)
    rows = max(1, m.rows)
    g, r = m.g / rows, m.r / rows
    hold = np.full(m.size, _RIDGE * np.trace(g[:-1, :-1]) / max(1, m.size - 1) + 1e-12)
    hold[-1] = 1e-10
    h = cho_solve(cho_factor(g + np.diag(hold)), np.eye(m.size))
    start = np.concatenate([w0, np.zeros((1, w0.shape[1]))])
    return _Layer(h, h @ (r + hold[:, None] * start), 1.0 / max(m.t / rows, 1e-30))


def _greedy(parts: Sequence[tuple[_Layer, NDArray[np.int64]]], size: int, count: int) -> Array:
    """The loss at which each channel goes, the cheapest going first."""
    scores = np.full(size, np.inf)
    alive = np.ones(size, bool)
    rows = [[np.nonzero(of == j)[0] for j in range(size)] for _, of in parts]
    worst = 0.0
    for step in range(min(count, size - 1)):
        costs = np.zeros(size)
        for (layer, _), mine in zip(parts, rows, strict=True):
            costs += layer.share * _costs(layer, mine, alive)
        costs[~alive] = np.inf
        j = int(np.argmin(costs))
        worst = max(worst, float(costs[j]))
        scores[j] = worst + step * 1e-12  # in the order in which they go
        alive[j] = False
        for (layer, _), mine in zip(parts, rows, strict=True):
            _remove(layer, mine[j])
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
