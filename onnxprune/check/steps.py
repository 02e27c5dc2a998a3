"""The proof node by node: every node of the slim model, fed with what the masked original computes.

Outputs alone say too much and too little: rounding that a deep network blows up is no error, and
two swapped channels may move the outputs by less than the tolerance. Here nothing adds up and
nothing fades: each node gets the kept part of the masked original's own tensors, and must give the
kept part of its output. If all do, the models agree by induction; if one does not, that is where
the cut is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, TensorProto, ValueInfoProto, helper

from onnxprune.axes.view import View
from onnxprune.check.copies import DRAWS
from onnxprune.check.probes import FLOATS, comparable, kept_part, produced
from onnxprune.check.verdict import HALF_TOLERANCE, Difference, difference, moved
from onnxprune.errors import PruneError
from onnxprune.graph.model import captured
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import Session, open_session

SHARE = 0.2
"""Of the tolerance: one node rounds less than a network (1.5e-6 is the most seen in 300 models)."""

_BUDGET = 1 << 29
"""Bytes of activations that are held at once."""
_FORCED = FLOATS | {TensorProto.INT8, TensorProto.UINT8}
"""Types of tensors that are fed; sizes and indices follow from them exactly."""
_NETWORKS = frozenset(("LSTM", "GRU", "RNN"))
"""Like nodes with bodies they are networks of their own, and round like one."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The worst tensor, how many were compared, the first that is wrong, or why it stopped."""

    worst: Difference
    count: int
    first_bad: str = ""
    stuck: str = ""
    """A part of the graph that does not run on its own, or outputs that no step reached."""


def by_node(
    view: View,
    masked: onnx.ModelProto,
    slim: onnx.ModelProto,
    feeds: Feeds,
    *,
    provider: str = "cpu",
    folder: Path | None = None,
    slim_folder: Path | None = None,
) -> Steps:
    """Hold every node of `slim` against `masked` on its own, on these inputs.

    Raises Unreadable if the masked original can't run.
    """
    model, types = view.facts.model, view.facts.trace.types
    both = produced(masked) & produced(slim)
    values = {name: v for name, v in comparable(view).items() if name in both}
    forced = {name for name, v in values.items() if types.get(v) in _FORCED}
    outputs = {o.name for o in slim.graph.output}
    drawn = {o for n in slim.graph.node if n.op_type in DRAWS for o in n.output}
    targets = [n for n in values if (n in forced or n in outputs) and n not in drawn]
    missed = {o.name for o in model.proto.graph.output}
    worst, count = Difference("", 0.0, 1.0), 0
    with open_session(masked, provider=provider, extra_outputs=sorted(both), folder=folder) as run:
        for chunk in _chunks(view, values, targets):
            part, needed = _segment(slim, chunk, forced)
            fetch = [name for name in dict.fromkeys((*chunk, *needed)) if name in values]
            full = run.run(feeds, fetch)
            have = {n: kept_part(view, values[n], a) for n, a in full.items()} | feeds
            for name in needed:
                _declare(part.graph, name, have[name])
            fed = {name: have[name] for name in needed}
            try:
                with open_session(part, provider=provider, folder=slim_folder) as step:
                    got = step.run(fed)
                    for name in chunk:
                        if name not in have or _renamed(name) not in got:
                            continue
                        count += 1
                        missed.discard(name)
                        node = model.producer[values[name]]
                        network = bool(node.bodies) or node.op in _NETWORKS
                        d = difference(
                            name, have[name], got[_renamed(name)], 1 if network else SHARE
                        )
                        if d.bad and network:
                            d = replace(d, tolerance=_sensitivity(step, fed, _renamed(name), d))
                        worst = max(worst, d, key=lambda x: x.badness)
                        if d.bad:
                            return Steps(d, count, f"{node.label} ({node.op}) gives {d}")
            except PruneError as error:
                return Steps(worst, count, stuck=error.why or error.what)
    return Steps(worst, count, stuck=f"not reached: {', '.join(sorted(missed))}" if missed else "")


