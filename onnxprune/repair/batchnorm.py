"""A network as other inputs see it: batch norm statistics measured on them, and put back after.

On synthetic images the channels of a trained network drift away from what its batch norms expect,
the more the deeper. With statistics measured on those images, layer by layer, each norm gives its
mean and spread again, and what follows works in the range that it was trained in. A slim model is
repaired in that state; then the statistics of training return. Weights and biases in front of a
norm mean the same in both states, as a norm only shifts and scales what they make.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Solution
from onnxprune.axes.view import View
from onnxprune.cut.weights import Stored
from onnxprune.graph.model import Constant, Node, Site
from onnxprune.graph.tensors import add_tensor
from onnxprune.repair.linear import Fitted
from onnxprune.repair.stream import Feeds, Store, Stream

Refit = Callable[
    [View, onnx.ModelProto, Sequence[Stored], Sequence[Feeds]],
    tuple[onnx.ModelProto, tuple[Fitted, ...]],
]
"""A repair with calibration batches, as `linear.refit`."""

LEAST = 1e-3
"""A measured variance is at least this share of the one in the file: dead channels stay dead."""


@dataclass(frozen=True, eq=False)
class Statistics:
    """(channels,) mean and variance of what a batch norm reads."""

    mean: NDArray[np.float64]
    var: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class StandIn:
    """The original with statistics of other inputs; everything else is shared with it."""

    facts: Facts
    statistics: Mapping[str, Statistics]
    """By the norm's output."""

    def solution(self, s: Solution) -> Solution:
        """The same decisions on the stand-in."""
        return replace(s, facts=self.facts)

    def repaired(
        self, view: View, slim: onnx.ModelProto, weights: Sequence[Stored],
        batches: Sequence[Feeds], refit: Refit,
    ) -> tuple[onnx.ModelProto, tuple[Fitted, ...]]:  # fmt: skip
        """A slim model of the original, repaired towards the stand-in; the file's own statistics
        are in it again.
        """
        facts = view.facts
        mine = View(self.solution(view.solution), view.keep)
        lent = {
            facts.model.in_file(out): _rows(s, view.kept(out, 1))
            for out, s in self.statistics.items()
        }
        model, fitted = refit(mine, with_statistics(slim, lent), weights, batches)
        return _returned(model, slim), fitted


def norms(facts: Facts) -> list[Node]:
    """The batch norms of the main graph with stored statistics, in order."""
    constants = facts.model.constants
    return [
        n
        for n in facts.model.graph.nodes
        if n.op == "BatchNormalization"
        and not n.domain
        and not n.attrs.get("training_mode", 0)
        and len(n.inputs) >= 5
        and all(i in constants for i in n.inputs[3:5])
        and n.outputs[0] in facts.axes
    ]


def stand_in(
    facts: Facts,
    batches: Sequence[Feeds],
    *,
    memory: int = 2_000_000_000,
    tell: Callable[[str], None] = lambda text: None,
) -> StandIn:
    """The original as these batches see it: statistics measured norm by norm, in order, each
    behind norms that have theirs. Without batch norms it is the original.

    Args:
        memory: bytes that activations may take before they go to disk.

    Raises:
        Unreadable: ONNX Runtime can't run the model.
    """
    model, found = facts.model, norms(facts)
    stored = {n.outputs[0]: _stored(n, facts) for n in found}
    if not found:
        return StandIn(facts, {})
    proto = with_statistics(model.proto, {model.in_file(o): s for o, s in stored.items()})
    tensors = {t.name: t for t in proto.graph.initializer}
    measured = {}
    reads = [model.in_file(n.inputs[0]) for n in found]
    with Store(memory) as store:
        stream = Stream(proto, batches, reads, store, model.source.folder)
        for k, (node, value) in enumerate(zip(found, reads, strict=True)):
            tell(f"measuring batch norm {k + 1} of {len(found)}")
            stream.take([value])
            seen = _measured([stream.get(value, j) for j in range(len(batches))])
            stream.release([value])
            out = node.outputs[0]
            measured[out] = _sane(seen, stored[out])
            _write(tensors, model.in_file(out), measured[out])
    return StandIn(_with_constants(facts, proto, found), measured)


