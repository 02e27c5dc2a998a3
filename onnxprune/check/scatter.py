"""A slim model's own weights at full size: what a repaired model must agree with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from onnxprune.axes.view import View
from onnxprune.check.copies import held_tensors
from onnxprune.check.probes import comparable
from onnxprune.choose.plan import BIASED
from onnxprune.cut.mask import masked
from onnxprune.cut.weights import Stored
from onnxprune.graph.files import read_tensor


def scattered(
    view: View, slim: onnx.ModelProto, stored: tuple[Stored, ...], folder: Path | None
) -> onnx.ModelProto:
    """The masked original with SLIM's weights where it has some: zero elsewhere, full size.

    Biases that SLIM has and the original has not (an input of Conv or Gemm, an Add behind MatMul)
    are carried over too.
    """
    held = held_tensors(slim)
    weights = {s.value: read_tensor(held[s.name], folder) for s in stored if s.name in held}
    full = masked(view, weights)
    written = {s.name for s in stored}
    for name, tensor in held_tensors(full).items():
        other = held.get(name)
        if name not in written and other is not None and list(other.dims) == list(tensor.dims):
            tensor.CopyFrom(other)
    _add_biases(view, full, slim, held, folder)
    return full


def _add_biases(
    view: View,
    full: onnx.ModelProto,
    slim: onnx.ModelProto,
    held: dict[str, TensorProto],
    folder: Path | None,
) -> None:
    values = comparable(view)
    made: dict[str, NodeProto] = {o: n for n in full.graph.node for o in n.output}

    def spread(name: str, value: str, axis: int) -> str:
        bias = read_tensor(held[name], folder)
        kept = view.kept(value, axis % len(view.facts.axes[value]))
        array = np.zeros(kept.size, bias.dtype)
        array[kept] = bias.ravel()
        full.graph.initializer.append(numpy_helper.from_array(array, name))
        return name

    for node in slim.graph.node:
        out = node.output[0] if node.output else ""
        same = made.get(out)
        value = values.get(out, "")
        if same is None or value not in view.facts.axes:
            continue
        if node.op_type == same.op_type and node.op_type in BIASED:
            bare = len(same.input) < 3 or not same.input[2]
            if bare and len(node.input) > 2 and node.input[2] in held:
                bias = spread(node.input[2], value, 1)
                same.input[:] = [*same.input[:2], bias, *same.input[3:]]
        elif node.op_type == "Add" and same.op_type == "MatMul" and node.input[1] in held:
            inner = f"{out}#product"
            same.output[0] = inner
            bias = spread(node.input[1], value, -1)
            full.graph.node.append(helper.make_node("Add", [inner, bias], [out]))
