"""Gauss-Newton rounds on the layer that makes a fitted layer's input.

Between a layer P and the layer C that reads its channels stand only element-wise operators f:
y = C f(P x). With the residual r of C's output and the slope m = f'(z), the gradient of |r|^2 at z
is g = m * C'r, and one preconditioned step is

    delta = (E[x x'] + ridge)^-1  E[x g']  (S * E[m m'] + ridge)^-1,    S[k, l] = sum_o W_ok W_ol

(the Kronecker factors of Martens & Grosse 2015, with S * E[m m'] known exactly but for the overlap
of a kernel's taps), scaled by an exact line search. Then C is fitted anew. A round is kept if the
error on held-out samples falls. No labels, and nothing reaches beyond the two layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.axes.rules import ELEMENTWISE
from onnxprune.axes.view import View
from onnxprune.graph.model import Model, Node
from onnxprune.repair.cone import part, upstream
from onnxprune.repair.fits import FOLDS, Fit, best_fit, fold_of, gather
from onnxprune.repair.jobs import (
    Job,
    flat_rows,
    free_bias,
    goal,
    goal_rows,
    rows_at,
    start,
    write,
)
from onnxprune.repair.moments import Moments
from onnxprune.repair.operators import Operator
from onnxprune.repair.rewrite import Rounded, settle
from onnxprune.repair.stream import Kept, Stream, port
from onnxprune.runtime.session import Session, open_session

Array = NDArray[np.float64]
_ELEMENTS = 32_000_000
"""Entries of the made channels that a step looks at, over all samples."""
_WIDEST = 2560
"""Channels up to which their joint curvature is affordable."""
_RIDGE_IN, _RIDGE_OUT = 3e-2, 1e-2
_WORTH = 0.998
"""What a round must bring the held-out error down to, to be kept and followed by another."""
_DELTA = 1e-3
"""The step of the finite difference for slopes, over the root mean square."""


@dataclass(frozen=True, eq=False)
class Pair:
    """A layer and the path of element-wise operators from it to another layer's input."""

    producer: Job
    nodes: tuple[onnx.NodeProto, ...]
    """The path, in the slim model."""
    extras: tuple[str, ...]
    """What else the path reads that is no constant."""

    @property
    def values(self) -> list[str]:
        """What it needs from the slim model."""
        return [self.producer.x, *self.extras]


def pairs_of(view: View, model: onnx.ModelProto, jobs: Sequence[Job]) -> dict[Job, list[Pair]]:
    """By job, the layers whose cut channels it alone reads, through element-wise operators."""
    by_out = {j.layer.out: j for j in jobs}
    slim_nodes = {o: n for n in model.graph.node for o in n.output if o}
    found: dict[Job, list[Pair]] = {}
    for job in jobs:
        if job.touched and view.facts.trace.types.get(job.layer.weight) == 1:
            pairs = [p for p in _producers(job, view, by_out, slim_nodes) if _fits(p)]
            if pairs:
                found[job] = pairs
    return found


def _fits(pair: Pair) -> bool:
    """Whether a step is affordable, and the producer reads what it multiplies (not its mean)."""
    return int(pair.producer.kept.sum()) <= _WIDEST and pair.producer.was is None


def _producers(
    job: Job, view: View, by_out: dict[str, Job], slim_nodes: dict[str, onnx.NodeProto]
) -> Iterable[Pair]:
    facts, model = view.facts, view.facts.model
    end = job.layer.data
    shape = facts.trace.shapes.get(end)
    region: set[Node] = set()
    starts: dict[str, Job] = {}
    todo = [end]
    while todo:
        value = todo.pop()
        if value in by_out and by_out[value] is not job and facts.trace.shapes[value] == shape:
            starts[value] = by_out[value]
            continue
        n = model.producer.get(value)
        if n is None or n in region or not _is_pointwise(n) or n.site.path:
            continue
        if any(facts.trace.shapes.get(o) != shape for o in n.outputs[:1]):
            continue
        region.add(n)
        todo += [i for i in n.inputs if i and i not in facts.constant]
    for z, producer in starts.items():
        path = _from(z, end, region, job, model)
        if path is None:
            continue
        nodes = [slim_nodes.get(model.in_file(n.outputs[0])) for n in path]
        inside = {z, *(o for n in path for o in n.outputs)}
        extras = {
            i for n in path for i in n.inputs if i and i not in inside and i not in facts.constant
        }
        if nodes and all(n is not None for n in nodes):
            names = sorted(model.in_file(i) for i in extras)
            yield Pair(producer, tuple(n for n in nodes if n is not None), tuple(names))


