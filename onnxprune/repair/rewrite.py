"""A consumer's weight and bias in a slim model: read as a matrix, and written back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.files import read_tensor, write_tensor
from onnxprune.graph.tensors import add_tensor
from onnxprune.repair.cone import readers, stored
from onnxprune.repair.consumers import Consumer

Rounded = Callable[[str, np.ndarray], np.ndarray]
"""A weight, by name, as it will be stored; the array itself where that is as it is."""


def read_matrix(weight: np.ndarray, c: Consumer, groups: int = 1) -> np.ndarray:
    """(*lead, inputs x taps, outputs) as `taps.rows_read` lays out its columns."""
    if not c.is_conv:
        return weight.T if c.axis == 1 else weight
    if c.node.op == "Conv":
        w = weight.reshape(groups, len(weight) // groups, -1).transpose(0, 2, 1)
    else:  # (inputs, outputs of a group, ...), the kernel turned round
        turned = np.flip(weight, tuple(range(2, weight.ndim)))
        by_input = turned.reshape(len(weight), weight.shape[1], -1).transpose(0, 2, 1)
        w = by_input.reshape(groups, -1, weight.shape[1])
    return w[0] if groups == 1 else w


def write_array(w: np.ndarray, c: Consumer, shape: Sequence[int]) -> np.ndarray:
    """The weight, of this shape, from the rows of `read_matrix`."""
    if not c.is_conv:
        return w.T if c.axis == 1 else w
    if c.node.op == "Conv":
        return np.swapaxes(w, -1, -2).reshape(shape)
    w = w[None] if w.ndim == 2 else w
    groups = len(w)
    taps = int(np.prod(shape[2:]))
    turned = w.reshape(groups, shape[0] // groups, taps, shape[1]).transpose(0, 1, 3, 2)
    return np.flip(turned.reshape(shape), tuple(range(2, len(shape))))


def read_bias(
    node: onnx.NodeProto, c: Consumer, store: Mapping[str, TensorProto], folder: Path | None
) -> np.ndarray | None:
    """The bias that a layer has, or zeros; None where it isn't stored, or differs by row.

    `node` is the one that adds it.
    """
    name = _name(node, c)
    if not name:
        return None if c.add is not None else np.zeros(_outputs(node, c, store), np.float32)
    if name not in store or any(d != 1 for d in store[name].dims[:-1]):
        return None
    values = read_tensor(store[name], folder).ravel()
    return values if c.add is not None else np.broadcast_to(values, (_outputs(node, c, store),))


def _outputs(node: onnx.NodeProto, c: Consumer, store: Mapping[str, TensorProto]) -> int:
    dims = store[node.input[1]].dims
    if c.node.op == "ConvTranspose":
        return int(dims[1]) * c.groups
    return int(dims[1 if c.axis == 0 else 0])


def _name(node: onnx.NodeProto, c: Consumer) -> str:
    return node.input[c.bias] if c.bias is not None and len(node.input) > c.bias else ""


def bias_is_free(
    model: onnx.ModelProto, node: onnx.NodeProto, c: Consumer, store: Mapping[str, TensorProto]
) -> bool:
    """Whether the bias can be written: there is none yet, or it is this node's own vector."""
    name = _name(node, c)
    if not name:
        return c.bias is not None and c.add is None
    wide = c.add is not None or store[name].dims[-1:] == [_outputs(node, c, store)]
    return readers(model, name) == 1 and wide


def write_matrix(old: TensorProto, w: np.ndarray, c: Consumer, shape: Sequence[int]) -> None:
    """Store the rows of `w` but its last, the bias."""
    dtype = helper.tensor_dtype_to_np_dtype(old.data_type)
    new = write_array(w[..., :-1, :], c, shape)
    old.CopyFrom(write_tensor(old, np.ascontiguousarray(new.astype(dtype))))


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
    add_tensor(model, numpy_helper.from_array(values, name))
    node.input[2:] = [name]  # Conv and Gemm have it there


def settle(model: onnx.ModelProto, name: str, rounded: Rounded, folder: Path | None) -> None:
    """Leave a weight of a model as it will be stored."""
    tensor = stored(model)[name]
    values = read_tensor(tensor, folder)
    new = rounded(name, values)
    if new is not values:
        tensor.CopyFrom(write_tensor(tensor, new))
