"""A consumer's weight and bias in a slim model: read as a matrix, and written back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.files import read_tensor, write_tensor
from onnxprune.repair.cone import readers, stored
from onnxprune.repair.consumers import Consumer


def read_matrix(weight: np.ndarray, c: Consumer) -> np.ndarray:
    """(inputs x taps, outputs) as `conv_taps` lays out its columns."""
    if c.is_conv:
        return weight.reshape(len(weight), -1).T
    return weight.T if c.axis == 1 else weight


def read_bias(
    node: onnx.NodeProto, c: Consumer, store: Mapping[str, TensorProto], folder: Path | None
) -> np.ndarray | None:
    """The bias that a consumer has, or zeros; None where it isn't stored, or differs by row."""
    outputs = store[node.input[1]].dims[1 if c.axis == 0 else 0]
    name = _name(node, c)
    if not name:
        return np.zeros(outputs, np.float32)
    if name not in store or any(d != 1 for d in store[name].dims[:-1]):
        return None
    return np.broadcast_to(read_tensor(store[name], folder).ravel(), (outputs,))


def _name(node: onnx.NodeProto, c: Consumer) -> str:
    return node.input[c.bias] if c.bias is not None and len(node.input) > c.bias else ""


def bias_is_free(
    model: onnx.ModelProto, node: onnx.NodeProto, c: Consumer, store: Mapping[str, TensorProto]
) -> bool:
    """Whether the bias can be written: there is none yet, or it is this node's own vector."""
    name = _name(node, c)
    outputs = store[node.input[1]].dims[1 if c.axis == 0 else 0]
    own = bool(name) and readers(model, name) == 1 and store[name].dims[-1:] == [outputs]
    return c.bias is not None and (not name or own)


def write_matrix(
    model: onnx.ModelProto, node: onnx.NodeProto, old: TensorProto, w: np.ndarray, c: Consumer,
    shape: Sequence[int],
) -> None:  # fmt: skip
    """Store the rows of `w` but its last, the bias."""
    dtype = helper.tensor_dtype_to_np_dtype(old.data_type)
    new = w[:-1].T if c.is_conv or c.axis == 1 else w[:-1]
    old.CopyFrom(write_tensor(old, np.ascontiguousarray(new.reshape(shape).astype(dtype))))


def write_bias(
    model: onnx.ModelProto, node: onnx.NodeProto, c: Consumer, values: np.ndarray
) -> None:
    """Store a bias that `bias_is_free`; the node gets one where it has none."""
    if have := _name(node, c):
        old = stored(model)[have]
        old.CopyFrom(write_tensor(old, values.reshape(old.dims)))
        return
    taken = {t.name for t in model.graph.initializer}
    taken |= {i for n in model.graph.node for i in (*n.input, *n.output)}
    name = f"{node.output[0]}/bias"
    while name in taken:
        name += "_"
    bias = numpy_helper.from_array(values, name)
    model.graph.initializer.append(bias)
    if model.ir_version < 4:  # which lists initializers as inputs
        info = helper.make_tensor_value_info(name, bias.data_type, bias.dims)
        model.graph.input.append(info)
    node.input[2:] = [name]  # Conv and Gemm have it there
