"""Refitted weights of a float twin, taken back into the codes and scales of the quantised file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxprune.graph.files import read_tensor, write_tensor
from onnxprune.graph.tensors import add_tensor
from onnxprune.repair.cone import readers, stored
from onnxprune.repair.twin import PART, Link, Place, Twin, along, dequantised


def requantised(
    slim: onnx.ModelProto, twin: Twin, refitted: onnx.ModelProto, folder: Path | None
) -> onnx.ModelProto:
    """A copy of a quantised slim model with the weights that its refitted twin has.

    A weight's scales follow its new range, unless others read them too: then codes are clipped. A
    bias has the scale of its layer's accumulator.

    Raises:
        Unreadable: stored weights can't be read.
    """
    file = _File(slim, folder)
    old, new = stored(twin.model), stored(refitted)

    def values(name: str) -> np.ndarray:
        return numpy_helper.to_array(new[name])

    changed = [n for n in old if n in new and new[n].raw_data != old[n].raw_data]
    biases = {link.bias_of: name for name, link in twin.links.items() if link.bias_of}
    tied = {twin.links[n].bias_of for n in changed if n in twin.links} - {""}
    for name in dict.fromkeys([*changed, *sorted(tied)]):
        link = twin.links.get(name)
        if link is None:
            file.write(file.tensors[name], values(name))
        elif not link.bias_of:
            bias = biases.get(name)
            if bias is None:
                _write(file, link, values(name))
                continue
            tie = twin.links[bias]
            _write(file, link, values(name), _least(file, tie, values(bias)), file.own(tie.scales))
            _write_bias(file, tie, link.scales[0], values(bias))
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

    def own(self, places: Sequence[Place]) -> bool:
        """Whether nobody else reads what is stored at these places."""
        names = [self.made[out].input[k] for out, k in places]
        return all(readers(self.model, name) == names.count(name) for name in names)

    def write(self, tensor: TensorProto, values: np.ndarray) -> None:
        """Other values, in the tensor's own shape and type."""
        dtype = read_tensor(tensor, self.folder).dtype
        new = np.asarray(values.reshape(tensor.dims).astype(dtype), order="C")
        tensor.CopyFrom(write_tensor(tensor, new))


class Rounding:
    """Weights of a twin as the file can hold them."""

    def __init__(self, slim: onnx.ModelProto, twin: Twin, folder: Path | None) -> None:
        self._file, self._links = _File(slim, folder), twin.links
        self._own = {name: numpy_helper.to_array(t) for name, t in stored(twin.model).items()
                     if name in twin.links}  # fmt: skip

    def __call__(self, name: str, values: np.ndarray) -> np.ndarray:
        """A weight behind its codes; as it is where it is the file's own, or has none."""
        link = self._links.get(name)
        if link is None or not link.scales or link.bias_of:
            return values
        if np.array_equal(values, self._own[name]):
            return values
        _write(self._file, link, values)
        codes, scale = self._file.read(link.place), self._file.read(link.scales[0])
        zero = None if link.zero is None else self._file.read(link.zero)
        if codes.dtype.kind not in "iu":  # floats, that are rounded when they are used
            points = np.zeros(1, np.int8) if zero is None else zero
            points = along(points.astype(np.int64), link.axis, codes.ndim)
            kind = np.dtype(np.int8) if zero is None else zero.dtype
            codes = Range(kind, points).rounded(codes, along(scale, link.axis, codes.ndim))
        found = dequantised(codes, scale, zero, link.axis)
        return found.transpose(link.perm) if link.perm else found


def _least(file: _File, bias: Link, values: np.ndarray) -> np.ndarray:
    """(outputs,) the finest scales of a weight with which its layer's bias fits its codes."""
    most = np.iinfo(file.read(bias.place).dtype).max // 2
    return np.abs(values.astype(np.float64)).ravel() / (bias.unit * most)


