"""Repair without data, in closed form: what stays stands in for what went.

With means m and covariances S of a layer's input channels (see `normal`), removed channels P are
best guessed from kept ones K by x_P = m_P + A' (x_K - m_K), A = (S_KK + ridge)^-1 S_KP. Put into
the layer, W_K += A W_P and b += W_P (m_P - A' m_K): exact where channels are multiples of each
other, and the bias alone takes up what their means gave. Taps that fall into zero padding see
nothing, so a bias counts each tap by how often it lies inside.
(Affine compensation as in CORP and GRAIL, on moments that need no data; the ranking is block OBS on
the same moments.)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Solution
from onnxprune.axes.view import Mask, View
from onnxprune.cut.weights import Stored
from onnxprune.repair.consumers import Consumer, layers, target
from onnxprune.repair.jobs import Job, free_bias, jobs_of, start, write
from onnxprune.repair.linear import Fitted
from onnxprune.repair.normal import Array, Channels, Cov, walk, weight_of, weight_rows
from onnxprune.repair.taps import explicit_pads

RIDGE = 1e-3
"""Of the channels' mean variance."""
EXACT = 1e-4
"""Share of the error that may be left where moments are not known well."""
LARGEST = 1 << 25
"""Weights of a layer up to which it is corrected in seconds."""
_STEPS = 48
"""Rounds in which a group's channels go; a large group loses several at a time."""


@dataclass(frozen=True)
class Closed(Fitted):
    """What the closed form did to a layer: the error that the moments predict, before and after."""

    form: str
    """Where the moments came from: "norms", or the "filters" and biases of the layer before."""


@dataclass(frozen=True, eq=False)
class _Reading:
    """A layer and what it reads."""

    layer: Consumer
    channels: Channels
    rows: NDArray[np.int64]
    """(channels of a group, taps) rows of its weight, as a matrix."""
    w: Array
    """(groups, channels of a group, taps, outputs of a group)."""
    inside: NDArray[np.float64]
    """(taps,) how often a tap lies on the map, not in its padding."""


