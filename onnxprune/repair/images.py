"""Calibration samples from image files: decoded, cut to size and scaled as the model takes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import Unreadable, UsageError
from onnxprune.runtime.feeds import Feeds, spread
from onnxprune.runtime.session import Port

SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".bmp", ".webp"))

Layout = Literal["nchw", "nhwc"]


@dataclass(frozen=True)
class Images:
    """How image files become inputs: (pixel / 255 - mean) / std, a number per colour or one for
    all.

    What is None follows from the model: its size where that is fixed, its layout from where the
    1 or 3 channels are. Without mean and std, pixels go in as x / 255.
    """

    size: tuple[int, int] | None = None
    """Height and width. Images are scaled to cover it, and their centre is cut out."""
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: Layout | None = None


@dataclass(frozen=True)
class Canvas:
    """An image input of a model, all that was open decided."""

    name: str
    dtype: np.dtype
    batch: int | None
    """The batch size that the model asks for; None where it takes any."""
    size: tuple[int, int]
    channels: int
    layout: Layout
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def scaled(self, pixels: NDArray[np.uint8]) -> np.ndarray:
        """Inputs from pixels (samples, height, width, channels)."""
        if self.dtype == np.uint8:
            values: np.ndarray = pixels
        else:
            mean, std = (np.array(v, np.float32) for v in (self.mean, self.std))
            values = ((pixels.astype(np.float32) / 255 - mean) / std).astype(self.dtype)
        return np.ascontiguousarray(values.transpose(0, 3, 1, 2)) if self.is_nchw else values

    @property
    def is_nchw(self) -> bool:
        return self.layout == "nchw"


class ImageBatches(Sequence[Feeds]):
    """Batches that are held as bytes, and scaled when one is asked for."""

    def __init__(self, pixels: NDArray[np.uint8], canvas: Canvas, batch: int) -> None:
        self.pixels, self.canvas = pixels, canvas
        self.batch = canvas.batch or batch

    def __len__(self) -> int:
        return (
            len(self.pixels) // self.batch
            if self.canvas.batch
            else -(-len(self.pixels) // self.batch)
        )

    @overload
    def __getitem__(self, k: int) -> Feeds: ...
    @overload
    def __getitem__(self, k: slice) -> Sequence[Feeds]: ...
    def __getitem__(self, k: int | slice) -> Feeds | Sequence[Feeds]:
        if isinstance(k, slice):
            return [self[j] for j in range(*k.indices(len(self)))]
        at = range(len(self))[k] * self.batch
        return {self.canvas.name: self.canvas.scaled(self.pixels[at : at + self.batch])}


def image_files(path: Path) -> list[Path]:
    """The image files of a folder and the folders in it, sorted by path; hidden ones left out."""
    found = (p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    return sorted(p for p in found if not p.name.startswith("."))


def canvas(inputs: Sequence[Port], images: Images, where: str) -> Canvas:
    """What a model takes images as; `where` is named in errors.

    Raises:
        Unreadable: it has several inputs, or none that images fit.
        UsageError: the size is open and was not given, or what was given is not what it takes.
    """
    if len(inputs) != 1:
        names = ", ".join(port.name for port in inputs)
        raise Unreadable(
            f"images can't fill {len(inputs)} inputs", where=where, why=f"the model takes {names}",
            hint="a .npz with an array for each input, by name",
        )  # fmt: skip
    port = inputs[0]
    shown = "x".join("?" if d is None else str(d) for d in port.shape)
    no_image = Unreadable(
        f"input {port.name!r} takes no images", where=where,
        why=f"it is {shown or 'a scalar'} of {port.dtype}, not a batch of images with 1 or 3 "
        "channels", hint="a .npz or .npy with what it takes",
    )  # fmt: skip
    kinds = ("f", "V")  # bfloat16 and its like show as V
    if len(port.shape) != 4 or port.dtype is None:
        raise no_image
    if port.dtype != np.uint8 and port.dtype.kind not in kinds:
        raise no_image
    layout = images.layout or _layout(port)
    if layout is None:
        raise no_image
    batch, *rest = port.shape
    colour, height, width = rest if layout == "nchw" else (rest[2], rest[0], rest[1])
    if isinstance(colour, int) and colour not in (1, 3):
        raise no_image
    channels = colour if isinstance(colour, int) else 3
    if port.dtype == np.uint8 and (images.mean, images.std) != (None, None):
        raise UsageError(
            "--image-mean and --image-std are for inputs of floats", where=where,
            why=f"input {port.name!r} takes bytes: pixels go in as they are",
        )  # fmt: skip
    mean, std = images.mean or (0.0,), images.std or (1.0,)
    for option, numbers in (("--image-mean", mean), ("--image-std", std)):
        if len(numbers) not in (1, channels):
            raise UsageError(
                f"{option} has {len(numbers)} numbers", where=where,
                why=f"input {port.name!r} has {channels} channel{'s' * (channels > 1)}",
            )  # fmt: skip
    if not all(s > 0 for s in std) or not np.isfinite((*mean, *std)).all():
        raise UsageError("--image-std must be above 0, and all numbers finite")
    size = _size((height, width), images.size, port, where)
    fixed = batch if isinstance(batch, int) else None
    return Canvas(
        port.name, port.dtype, fixed, size, channels, layout, mean, std
    )  # fmt: skip


def _layout(port: Port) -> Layout | None:
    """Where a shape has 1 or 3 channels; the usual place where it is open."""
    first, last = port.shape[1], port.shape[3]
    if first in (1, 3):
        return "nchw"
    if last in (1, 3):
        return "nhwc"
    return (
        None
        if isinstance(first, int) and isinstance(last, int)
        else ("nhwc" if isinstance(first, int) else "nchw")
    )


def _size(
    own: tuple[int | str | None, int | str | None], asked: tuple[int, int] | None, port: Port,
    where: str,
) -> tuple[int, int]:  # fmt: skip
    """The size that is fixed, or was asked for."""
    if asked is not None:
        for have, want in zip(own, asked, strict=True):
            if isinstance(have, int) and have != want:
                shown = "x".join(str(d) for d in own)
                raise UsageError(
                    f"--image-size {asked[0]}x{asked[1]} is not what the model takes",
                    where=where, why=f"input {port.name!r} is {shown}",
                )  # fmt: skip
        return asked
    height, width = own
    if not isinstance(height, int) or not isinstance(width, int):
        raise UsageError(
            "--image-size is needed", where=where,
            why=f"input {port.name!r} takes images of any size",
            hint="--image-size 224, or 256x128 (height x width)",
        )  # fmt: skip
    return height, width


def read_images(files: Sequence[Path], samples: int, canvas: Canvas) -> NDArray[np.uint8]:
    """(samples, height, width, channels) pixels of at most so many of these files, from all over.

    Raises:
        Unreadable: Pillow is not installed, or a file is no image that it can read.
    """
    chosen = spread(len(files), samples)
    out = np.empty((len(chosen), *canvas.size, canvas.channels), np.uint8)
    for row, pixels in zip(out, _decoded([files[k] for k in chosen], canvas), strict=True):
        row[...] = pixels
    return out


def _decoded(files: Sequence[Path], canvas: Canvas) -> Iterator[NDArray[np.uint8]]:
    try:
        from PIL import Image
    except ImportError:
        raise Unreadable(
            "Pillow is not installed", why="it is needed to read images",
            hint="pip install 'onnxprune[images]'",
        ) from None  # fmt: skip
    mode = "L" if canvas.channels == 1 else "RGB"
    for file in files:
        try:
            with Image.open(file) as image:
                pixels = np.asarray(_fitted(image.convert(mode), canvas.size), np.uint8)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise Unreadable("not an image", where=str(file), why=str(error)[:200]) from None
        yield pixels.reshape(*canvas.size, canvas.channels)


def _fitted(image: Any, size: tuple[int, int]) -> Any:
    """An image scaled until it just covers a size, and its centre; as torchvision's Resize and
    CenterCrop do it.
    """
    from PIL import Image

    height, width = size
    if height * image.width >= width * image.height:
        scaled = (max(width, height * image.width // image.height), height)
    else:
        scaled = (width, max(height, width * image.height // image.width))
    if scaled != image.size:
        image = image.resize(scaled, Image.Resampling.BILINEAR)  # with antialiasing
    left, top = round((scaled[0] - width) / 2), round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))
