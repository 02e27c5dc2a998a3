"""Refitted weights of a float twin, taken back into the codes and scales of the quantised file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.graph.files import read_tensor, write_tensor
from onnxprune.graph.tensors import add_tensor
from onnxprune.repair.cone import readers, stored
from onnxprune.repair.twin import Codes, Moved, Place, Twin, along


def requantised(
    slim: onnx.ModelProto, twin: Twin, refitted: onnx.ModelProto, folder: Path | None
) -> onnx.ModelProto:
    """A copy of a quantised slim model with the weights that its refitted twin has.

    A weight's scales follow its new range, a bias keeps the scale that its layer's accumulator has;
    codes that would not fit, and those whose scale others read too, are clipped.

    Raises:
        Unreadable: stored weights can't be read.
    """
    file = _File(slim, folder)
    old, new = stored(twin.model), stored(refitted)
    changed = {
        name: numpy_helper.to_array(new[name]) for name in old
        if name in new and new[name].raw_data != old[name].raw_data
    }  # fmt: skip
    for name, values in changed.items():
        link = twin.links.get(name)
        if link is None:
            file.write(file.tensors[name], values)
        elif isinstance(link, Moved):
            file.write(file.at(link.place), values)
        elif not link.bias_of:
            _write_codes(file, link, values)
    for name, link in twin.links.items():  # their scales may have changed though they have not
        if isinstance(link, Codes) and link.bias_of and {name, link.bias_of} & set(changed):
            weight = twin.links[link.bias_of]
            assert isinstance(weight, Codes)
            _write_bias(file, link, weight, numpy_helper.to_array(new[name]))
    _copy_biases(file.model, refitted, set(new) - set(old))
    return file.model


@dataclass(eq=False)
class _File:
    """A copy of a model, and where its tensors are."""

    model: onnx.ModelProto
    folder: Path | None

    def __post_init__(self) -> None:
        copy = onnx.ModelProto()
        copy.CopyFrom(self.model)
        self.model, self.tensors = copy, stored(copy)
        self.made = {n.output[0]: n for n in copy.graph.node if n.output}

    def at(self, place: Place) -> TensorProto:
        return self.tensors[self.made[place[0]].input[place[1]]]

    def read(self, place: Place) -> np.ndarray:
        return read_tensor(self.at(place), self.folder)

    def own(self, place: Place) -> bool:
        """Whether nobody else reads what is stored there."""
        return readers(self.model, self.made[place[0]].input[place[1]]) == 1

    def write(self, tensor: TensorProto, values: np.ndarray) -> None:
        """Other values, in the tensor's own shape and type."""
        dtype = read_tensor(tensor, self.folder).dtype
        new = np.asarray(values.reshape(tensor.dims).astype(dtype), order="C")
        tensor.CopyFrom(write_tensor(tensor, new))


def _write_codes(file: _File, link: Codes, values: np.ndarray) -> None:
    """Codes of new values, with scales that reach as far as they do."""
    assert link.scale is not None
    old, scale = file.read(link.codes), file.read(link.scale)
    zero = np.zeros((), np.int64) if link.zero is None else file.read(link.zero)
    shift = along(zero.astype(np.int64), link.axis, old.ndim)
    if file.own(link.scale):
        scale = _scales(values.astype(np.float64), old, shift, scale, link.axis)
        file.write(file.at(link.scale), scale)
    file.write(file.at(link.codes), _rounded(values, along(scale, link.axis, old.ndim), shift, old))


def _scales(
    values: np.ndarray, old: np.ndarray, shift: np.ndarray, scale: np.ndarray, axis: int | None
) -> np.ndarray:
    """The finest scales, in the shape and type of the old ones, with which values fit the codes.

    Codes that keep to half of their range do so for processors whose products would overflow.
    """
    limits = np.iinfo(old.dtype)
    quarter = (int(limits.max) + 1 - int(limits.min)) // 4
    half = np.abs(old.astype(np.int64) - shift).max(initial=0) <= quarter
    up, down = (np.abs(np.asarray(end, np.int64) - shift) for end in (limits.max, limits.min))
    if (shift == 0).all() and limits.min < 0:
        down = up  # -128 is left out, as it has no opposite
    others = tuple(k for k in range(values.ndim) if k != axis)
    if scale.size == 1:
        others = tuple(range(values.ndim))
    with np.errstate(divide="ignore", invalid="ignore"):
        need = np.maximum(
            np.where(up > 0, np.maximum(values, 0) / up, 0),
            np.where(down > 0, np.maximum(-values, 0) / down, 0),
        )
    reach = need.max(axis=others, initial=0) * (2 if half else 1)
    found = reach.reshape(scale.shape).astype(scale.dtype)
    return np.asarray(np.where(found > 0, found, scale))


def _rounded(
    values: np.ndarray, scale: np.ndarray, shift: np.ndarray, old: np.ndarray
) -> np.ndarray:
    limits = np.iinfo(old.dtype)
    codes = np.rint(values.astype(np.float64) / scale.astype(np.float64)) + shift
    return np.asarray(np.clip(codes, limits.min, limits.max).astype(old.dtype))


def _write_bias(file: _File, link: Codes, weight: Codes, values: np.ndarray) -> None:
    """Codes of a bias, in the units of its layer's accumulator."""
    assert weight.scale is not None
    assert link.input_scale is not None
    product = file.read(link.input_scale).ravel() * file.read(weight.scale).ravel()
    if link.scale is not None:
        have = file.read(link.scale)
        if product.size == have.size and file.own(link.scale):
            file.write(file.at(link.scale), product)
        product = file.read(link.scale).ravel()
    old = file.read(link.codes)
    zero = np.zeros(1) if link.zero is None else file.read(link.zero).astype(np.float64).ravel()
    file.write(file.at(link.codes), _rounded(values.ravel(), product, zero, old.ravel()))


def _copy_biases(model: onnx.ModelProto, refitted: onnx.ModelProto, names: set[str]) -> None:
    """Biases that a refit gave to float layers that had none."""
    made: Mapping[str, onnx.NodeProto] = {n.output[0]: n for n in model.graph.node if n.output}
    tensors = stored(refitted)
    for n in refitted.graph.node:
        if len(n.input) > 2 and n.input[2] in names:
            add_tensor(model, tensors[n.input[2]])
            made[n.output[0]].input[2:] = [n.input[2]]
