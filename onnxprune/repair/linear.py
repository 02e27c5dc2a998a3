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
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.axes.view import View
from onnxprune.cut.weights import Stored
from onnxprune.graph.files import read_tensor, write_tensor
from onnxprune.repair.consumers import Consumer, Target, consumers, target
from onnxprune.repair.moments import Moments, ridge
from onnxprune.repair.taps import at_places, conv_taps, draw_places
from onnxprune.runtime.session import open_session

Feeds = Mapping[str, np.ndarray]

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
    places: Sequence[np.ndarray]
    """Sampled output positions of a convolution; () for dense consumers."""


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
    rng = np.random.default_rng(seed)
    jobs = []
    for c in consumers(facts):
        size = int(view.kept(c.weight, c.axis).sum()) * _taps_of(c, view) + 1
        if view.kept(c.weight, c.axis).all() or size > LARGEST:
            continue
        shape = facts.trace.shapes[c.out]
        places = draw_places(shape[2:], PLACES, rng) if c.is_conv else ()
        jobs.append(_Job(c, target(c, view), places))
    goals = _goals(view, jobs, batches)
    names = {s.value: s.name for s in weights}
    done = []
    for k, job in enumerate(jobs):
        tell(f"repairing {k + 1} of {len(jobs)} layers")
        found = _refit_one(view, model, job, goals[k], batches, names)
        if found is not None:
            done.append(found)
    return model, tuple(done)


def _taps_of(c: Consumer, view: View) -> int:
    return int(np.prod(view.facts.trace.shapes[c.weight][2:])) if c.is_conv else 1


def _rows(y: np.ndarray, job: _Job) -> np.ndarray:
    """Rows (n, channels) of a consumer's output or of a term that is added to it."""
    return at_places(y, job.places) if job.consumer.is_conv else y.reshape(-1, y.shape[-1])


def _goals(view: View, jobs: Sequence[_Job], batches: Sequence[Feeds]) -> list[list[np.ndarray]]:
    """Per job and batch: the rows that output and term had in the original, kept channels only."""
    facts = view.facts
    wanted = sorted({v for j in jobs for v in (j.consumer.out, j.target.term) if v})
    goals: list[list[np.ndarray]] = [[] for _ in jobs]
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
                rows = _rows(got[job.consumer.out], job)[:, kept]
                if job.target.term:
                    rows = rows + _rows(got[job.target.term], job)[:, kept] / scale
                goal.append(rows.astype(np.float32))
    return goals


def _outputs(job: _Job, view: View) -> tuple[np.ndarray, np.ndarray]:
    """Kept output channels, and what stands between the output and the sum, per kept channel."""
    out = job.consumer.out
    axis = 1 if job.consumer.is_conv else len(view.facts.axes[out]) - 1
    kept = view.kept(out, axis)
    scale = job.target.scale
    return kept, np.ones(int(kept.sum())) if scale is None else scale[kept]


def _refit_one(
    view: View, model: onnx.ModelProto, job: _Job, goal: Sequence[np.ndarray],
    batches: Sequence[Feeds], names: Mapping[str, str],
) -> Fitted | None:  # fmt: skip
    """Solve for one consumer and write its weights into the model; None if nothing was gained."""
    c, facts = job.consumer, view.facts
    node = _node_of(model, facts.model.in_file(c.out))
    store, folder = _stored(model), facts.model.source.folder
    name = names.get(c.weight, facts.model.in_file(c.weight))
    if node is None or name not in store:
        return None
    weight = read_tensor(store[name], folder)
    w0, bias = _matrix(weight, c), _bias(node, c, store, folder)
    start = np.concatenate([w0, bias[None, :]]).astype(np.float64)
    fit = Moments(len(start), start.shape[1])
    test = Moments(len(start), start.shape[1])
    scale = _outputs(job, view)[1]
    term = facts.model.in_file(job.target.term) if job.target.term else ""
    wanted = [node.input[0], *([term] if term else [])]
    with open_session(_cone(model, wanted), optimise=True, folder=folder) as session:
        for k, feeds in enumerate(batches):
            given = {i.name: feeds[i.name] for i in session.inputs}
            got = session.run(given, wanted)
            x = got[node.input[0]]
            rows = goal[k]
            if term:
                rows = rows - _rows(got[term], job) / scale
            taps = (
                conv_taps(x, c.node, weight.shape[2:], job.places)
                if c.is_conv
                else x.reshape(-1, x.shape[-1])
            )
            held = (len(batches) > 1 and k % HELD_OUT == HELD_OUT - 1) or (
                1 < len(batches) < HELD_OUT and k == len(batches) - 1
            )
            (test if held else fit).add(taps.astype(np.float32), rows)
    judge = test if test.rows else fit
    found = [ridge(fit, start, share) for share in SHARES]
    if c.bias is None:  # the constant has nowhere to go
        found = [np.concatenate([w[:-1], start[-1:]]) for w in found]
    best = min(found, key=judge.error)
    before, after = judge.error(start), judge.error(best)
    power = max(judge.t / max(1, judge.rows), 1e-30)
    if not np.isfinite(best).all() or not after < before:
        return Fitted(c.node.label, before / power, before / power)
    _write(model, node, store[name], best, c, weight.shape)
    return Fitted(c.node.label, before / power, after / power)


