"""The proof node by node: every node of the slim model, fed with what the masked original computes.

Outputs alone say too much and too little: rounding that a deep network blows up is no error, and
two swapped channels may move the outputs by less than the tolerance. Here nothing adds up and
nothing fades: each node gets the kept part of the masked original's own tensors, and must give the
kept part of its output. If all do, the models agree by induction; if one does not, that is where
the cut is wrong.

Both models are run part by part, and a part of the masked original starts from what the parts
before it gave: all together they are one inference, and only what is still to be read is held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.axes.facts import Facts
from onnxprune.axes.view import View
from onnxprune.check.copies import DRAWS
from onnxprune.check.parts import Part, Whole
from onnxprune.check.probes import FLOATS, comparable, kept_part, produced
from onnxprune.check.room import growth, value_bytes
from onnxprune.check.verdict import HALF_TOLERANCE, Difference, difference, moved
from onnxprune.errors import OutOfMemory, PruneError
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import Session

SHARE = 0.2
"""Of the tolerance: one node rounds less than a network (1.5e-6 is the most seen in 300 models)."""

_BUDGET = 1 << 28
"""Bytes of activations that one part gives; the slim model's take as much again."""
_MOST = 1 << 32
"""Bytes of all activations that are looked at where nothing seems wrong: it takes time."""
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

    Raises OutOfMemory.
    """
    model, types = view.facts.model, view.facts.trace.types
    both = produced(masked) & produced(slim)
    values = {name: v for name, v in comparable(view).items() if name in both}
    forced = {name for name, v in values.items() if types.get(v) in _FORCED}
    outputs = {o.name for o in slim.graph.output}
    drawn = {o for n in slim.graph.node if n.op_type in DRAWS for o in n.output}
    wanted = [name for name in values if name in forced or name in outputs]
    missed = {o.name for o in model.proto.graph.output}
    full, small = Whole(masked, folder), Whole(slim, slim_folder)
    parts: list[tuple[Part, Part]] = []
    given: set[str] = set()
    for chunk in _chunks(view, feeds, values, wanted):
        targets = [name for name in chunk if name not in drawn]
        parts.append((full.part(chunk, given), small.part(targets, forced)))
        given |= forced.intersection(chunk)
    last = {name: k for k, pair in enumerate(parts) for part in pair for name in part.fed}
    have, worst, count = dict(feeds), Difference("", 0.0, 1.0), 0
    for k, (part, step) in enumerate(parts):
        try:
            fed = {name: have[name] for name in part.fed}
            with full.open(part, fed, provider) as run:
                have |= run.run(fed)
            if lacking := step.fed - have.keys():
                return Steps(worst, count, stuck=f"nothing gives {min(lacking)}")
            there = [name for name in step.targets if name in have]
            kept = {n: kept_part(view, values.get(n, ""), have[n]) for n in {*step.fed, *there}}
            have = {name: array for name, array in have.items() if last.get(name, k) > k}
            fed = {name: kept[name] for name in step.fed}
            with small.open(step, fed, provider) as run:
                got = run.run(fed)
                for name in there:
                    out = step.called(name)
                    if out not in got:
                        continue
                    count += 1
                    missed.discard(name)
                    node = model.producer[values[name]]
                    network = bool(node.bodies) or node.op in _NETWORKS
                    d = difference(name, kept[name], got.pop(out), 1 if network else SHARE)
                    if d.bad and network:
                        d = replace(d, tolerance=_sensitivity(run, fed, out, d))
                    worst = max(worst, d, key=lambda x: x.badness)
                    if d.bad:
                        return Steps(d, count, f"{node.label} ({node.op}) gives {d}")
        except OutOfMemory:
            raise
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


def affordable(view: View, feeds: Feeds) -> bool:
    """Is comparing all activations, on these inputs, done in a few seconds?"""
    facts = view.facts
    values = (o for n in facts.model.graph.nodes for o in n.outputs)
    return _growth(facts, feeds) * sum(value_bytes(o, facts) for o in values) <= _MOST


def _growth(facts: Facts, feeds: Feeds) -> float:
    return growth(facts, {name: array.shape for name, array in feeds.items()})


def _chunks(
    view: View, feeds: Feeds, values: Mapping[str, str], wanted: Sequence[str]
) -> Iterator[list[str]]:
    """Tensors in order, cut where they would need too much memory."""
    chunk: list[str] = []
    total, scale = 0.0, _growth(view.facts, feeds)
    for name in wanted:
        size = value_bytes(values[name], view.facts) * scale
        if chunk and total + size > _BUDGET:
            yield chunk
            chunk, total = [], 0.0
        chunk.append(name)
        total += size
    if chunk:
        yield chunk
