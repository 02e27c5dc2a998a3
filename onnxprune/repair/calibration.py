"""Calibration samples: unlabelled inputs that are like those the model will see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from onnxprune.axes.facts import Facts
from onnxprune.errors import Unreadable, UsageError
from onnxprune.graph.files import Source
from onnxprune.repair.consumers import layers, taps_of
from onnxprune.repair.images import (
    SUFFIXES,
    ImageBatches,
    Images,
    canvas,
    image_files,
    read_images,
)
from onnxprune.repair.taps import places_per_map
from onnxprune.runtime.feeds import Feeds, load_feeds, samples_of
from onnxprune.runtime.session import open_session

BATCH = 32
"""Samples of a batch at most."""
BATCHES = 8
"""At least so many of few samples: those that a fit is judged by come in batches of their own."""
FEW = 64
"""Samples below which a repair follows the samples more than what they stand for."""


def calibration(
    path: Path, source: Source, samples: int, images: Images | None = None
) -> Sequence[Feeds]:
    """At most `samples` samples in batches: arrays by input name (see `runtime.feeds`), or a folder
    of images (see `repair.images`). Of more, so many are taken from all over.

    Args:
        images: how images are scaled; None for nothing that was asked for.

    Raises:
        Unreadable: no such file, wrong names, shapes or types, values that are not finite, what is
            no image, Pillow is missing, or no sample at all.
        UsageError: `images` does not go with the model, or with arrays.
    """
    with open_session(source.proto, folder=source.folder) as session:
        ports = session.inputs
    files = _image_files(path)
    if not files:
        if images is not None:
            raise UsageError(
                "--image-size, --image-mean, --image-std and --image-layout are for images",
                where=str(path), why="it holds arrays: those are taken as they are",
            )  # fmt: skip
        batches = list(load_feeds(path, ports, batch=BATCH, samples=samples))
        if 0 < (count := samples_of(batches)) < BATCH * BATCHES:
            batches = list(load_feeds(path, ports, batch=_batch(count), samples=samples))
        if not batches:
            raise Unreadable("no samples to calibrate with", where=str(path))
        return batches
    to = canvas(ports, images or Images(), str(path))
    pixels = read_images(files, samples, to)
    found = ImageBatches(pixels, to, _batch(len(pixels)))
    if not found:
        why = f"{len(found.pixels)} images where the model takes {to.batch} at a time"
        raise Unreadable("too few samples", where=str(path), why=why)
    return found


def _batch(samples: int) -> int:
    return max(1, min(BATCH, samples // BATCHES))


def _image_files(path: Path) -> list[Path]:
    """The images that a path names; none where it names arrays."""
    if path.suffix.lower() in SUFFIXES and path.is_file():
        return [path]
    if not path.is_dir():
        return []
    files = image_files(path)
    arrays = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".npy"))
    if files and arrays:
        raise Unreadable(
            "a folder of images and of arrays", where=str(path),
            why=f"{files[0].name} and {arrays[0].name} are in it", hint="a folder for each",
        )  # fmt: skip
    if not files and not arrays:
        raise Unreadable(
            "no samples", where=str(path),
            why=f"no .npz, .npy or image ({', '.join(sorted(SUFFIXES))}) is in it",
        )  # fmt: skip
    return files


def notes_on(batches: Sequence[Feeds], facts: Facts) -> tuple[str, ...]:
    """What to know about calibration samples that may be too few, or say too little."""
    count, notes = samples_of(batches), []
    first: dict[str, np.ndarray] = {}
    varies: set[str] = set()
    for feeds in batches:
        for name, array in feeds.items():
            if array.ndim and len(array):
                start = first.setdefault(name, array[:1].copy())
                if name not in varies and not (array == start).all():
                    varies.add(name)
    same = [name for name in first if name not in varies and count > 1]
    if same and not varies:
        notes.append("calibration: all samples are the same")
    elif same:
        notes.append(f"calibration: input {', '.join(same)} is the same in all samples")
    if count < FEW:
        notes.append(f"calibration: {count} samples are few; {FEW} or more are better")
    unknowns, rows, name = _tightest(facts, batches, count)
    if rows < unknowns:
        notes.append(
            f"calibration: {rows} rows for the {unknowns} unknowns of even the smallest layer "
            f"({name}): repair will hold on to the sliced weights"
        )
    return tuple(notes)


def _tightest(facts: Facts, batches: Sequence[Feeds], count: int) -> tuple[int, int, str]:
    """The fewest unknowns that an output of any layer has, the rows to find them by, the layer."""
    found = []
    for c in layers(facts):
        shape, out = facts.trace.shapes.get(c.data), facts.trace.shapes.get(c.out)
        if not shape or not out:
            continue
        inputs = shape[1 if c.is_conv else -1] // c.groups
        places = out[2:] if c.is_conv else out[1:-1]
        per = int(np.prod(places))
        rows = count * (min(per, places_per_map(batches)) if c.is_conv else per)
        found.append((inputs * taps_of(c, facts) + 1, rows, c.node.label))
    return min(found, default=(0, 1, ""))
