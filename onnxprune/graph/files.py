"""Models and tensors, from files and back: lazily read, never from outside, written atomically."""

import hashlib
import math
import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from google.protobuf.message import DecodeError, EncodeError
from onnx import ModelProto, TensorProto

from onnxprune.errors import PruneError, Unreadable, UsageError
from onnxprune.graph.atomic import replacing
from onnxprune.graph.tensors import (
    data_file,
    external_bytes,
    header,
    inline_bytes,
    is_external,
    known_bytes,
    pieces,
    read_tensor,
    serialised_bytes,
    stored_tensors,
    wants_data_file,
    without,
    write_tensor,
)

__all__ = [
    "Source", "check_output", "fingerprint", "load", "read_tensor", "save",
    "stored_tensors", "write_tensor",
]  # fmt: skip

INLINE_LIMIT = 2_000_000_000
"""Bytes that a model file may have; protobuf itself gives up at 2**31."""

_MOVE_FROM = 1024  # bytes from which a weight leaves a file that would be too large
_PAGE_FROM = 1 << 20  # bytes from which a tensor starts on a page of its data file


@dataclass(frozen=True, eq=False, slots=True)
class Source:
    """A model as it came, its external data unread."""

    proto: ModelProto
    path: Path | None
    folder: Path | None
    """Where external data may lie; None for a model from memory."""
    size: int
    """Bytes of the file and of its external data."""


def load(model: str | os.PathLike[str] | ModelProto) -> Source:
    """A model from a file or from memory; raises Unreadable with the reason."""
    if isinstance(model, ModelProto):
        _check(model, "the model")
        return Source(model, None, None, serialised_bytes(model))
    path = Path(model)
    try:
        data = _content(path)
    except FileNotFoundError:
        raise Unreadable("no such file", where=str(path)) from None
    except IsADirectoryError:
        raise Unreadable("a folder, not a model file", where=str(path)) from None
    except OSError as error:
        raise Unreadable("can't read the file", where=str(path), why=error.strerror) from None
    try:
        proto = ModelProto.FromString(memoryview(data))  # type: ignore[arg-type]
    except DecodeError:
        raise Unreadable("not an ONNX model", where=str(path), why=_diagnose(data)) from None
    _check(proto, str(path), data)
    outside = {data_file(t, path.parent) for t in stored_tensors(proto) if is_external(t)}
    # Weights that are missing are an error when they are read: their shapes can be had without.
    size = len(data) + sum(file.stat().st_size for file in outside if file.is_file())
    return Source(proto, path, path.parent, size)


def _content(path: Path) -> bytes | mmap.mmap:
    """The bytes of a file, mapped where that can be: weights are not read twice."""
    with path.open("rb") as file:
        try:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # a pipe, an empty file
            return file.read()


def _check(proto: ModelProto, where: str, data: bytes | mmap.mmap | None = None) -> None:
    if not proto.ir_version or not proto.HasField("graph"):
        why = "it has no IR version or no graph" if data is None else _diagnose(data)
        raise Unreadable("not an ONNX model", where=where, why=why)
    if proto.ir_version >= 3 and not proto.opset_import:
        raise Unreadable("the model names no operator set", where=where, why="is it cut off?")
    if not proto.graph.node:
        raise Unreadable("the model has no nodes", where=where)


def _diagnose(data: bytes | mmap.mmap) -> str:
    head = data[:4096]
    if not data:
        return "the file is empty"
    if head.startswith(b"version https://git-lfs"):
        return "it is a git-lfs pointer: fetch the real file with `git lfs pull`"
    if b"ir_version" in head or b"irVersion" in head:
        return "it is ONNX as text: convert it to binary with onnx.load and onnx.save"
    if head[4:8] == b"ORTM":
        return "it is in ONNX Runtime's .ort format: use the .onnx file it was made from"
    if head[4:8] == b"TFL3":
        return "it is a TensorFlow Lite model: convert it to ONNX first"
    if head.startswith(b"PK"):
        return "it is a zip archive, as of a PyTorch checkpoint: export or unpack it first"
    if len(data) >= 2**31:
        return "it is larger than the 2 GB that protobuf can read"
    if head[0] == 0x08:  # how the IR version, the first field, begins
        return "it begins like one and ends too soon or is damaged: fetch or export it again"
    return "its bytes are no ONNX protobuf"


def fingerprint(source: Source) -> str:
    """sha256 of the model: the same from a file and from memory, external data by its location."""
    digest = hashlib.sha256()
    for piece in pieces(source.proto):
        data = piece.SerializeToString(deterministic=True)
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()


