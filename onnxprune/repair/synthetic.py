"""Images that nobody took: enough like photographs for networks to be repaired on them.

Half are dead leaves (Matheron 1968; Lee, Mumford & Huang 2001): overlapping shapes of all sizes,
which have the edges and the scale invariance of photographs. Half are noise with spectra of 1/f and
1/f^1.5, which have their power at each scale and no edges. Networks that learn from such images
learn much of what photographs teach (Baradad et al. 2021, "Learning to see by looking at noise").
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.errors import Unreadable, UsageError
from onnxprune.repair.batchnorm import norms
from onnxprune.repair.cone import cone
from onnxprune.repair.images import Canvas, ImageBatches, Images, canvas
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import open_session

Floats = NDArray[np.float64]

BATCH = 32
PIXELS = 4_000_000
"""Pixels that all samples together are to have, a colour image's counted once."""
SAMPLES = (64, 1024)
"""At least and at most so many samples, unless a number is asked for."""

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SCALES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "normalised": (_MEAN, _STD),
    "0 to 1": ((0.0,), (1.0,)),
    "-1 to 1": ((0.5,), (0.5,)),
    "0 to 255": ((0.0,), (1 / 255,)),
}
"""Mean and standard deviation of pixels (0 to 1) that exporters' preprocessing takes off."""
_COLOURS = np.array([[1, 0.35, 0.1], [1, 0, -0.25], [1, -0.35, 0.15]])
"""From luminance and two weak opponent colours to red, green, blue."""


