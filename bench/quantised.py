r"""What pruning keeps of a quantised ResNet-20, in the three ways of ONNX Runtime's quantiser.

    python -m bench.quantised DATA MODELS [--subsets 3] [--samples 512] [--times 1.5]

DATA and MODELS as for `bench.tables`. The network is quantised with 256 calibration images: as
QuantizeLinear and DequantizeLinear with scales for each channel, as operators on codes (QLinearConv
and others), and dynamically. Each file is slimmed to MACs over `--times`, sliced and with the full
repair. Accuracy and KL are against the quantised file itself. Prints a table in Markdown.
"""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from onnxruntime.quantization import (
    CalibrationDataReader,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)

from bench.accuracy import in_batches
from bench.tables import Data, Row, cifar, measured, shrunk
from onnxprune.graph.files import load

NETWORK = "resnet20_cifar10_folded"
STATIC: dict[str, dict[str, Any]] = {
    "QDQ": {"quant_format": QuantFormat.QDQ, "per_channel": True,
            "extra_options": {"ActivationSymmetric": True}},
    "QOperator": {"quant_format": QuantFormat.QOperator, "per_channel": True,
                  "activation_type": QuantType.QUInt8},
}  # fmt: skip


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, data: Data, name: str) -> None:
        batches = in_batches(data.calib[:256], name, data.batch)
        self._batches: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def write_all(source: Path, data: Data, folder: Path) -> list[str]:
    """Quantise a network in every way; the names of the files, without their suffix."""
    name = load(source).proto.graph.input[0].name
    for way, how in STATIC.items():
        quantize_static(source, folder / f"{way}.onnx", _Reader(data, name), **how)
    quantize_dynamic(source, folder / "dynamic.onnx")
    return [*STATIC, "dynamic"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--times", type=float, default=1.5)
    args = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)  # the quantiser has much to say
    data = cifar(args.data)
    print(f"| {NETWORK} | whole | how | accuracy | KL | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    with TemporaryDirectory() as folder:
        for name in write_all(args.models / f"{NETWORK}.onnx", data, Path(folder)):
            row = Row(name, "cifar", shrunk(args.times), ("slice", "full"))
            for r in measured(row, data, Path(folder), args):
                print(f"| {name} | {r['whole']} | {r['way']} | {r['accuracy']} | {r['kl']} "
                      f"| {r['seconds']} |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