def check_output(model: ModelProto, out: Path, source_folder: Path | None) -> None:
    """Raise UsageError if `save` would refuse `out`: ask before the long work."""
    if not out.parent.is_dir():
        raise UsageError("the output folder does not exist", where=str(out.parent))
    for path in (out, _data_path(out)):
        if path.exists() and not path.is_file():
            raise UsageError("the output is not a regular file", where=str(path))
    if not os.access(out.parent, os.W_OK):
        raise UsageError("the output folder is not writable", where=str(out.parent))
    data = _data_path(out)
    replaced = [path for path in (out, data) if path.exists()]
    if source_folder is None or not replaced or (out.exists() and _owns_data(out)):
        return
    files = {data_file(t, source_folder) for t in stored_tensors(model) if is_external(t)}
    for path in replaced:
        if any(file.exists() and file.samefile(path) for file in files):
            why = "it is the data file that the model is read from"
            raise UsageError("the output would replace its source", where=str(path), why=why,
                             hint="choose another output name")  # fmt: skip


def save(model: ModelProto, out: Path, source_folder: Path | None) -> None:
    """Write a model, whole or not at all; `source_folder` is where its external data lies now.

    Tensors that came from a data file, and all weights of a model that is too large for one file,
    go to `OUT.data`, a copy. Raises UsageError where `out` can't be written.
    """
    check_output(model, out, source_folder)
    too_large = inline_bytes(model) > INLINE_LIMIT

    def moves(tensor: TensorProto) -> bool:
        return wants_data_file(tensor) or (too_large and known_bytes(tensor) >= _MOVE_FROM)

    data = _data_path(out)
    external = any(moves(tensor) for tensor in stored_tensors(model))
    targets = [data, out] if external else [out]
    stale = [data] if not external and data.exists() and _owns_data(out) else []
    try:
        with replacing(targets, stale) as temps:
            if external:
                with temps[0].open("xb") as file:
                    model = _move_out(model, moves, file, data.name, source_folder)
            with temps[-1].open("xb") as file:
                file.write(model.SerializeToString())
    except OSError as error:
        raise UsageError("can't write the output", where=str(out), why=error.strerror) from error
    except EncodeError:
        raise PruneError("the model is too large even without its weights") from None


def _data_path(out: Path) -> Path:
    return out.with_name(out.name + ".data")


def _owns_data(out: Path) -> bool:
    """Whether the file that now lies at `out` keeps weights in its own data file."""
    try:
        old = load(out).proto
    except Unreadable:
        return False
    name = _data_path(out).name
    return any(e.value == name for t in stored_tensors(old) for e in t.external_data)


def _move_out(
    model: ModelProto,
    moves: Callable[[TensorProto], bool],
    file: BinaryIO,
    location: str,
    source_folder: Path | None,
) -> ModelProto:
    """A copy of `model` without the values of tensors that move; these are streamed to `file`."""
    # Weights that move are never in memory twice: large models live from that.
    light = without(model, "graph")
    light.graph.CopyFrom(without(model.graph, "initializer"))
    for tensor in model.graph.initializer:
        light.graph.initializer.append(header(tensor) if moves(tensor) else tensor)
    written: dict[tuple[str, ...], tuple[int, int]] = {}
    for tensor, copy in zip(stored_tensors(model), stored_tensors(light), strict=True):
        if not moves(tensor):
            continue
        # Tensors that shared their bytes go on sharing them.
        region = tuple(e.value for e in tensor.external_data) if is_external(tensor) else ()
        place = written.get(region) if region else None
        if place is None:
            place = _append(file, _stored_bytes(tensor, source_folder))
            written |= {region: place} if region else {}
        copy.CopyFrom(header(tensor))
        copy.dims.extend(tensor.dims)
        copy.data_location = TensorProto.EXTERNAL
        for key, value in zip(("location", "offset", "length"), (location, *place), strict=True):
            copy.external_data.add(key=key, value=str(value))
    return light


def _append(file: BinaryIO, data: np.ndarray) -> tuple[int, int]:
    """Write at the next aligned place: (offset, length)."""
    alignment = 4096 if data.nbytes >= _PAGE_FROM else 64 if data.nbytes else 1
    offset = math.ceil(file.tell() / alignment) * alignment
    file.seek(offset)
    file.write(data.data)
    return offset, data.nbytes


def _stored_bytes(tensor: TensorProto, folder: Path | None) -> np.ndarray:
    """A tensor's values as a data file holds them: 1-D uint8."""
    if is_external(tensor):
        return external_bytes(tensor, folder)
    raw = tensor if tensor.HasField("raw_data") else write_tensor(tensor, read_tensor(tensor, None))
    return np.frombuffer(raw.raw_data, np.uint8)
