"""Recurrent layers: gates refitted to what they saw in the original, as if they were dense layers.

A gate's input W x + R h + b is linear in what the layer reads and in its last state. Its rows are
fitted to the original's, from inputs as the slim network gives them and states as they were in the
original (teacher forcing), kept units only. So both what went missing from the inputs and the
removed units' part in the state are made up for. The gate of a GRU that scales R h has its two
parts fitted apart.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.axes.view import View
from onnxprune.cut.weights import Stored
from onnxprune.graph.files import read_tensor, write_tensor
from onnxprune.graph.model import Node
from onnxprune.repair.cone import readers, stored
from onnxprune.repair.stream import Stream

Array = NDArray[np.float64]
_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_SUFFIXES = ("W", "R", "B")


@dataclass(frozen=True, eq=False)
class RecurrentJob:
    """A recurrent layer of the slim model whose gates are refitted."""

    node: Node
    order: int
    names: tuple[str, str, str]
    """W, R and B in the slim model; B may be ''."""
    was: tuple[Array, Array, Array]
    """W (dirs, gates * units, inputs), R (dirs, gates * units, units) and B of the original."""
    units: NDArray[np.bool_]
    """Units that are kept."""
    x: str
    y: str
    """What it reads, and the states of all steps ('' if nobody asks for them), in both files."""
    reversed: tuple[bool, ...]
    """Per direction: does it go through the steps from the last to the first?"""
    has_start: bool
    """It is given a first state."""

    @property
    def slim_values(self) -> list[str]:
        return [self.x]

    @property
    def original_values(self) -> list[str]:
        return [self.x, *([self.y] if self.y else [])]

    @property
    def label(self) -> str:
        return self.node.label


def recurrent_jobs(
    view: View, model: onnx.ModelProto, weights: Sequence[Stored], touched: set[str]
) -> Iterator[RecurrentJob]:
    """The recurrent layers of the main graph that removal touched and that can be fitted."""
    facts, inner = view.facts, view.facts.model
    names = {s.value: s.name for s in weights}
    store = stored(model)
    for order, n in enumerate(inner.graph.nodes):
        if n.domain or n.op not in _GATES or not set(n.outputs) & touched or n.attrs.get("layout"):
            continue
        given = [*n.inputs, *[""] * (8 - len(n.inputs))]
        if given[4] or any(i not in inner.constants for i in given[1:3]):
            continue  # sequences of several lengths, or weights that are computed
        if given[3] and given[3] not in inner.constants:
            continue
        parts = [names.get(i, inner.in_file(i)) if i else "" for i in given[1:4]]
        if any(p and (p not in store or readers(model, p) != 1) for p in parts):
            continue
        if any(facts.trace.types.get(i) != 1 for i in given[1:4] if i):
            continue
        w, r = (inner.array(inner.constants[i]).astype(np.float64) for i in given[1:3])
        b = np.zeros((len(w), 2 * w.shape[1]))
        if given[3]:
            b = inner.array(inner.constants[given[3]]).astype(np.float64)
        units = view.kept(given[2], 2)
        states = n.outputs[0] if n.outputs and n.outputs[0] else ""
        way = n.attrs.get("direction", "forward")
        back = {"forward": (False,), "reverse": (True,), "bidirectional": (False, True)}[way]
        yield RecurrentJob(
            n, order, (parts[0], parts[1], parts[2]), (w, r, b), units, inner.in_file(n.inputs[0]),
            inner.in_file(states) if states else "", back, bool(given[5]),
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Part:
    """Gate rows that are fitted together: from inputs, states, or both."""

    gates: slice
    inputs: bool
    states: bool


def parts_of(job: RecurrentJob) -> list[_Part]:
    """How a layer's gates fall apart into least-squares problems."""
    known = bool(job.y)
    if job.node.op != "GRU":
        return [_Part(slice(None), True, known)]
    parts = [_Part(slice(0, 2), True, known), _Part(slice(2, 3), True, False)]
    if known and job.node.attrs.get("linear_before_reset"):
        parts.append(_Part(slice(2, 3), False, True))
    return parts