def closed_form(
    view: View,
    slim: onnx.ModelProto,
    weights: Sequence[Stored],
    *,
    weights_too: bool = True,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[onnx.ModelProto, tuple[Closed, ...]]:
    """A copy of a slim model whose layers make up for the channels they lost; no data is needed.

    Args:
        weights_too: correct weights and biases; else only the biases, by the means of what went.
    """
    model = onnx.ModelProto()
    model.CopyFrom(slim)
    found = jobs_of(view, model, weights, 1, 0)
    jobs = {j.layer.node: j for j in found if j.cut and int(np.prod(j.shape)) <= LARGEST}
    done = []
    if jobs:
        tell("finding what the removed channels held")
    for r in _readings(view.facts, [j.layer for j in jobs.values()])[0]:
        if not (weights_too or r.channels.trusted):
            continue  # means alone are only known from norms
        fixed = _repair(r, jobs[r.layer.node], model, view, weights_too)
        if fixed is not None:
            done.append(fixed)
    return model, tuple(done)


def closed_scores(
    solution: Solution, groups: Sequence[Group], most: float
) -> dict[int, NDArray[np.float64]]:
    """(channels,) scores by group id: what is lost as each channel goes, never falling.

    OBS on the moments that need no data, a channel at a time, as `obs.obs_scores` does it on those
    of calibration data. A loss is relative to the variance of the sum that its layer's output ends
    in, so that groups can be compared. Groups without a layer that can
    be followed have no entry; channels beyond the share `most` are not ordered against each other:
    they stay longest.
    """
    facts, view = solution.facts, View.of(solution, (), {})
    place = {int(r): (g.id, k) for g in groups for k, r in enumerate(g.roots)}
    parts: dict[int, list[tuple[Array, Array, NDArray[np.int64]]]] = {g.id: [] for g in groups}
    wanted = layers(facts)
    targets = {c: target(c, view) for c in wanted}
    readings, spreads = _readings(facts, wanted, {t.end for t in targets.values() if t.term})
    for r in readings:
        roots = solution.roots(r.layer.data, r.channels.axis)
        first = np.unique(r.channels.of, return_index=True)[1]
        owner = [place.get(int(roots[k]), (-1, -1)) for k in first]
        w = r.w
        scale = targets[r.layer].scale
        if scale is not None:
            w = np.asarray(w * scale.reshape(r.w.shape[0], 1, 1, -1), np.float64)
        rows = w.reshape(len(first), -1)
        cov = r.channels.seen
        own = float(np.einsum("cr,cr,c->", rows, rows, cov.diagonal()))
        power = max(own, spreads.get(targets[r.layer].end, 0.0))
        if not power > 0 or not np.isfinite(power):
            continue
        owners = {o for o, _ in owner} - {-1}
        if not owners:
            continue
        inverse = np.asarray(np.linalg.inv(_with_ridge(cov)), np.float64)
        for n in owners:
            mine = np.array([k if o == n else -1 for o, k in owner])
            parts[n].append((inverse, np.asarray(rows / np.sqrt(power)), mine))
    out = {}
    for g in groups:
        if parts[g.id]:
            out[g.id] = _greedy(parts.pop(g.id), g.size, int(np.ceil(g.size * most)))
    return out


def _greedy(
    parts: Sequence[tuple[Array, Array, NDArray[np.int64]]], size: int, count: int
) -> NDArray[np.float64]:
    """The loss at which each channel goes, the cheapest first: |w_j|^2 / H_jj over all layers.

    A layer has its inverse moments H, its weights as (channels, rest), and which channel of the
    group each of its channels is, -1 for none.
    """
    left = [(h.astype(np.float32), w.astype(np.float32), of) for h, w, of in parts]
    scores = np.full(size, np.inf)
    worst, gone, count = 0.0, 0, min(count, size - 1)
    while gone < count:
        costs = np.zeros(size)
        for h, w, of in left:
            mine = of >= 0
            loss = np.einsum("cr,cr->c", w, w) / h.diagonal()
            costs += np.bincount(of[mine], loss[mine], size)
        costs[np.isfinite(scores)] = np.inf
        some = np.argsort(costs, kind="stable")[: max(1, min(count - gone, size // _STEPS))]
        for j in some.tolist():
            worst = max(worst, float(costs[j]))
            scores[j] = worst + gone * 1e-12  # in the order in which they go
            gone += 1
        for h, w, of in left:
            _make_up(h, w, np.nonzero(np.isin(of, some))[0])
    rest = ~np.isfinite(scores)
    scores[rest] = worst * 2 + 1
    return scores


def _make_up(h: Cov, w: Cov, go: NDArray[np.int64]) -> None:
    """Let the other channels of a layer make up for those that go, in place."""
    if len(go):
        across = np.linalg.solve(h[np.ix_(go, go)], h[go])
        w -= across.T @ w[go]
        h -= h[:, go] @ across
        w[go], h[go], h[:, go] = 0, 0, 0
        h[go, go] = 1


def _is_known(r: _Reading) -> bool:
    """Whether moments are worth acting on. Without norms they are those of what filters make of
    white inputs. For convolutions and behind a rectifier that helps. Where a transformer's norms
    are decomposed it did not, but where others can stand in for what went almost exactly.
    """
    return r.channels.trusted or r.layer.is_conv or r.channels.is_rectified


def _readings(
    facts: Facts, wanted: Sequence[Consumer], ends: Collection[str] = ()
) -> tuple[list[_Reading], dict[str, float]]:
    """What layers read, as far as it can be had, and the variances of the values `ends`, summed
    over channels.
    """
    by_value: dict[str, list[Consumer]] = {}
    for c in wanted:
        by_value.setdefault(c.data, []).append(c)
    found, spreads = [], {}
    for value, x in walk(facts, list({*by_value, *ends})):
        if value in ends:
            spreads[value] = float(x.variance.sum())
        for c in by_value.get(value, ()):
            rows = weight_rows(c, facts, x.of)
            if rows is not None:
                w = weight_of(c, facts)[:, rows]
                found.append(_Reading(c, x, rows, w, _inside(c, facts, rows.shape[1])))
    return found, spreads


def _inside(c: Consumer, facts: Facts, taps: int) -> NDArray[np.float64]:
    """(taps,) how often each tap of a convolution lies on the map, not in its padding."""
    if c.node.op != "Conv":
        return np.ones(taps)
    shapes, rank = facts.trace.shapes, len(facts.trace.shapes[c.weight]) - 2
    kernel = shapes[c.weight][2:]
    size, out = shapes[c.data][2:], shapes[c.out][2:]
    if facts.other.shapes.get(c.data, ())[2:] != size:
        return np.ones(taps)  # a map of any size: most of it is inside
    strides = c.node.attrs.get("strides", [1] * rank)
    dilations = c.node.attrs.get("dilations", [1] * rank)
    begins, _ = explicit_pads(c.node, size, kernel)
    share = np.ones(1)
    for k in range(rank):
        at = np.arange(out[k])[None] * strides[k] - begins[k]
        at = at + np.arange(kernel[k])[:, None] * dilations[k]
        share = np.kron(share, ((at >= 0) & (at < size[k])).mean(axis=1))
    return share


def _with_ridge(cov: Cov) -> Array:
    wide = cov.astype(np.float64)
    np.fill_diagonal(wide, wide.diagonal() + RIDGE * wide.diagonal().mean() + 1e-12)
    return wide


def _repair(
    r: _Reading, job: Job, model: onnx.ModelProto, view: View, weights_too: bool
) -> Closed | None:
    """Correct one layer of the slim model; None where that can't be done, or would not help."""
    kept = view.kept(r.layer.data, r.channels.axis)
    groups, size, taps, _ = r.w.shape
    stays = kept[np.unique(r.channels.of, return_index=True)[1]]
    whole = np.array_equal(stays[r.channels.of], kept)  # all indices of a channel go together
    out = job.kept.reshape(groups, -1)
    if job.groups != groups or not whole or len(set(out.sum(axis=1).tolist())) > 1:
        return None
    mean, cov = r.channels.moments
    free = free_bias(job, model) and r.channels.trusted  # it takes up means: they must be known
    old = start(job, model, view.facts.model.source.folder)
    new = old.reshape(groups, -1, old.shape[-1]).copy()
    before = after = power = 0.0
    for g in range(groups):
        mine = slice(g * size, (g + 1) * size)
        k, m, s, w = stays[mine], mean[mine], cov[mine, mine], r.w[g][:, :, out[g]]
        gone = w[~k]
        a = _stand_in(m, s, k, free) if weights_too else np.zeros((int(k.sum()), len(gone)))
        left = m[~k] - a.T @ m[k]
        bias = _means(left, gone, r.inside) * free
        rows = np.zeros(size * taps, bool)
        rows[r.rows[k]] = True
        at = (np.cumsum(rows) - 1)[r.rows[k]]
        new[g, at.ravel()] += np.tensordot(a, gone, axes=1).reshape(at.size, -1)
        new[g, -1] += bias
        before += _loss(gone, s[np.ix_(~k, ~k)], _means(m[~k], gone, r.inside))
        after += _loss(gone, _rest(s, a, k), _means(left, gone, r.inside) - bias)
        narrow = w.astype(np.float32)
        power += float(np.vdot(narrow, np.tensordot(s, narrow, axes=1)))
    if not np.isfinite(new).all() or not after < before or not power > 0:
        return None
    if not _is_known(r) and after > EXACT * before:
        return None
    write(job, model, new.reshape(old.shape))
    form = "norms" if r.channels.trusted else "filters"
    return Closed(job.layer.node.label, before / power, after / power, form)


def _stand_in(mean: Array, cov: Cov, kept: Mask, free: bool) -> Array:
    """(kept, gone) A; where no bias can take up the means, of uncentred moments."""
    moments = cov if free else cov + np.outer(mean, mean).astype(np.float32)
    own = _with_ridge(moments[np.ix_(kept, kept)])
    return np.asarray(np.linalg.solve(own, moments[np.ix_(kept, ~kept)]))


def _means(mean: Array, w: Array, inside: Array) -> Array:
    """(outputs,) what weights (channels, taps, outputs) make of their inputs' means."""
    return np.asarray(inside @ (mean @ w.reshape(len(w), -1)).reshape(w.shape[1:]))


def _rest(cov: Cov, a: Array, kept: Mask) -> Cov:
    """(gone, gone) the covariance of what is left of the channels that went."""
    narrow = a.astype(np.float32)
    half = narrow.T @ cov[np.ix_(kept, kept)] - 2 * cov[np.ix_(~kept, kept)]
    return np.asarray(cov[np.ix_(~kept, ~kept)] + half @ narrow)  # the same, added to its transpose


def _loss(gone: Array, rest: Cov, shift: Array) -> float:
    """Mean squared error of a layer, summed over outputs: taps err independently around `shift`."""
    w = gone.astype(np.float32)
    spread = float(np.vdot(w, np.tensordot(rest, w, axes=1)))
    return max(spread, 0.0) + float(shift @ shift)