def synthetic_batches(
    facts: Facts, samples: int | None = None, seed: int = 0, images: Images | None = None
) -> Sequence[Feeds]:
    """Synthetic images for a model's input; the same for the same seed.

    They are scaled as `images` says. Without it, in the way among `SCALES` that gives the first
    batch norm what it has seen in training; `normalised` where there is none.

    Raises:
        UsageError: the model's input takes no images, or their size is open.
        Unreadable: ONNX Runtime can't run the model.
    """
    source = facts.model.source
    with open_session(source.proto, folder=source.folder) as session:
        ports = session.inputs
    try:
        to = canvas(ports, images or Images(), "--repair synthetic")
    except Unreadable as error:
        raise UsageError(
            "synthetic images are for models that take images", where="--repair synthetic",
            why=error.why or error.what,
            hint="--calib with samples of what it takes, or --repair auto, which needs none",
        ) from None  # fmt: skip
    height, width = to.size
    count = samples or int(np.clip(PIXELS // (height * width), *SAMPLES))
    if to.batch:
        count = -(-count // to.batch) * to.batch
    found = ImageBatches(draw(count, to.size, to.channels, seed), to, BATCH)
    asked = images is not None and (images.mean, images.std) != (None, None)
    if asked or to.dtype == np.uint8:
        return found
    return ImageBatches(found.pixels, _scaled(facts, found), BATCH)


def _scaled(facts: Facts, drawn: ImageBatches) -> Canvas:
    """The canvas, with the scale that goes best with the first batch norm."""
    ways = [_scale(drawn.canvas, name) for name in SCALES]
    first = next(iter(norms(facts)), None)
    if first is None:
        return ways[0]
    model = facts.model
    mean, var = (model.array(model.constants[i]).astype(np.float64) for i in first.inputs[3:5])
    value = model.in_file(first.inputs[0])
    part = cone(model.proto, [value])
    if {i.name for i in part.graph.input} != {drawn.canvas.name}:
        return ways[0]
    misses = []
    with open_session(part, optimise=True, folder=model.source.folder) as session:
        for way in ways:
            batch = ImageBatches(drawn.pixels[: way.batch or BATCH], way, BATCH)[0]
            y = session.run(batch)[value].astype(np.float64)
            others = (0, *range(2, y.ndim))
            got, spread = y.mean(axis=others), y.var(axis=others)
            live = var > 1e-6 * var.max()
            off = (got - mean)[live] ** 2 / var[live]
            ratio = np.log((spread[live] + 1e-12) / var[live])
            misses.append(float(np.mean(np.minimum(off, 1e6)) + np.mean(ratio**2)))
    return ways[int(np.argmin(misses))]


def _scale(to: Canvas, name: str) -> Canvas:
    mean, std = (v if len(v) in (1, to.channels) else (float(np.mean(v)),) for v in SCALES[name])
    return replace(to, mean=mean, std=std)


def draw(count: int, size: tuple[int, int], channels: int, seed: int) -> NDArray[np.uint8]:
    """(count, height, width, channels) pixels: half dead leaves, a quarter each 1/f and 1/f^1.5."""
    rng = np.random.default_rng([seed, 7])
    quarter = count // 4
    parts = [
        dead_leaves(count - 2 * quarter, size, channels, rng),
        noise(quarter, size, channels, 1.0, rng),
        noise(quarter, size, channels, 1.5, rng),
    ]
    values = np.concatenate(parts)[rng.permutation(count)]
    mean, std = (np.array(v[:channels] if channels == 3 else [np.mean(v)]) for v in (_MEAN, _STD))
    pixels = np.round(np.clip(values * std * 0.95 + mean, 0, 1) * 255)
    return np.asarray(pixels, np.uint8)


def dead_leaves(
    count: int, size: tuple[int, int], channels: int, rng: np.random.Generator
) -> Floats:
    """(count, height, width, channels) of about unit spread: ellipses and rectangles over each
    other, with radii of density 1/r^3, shaded and grained.
    """
    height, width = size
    small, large = max(1.5, min(size) / 75), 0.6 * min(size)
    area = 2.2 * 2 * np.log(large / small) / (small**-2 - large**-2)
    leaves = int(np.ceil(1.5 * height * width / area))
    out = np.zeros((count, height, width, channels))
    for image in out:
        base = rng.standard_normal(channels) * 0.3
        radius = rng.uniform(large**-2, small**-2, leaves) ** -0.5
        x = rng.uniform(-0.12 * width, 1.12 * width, leaves)
        y = rng.uniform(-0.12 * height, 1.12 * height, leaves)
        angle, flat = rng.uniform(0, np.pi, leaves), rng.uniform(0.4, 1, leaves)
        ellipse = rng.random(leaves) < 0.6
        colour = rng.uniform(-2, 2, (leaves, 1)) + rng.standard_normal((leaves, channels)) * 0.35
        slope = rng.standard_normal((leaves, 2)) * 0.6 / min(size)
        grain = rng.random(leaves) * 0.15
        for k in range(leaves):
            reach = radius[k] * (1 if ellipse[k] else 1.42)
            top, bottom = _span(y[k], reach, height)
            left, right = _span(x[k], reach, width)
            if top >= bottom or left >= right:
                continue
            down = np.arange(top, bottom)[:, None] - y[k]
            across = np.arange(left, right)[None] - x[k]
            cos, sin = np.cos(angle[k]), np.sin(angle[k])
            u, v = across * cos + down * sin, down * cos - across * sin
            if ellipse[k]:
                inside = (u / radius[k]) ** 2 + (v / (radius[k] * flat[k])) ** 2 < 1
            else:
                inside = (np.abs(u) < radius[k]) & (np.abs(v) < radius[k] * flat[k])
            shade = (slope[k, 0] * u + slope[k, 1] * v)[inside]
            shade += rng.standard_normal(len(shade)) * grain[k]
            image[top:bottom, left:right][inside] = shade[:, None] + colour[k] + base
    return out


def _span(middle: float, reach: float, end: int) -> tuple[int, int]:
    return max(0, int(np.floor(middle - reach))), min(end, int(np.ceil(middle + reach)) + 1)


def noise(
    count: int, size: tuple[int, int], channels: int, power: float, rng: np.random.Generator
) -> Floats:
    """(count, height, width, channels) with a spectrum of 1/f^power, and colours that go together
    as those of photographs do.
    """
    down, across = np.fft.fftfreq(size[0])[:, None], np.fft.rfftfreq(size[1])[None]
    frequency = np.maximum(np.hypot(down, across), 1 / max(size))
    white = rng.standard_normal((count, channels, *size))
    values = np.fft.irfft2(np.fft.rfft2(white) / frequency**power, s=size)
    values /= np.maximum(values.std(axis=(2, 3), keepdims=True), 1e-12)
    values += rng.standard_normal((count, channels, 1, 1)) * 0.5
    mix = _COLOURS if channels == 3 else np.eye(channels)
    return np.asarray(np.einsum("ij,njhw->nhwi", mix, values))
