"""What is left of the accuracy of our trained networks when channels are cut and nothing is done.

    python -m bench.digits

Plain slicing: no calibration data, no repair, no training. The 450 test images are those of
`models/digits_test.npz`; 0.2 points are one image. Prints a table in Markdown.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

import onnxprune
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
    print("| network | " + " | ".join(f"ratio {r}" for r in (0, *RATIOS)) + " |")
    print("| --- |" + " --- |" * (len(RATIOS) + 1))
    for name in NETWORKS:
        path = MODELS / f"digits_{name}.onnx"
        cells = [f"{accuracy(onnx.load(path), x, y):.1%}"]
        for ratio in RATIOS:
            result = onnxprune.slim(path, ratio=ratio)
            gone = result.report.removed["params"]
            cells.append(f"{accuracy(result.model, x, y):.1%} (-{gone:.0%})")
        print(f"| digits_{name} | " + " | ".join(cells) + " |")
    print("\nIn brackets: parameters.")


if __name__ == "__main__":
    main()