def _is_pointwise(n: Node) -> bool:
    return (n.domain, n.op) in ELEMENTWISE or (n.domain, n.op) == ("", "BatchNormalization")


def _from(z: str, end: str, region: set[Node], job: Job, model: Model) -> list[Node] | None:
    """The nodes of a region from `z` to `end`, in order; None if something else reads them."""
    path: list[Node] = []
    todo = [z]
    while todo:
        value = todo.pop()
        if value in model.graph.outputs:
            return None
        users = {u for u, _ in model.uses.get(value, ())}
        if value == end:
            if users != {job.layer.node}:
                return None
            continue
        if not users or not users <= region:
            return None
        for u in users - set(path):
            path.append(u)
            todo += [o for o in u.outputs if o and (o in model.uses or o in model.graph.outputs)]
    return sorted(path, key=lambda n: n.site.index)


def improve(
    job: Job, pairs: Sequence[Pair], model: onnx.ModelProto, was: Stream, now: Stream,
    rounds: int, fit: Fit, rounded: Rounded | None = None,
) -> Fit:  # fmt: skip
    """At most so many rounds for each of a job's producers; the fit of the job that they reach.

    Where the producer is `rounded` when it is stored, the job is fitted to what it gives then.
    """
    for pair in pairs:
        known, first = None, fit
        with _path(pair, job, model, now) as path:
            for _ in range(rounds):
                found, known = _round(job, pair, path, model, was, now, fit, known)
                if found is None:
                    break
                fit = found
            if rounded is not None and fit is not first:
                settle(model, pair.producer.weight, rounded, now.folder)
                made = Operator(pair.producer, start(pair.producer, model, now.folder))
                for k, h in enumerate(_made(job, pair, path, made, now)):
                    now.replace(job.x, k, h)
                w = start(job, model, now.folder)
                free = free_bias(job, model)
                fit = best_fit(gather(job, was, now), w, (fit.share,), free=free)
                write(job, model, fit.weights)
    return fit


def _made(job: Job, pair: Pair, path: Session, make: Operator, now: Stream) -> list[Kept]:
    """What the job reads, batch by batch, when its producer computes this."""
    found = []
    for k in range(len(now.batches)):
        z, extras = make(now.get(pair.producer.x, k)), {e: now.get(e, k) for e in pair.extras}
        found.append(now.store.put(path.run({pair.producer.out: z} | extras, [job.x])[job.x]))
    return found


def _path(pair: Pair, job: Job, model: onnx.ModelProto, now: Stream) -> Session:
    """What leads from the producer's output to the job's input, opened."""
    given = {e: now.get(e, 0) for e in pair.extras if e not in now.batches[0]}
    inputs = [port(n, a) for n, a in {pair.producer.out: now.get(job.x, 0), **given}.items()]
    nodes = upstream(model, pair.nodes, {pair.producer.out, *pair.extras})
    return open_session(part(model, nodes, [job.x], inputs), optimise=True, folder=now.folder)


def _round(
    job: Job, pair: Pair, path: Session, model: onnx.ModelProto, was: Stream, now: Stream,
    fit: Fit, known: Moments | None,
) -> tuple[Fit | None, Moments | None]:  # fmt: skip
    """One step of the producer and a new fit of the job; None, and nothing done, if it lost.

    `known` has what the producer reads, from a round before: it stays the same.
    """
    p = pair.producer
    wp, wc = start(p, model, now.folder), start(job, model, now.folder)
    make, use, weight = Operator(p, wp), Operator(job, wc), _importance(job)

    def extras(k: int) -> dict[str, np.ndarray]:
        return {e: now.get(e, k) for e in pair.extras}

    width = int(p.kept.sum())
    factors: Moments | None = None
    slopes = np.zeros((width, width))
    seen, entries, slots = 0, 0, []
    batches = len(now.batches)
    last = min(FOLDS, batches) - 1
    for k in range(batches):
        if batches > 1 and fold_of(k, batches) == last:
            continue  # the part by which a round is judged
        z = make(now.get(p.x, k))
        h, m = _slope(path, job.x, p.out, z, extras(k))
        y = use(h)
        r = weight * (goal(job, was, now, k) - y)
        g = m * use.back(r, h.shape)
        taps, rows = rows_at(p, now.get(p.x, k), z, k), goal_rows(p, g, k)
        if factors is None:
            factors = Moments(taps.shape[-1] + 1, rows.shape[-1], taps.shape[:-2])
        factors.add(taps, rows, gram=known is None)
        flat = flat_rows(p, m, k)
        slopes += flat.astype(np.float32).T @ flat
        seen += len(flat)
        slots.append((k, now.store.put(m), now.store.put(r)))
        entries += z.size
        if entries > _ELEMENTS:
            break
    if factors is None:
        return None, None
    if known is not None:
        factors.g = known.g
    if not factors.finite or not np.isfinite(slopes).all():
        return None, None
    delta = _step(factors, _curvature(job, wc, slopes / max(1, seen)), free_bias(p, model))
    if not np.isfinite(delta).all():
        return None, None
    move, bare = Operator(p, delta), Operator(job, _without_bias(wc))
    across = along = 0.0
    for k, slope, residual in slots:
        e = bare(slope.array * move(now.get(p.x, k)))
        across += float(np.vdot(residual.array, e))
        along += float(np.vdot(weight * e, e))
        slope.drop()
        residual.drop()
    if not (np.isfinite(across) and along > 0 and across > 0):
        return None, None
    wp_new = wp + across / along * delta
    new = _made(job, pair, path, Operator(p, wp_new), now)
    folds = gather(job, was, now, new)
    found = best_fit(folds, wc, (fit.share,), free=free_bias(job, model))
    if not (found.is_finite and found.errors[-1] < _WORTH * fit.errors[-1]):
        _drop(new)
        return None, None
    write(p, model, wp_new)
    write(job, model, found.weights)
    for k, h_kept in enumerate(new):
        now.replace(job.x, k, h_kept)
    return found, factors


