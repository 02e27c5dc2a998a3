"""Which layers of a slim model are refitted, in order, and what each should give."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.axes.view import Mask, View
from onnxprune.cut.weights import Stored
from onnxprune.graph.files import read_tensor
from onnxprune.repair.cone import readers, stored
from onnxprune.repair.consumers import Consumer, Target, layers, target
from onnxprune.repair.rewrite import (
    bias_is_free,
    read_bias,
    read_matrix,
    write_bias,
    write_matrix,
)
from onnxprune.repair.stream import Stream
from onnxprune.repair.taps import at_places, draw_places, groups_of, in_groups, rows_read

LARGEST = 4800
"""Columns up to which moments are affordable (of a 3 x 3 convolution on 512 channels)."""
WIDEST = 1 << 16
"""Columns up to which some of the rows themselves are kept instead."""


@dataclass(frozen=True, eq=False)
class Job:
    """A layer of the slim model that is refitted."""

    layer: Consumer
    target: Target
    cut: bool
    """It contracts removed channels."""
    touched: bool
    """What it reads is not what the original reads there. Others are not fitted themselves."""
    adds: onnx.NodeProto
    """The node of the slim model that adds its bias: its own, or a sum behind it."""
    weight: str
    """Its weight's name there."""
    x: str
    out: str
    term: str
    """The names, in both files, of what it reads, what it gives, and of its sum's other term."""
    shape: tuple[int, ...]
    groups: int
    kept: Mask
    """Its output channels that are kept."""
    scale: NDArray[np.float64]
    """What stands between its output and the sum, per kept channel."""
    was: NDArray[np.float64] | None
    """(D, O) the original's weights and bias, for a layer that reads a mean of positions."""
    is_wide: bool
    """It reads more columns than moments are affordable of."""
    count: int
    """Positions that are sampled from each map."""
    seed: int

    @property
    def order(self) -> int:
        return self.layer.order

    @property
    def slim_values(self) -> list[str]:
        return [self.x, *([self.term] if self.term else [])]

    @property
    def original_values(self) -> list[str]:
        return [self.x if self.was is not None else self.out, *([self.term] if self.term else [])]

    def places(self, y: np.ndarray, k: int) -> list[np.ndarray]:
        """Sampled positions of a convolution's output: the same for all maps of batch `k`."""
        rng = np.random.default_rng([self.seed, self.layer.order, k])
        return draw_places(y.shape, self.count, rng)


def jobs_of(
    view: View, model: onnx.ModelProto, weights: Sequence[Stored], count: int, seed: int
) -> list[Job]:
    """All layers that can be fitted, in the order of the graph."""
    facts = view.facts
    names = {s.value: s.name for s in weights}
    made = {o: n for n in model.graph.node for o in n.output if o}
    store, folder = stored(model), facts.model.source.folder
    changed = touched(view)
    found = []
    for c in layers(facts):
        name = names.get(c.weight, facts.model.in_file(c.weight))
        node = made.get(facts.model.in_file(c.node.outputs[0]))
        adds = made.get(facts.model.in_file(c.out))
        if node is None or adds is None or name not in store or name not in node.input:
            continue
        if readers(model, name) != 1 or read_bias(adds, c, store, folder) is None:
            continue  # what several nodes read can't be fitted to one of them
        axis = 1 if c.is_conv else len(facts.axes[c.out]) - 1
        kept = view.kept(c.out, axis)
        shape = tuple(store[name].dims)
        inputs = int(view.kept(c.data, 1 if c.is_conv else -1).sum())
        groups = groups_of(inputs, c, shape) if c.is_conv else 1
        columns = inputs // groups * int(np.prod(shape[2:])) if c.is_conv else inputs
        wide = columns + 1 > LARGEST
        if wide and (groups > 1 or columns > WIDEST):
            continue
        t = Target() if c.pooled else target(c, view)
        scale = np.ones(int(kept.sum())) if t.scale is None else t.scale[kept].copy()
        found.append(Job(
            c, t, not view.kept(c.weight, c.axis).all(), c.node.outputs[0] in changed,
            adds, name,
            facts.model.in_file(c.pooled or c.data), facts.model.in_file(c.out),
            facts.model.in_file(t.term) if t.term else "", shape, groups, kept, scale,
            _original(c, view)[:, kept] if c.pooled else None, wide, count, seed,
        ))  # fmt: skip
    return found


