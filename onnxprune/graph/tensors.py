"""Tensors of a model, read and written one at a time; data files are never left for the outside."""

import math
import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import TypeVar

import numpy as np
from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxprune.errors import Unreadable

_BITS: dict[int, int] = {
    TensorProto.INT4: 4, TensorProto.UINT4: 4, TensorProto.FLOAT4E2M1: 4,
    TensorProto.INT2: 2, TensorProto.UINT2: 2,
    TensorProto.FLOAT6E2M3: 6, TensorProto.FLOAT6E3M2: 6,
}  # fmt: skip
_WAS_EXTERNAL = "onnxprune.was_external"  # key of the mark that write_tensor leaves

M = TypeVar("M", bound=Message)


def stored_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor in the file: initializers and attributes, of all bodies and local functions."""
    yield from _graph_tensors(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _node_tensors(node)


def _graph_tensors(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _node_tensors(node)


def _node_tensors(node: NodeProto) -> Iterator[TensorProto]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        elif attribute.HasField("g"):
            yield from _graph_tensors(attribute.g)
        elif attribute.HasField("sparse_tensor"):
            yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
        yield from attribute.tensors
        for graph in attribute.graphs:
            yield from _graph_tensors(graph)


def is_external(tensor: TensorProto) -> bool:
    """Whether the values lie in a data file."""
    return tensor.data_location == TensorProto.EXTERNAL


def wants_data_file(tensor: TensorProto) -> bool:
    """Whether the values lie in a data file, or came from one and were replaced."""
    return is_external(tensor) or any(e.key == _WAS_EXTERNAL for e in tensor.external_data)


def data_file(tensor: TensorProto, folder: Path | None) -> Path:
    """The file with a tensor's values: always inside `folder`, whatever the model says."""
    location = next((e.value for e in tensor.external_data if e.key == "location"), "")
    where = f"tensor {tensor.name!r}"
    if folder is None:
        raise Unreadable(
            "the weights lie in a file that a model from memory can't name", where=where,
            why=f"external data in {location!r}", hint="pass the model's path",
        )  # fmt: skip
    lost = not location or "\0" in location or ".." in re.split(r"[/\\]", location)
    absolute = Path(location).is_absolute() or PureWindowsPath(location).drive != ""
    if lost or absolute or not (folder / location).resolve().is_relative_to(folder.resolve()):
        raise Unreadable(
            "external data outside the model's folder is not read", where=where,
            why=f"it lies in {location!r}", hint="copy the data file beside the model",
        )  # fmt: skip
    return folder / location