def _sensitivity(step: Session, fed: Feeds, name: str, d: Difference) -> float:
    """The tolerance for a node that is a network: four times what 1e-6 in its inputs makes of it.

    Nothing can be fed inside a body, so there rounding adds up: a probability of 1e-5 out of a
    Sigmoid is a multiple of 6e-8. Never more than 1e-2.
    """
    rng, before, far = np.random.default_rng(0), step.run(fed, [name])[name], 0.0
    for _ in range(8):
        near = {
            n: (a * (1 + 1e-6 * rng.standard_normal(a.shape))).astype(a.dtype)
            if a.dtype.kind == "f"
            else a
            for n, a in fed.items()
        }
        far = max(far, moved(before, step.run(near, [name])[name]))
    return max(d.tolerance, min(4 * far, HALF_TOLERANCE))


def affordable(view: View) -> bool:
    """Do two parts hold all activations (at the size of the analysis)? Each costs an inference."""
    values = (o for n in view.facts.model.graph.nodes for o in n.outputs)
    return sum(_bytes(view, o) for o in values) <= 2 * _BUDGET


def _bytes(view: View, value: str) -> int:
    return 4 * int(np.prod(view.facts.trace.shapes.get(value, ())))


def _chunks(view: View, values: Mapping[str, str], targets: Sequence[str]) -> Iterator[list[str]]:
    """Targets in order, cut where their tensors would need too much memory."""
    chunk: list[str] = []
    total = 0
    for name in targets:
        size = _bytes(view, values[name])
        if chunk and total + size > _BUDGET:
            yield chunk
            chunk, total = [], 0
        chunk.append(name)
        total += size
    if chunk:
        yield chunk


def _renamed(name: str) -> str:
    return f"{name}#step"


def _segment(
    slim: onnx.ModelProto, targets: Sequence[str], forced: set[str]
) -> tuple[onnx.ModelProto, list[str]]:
    """The nodes that give `targets`, reading every forced tensor from outside; and what to feed.

    What a node gives under a forced name is renamed, so that its readers get the fed tensor.
    """
    graph = slim.graph
    producer = {o: k for k, n in enumerate(graph.node) for o in n.output if o}
    stored = {t.name: t for t in graph.initializer}
    sparse = {t.values.name: t for t in graph.sparse_initializer}
    inputs = {i.name for i in graph.input} - set(stored)
    nodes: set[int] = set()
    names: set[str] = set()
    todo = [producer[t] for t in targets]
    while todo:
        k = todo.pop()
        if k in nodes:
            continue
        nodes.add(k)
        for i in {*graph.node[k].input, *captured(graph.node[k])} - names:
            names.add(i)
            if i not in forced and i in producer:
                todo.append(producer[i])
    part = onnx.ModelProto(ir_version=max(slim.ir_version, 4))
    part.opset_import.extend(slim.opset_import)
    part.functions.extend(slim.functions)
    part.graph.name = "step"
    part.graph.initializer.extend(stored[i] for i in sorted(names & set(stored)))
    part.graph.sparse_initializer.extend(sparse[i] for i in sorted(names & set(sparse)))
    given: list[str] = []
    for k in sorted(nodes):
        node = part.graph.node.add()
        node.CopyFrom(graph.node[k])
        for j, o in enumerate(node.output):
            if o in forced or o in targets:
                node.output[j] = _renamed(o)
                given.append(o)
    part.graph.output.extend(ValueInfoProto(name=_renamed(o)) for o in targets if o in given)
    # A target that is not forced may be read further down in the same segment.
    alias = [o for o in given if o not in forced and o in names]
    part.graph.node.extend(helper.make_node("Identity", [_renamed(o)], [o]) for o in alias)
    return part, sorted(names & (forced | inputs))


def _declare(graph: GraphProto, name: str, array: np.ndarray) -> None:
    info = graph.input.add(name=name)
    info.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(array.dtype)
