"""How long onnxprune itself takes.

    python -m bench.speed [--runs 5]

Whole processes: `--help`, and `slim --ratio 0.5 --no-verify --repair none` on a ResNet-50 of 102 MB
(batch normalisation as nodes, random weights). The analysis alone: for that ResNet-50, and for a
convolutional network and a transformer of 1,000 nodes. Prints a JSON line with the machine: seconds
of the median and of the fastest run, and of the processor (median); `load` is how busy the machine
was before (the load average by the core; over 1, others were computing too, and `cpu` is the better
number).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx

import onnxprune
from bench.networks import NETWORKS
from models.blocks import basic_block, conv_relu, encoder_layer, head
from models.builder import G
from onnxprune.runtime import machine

Seconds = tuple[float, float]
"""On the wall clock, and of the processor."""


def convnet(nodes: int) -> onnx.ModelProto:
    """Residual blocks, as many as make so many nodes."""
    g = G(0, opset=17)
    x = conv_relu(g, g.input("x", ("N", 3, 16, 16)), 16)
    while len(g.nodes) < nodes - 3:
        x = basic_block(g, x, 16)
    return g.model(y=head(g, x))


def transformer(nodes: int) -> onnx.ModelProto:
    """Encoder layers with decomposed attention, as many as make so many nodes."""
    g = G(0, opset=17)
    x = g.input("x", ("N", 16, 32))
    while len(g.nodes) < nodes:
        x = encoder_layer(g, x, 4, 64)
    return g.model(y=x)


def program(*arguments: object) -> list[str]:
    return [str(Path(sys.executable).with_name("onnxprune")), *map(str, arguments)]


def whole(command: list[str]) -> Seconds:
    """A process, start to end."""
    before, start = os.times(), time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    wall, after = time.perf_counter() - start, os.times()
    used = after.children_user + after.children_system
    return wall, used - before.children_user - before.children_system


def reported(command: list[str]) -> Seconds:
    """What a process prints about a part of itself."""
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, cpu = json.loads(done.stdout)
    return wall, cpu


def analyse(file: Path) -> None:
    """The analysis alone, in a process that has not done one before."""
    source = onnxprune.load(file)
    analyze = onnxprune.analyze  # imported here, as the command line has done by then
    start, cpu = time.perf_counter(), time.process_time()
    analyze(source)
    print(json.dumps([time.perf_counter() - start, time.process_time() - cpu]))


def several(
    runs: int, measure: Callable[[list[str]], Seconds], command: list[str]
) -> dict[str, float]:
    """Median and fastest of some runs; a first one, which fills the caches, is left out."""
    measure(command)
    walls, cpus = zip(*(measure(command) for _ in range(runs)), strict=True)
    numbers = {"median": statistics.median(walls), "fastest": min(walls),
               "cpu": statistics.median(cpus)}  # fmt: skip
    return {key: round(value, 3) for key, value in numbers.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--analyse", type=Path, help=argparse.SUPPRESS)  # a process of its own
    args = parser.parse_args()
    if args.analyse is not None:
        analyse(args.analyse)
        return
    busy = round(os.getloadavg()[0] / (os.cpu_count() or 1), 1) if hasattr(os, "getloadavg") else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "resnet50": NETWORKS["resnet50"].model(), "convnet_1000": convnet(1000),
            "transformer_1000": transformer(1000),
        }  # fmt: skip
        for key, model in models.items():
            onnx.save(model, folder / f"{key}.onnx")
        bare = ("--ratio", 0.5, "--no-verify", "--repair", "none", "-o", folder / "slim.onnx")
        row: dict[str, Any] = {
            "onnxprune": onnxprune.__version__,
            "machine": machine.describe(),
            "runs": args.runs,
            "load": busy,
            "resnet50_mb": round((folder / "resnet50.onnx").stat().st_size / 1e6, 1),
            "nodes": {key: len(model.graph.node) for key, model in models.items()},
            "help": several(args.runs, whole, program("--help")),
            "slim_resnet50": several(
                args.runs, whole, program("slim", folder / "resnet50.onnx", *bare)
            ),
        }
        for key in models:
            command = [
                sys.executable,
                "-m",
                "bench.speed",
                "--analyse",
                str(folder / f"{key}.onnx"),
            ]
            row[f"analyse_{key}"] = several(args.runs, reported, command)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
