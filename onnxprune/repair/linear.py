"""Sequential least squares: every consumer of removed channels is refitted, in graph order.

Inputs are as the already repaired slim network gives them, targets as in the original, so errors
do not add up from layer to layer. No labels and no gradients: only forward runs in ONNX Runtime
and one linear solve a consumer. The pull towards the sliced weights is chosen on samples that the
solve has not seen, and a consumer whose error there does not fall keeps its sliced weights.
(He et al. 2017, "Channel pruning"; the OBS update is the same solve: Frantar & Alistarh 2022.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.axes.view import View
from onnxprune.cut.weights import Stored
from onnxprune.graph.files import read_tensor
from onnxprune.repair.cone import cone, readers, stored
from onnxprune.repair.consumers import Consumer, Target, consumers, taps_of, target
from onnxprune.repair.moments import Moments, ridge
from onnxprune.repair.rewrite import bias_is_free, read_bias, read_matrix, write_bias, write_matrix
from onnxprune.repair.taps import at_places, conv_taps, draw_places
from onnxprune.runtime.session import open_session

Feeds = Mapping[str, np.ndarray]
_Goal = tuple[tuple[int, ...], np.ndarray]
"""The size of a map, and the rows that it should have at the sampled places."""

PLACES = 64
"""Positions sampled from each map."""
SHARES = (1e-3, 1e-2, 1e-1, 1.0)
"""Pulls towards the sliced weights that are tried, as shares of the taps' mean power."""
HELD_OUT = 8
"""Every so many-th batch is for choosing, not for solving."""
LARGEST = 4800
"""Columns up to which a solve is affordable (a 3 x 3 convolution on 512 channels)."""


@dataclass(frozen=True)
class Fitted:
    """What the repair of one consumer did: held-out error before and after, over the target's
    power.
    """

    node: str
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class _Job:
    consumer: Consumer
    target: Target
    seed: int

    def places(self, size: Sequence[int]) -> list[np.ndarray]:
        """Sampled positions of a convolution's output: the same for every map of a size."""
        return draw_places(size, PLACES, np.random.default_rng([self.seed, self.consumer.order]))


