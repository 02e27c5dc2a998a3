"""What is left of the accuracy of our trained networks when channels are cut.

    python -m bench.digits

Once by plain slicing, without any data, and once with `--calib models/digits_calib.npz`: 256 of the
training images, without their labels. Nothing is trained. Accuracy is that on the 450 test images
of `models/digits_test.npz`; 0.2 points are one image. Prints a table in Markdown.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

import onnxprune
from onnxprune.graph.files import load
from onnxprune.repair.calibration import calibration
from onnxprune.runtime.session import open_session

MODELS = Path(__file__).resolve().parents[1] / "models"
NETWORKS = ("resnet", "transformer", "lstm")
RATIOS = (0.3, 0.5, 0.6, 0.7, 0.8)


def accuracy(model: onnx.ModelProto, x: np.ndarray, y: np.ndarray) -> float:
    with open_session(model, optimise=True) as session:
        (logits,) = session.run({"x": x}).values()
    return float((logits.argmax(axis=1) == y).mean())


def main() -> None:
    data = np.load(MODELS / "digits_test.npz")
    x, y = data["x"], data["y"]
    print("| network | | " + " | ".join(f"ratio {r}" for r in (0, *RATIOS)) + " |")
    print("| --- | --- |" + " --- |" * (len(RATIOS) + 1))
    for name in NETWORKS:
        source = load(MODELS / f"digits_{name}.onnx")
        batches = calibration(MODELS / "digits_calib.npz", source, 256)
        for how, calib in (("without data", None), ("with `--calib`", batches)):
            cells = [f"{accuracy(source.proto, x, y):.1%}"]
            for ratio in RATIOS:
                result = onnxprune.slim(source, ratio=ratio, calib=calib)
                gone = result.report.removed["params"]
                cells.append(f"{accuracy(result.model, x, y):.1%} (-{gone:.0%})")
            print(f"| digits_{name} | {how} | " + " | ".join(cells) + " |", flush=True)
    print("\nIn brackets: parameters.")


if __name__ == "__main__":
    main()