def _write(
    file: _File, link: Link, values: np.ndarray, least: np.ndarray | None = None, free: bool = True
) -> None:
    """New values as the file stores them; unless their scales are not `free`, these reach as far as
    the values do, and none is finer than `least`.
    """
    if link.perm:
        values = values.transpose(np.argsort(link.perm))
    old = file.read(link.place)
    if not link.scales:
        file.write(file.at(link.place), values)
        return
    scale, zero = file.read(link.scales[0]), np.zeros((), old.dtype)
    if link.zero is not None:
        zero = file.read(link.zero)
    codes = Range(zero.dtype, along(zero.astype(np.int64), link.axis, old.ndim))
    if free and not link.held and file.own(link.scales):
        steps = along(scale, link.axis, old.ndim)
        used = old if old.dtype.kind in "iu" else codes.rounded(old, steps)
        scale = _scales(values.astype(np.float64), used, codes, scale, link.axis)
        if least is not None:
            least = least.max() if scale.size == 1 else least.reshape(scale.shape)
            scale = np.maximum(scale, least.astype(scale.dtype))
        for place in link.scales:
            file.write(file.at(place), scale)
    if old.dtype.kind in "iu":
        values = codes.rounded(values, along(scale, link.axis, old.ndim))
    file.write(file.at(link.place), values)


@dataclass(frozen=True, eq=False)
class Range:
    """What codes can be: their type, and zero points shaped to meet them."""

    dtype: np.dtype[Any]
    zero: np.ndarray

    @property
    def limits(self) -> tuple[int, int]:
        found = np.iinfo(self.dtype)
        return int(found.min), int(found.max)

    def rounded(self, values: np.ndarray, scale: np.ndarray) -> np.ndarray:
        steps = np.where(scale == 0, 1, scale).astype(np.float64)  # what means 0 in any case
        codes = np.rint(values.astype(np.float64) / steps) + self.zero
        return np.asarray(np.clip(codes, *self.limits), self.dtype)


def _scales(
    values: np.ndarray, used: np.ndarray, codes: Range, scale: np.ndarray, axis: int | None
) -> np.ndarray:
    """The finest scales, in the shape and type of the old ones, with which values fit the codes.

    Where the `used` codes keep to half of their range, so do the new ones: that is for processors
    whose sums would overflow.
    """
    low, high = codes.limits
    half = (high + 1 - low) // 4
    up, down = high - codes.zero, codes.zero - low
    if np.abs(used.astype(np.int64) - codes.zero).max(initial=0) <= half:
        up, down = np.minimum(up, half), np.minimum(down, half)
    if (codes.zero == 0).all() and low < 0:
        down = up  # the lowest code has no opposite, and is left out
    with np.errstate(divide="ignore", invalid="ignore"):
        need = np.maximum(
            np.where(up > 0, np.maximum(values, 0) / up, 0),
            np.where(down > 0, np.maximum(-values, 0) / down, 0),
        )
    others = tuple(k for k in range(values.ndim) if scale.size == 1 or k != axis)
    reach = need.max(axis=others, initial=0)
    found = reach.reshape(scale.shape).astype(scale.dtype)
    return np.asarray(np.where(found > 0, found, scale))


def _write_bias(file: _File, link: Link, weight: Place, values: np.ndarray) -> None:
    """Codes of a bias, in the units of its layer's accumulator."""
    product = np.broadcast_to(link.unit * file.read(weight).ravel(), values.size)
    if link.scales:
        if file.own(link.scales):
            size = file.read(link.scales[0]).size
            file.write(file.at(link.scales[0]), product[:size] if size == 1 else product)
        product = file.read(link.scales[0]).ravel()
    old = file.read(link.place)
    zero = np.zeros(1, old.dtype) if link.zero is None else file.read(link.zero).ravel()
    codes = Range(old.dtype, zero.astype(np.int64))
    file.write(file.at(link.place), codes.rounded(values.ravel(), product))


def _copy_biases(model: onnx.ModelProto, refitted: onnx.ModelProto, names: set[str]) -> None:
    """Biases that a refit gave to float layers that had none."""
    made: Mapping[str, onnx.NodeProto] = {n.output[0]: n for n in model.graph.node if n.output}
    tensors, taken = stored(refitted), {*stored(model), *(i.name for i in model.graph.input)}
    taken |= {o for n in model.graph.node for o in n.output}
    for n in refitted.graph.node:
        if len(n.input) > 2 and n.input[2] in names:
            node, bias = made[n.output[0].removesuffix(PART)], TensorProto()
            bias.CopyFrom(tensors[n.input[2]])
            while bias.name in taken:
                bias.name += "_"
            add_tensor(model, bias)
            node.input[:] = [*node.input[:2], bias.name, *node.input[3:]]
