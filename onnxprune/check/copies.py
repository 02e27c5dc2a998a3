"""Copies of a model that ONNX Runtime can run and compare, with the same meaning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.graph.files import read_tensor, stored_tensors

DRAWS = frozenset((
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial",
    "Bernoulli",
))  # fmt: skip
_ODD = frozenset((
    TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
))  # fmt: skip
"""Float types that a provider may lack kernels for."""

_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")


def nodes_of(graph: GraphProto) -> Iterator[NodeProto]:
    """All nodes, those of bodies too."""
    for node in graph.node:
        yield node
        for a in node.attribute:
            if a.HasField("g"):
                yield from nodes_of(a.g)


def held_tensors(model: onnx.ModelProto) -> dict[str, TensorProto]:
    """The stored tensors of the main graph by name, those of Constant nodes included."""
    nodes = (n for n in model.graph.node if n.op_type == "Constant")
    held = {n.output[0]: a.t for n in nodes for a in n.attribute if a.name == "value"}
    return held | {t.name: t for t in model.graph.initializer}


def seeded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with fixed seeds wherever it draws random numbers; itself if it never does."""
    if not any(n.op_type in DRAWS for n in nodes_of(model.graph)):
        return model
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for k, node in enumerate(n for n in nodes_of(copy.graph) if n.op_type in DRAWS):
        kept = [a for a in node.attribute if a.name != "seed"]
        del node.attribute[:]
        node.attribute.extend([*kept, helper.make_attribute("seed", float(k + 1))])
    return copy


def has_odd_types(model: onnx.ModelProto) -> bool:
    """Does it use float types other than float32?"""
    inputs = (i.type.tensor_type.elem_type for i in model.graph.input)
    return any(t in _ODD for t in inputs) or any(t.data_type in _ODD for t in stored_tensors(model))


def in_float32(model: onnx.ModelProto, folder: Path | None) -> onnx.ModelProto:
    """A copy that computes everything in float32.

    Values that only a narrow type rounds stay unrounded, in the original and the slim model alike.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in stored_tensors(copy):
        if tensor.data_type in _ODD:
            array = np.asarray(read_tensor(tensor, folder)).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    for graph in _graphs(copy.graph):
        del graph.value_info[:]
        for info in (*graph.input, *graph.output):
            if info.type.tensor_type.elem_type in _ODD:
                info.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in nodes_of(copy.graph):
        for a in node.attribute:
            if a.name in _TYPE_ATTRIBUTES and a.i in _ODD:
                a.i = TensorProto.FLOAT
    return copy


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    yield graph
    for node in graph.node:
        for a in node.attribute:
            if a.HasField("g"):
                yield from _graphs(a.g)