def _matrix(weight: np.ndarray, c: Consumer) -> np.ndarray:
    """(inputs x taps, outputs) as `conv_taps` lays out its columns."""
    if c.is_conv:
        return weight.reshape(len(weight), -1).T
    return weight.T if c.axis == 1 else weight


def _stored(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """Stored tensors of the main graph by name, those of Constant nodes too."""
    store = {t.name: t for t in model.graph.initializer}
    for n in model.graph.node:
        for a in n.attribute if n.op_type == "Constant" else ():
            if a.name == "value":
                store[n.output[0]] = a.t
    return store


def _bias(
    node: onnx.NodeProto, c: Consumer, store: Mapping[str, TensorProto], folder: Path | None
) -> np.ndarray:
    """The bias that a consumer has, or zeros."""
    outputs = store[node.input[1]].dims[1 if c.axis == 0 else 0]
    if c.bias is not None and len(node.input) > c.bias and node.input[c.bias] in store:
        bias = read_tensor(store[node.input[c.bias]], folder)
        return np.broadcast_to(bias.ravel(), (outputs,))
    return np.zeros(outputs, np.float32)


def _write(
    model: onnx.ModelProto, node: onnx.NodeProto, old: TensorProto, w: np.ndarray, c: Consumer,
    shape: Sequence[int],
) -> None:  # fmt: skip
    dtype = helper.tensor_dtype_to_np_dtype(old.data_type)
    matrix = w[:-1]
    new = matrix.T if c.is_conv or c.axis == 1 else matrix
    old.CopyFrom(write_tensor(old, np.ascontiguousarray(new.reshape(shape).astype(dtype))))
    if c.bias is None:
        return
    values = w[-1].astype(dtype)
    have = node.input[c.bias] if len(node.input) > c.bias else ""
    stored = _stored(model).get(have)
    readers = sum(list(n.input).count(have) for n in model.graph.node) if have else 0
    if stored is not None and readers == 1 and list(stored.dims) == list(values.shape):
        stored.CopyFrom(write_tensor(stored, values))
        return
    taken = {t.name for t in model.graph.initializer}
    taken |= {i for n in model.graph.node for i in (*n.input, *n.output)}
    name = f"{node.output[0]}/bias"
    while name in taken:
        name += "_"
    model.graph.initializer.append(numpy_helper.from_array(values, name))
    while len(node.input) <= c.bias:
        node.input.append("")
    node.input[c.bias] = name


def _node_of(model: onnx.ModelProto, output: str) -> onnx.NodeProto | None:
    return next((n for n in model.graph.node if output in n.output), None)


def _cone(model: onnx.ModelProto, outputs: Sequence[str]) -> onnx.ModelProto:
    """The part of a model that these values need."""
    made = {o: n for n in model.graph.node for o in n.output if o}
    need, todo = set(), list(outputs)
    names = set(todo)
    while todo:
        node = made.get(todo.pop())
        if node is None or id(node) in need:
            continue
        need.add(id(node))
        reads = [*node.input, *_captured(node)]
        names.update(reads)
        todo += [i for i in reads if i]
    part = onnx.ModelProto()
    part.ir_version = model.ir_version
    part.opset_import.extend(model.opset_import)
    part.graph.name = model.graph.name
    part.graph.node.extend(n for n in model.graph.node if id(n) in need)
    part.graph.initializer.extend(t for t in model.graph.initializer if t.name in names)
    part.graph.input.extend(i for i in model.graph.input if i.name in names)
    part.graph.output.extend(onnx.ValueInfoProto(name=o) for o in dict.fromkeys(outputs))
    return part


def _captured(node: onnx.NodeProto) -> list[str]:
    bodies = [a.g for a in node.attribute if a.HasField("g")]
    return [i for g in bodies for n in g.node for i in (*n.input, *_captured(n))]
