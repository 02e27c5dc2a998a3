"""Train the two LeNets on MNIST and write them beside this file (development only).

    python -m models.train_mnist DATA [lenet_300_100] [lenet5]

DATA holds `mnist_train.npz` and `mnist_test.npz`: `images` (M, 28, 28) uint8, `labels` (M). Needs
torch; as in `models.train`, a network is written once, as ONNX, and torch evaluates that graph.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor
from torch.nn import functional as F

from models.builder import G
from models.train import evaluate, shifted, weights_of

HERE = Path(__file__).parent
BATCH, RATE, DECAY = 128, 2e-3, 0.02
EPOCHS = {"lenet_300_100": 30, "lenet5": 8}


def lenet_300_100() -> onnx.ModelProto:
    """Two hidden dense layers."""
    g = G(0, opset=17)
    x = g.flatten(g.input("x", ("N", 1, 28, 28)))
    for width in (300, 100):
        x = g.relu(g.gemm(x, width))
    return g.model(logits=g.gemm(x, 10))


def lenet5() -> onnx.ModelProto:
    """20-50-500, the widths of Caffe's example; ReLU after each convolution, as in the papers."""
    g = G(0, opset=17)
    x = g.input("x", ("N", 1, 28, 28))
    for filters in (20, 50):
        x = g.pool(g.relu(g.conv(x, filters, 5, pad=0)))
    return g.model(logits=g.gemm(g.relu(g.gemm(g.flatten(x), 500)), 10))


NETWORKS = {"lenet_300_100": lenet_300_100, "lenet5": lenet5}


def images(path: Path) -> tuple[Tensor, Tensor]:
    """Images (M, 1, 28, 28) between 0 and 1, and their digits (M)."""
    data = np.load(path)
    x = (data["images"][:, None] / 255).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(data["labels"].astype(np.int64))


def train(name: str, x: Tensor, y: Tensor) -> onnx.ModelProto:
    """The network `name`, trained with AdamW on images that are moved by up to two pixels."""
    torch.manual_seed(0)
    model = NETWORKS[name]()
    weights = weights_of(model)
    learnt = [w.requires_grad_() for w in weights.values()]
    optimiser = torch.optim.AdamW(learnt, RATE, weight_decay=DECAY)
    steps = EPOCHS[name] * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for _ in range(EPOCHS[name]):
        for batch in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
            logits = evaluate(model, weights, shifted(x[batch], 2), training=True)
            loss = F.cross_entropy(logits, y[batch])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    for t in model.graph.initializer:
        t.CopyFrom(numpy_helper.from_array(weights[t.name].detach().numpy(), t.name))
    return model


def main(folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    x, y = images(folder / "mnist_train.npz")
    test_x, test_y = images(folder / "mnist_test.npz")
    for name in names or NETWORKS:
        model = train(name, x, y)
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, HERE / f"{name}.onnx")
        with torch.no_grad():
            guess = evaluate(model, weights_of(model), test_x).argmax(1)
        hits = (guess == test_y).double().mean().item()
        print(f"{name}: {hits:.4f} of {len(test_y)} test images", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
