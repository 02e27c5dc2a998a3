"""Filters and weight maps, as images that suit a light and a dark page."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxprune.report.figures import TIMES, count

SHEET = 432
"""Pixels on the page for a row of filters; two stand side by side."""
STAY, GO = (0x3B, 0x82, 0xD6), (0xE0, 0x86, 0x2E)
"""Colours that are seen on white and on black; how strong a weight is goes into the opacity."""


@dataclass(frozen=True)
class Picture:
    """An image as a data address, its size on the page, and what it shows."""

    title: str
    source: str
    width: int
    height: int
    alt: str


@dataclass(frozen=True)
class Filters:
    layer: str
    kernel: str
    sheets: tuple[Picture, ...]


@dataclass(frozen=True)
class WeightMap:
    layer: str
    weight: str
    picture: Picture
    rows: tuple[int, int]
    columns: tuple[int, int]
    right: float
    bottom: float
    """Where the kept corner ends, in percent."""


@dataclass(frozen=True)
class Pictures:
    filters: tuple[Filters, ...]
    maps: tuple[WeightMap, ...]


def pictures(report: Mapping[str, Any]) -> Pictures | None:
    """Filters and maps, where the report carries them."""
    found = report.get("pictures", {})
    filters = tuple(_filters(f) for f in found.get("filters", ()))
    maps = tuple(_map(m) for m in found.get("maps", ()))
    return Pictures(filters, maps) if filters or maps else None


def _filters(row: Mapping[str, Any]) -> Filters:
    data = _array(row)
    stay, go = row["shown"]
    parts = (("stayed", row["kept"], data[:stay]), ("went", row["removed"], data[stay : stay + go]))
    sheets = tuple(_sheet(word, n, images) for word, n, images in parts if len(images))
    return Filters(row["layer"], f"{data.shape[1]} {TIMES} {data.shape[2]}", sheets)


def _sheet(word: str, total: int, images: NDArray[np.uint8]) -> Picture:
    """Filters side by side, a pixel of nothing between them."""
    n, height, width, channels = images.shape
    across = 8
    down = -(-n // across)
    sheet = np.zeros((down * (height + 1) - 1, across * (width + 1) - 1, 4), np.uint8)
    for k, image in enumerate(images):
        y, x = k // across * (height + 1), k % across * (width + 1)
        sheet[y : y + height, x : x + width, :3] = image if channels == 3 else image[..., :1]
        sheet[y : y + height, x : x + width, 3] = 255
    scale = max(1, SHEET // sheet.shape[1])
    shown = "" if n == total else f", {n} of them shown"
    return Picture(
        f"{total:,} {word}{shown}", _png(sheet), sheet.shape[1] * scale, sheet.shape[0] * scale,
        f"{count(n, 'filter')} that {word}, the strongest first",
    )  # fmt: skip


def _map(row: Mapping[str, Any]) -> WeightMap:
    data = _array(row)
    down, across = row["kept"]
    sheet = np.zeros((*data.shape, 4), np.uint8)
    sheet[..., :3] = GO
    sheet[:down, :across, :3] = STAY
    sheet[..., 3] = data
    rows, columns = tuple(row["rows"]), tuple(row["columns"])
    alt = (
        f"Weights of {row['layer']}: {rows[0]} of {rows[1]} output channels and {columns[0]} of "
        f"{columns[1]} input channels stay"
    )
    picture = Picture(row["weight"], _png(sheet), data.shape[1], data.shape[0], alt)
    right, bottom = 100 * across / data.shape[1], 100 * down / data.shape[0]
    return WeightMap(
        row["layer"], row["weight"], picture, rows, columns, round(right, 2), round(bottom, 2)
    )


def _array(row: Mapping[str, Any]) -> NDArray[np.uint8]:
    shape: Sequence[int] = row["shape"]
    return np.frombuffer(b64decode(row["data"]), np.uint8).reshape(shape)


def _png(pixels: NDArray[np.uint8]) -> str:
    file = BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG", optimize=True)
    return "data:image/png;base64," + b64encode(file.getvalue()).decode("ascii")