def refit(
    view: View,
    slim: onnx.ModelProto,
    weights: Sequence[Stored],
    batches: Sequence[Feeds],
    *,
    seed: int = 0,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[onnx.ModelProto, tuple[Fitted, ...]]:
    """A copy of a slim model with its consumers refitted on calibration batches.

    Raises:
        Unreadable: ONNX Runtime can't run one of the models.
    """
    facts = view.facts
    model = onnx.ModelProto()
    model.CopyFrom(slim)
    jobs = []
    for c in consumers(facts):
        size = int(view.kept(c.weight, c.axis).sum()) * taps_of(c, facts) + 1
        if view.kept(c.weight, c.axis).all() or size > LARGEST:
            continue
        jobs.append(_Job(c, target(c, view), seed))
    goals = _goals(view, jobs, batches)
    names = {s.value: s.name for s in weights}
    done = []
    for k, job in enumerate(jobs):
        tell(f"repairing {k + 1} of {len(jobs)} layers")
        found = _refit_one(view, model, job, goals[k], batches, names)
        if found is not None:
            done.append(found)
    return model, tuple(done)


def _rows(y: np.ndarray, job: _Job) -> np.ndarray:
    """Rows (n, channels) of a consumer's output or of a term that is added to it."""
    if job.consumer.is_conv:
        return at_places(y, job.places(y.shape[2:]))
    return y.reshape(-1, y.shape[-1])


def _goals(view: View, jobs: Sequence[_Job], batches: Sequence[Feeds]) -> list[list[_Goal]]:
    """Per job and batch: what output and term gave in the original, kept channels only."""
    facts = view.facts
    wanted = sorted({v for j in jobs for v in (j.consumer.out, j.target.term) if v})
    goals: list[list[_Goal]] = [[] for _ in jobs]
    if not wanted:
        return goals
    proto, folder = facts.model.proto, facts.model.source.folder
    names = [facts.model.in_file(v) for v in wanted]
    extra = [n for n in names if n not in {o.name for o in proto.graph.output}]
    with open_session(proto, optimise=True, extra_outputs=extra, folder=folder) as session:
        for feeds in batches:
            got = dict(zip(wanted, session.run(feeds, names).values(), strict=True))
            for goal, job in zip(goals, jobs, strict=True):
                kept, scale = _outputs(job, view)
                out = got[job.consumer.out]
                rows = _rows(out, job)[:, kept]
                if job.target.term:
                    rows = rows + _rows(got[job.target.term], job)[:, kept] / scale
                goal.append((out.shape[2:], rows.astype(np.float32)))
    return goals


def _outputs(job: _Job, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Kept output channels, and what stands between the output and the sum, per kept channel."""
    out = job.consumer.out
    axis = 1 if job.consumer.is_conv else len(view.facts.axes[out]) - 1
    kept = view.kept(out, axis)
    scale = job.target.scale
    return kept, np.ones(int(kept.sum())) if scale is None else scale[kept]


def _refit_one(
    view: View, model: onnx.ModelProto, job: _Job, goal: Sequence[_Goal],
    batches: Sequence[Feeds], names: Mapping[str, str],
) -> Fitted | None:  # fmt: skip
    """Solve for one consumer and write its weights into the model; None if nothing was gained."""
    c, facts = job.consumer, view.facts
    node = _node_of(model, facts.model.in_file(c.out))
    store, folder = stored(model), facts.model.source.folder
    name = names.get(c.weight, facts.model.in_file(c.weight))
    if node is None or name not in store or readers(model, name) != 1:
        return None  # what several nodes read can't be fitted to one of them
    weight = read_tensor(store[name], folder)
    w0, bias = read_matrix(weight, c), read_bias(node, c, store, folder)
    if bias is None:
        return None
    free = bias_is_free(model, node, c, store)
    start = np.concatenate([w0, bias[None, :]]).astype(np.float64)
    fit = Moments(len(start), start.shape[1])
    test = Moments(len(start), start.shape[1])
    scale = _outputs(job, view)[1]
    term = facts.model.in_file(job.target.term) if job.target.term else ""
    wanted = [node.input[0], *([term] if term else [])]
    with open_session(cone(model, wanted), optimise=True, folder=folder) as session:
        for k, feeds in enumerate(batches):
            given = {i.name: feeds[i.name] for i in session.inputs}
            got = session.run(given, wanted)
            x = got[node.input[0]]
            size, rows = goal[k]
            if term:
                rows = rows - _rows(got[term], job) / scale
            taps = (
                conv_taps(x, c.node, weight.shape[2:], job.places(size))
                if c.is_conv
                else x.reshape(-1, x.shape[-1])
            )
            held = (len(batches) > 1 and k % HELD_OUT == HELD_OUT - 1) or (
                1 < len(batches) < HELD_OUT and k == len(batches) - 1
            )
            (test if held else fit).add(taps.astype(np.float32), rows)
    judge = test if test.rows else fit
    if not (np.isfinite(fit.g).all() and np.isfinite(fit.r).all()):
        return None
    found = [ridge(fit, start, share, free_bias=free) for share in SHARES]
    best = min(found, key=judge.error)
    before, after = judge.error(start), judge.error(best)
    power = max(judge.t / max(1, judge.rows), 1e-30)
    if not np.isfinite(best).all() or not after < before:
        return Fitted(c.node.label, before / power, before / power)
    write_matrix(model, node, store[name], best, c, weight.shape)
    if free:
        write_bias(model, node, c, best[-1].astype(weight.dtype))
    return Fitted(c.node.label, before / power, after / power)


def _node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto | None:
    return next((n for n in model.graph.node if output in n.output), None)
