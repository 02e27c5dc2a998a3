"""What a consumer multiplies with its weight, at sampled places: rows of channels x taps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from onnxprune.graph.model import Node
from onnxprune.repair.consumers import Consumer
from onnxprune.runtime.feeds import samples_of

ROWS = 65_536
"""Rows of maps that a fit is to have, over all samples."""
PLACES = (16, 256)
"""At least and at most so many positions of each map."""


def rows_read(
    x: np.ndarray, c: Consumer, shape: Sequence[int], places: Sequence[np.ndarray]
) -> np.ndarray:
    """(*lead, n, D - 1): what a layer multiplies with its weight of this shape, at these places.

    `lead` is (groups,) for a convolution in groups, else (); `places` only count for convolutions.
    """
    if c.pooled:
        x = np.moveaxis(x, 1, -1)
    if not c.is_conv:
        return x.reshape(-1, x.shape[-1])
    kernel = shape[2:]
    if c.node.op == "ConvTranspose":
        rows = _taps(_spread(x, c.node, kernel), kernel, [1] * len(kernel),
                     c.node.attrs.get("dilations", [1] * len(kernel)), places)  # fmt: skip
    else:
        rows = conv_taps(x, c.node, kernel, places)
    return in_groups(rows, groups_of(x.shape[1], c, shape))


def groups_of(channels: int, c: Consumer, shape: Sequence[int]) -> int:
    """In how many groups a layer with a weight of this shape reads so many channels."""
    if c.node.op == "Conv":
        return channels // shape[1]
    return c.groups


def in_groups(rows: np.ndarray, groups: int) -> np.ndarray:
    """Rows (n, groups * k) as (groups, n, k); as they are where there is one group."""
    if groups == 1:
        return rows
    return np.ascontiguousarray(rows.reshape(len(rows), groups, -1).transpose(1, 0, 2))


def _spread(x: np.ndarray, node: Node, kernel: Sequence[int]) -> np.ndarray:
    """The map on which a transposed convolution is a plain one with the kernel turned round."""
    rank = x.ndim - 2
    strides = node.attrs.get("strides", [1] * rank)
    dilations = node.attrs.get("dilations", [1] * rank)
    pads = node.attrs.get("pads", [0] * (2 * rank))
    more = node.attrs.get("output_padding", [0] * rank)
    reach = [d * (k - 1) for d, k in zip(dilations, kernel, strict=True)]
    size = [(n - 1) * s + 1 for n, s in zip(x.shape[2:], strides, strict=True)]
    before = [r - p for r, p in zip(reach, pads[:rank], strict=True)]
    after = [r - p + m for r, p, m in zip(reach, pads[rank:], more, strict=True)]
    total = [b + n + a for b, n, a in zip(before, size, after, strict=True)]
    out = np.zeros((*x.shape[:2], *total), x.dtype)
    spots = [slice(b, b + n, s) for b, n, s in zip(before, size, strides, strict=True)]
    index: tuple[Any, ...] = (slice(None), slice(None), *spots)
    out[index] = x
    return out


def conv_taps(
    x: np.ndarray, node: Node, kernel: Sequence[int], places: Sequence[np.ndarray]
) -> np.ndarray:
    """Rows (samples * places, C * taps) of a convolution's input (samples, C, ...).

    `places` are output positions, (samples, places) an axis; zero padding lies inside the windows.
    """
    rank = x.ndim - 2
    strides = node.attrs.get("strides", [1] * rank)
    dilations = node.attrs.get("dilations", [1] * rank)
    begins, ends = explicit_pads(node, x.shape[2:], kernel)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    return _taps(padded, kernel, strides, dilations, places)


def _taps(
    padded: np.ndarray, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int],
    places: Sequence[np.ndarray],
) -> np.ndarray:  # fmt: skip
    """Windows of a padded map as rows."""
    grids = np.meshgrid(*(np.arange(k) * d for k, d in zip(kernel, dilations, strict=True)),
                        indexing="ij")  # fmt: skip
    index = tuple(
        (p * s)[:, :, None] + g.ravel()
        for p, s, g in zip(places, strides, grids, strict=True)
    )  # fmt: skip
    sample = np.arange(len(padded))[:, None, None]
    everything: tuple[Any, ...] = (sample, slice(None), *index)
    rows = padded[everything]  # (samples, places, taps, C)
    columns = padded.shape[1] * index[0].shape[2]
    return np.ascontiguousarray(rows.transpose(0, 1, 3, 2)).reshape(-1, columns)


def explicit_pads(
    node: Node, size: Sequence[int], kernel: Sequence[int]
) -> tuple[list[int], list[int]]:
    """A convolution's pads before and after each axis, or those that auto_pad stands for."""
    rank = len(size)
    strides = node.attrs.get("strides", [1] * rank)
    dilations = node.attrs.get("dilations", [1] * rank)
    auto = node.attrs.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", ""):
        pads = node.attrs.get("pads", [0] * (2 * rank))
        return list(pads[:rank]), list(pads[rank:])
    if auto == "VALID":
        return [0] * rank, [0] * rank
    begins, ends = [], []
    for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
        total = max(0, (-(-n // s) - 1) * s + (k - 1) * d + 1 - n)
        small, large = total // 2, total - total // 2
        begins.append(small if auto == "SAME_UPPER" else large)
        ends.append(large if auto == "SAME_UPPER" else small)
    return begins, ends


def at_places(y: np.ndarray, places: Sequence[np.ndarray]) -> np.ndarray:
    """Rows (samples * places, C) of a map (samples, C, ...)."""
    index: tuple[Any, ...] = (np.arange(len(y))[:, None], slice(None), *places)
    return np.ascontiguousarray(y[index]).reshape(-1, y.shape[1])


def places_per_map(batches: Sequence[Mapping[str, np.ndarray]]) -> int:
    """How many positions of each map are sampled: fewer of many maps, they resemble each other."""
    return int(np.clip(ROWS // max(1, samples_of(batches)), *PLACES))


def draw_places(shape: Sequence[int], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """Positions of each map of (samples, C, ...): (samples, places) an axis, at most `count`.

    They differ from map to map: what is at a border, say, must not always or never be seen.
    """
    size, samples = tuple(shape[2:]), shape[0]
    total = int(np.prod(size))
    if count >= total:
        flat = np.broadcast_to(np.arange(total), (samples, total))
    elif count * 8 > total:
        flat = np.sort(rng.random((samples, total)).argsort(axis=1)[:, :count], axis=1)
    else:  # of so many that twice the same is rare
        flat = np.sort(rng.integers(0, total, (samples, count)), axis=1)
    return [np.asarray(a) for a in np.unravel_index(flat, size)]
