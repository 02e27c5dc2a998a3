"""What a consumer multiplies with its weight, at sampled places: rows of channels x taps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.graph.model import Node


def conv_taps(
    x: np.ndarray, node: Node, kernel: Sequence[int], places: Sequence[np.ndarray]
) -> np.ndarray:
    """Rows (samples * places, C * taps) of a convolution's input (samples, C, ...).

    `places` are output positions, an index array an axis; zero padding lies inside the windows.
    """
    rank = x.ndim - 2
    strides = node.attrs.get("strides", [1] * rank)
    dilations = node.attrs.get("dilations", [1] * rank)
    begins, ends = _pads(node, x.shape[2:], kernel, strides, dilations)
    padded = np.pad(x, [(0, 0), (0, 0), *zip(begins, ends, strict=True)])
    grids = np.meshgrid(*(np.arange(k) * d for k, d in zip(kernel, dilations, strict=True)),
                        indexing="ij")  # fmt: skip
    index = tuple(
        (p * s)[:, None] + g.ravel()[None, :]
        for p, s, g in zip(places, strides, grids, strict=True)
    )
    rows = padded[(slice(None), slice(None), *index)]  # (samples, C, places, taps)
    columns = x.shape[1] * index[0].shape[1]
    return np.ascontiguousarray(rows.transpose(0, 2, 1, 3)).reshape(-1, columns)


def _pads(
    node: Node, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int],
    dilations: Sequence[int],
) -> tuple[list[int], list[int]]:  # fmt: skip
    """Explicit pads, or those that auto_pad stands for."""
    rank = len(size)
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
    index: tuple[Any, ...] = (slice(None), slice(None), *places)
    rows = y[index]
    return np.ascontiguousarray(rows.transpose(0, 2, 1)).reshape(-1, y.shape[1])


def draw_places(size: Sequence[int], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """At most `count` different positions of a map."""
    total = int(np.prod(size))
    flat = np.sort(rng.choice(total, min(count, total), replace=False))
    return [np.asarray(a) for a in np.unravel_index(flat, tuple(size))]