def external_bytes(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """The stored bytes of an external tensor, memory-mapped: 1-D uint8."""
    file, where = data_file(tensor, folder), f"tensor {tensor.name!r}"
    entries = {entry.key: entry.value for entry in tensor.external_data}
    try:
        size = byte_count(tensor)
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", size))
        available = file.stat().st_size if file.is_file() else None
    except (ValueError, KeyError, OSError) as error:
        raise Unreadable("damaged external data", where=where, why=str(error)) from None
    if available is None:
        raise Unreadable("the data file is missing", where=where, why=f"no file {file}")
    if length != size:
        why = f"{size} bytes follow from its type and shape, {length} are announced"
        raise Unreadable("damaged external data", where=where, why=why)
    if offset < 0 or offset + size > available:
        why = f"bytes {offset} to {offset + size} of {file}, which has {available}"
        raise Unreadable("the data file is too short", where=where, why=why)
    if size == 0:
        return np.empty(0, np.uint8)
    try:
        return np.memmap(file, np.uint8, "r", offset, (size,)).view(np.ndarray)
    except OSError as error:
        why = f"{file}: {error.strerror}"
        raise Unreadable("can't read the data file", where=where, why=why) from None


def byte_count(tensor: TensorProto) -> int:
    """Bytes of a tensor's values; raises ValueError or KeyError where type or shape has none."""
    if tensor.data_type == TensorProto.STRING or any(dim < 0 for dim in tensor.dims):
        raise ValueError(f"no size follows from type and shape {list(tensor.dims)}")
    bits = _BITS.get(tensor.data_type)
    if bits is None:
        bits = 8 * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    return (math.prod(tensor.dims) * bits + 7) // 8


def inline_bytes(model: ModelProto) -> int:
    """Bytes of the values that the model file itself holds, from types and shapes alone."""
    return sum(known_bytes(t) for t in stored_tensors(model) if not is_external(t))


def serialised_bytes(model: ModelProto) -> int:
    """Bytes of the model as a file, counted: protobuf itself would have to write it to know."""
    weights = (_framed(_serialised(t)) for t in model.graph.initializer)
    graph = without(model.graph, "initializer").ByteSize() + sum(weights)
    return without(model, "graph").ByteSize() + _framed(graph)


def _framed(size: int) -> int:
    """Bytes of a protobuf field of this many bytes: tag, length (7 bits a byte), and itself."""
    return 1 + max(1, math.ceil(size.bit_length() / 7)) + size


def _serialised(tensor: TensorProto) -> int:
    if not tensor.HasField("raw_data") or is_external(tensor):
        return tensor.ByteSize()
    small = header(tensor)
    small.dims.extend(tensor.dims)
    small.external_data.extend(tensor.external_data)
    if tensor.HasField("data_location"):
        small.data_location = tensor.data_location
    return small.ByteSize() + _framed(known_bytes(tensor))


def known_bytes(tensor: TensorProto) -> int:
    """Bytes of a tensor's values, 0 where type and shape do not tell."""
    try:
        return byte_count(tensor)
    except (ValueError, KeyError):
        return 0  # strings, and what is damaged: said when it is read


def read_tensor(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """A tensor's values, read-only where they are mapped or shared; raises Unreadable."""
    try:
        if any(dim < 0 for dim in tensor.dims):
            raise ValueError(f"shape {list(tensor.dims)}")
        if not is_external(tensor):
            return numpy_helper.to_array(tensor)
        data = external_bytes(tensor, folder)
        if tensor.data_type in _BITS:
            raw = TensorProto(dims=tensor.dims, data_type=tensor.data_type, raw_data=data.tobytes())
            return numpy_helper.to_array(raw)
        return data.view(helper.tensor_dtype_to_np_dtype(tensor.data_type)).reshape(tensor.dims)
    except (ValueError, TypeError, KeyError) as error:
        where = f"tensor {tensor.name!r}"
        raise Unreadable("damaged tensor", where=where, why=str(error)) from None


def write_tensor(template: TensorProto, array: np.ndarray) -> TensorProto:
    """`template` with other values: same name, type, doc string and metadata, stored inline.

    The array must have the template's own dtype (ValueError): converting is the caller's decision.
    A template from a data file leaves a mark, so that `save` takes the new values back to one.
    """
    dtype = helper.tensor_dtype_to_np_dtype(template.data_type)
    if array.dtype != dtype:
        raise ValueError(f"tensor {template.name!r} holds {dtype}, not {array.dtype}")
    tensor = numpy_helper.from_array(array)
    tensor.MergeFrom(header(template))
    if wants_data_file(template):
        tensor.external_data.add(key=_WAS_EXTERNAL)
    return tensor


def add_tensor(model: ModelProto, tensor: TensorProto) -> None:
    """Store one more tensor in the main graph."""
    model.graph.initializer.append(tensor)
    if model.ir_version < 4:  # there, initializers are inputs as well
        info = helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
        model.graph.input.append(info)


def header(tensor: TensorProto) -> TensorProto:
    """A tensor's name, type, doc string and metadata, without shape and values."""
    copy = TensorProto(data_type=tensor.data_type, metadata_props=tensor.metadata_props)
    if tensor.HasField("name"):
        copy.name = tensor.name
    if tensor.HasField("doc_string"):
        copy.doc_string = tensor.doc_string
    return copy


def pieces(model: ModelProto) -> Iterator[Message]:
    """A model in parts, each of which protobuf can serialise whatever the size of the whole."""
    yield without(model, "graph")
    yield without(model.graph, "initializer")
    yield from model.graph.initializer


def without(message: M, skipped: str) -> M:
    """A copy of `message` with one field left empty."""
    copy = type(message)()
    for field, value in message.ListFields():
        if field.name == skipped:
            continue
        if isinstance(value, Message):
            getattr(copy, field.name).CopyFrom(value)
        elif hasattr(value, "MergeFrom"):
            getattr(copy, field.name).MergeFrom(value)
        else:
            setattr(copy, field.name, value)
    return copy
