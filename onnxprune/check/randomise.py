"""Weights that are constant, made random: what a network starts with can hide what a cut does.

A LayerScale of 1e-6, a head that starts at zero, gamma = 1 and beta = 0 let the outputs stay where
they are whatever is removed or mixed up.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.axes.view import View
from onnxprune.cut.cut import slice_out
from onnxprune.cut.edits import Edits
from onnxprune.cut.weights import Stored, constant_value
from onnxprune.graph.files import read_tensor, write_tensor
from onnxprune.graph.model import Constant

_FLOATS = frozenset((
    TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
))  # fmt: skip
_WEIGHTED: dict[str, frozenset[int]] = {
    "Conv": frozenset((1, 2)), "ConvTranspose": frozenset((1, 2)), "Gemm": frozenset((1, 2)),
    "MatMul": frozenset((0, 1)), "Add": frozenset((0, 1)), "Mul": frozenset((0, 1)),
    "Sub": frozenset((0, 1)), "BatchNormalization": frozenset((1, 2)),
    "LayerNormalization": frozenset((1, 2)), "InstanceNormalization": frozenset((1, 2)),
    "GroupNormalization": frozenset((1, 2)), "RMSNormalization": frozenset((1,)),
    "SimplifiedLayerNormalization": frozenset((1,)), "SkipLayerNormalization": frozenset((2, 3, 4)),
    "LSTM": frozenset((1, 2, 3)), "GRU": frozenset((1, 2, 3)), "RNN": frozenset((1, 2, 3)),
    "Gather": frozenset((0,)), "FusedConv": frozenset((1, 2)), "FusedMatMul": frozenset((0, 1)),
    "Attention": frozenset((1, 2)), "BiasGelu": frozenset((1,)), "FastGelu": frozenset((1,)),
}  # fmt: skip
"""Operands that are weights: any value is as good as another (never a bound, exponent, divisor)."""


def randomised(view: View) -> tuple[View, int]:
    """The same plan over the model with constant weights made random, and how many there were.

    Only weights of the main graph; the same model gives the same values.
    """
    model = view.facts.model
    found: dict[tuple[int, bool], Constant] = {}
    keep: set[tuple[int, bool]] = set()
    for c in model.constants.values():
        key = (c.site.index, c.is_node)
        if c.site.path or c.size < 2 or c.tensor.data_type not in _FLOATS:
            continue
        users = model.uses.get(c.value, ())
        if any(k not in _WEIGHTED.get(node.op, ()) for node, k in users):
            keep.add(key)
        elif users and key not in found and _is_constant(model.array(c)):
            found[key] = c
    picked = {key: c for key, c in found.items() if key not in keep}
    edits = Edits(view.facts)
    for k, c in enumerate(picked.values()):
        array = _random(model.array(c), np.random.default_rng(k))
        tensor = edits.tensor(c)
        tensor.CopyFrom(write_tensor(tensor, array))
    proto = edits.finish()
    held: dict[str, Constant] = {}
    other = replace(model, proto=proto, constants=held, _arrays={})
    again = Edits(replace(view.facts, model=other))
    again.proto = proto
    held.update({v: replace(c, tensor=again.tensor(c)) for v, c in model.constants.items()})
    facts = replace(view.facts, model=other)
    return View(replace(view.solution, facts=facts), view.keep), len(picked)


def _is_constant(array: np.ndarray) -> bool:
    flat = array.ravel()
    return bool((flat == flat[0]).all())


def _random(like: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Values of order 1, or of 1/sqrt(fan-in) for matrices and filters."""
    fan_in = like.size / max(like.shape)
    values = rng.uniform(0.5, 1.5, like.shape) * rng.choice((-1, 1), like.shape) / np.sqrt(fan_in)
    return np.asarray(values.astype(np.float32).astype(like.dtype))


def carried(
    before: View, after: View, slim: onnx.ModelProto, stored: tuple[Stored, ...]
) -> onnx.ModelProto:
    """A slim model with the weights of `after` put in where it had those of `before`.

    `stored` is what cutting by the plan writes. A weight of `slim` that is not what the plan makes
    of the original's stays: nothing that is wrong in it may be put right here.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(slim)
    tensors = {t.name: t for t in copy.graph.initializer}
    for node in copy.graph.node:
        if node.op_type == "Constant":
            tensors |= {node.output[0]: a.t for a in node.attribute if a.name == "value"}
    written = {s.name for s in stored}
    old, new = before.facts.model, after.facts.model
    parts = [(s.name, s.value) for s in stored]
    parts += [(c.name, v) for v, c in old.constants.items()
              if not c.site.path and c.name not in written]  # fmt: skip
    for name, value in parts:
        tensor = tensors.get(name)
        if tensor is None or (value in old.constants and _same(old, new, value)):
            continue
        kept = before.masks(value)
        was = slice_out(constant_value(value, before.facts), kept, value)
        folder = old.source.folder
        if tensor.data_type in _FLOATS and np.array_equal(was, read_tensor(tensor, folder)):
            now = slice_out(constant_value(value, after.facts), kept, value)
            tensor.CopyFrom(write_tensor(tensor, now))
    return copy


def _same(old: object, new: object, value: str) -> bool:
    a, b = old.constants[value].tensor, new.constants[value].tensor  # type: ignore[attr-defined]
    return bool(a.raw_data == b.raw_data and a.float_data == b.float_data)