def rows_of(
    job: RecurrentJob, part: _Part, d: int, was: Stream, now: Stream, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """(n, D - 1) and (n, gates * kept units): what a part reads in batch `k`, and should give."""
    gates = _GATES[job.node.op]
    x0, x = was.get(job.x, k), now.get(job.x, k)
    w, r, b = (a[d] for a in job.was)
    total = np.zeros((*x0.shape[:2], w.shape[0]))
    reads = []
    if part.inputs:
        total += x0 @ w.T + b[: len(w)]
        reads.append(x)
    if part.states:
        h = was.get(job.y, k)[:, d]
        last = np.zeros_like(h)
        if job.reversed[d]:
            last[:-1] = h[1:]
        else:
            last[1:] = h[:-1]
        total += last @ r.T + b[len(w) :]
        reads.append(last[..., job.units])
        if job.has_start:  # the first step's state is not among the outputs
            steps = slice(0, -1) if job.reversed[d] else slice(1, None)
            total, reads = total[steps], [a[steps] for a in reads]
    goal = total.reshape(-1, gates, len(job.units))[:, part.gates][..., job.units]
    taps = np.concatenate(reads, axis=-1)
    return taps.reshape(-1, taps.shape[-1]), goal.reshape(len(goal), -1)


def start_of(job: RecurrentJob, part: _Part, d: int, have: Mapping[str, np.ndarray]) -> Array:
    """(D, gates * kept units): a part's weights and bias as the slim model has them."""
    rows = _rows(job, part)
    both = []
    bias = np.zeros(int(rows.sum()))
    half = have["W"].shape[1]
    if part.inputs:
        both.append(have["W"][d][rows])
        bias += have["B"][d, :half][rows]
    if part.states:
        both.append(have["R"][d][rows])
        bias += have["B"][d, half:][rows]
    return np.concatenate([np.concatenate(both, axis=1).T, bias[None]]).astype(np.float64)


def _rows(job: RecurrentJob, part: _Part) -> NDArray[np.bool_]:
    """The part's rows among the slim model's gate rows."""
    gates, units = _GATES[job.node.op], int(job.units.sum())
    rows = np.zeros((gates, units), bool)
    rows[part.gates] = True
    return rows.ravel()


def weights_of(
    job: RecurrentJob, model: onnx.ModelProto, folder: Path | None
) -> dict[str, np.ndarray]:
    """W, R and B of the slim model; B is zero where it has none."""
    store = stored(model)
    found = {
        key: read_tensor(store[name], folder).astype(np.float64)
        for key, name in zip(_SUFFIXES, job.names, strict=True) if name
    }  # fmt: skip
    found.setdefault("B", np.zeros((len(found["W"]), 2 * found["W"].shape[1])))
    return found


def put(job: RecurrentJob, part: _Part, d: int, w: Array, have: dict[str, np.ndarray]) -> None:
    """Put a part's solution into the arrays of `weights_of`."""
    rows = _rows(job, part)
    half = have["W"].shape[1]
    inputs = have["W"].shape[2] if part.inputs else 0
    bias = w[-1]
    if part.inputs:
        have["W"][d][rows] = w[:inputs].T
    if part.states:
        have["R"][d][rows] = w[inputs:-1].T
        if part.inputs:
            bias = bias - have["B"][d, half:][rows]  # that half stays as it is
        else:
            have["B"][d, half:][rows] = bias
    if part.inputs:
        have["B"][d, :half][rows] = bias


def store_weights(
    job: RecurrentJob, model: onnx.ModelProto, have: Mapping[str, np.ndarray]
) -> None:
    """Write the arrays of `weights_of` back into the model."""
    store: dict[str, Any] = stored(model)
    for key, name in zip(_SUFFIXES, job.names, strict=True):
        if name:
            old = store[name]
            values = np.ascontiguousarray(have[key].astype(np.float32))
            old.CopyFrom(write_tensor(old, values.reshape(tuple(old.dims))))