def _original(c: Consumer, view: View) -> NDArray[np.float64]:
    """(D, O): weights and bias of a dense layer of the original."""
    model = view.facts.model
    w = read_matrix(model.array(model.constants[c.weight]), c)
    inputs = (c.add or c.node).inputs
    place = len(inputs) if c.bias is None else c.bias
    stored_bias = model.constants.get(inputs[place]) if len(inputs) > place else None
    bias = np.zeros(w.shape[1]) if stored_bias is None else model.array(stored_bias).ravel()
    bias = np.broadcast_to(bias, (w.shape[1],))
    return np.concatenate([w, bias[None]]).astype(np.float64)


def touched(view: View) -> set[str]:
    """Values that removal changed beyond their own removed channels."""
    facts = view.facts
    out: set[str] = set()
    for n in facts.model.graph.nodes:
        lost = any(not view.mask(s.labels).all() for s in facts.sinks_of(n))
        if lost or any(i in out for i in n.inputs) or (n.bodies and any(
            not view.mask(s.labels).all() for m in facts.model.walk() for s in facts.sinks_of(m)
            if m.site.path[: len(n.site.path)] == n.site.path and m is not n and m.site.path
        )):  # fmt: skip
            out.update(o for o in n.outputs if o)
    return out


# A job's numbers, batch by batch


def rows_at(job: Job, x: np.ndarray, y: np.ndarray, k: int) -> np.ndarray:
    """(*lead, n, D - 1): what the layer multiplies in `x`, at the places of `y` in batch `k`."""
    return rows_read(x, job.layer, job.shape, job.places(y, k) if job.layer.is_conv else ())


def goal(job: Job, original: Stream, slim: Stream, k: int) -> np.ndarray:
    """(samples, kept channels, ...) or (..., kept channels): what the layer should give."""
    if job.was is not None:
        x = np.moveaxis(original.get(job.x, k), 1, -1)
        return np.asarray(x.reshape(-1, x.shape[-1]) @ job.was[:-1] + job.was[-1], np.float32)
    out = np.compress(job.kept, original.get(job.out, k), axis=_axis(job))
    if not job.term:
        return out
    term = np.compress(job.kept, original.get(job.term, k), axis=_axis(job))
    scale = job.scale.astype(np.float32)
    if job.layer.is_conv:
        scale = scale.reshape(-1, *[1] * (out.ndim - 2))
    return np.asarray(out + (term - slim.get(job.term, k)) / scale)


def flat_rows(job: Job, y: np.ndarray, k: int) -> np.ndarray:
    """(n, outputs): rows of a map or matrix of outputs, at the sampled places."""
    if not job.layer.is_conv:
        return y.reshape(-1, y.shape[-1])
    return at_places(y, job.places(y, k))


def goal_rows(job: Job, y: np.ndarray, k: int) -> np.ndarray:
    """(*lead, n, O): the same, by the layer's groups."""
    return in_groups(flat_rows(job, y, k), job.groups)


def _axis(job: Job) -> int:
    return 1 if job.layer.is_conv else -1


def start(job: Job, model: onnx.ModelProto, folder: Path | None) -> NDArray[np.float64]:
    """(*lead, D, O): the layer's weights and, last, its bias, as they are in the model."""
    store = stored(model)
    w = read_matrix(read_tensor(store[job.weight], folder), job.layer, job.groups)
    bias = read_bias(job.adds, job.layer, store, folder)
    assert bias is not None, "jobs_of looked"
    bias = bias.reshape(*w.shape[:-2], 1, -1)
    return np.concatenate([w, bias], axis=-2).astype(np.float64)


def free_bias(job: Job, model: onnx.ModelProto) -> bool:
    return bias_is_free(model, job.adds, job.layer, stored(model))


def write(job: Job, model: onnx.ModelProto, w: NDArray[np.float64]) -> None:
    """Put weights and bias (*lead, D, O) into the model; a bias that is not free stays."""
    free = free_bias(job, model)
    tensor: Any = stored(model)[job.weight]
    write_matrix(tensor, w, job.layer, job.shape)
    if free:
        dtype = read_tensor(tensor, None).dtype
        write_bias(model, job.adds, job.layer, w[..., -1, :].ravel().astype(dtype))