def _drop(kept: Iterable[Kept]) -> None:
    for one in kept:
        one.drop()


def _slope(
    path: Session, x: str, z_name: str, z: np.ndarray, extras: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """What the path makes of `z`, and its derivative there."""
    h = path.run({z_name: z} | extras, [x])[x]
    step = np.float32(_DELTA * max(float(np.sqrt(np.mean(np.square(z, dtype=np.float64)))), 1e-6))
    ahead = path.run({z_name: z + step} | extras, [x])[x]
    return h, np.asarray((ahead - h) / step)


def _importance(job: Job) -> np.ndarray:
    """Per output, shaped to multiply a map: what a batch norm behind it makes of its square."""
    weight: np.ndarray = (job.scale**2 / (job.scale**2).mean()).astype(np.float32)
    around = (1,) * (len(job.shape) - 2) if job.layer.is_conv else ()
    return weight.reshape((-1, *around))


def _without_bias(w: Array) -> Array:
    bare = w.copy()
    bare[..., -1, :] = 0
    return bare


def _curvature(job: Job, w: Array, slopes: Array) -> Array:
    """(channels, channels): what a change of each made channel does to the job's outputs."""
    scale = (job.scale / np.sqrt((job.scale**2).mean())).reshape(job.groups, 1, -1)
    each = len(slopes) // job.groups
    read = (w.reshape(job.groups, -1, w.shape[-1])[:, :-1] * scale).reshape(job.groups, each, -1)
    whole = np.zeros_like(slopes)
    for k, block in enumerate(read @ read.transpose(0, 2, 1)):
        mine = slice(k * each, (k + 1) * each)
        whole[mine, mine] = block
    return whole * slopes


def _step(m: Moments, curvature: Array, free: bool) -> Array:
    """(*lead, D, O): the preconditioned gradient."""
    n, lead = max(1, m.rows), m.lead
    a, b = m.g / n, m.r / n
    hold = np.diagonal(a, axis1=-2, axis2=-1)[..., :-1].mean(axis=-1) * _RIDGE_IN
    index = np.arange(m.size - 1)
    a[..., index, index] += np.maximum(hold, 1e-4 * hold.mean() + 1e-12)[..., None]
    a[..., -1, -1] += 1e-6
    if not free:
        a, b = a[..., :-1, :-1], b[..., :-1, :]
    first = np.linalg.solve(a, b)
    if lead:
        groups, size = lead[0], len(curvature) // lead[0]
        blocks = curvature.reshape(groups, size, groups, size)
        curvature = blocks[np.arange(groups), :, np.arange(groups)]
    own = np.diagonal(curvature, axis1=-2, axis2=-1)
    index = np.arange(curvature.shape[-1])
    curvature = curvature.copy()
    curvature[..., index, index] += own.mean() * _RIDGE_OUT + 1e-12
    delta = np.swapaxes(np.linalg.solve(curvature, np.swapaxes(first, -1, -2)), -1, -2)
    if not free:
        delta = np.concatenate([delta, np.zeros_like(delta[..., :1, :])], axis=-2)
    return np.asarray(delta, np.float64)