def _measured(values: Sequence[np.ndarray]) -> Statistics:
    """Over samples and positions; a pass for the mean and one for the variance."""
    size = sum(v.size // v.shape[1] for v in values)
    others, shape = (0, *range(2, values[0].ndim)), (-1, *[1] * (values[0].ndim - 2))
    with np.errstate(invalid="ignore", over="ignore"):  # `_sane` sees what is not finite
        mean = sum(v.sum(axis=others, dtype=np.float64) for v in values) / size
        var = sum(
            np.square(v - mean.reshape(shape).astype(v.dtype)).sum(axis=others, dtype=np.float64)
            for v in values
        )
    return Statistics(mean, var / size)


def _sane(seen: Statistics, own: Statistics) -> Statistics:
    """What was measured; where that is not finite, the file's own."""
    fine = np.isfinite(seen.mean) & np.isfinite(seen.var)
    return Statistics(
        np.where(fine, seen.mean, own.mean),
        np.where(fine, np.maximum(seen.var, LEAST * own.var), own.var),
    )


def _stored(node: Node, facts: Facts) -> Statistics:
    model = facts.model
    mean, var = (model.array(model.constants[i]).astype(np.float64) for i in node.inputs[3:5])
    return Statistics(mean, var)


def _rows(s: Statistics, kept: NDArray[np.bool_]) -> Statistics:
    return Statistics(s.mean[kept], s.var[kept])


def _names(output: str) -> tuple[str, str]:
    """What the lent tensors of a norm are called."""
    return f"{output}/lent_mean", f"{output}/lent_var"


def with_statistics(
    model: onnx.ModelProto, statistics: Mapping[str, Statistics]
) -> onnx.ModelProto:
    """A copy of a model whose batch norms (by output, as in the file) have other statistics.

    They are tensors of their own, as a file's may be shared.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    types = {t.name: t.data_type for t in copy.graph.initializer}
    types |= {n.output[0]: a.t.data_type for n in copy.graph.node for a in n.attribute
              if n.op_type == "Constant" and a.name == "value"}  # fmt: skip
    for node in copy.graph.node:
        s = statistics.get(node.output[0]) if node.output else None
        if s is None:
            continue
        for k, name, values in zip((3, 4), _names(node.output[0]), (s.mean, s.var), strict=True):
            dtype = helper.tensor_dtype_to_np_dtype(types.get(node.input[k], 1))
            add_tensor(copy, numpy_helper.from_array(values.astype(dtype), name))
            node.input[k] = name
    return copy


def _write(tensors: Mapping[str, onnx.TensorProto], output: str, s: Statistics) -> None:
    for name, values in zip(_names(output), (s.mean, s.var), strict=True):
        old = tensors[name]
        dtype = helper.tensor_dtype_to_np_dtype(old.data_type)
        old.CopyFrom(numpy_helper.from_array(values.astype(dtype), name))


def _with_constants(facts: Facts, proto: onnx.ModelProto, found: Sequence[Node]) -> Facts:
    """The facts over a copy of the file: what they say does not depend on statistics."""
    model = facts.model
    place = {t.name: k for k, t in enumerate(proto.graph.initializer)}
    constants = dict(model.constants)
    for node in found:
        lent = _names(model.in_file(node.outputs[0]))
        for value, name in zip(node.inputs[3:5], lent, strict=True):
            k = place[name]
            constants[value] = Constant(
                value, name, proto.graph.initializer[k], Site((), k), False
            )  # fmt: skip
    source = replace(model.source, proto=proto)
    other = replace(model, source=source, proto=proto, constants=constants, _arrays={})
    return replace(facts, model=other)


def _returned(model: onnx.ModelProto, own: onnx.ModelProto) -> onnx.ModelProto:
    """A repaired model with the statistics of another one, in place of those it was lent."""
    reads = {n.output[0]: list(n.input) for n in own.graph.node if n.output}
    lent: set[str] = set()
    for node in model.graph.node:
        names = _names(node.output[0]) if node.output else ("", "")
        if node.op_type == "BatchNormalization" and tuple(node.input[3:5]) == names:
            lent.update(names)
            node.input[3:5] = reads[node.output[0]][3:5]
    for listed in (model.graph.initializer, model.graph.input):
        for k in reversed(range(len(listed))):
            if listed[k].name in lent:
                del listed[k]
    return model
