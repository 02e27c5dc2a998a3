"""What pruning without training does to the outputs of networks that no label can score.

    python -m bench.outputs DATA MODELS [--only REGEX] [--target macs=67%] [--samples 128]

DATA and MODELS as for `bench.tables`. Every network is slimmed to one target twice: sliced (l2, no
repair), and chosen by block OBS and repaired on calibration samples, with the defaults. The error
is the squared difference of the original's and the slim model's outputs over the outputs' power, on
samples that calibration has not seen; the mean over all float outputs. Prints a table, and appends
a line of JSON a network to results/outputs.jsonl.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from onnxprune import pipeline
from onnxprune.check.fidelity import fidelity, output_error
from onnxprune.graph.files import Source, load

Feeds = dict[str, np.ndarray]
HELD = 48
"""Samples to judge by."""


@dataclass(frozen=True)
class Input:
    """What a model is to be fed with."""

    name: str
    shape: tuple[int, ...]
    """0 where it is free."""


def photographs(data: Path, want: Input, scale: float) -> list[np.ndarray]:
    """Photographs, some with faces: (1, 3, H, W) or (1, H, W, 3) of the model's size, else 224."""
    last = want.shape[3] == 3
    height, width = (n or 224 for n in (want.shape[1:3] if last else want.shape[2:]))
    folders = ("imagenet_sample", "samples/faces", "samples/scenes")
    files = [f for folder in folders for f in sorted((data / folder).glob("*.jpg"))]
    order = np.random.default_rng(0).permutation(len(files))  # what is alike lies side by side
    pixels = (Image.open(files[k]).convert("RGB").resize((width, height)) for k in order)
    images = (np.asarray(p, np.float32)[None] * np.float32(scale) for p in pixels)
    return [x if last else np.ascontiguousarray(x.transpose(0, 3, 1, 2)) for x in images]


def pages(data: Path, want: Input, scale: float) -> list[np.ndarray]:
    """Crops (1, 3, 224, 224) of a page of text, of many sizes."""
    page = Image.open(data / "samples" / "ocr.jpg").convert("RGB")
    rng, found = np.random.default_rng(0), []
    for _ in range(192):
        side = int(rng.integers(200, min(page.size)))
        left, top = (int(rng.integers(0, n - side)) for n in page.size)
        crop = page.crop((left, top, left + side, top + side)).resize((224, 224))
        found.append(np.asarray(crop, np.float32)[None].transpose(0, 3, 1, 2) * np.float32(scale))
    return found


def small_images(data: Path, want: Input, scale: float) -> list[np.ndarray]:
    """CIFAR-10 images (1, 3, 32, 32)."""
    x = np.load(data / "cifar10.npz")["calib_x"][:1024].astype(np.float32) * np.float32(scale)
    return list(np.ascontiguousarray(x.transpose(0, 3, 1, 2))[:, None])


def text(data: Path, want: Input, scale: float) -> list[np.ndarray]:
    """Lines (1, 128) of bytes, from the texts beside the data."""
    whole = b"".join(f.read_bytes() for f in sorted(data.parent.glob("*.md")))
    lines = np.frombuffer(whole, np.uint8)[: len(whole) // 128 * 128].reshape(-1, 1, 128)
    return [lines[k] for k in np.random.default_rng(0).permutation(len(lines))]


Loader = Callable[[Path, Input, float], list[np.ndarray]]
ROWS: dict[str, tuple[Loader, float]] = {
    "cifar10_vit_pgd_2_3_16": (small_images, 1 / 255),
    "byte_sb_bidi_lstm": (text, 1.0),
    "fastestdet": (photographs, 1 / 255),
    "nanodet_m_320": (photographs, 1.0),
    "yunet_120x160": (photographs, 1.0),
    "yolox_nano_416": (photographs, 1.0),
    "openseeface_mnv3_detection": (photographs, 1 / 255),
    "person_reid_retail_0288": (photographs, 1.0),
    "deeplab_v3_mnv2": (photographs, 1 / 127.5),
    "ppocrv3_det_ch": (pages, 1 / 255),
}
"""By model: what it is fed with, and a factor to the bytes."""


def feeds(source: Source, data: Path, load_with: Loader, scale: float) -> list[Feeds]:
    """Samples for a model with one input, batched where its batch is free."""
    given = {t.name for t in source.proto.graph.initializer}
    first = next(i for i in source.proto.graph.input if i.name not in given)
    shape = tuple(d.dim_value for d in first.type.tensor_type.shape.dim)
    samples = load_with(data, Input(first.name, shape), scale)
    return [{first.name: x} for x in samples]


def batched(samples: Sequence[Feeds], proto: onnx.ModelProto) -> list[Feeds]:
    """Up to 16 samples at a time; one where the model takes no more."""
    (name,) = samples[0]
    first = next(i for i in proto.graph.input if i.name == name)
    free = first.type.tensor_type.shape.dim[0].dim_value == 0
    size = 16 if free else 1
    count = len(samples) // size * size
    return [
        {name: np.concatenate([s[name] for s in samples[k : k + size]])}
        for k in range(0, count, size)
    ]


def row(name: str, args: argparse.Namespace) -> dict[str, Any]:
    source = load(args.models / f"{name}.onnx")
    runs = batched(feeds(source, args.data, *ROWS[name]), source.proto)
    size = len(next(iter(runs[0].values())))
    last = max(1, HELD // size)
    calib, held = runs[:-last][: args.samples // size], runs[-last:]
    found: dict[str, Any] = {"model": name, "target": args.target, "calib": len(calib) * size}
    ways: dict[str, dict[str, Any]] = {
        "sliced": {"criterion": "l2", "repair": "none"}, "repaired": {"calib": calib}
    }  # fmt: skip
    for way, how in ways.items():
        start = time.perf_counter()
        result = pipeline.slim(source, target=args.target, verify=False, **how)
        found[f"{way}_seconds"] = round(time.perf_counter() - start, 1)
        rows = fidelity(source.proto, result.model, source.folder, held)
        found[way] = output_error(rows)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", default="", metavar="REGEX")
    parser.add_argument("--target", default="macs=66.7%")
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--out", type=Path, default=Path("results/outputs.jsonl"))
    args = parser.parse_args()
    args.out.parent.mkdir(exist_ok=True)
    print("| network | samples | sliced | repaired | share | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in ROWS:
        if re.search(args.only, name):
            r = row(name, args)
            share = r["repaired"] / r["sliced"]
            print(f"| {name} | {r['calib']} | {r['sliced']:.3g} | {r['repaired']:.2g} "
                  f"| {share:.3f} | {r['repaired_seconds']} |", flush=True)  # fmt: skip
            with args.out.open("a") as out:
                out.write(json.dumps(r) + "\n")


if __name__ == "__main__":
    main()
