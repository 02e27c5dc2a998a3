"""How long onnxprune itself takes.

    python -m bench.speed [--runs 5]

Whole processes: `--help`, and `slim --ratio 0.5 --no-verify --repair none` on a ResNet-50 of 102 MB
(batch normalisation as nodes, random weights). The analysis alone, as the report of such a run
tells it: for that ResNet-50, and for a convolutional network and a transformer of 1,000 nodes.
Prints a JSON line, seconds, with the machine: the median and the fastest run, and how busy the
machine was before (the load average by the core; over 1, others were computing too).
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
from models.blocks import basic_block, bottleneck, conv_relu, encoder_layer, head
from models.builder import G
from onnxprune.runtime import machine

STAGES = ((3, 64, 256), (4, 128, 512), (6, 256, 1024), (3, 512, 2048))


def resnet50() -> onnx.ModelProto:
    """The network of He et al. 2016, with the stride in the 3x3 convolutions."""
    g = G(0, opset=17)
    x = conv_relu(g, g.input("x", ("N", 3, 224, 224)), 64, 7, stride=2)
    x = g.pool(x, "Max", 3, 2)
    for k, (blocks, width, out) in enumerate(STAGES):
        for block in range(blocks):
            x = bottleneck(g, x, width, out, stride=2 if k and not block else 1)
    return g.model(logits=head(g, x, 1000))


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


def seconds(command: list[str]) -> float:
    """The whole process, start to end."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def analysis(command: list[str]) -> float:
    """What a run says about its own analysis."""
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout)["timings"]["analyse"])


def several(runs: int, measure: Callable[[list[str]], float], command: list[str]) -> dict[str, Any]:
    """The median and the fastest of some runs; a first one, which fills the caches, is left out."""
    measure(command)
    times = [measure(command) for _ in range(runs)]
    return {"median": round(statistics.median(times), 3), "fastest": round(min(times), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=5)
    args = parser.parse_args()
    busy = round(os.getloadavg()[0] / (os.cpu_count() or 1), 1) if hasattr(os, "getloadavg") else ""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "resnet50": resnet50(), "convnet_1000": convnet(1000),
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
            "help": several(args.runs, seconds, program("--help")),
            "slim_resnet50": several(
                args.runs, seconds, program("slim", folder / "resnet50.onnx", *bare)
            ),
        }
        for key in models:
            command = program("slim", folder / f"{key}.onnx", *bare)
            row[f"analyse_{key}"] = several(args.runs, analysis, command)
    print(json.dumps(row))


if __name__ == "__main__":
    main()
