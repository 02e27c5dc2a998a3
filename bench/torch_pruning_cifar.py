"""What Torch-Pruning in one shot leaves of the CIFAR-10 ResNets that bench/tables.py slims.

    python bench/torch_pruning_cifar.py DATA MODELS [--only REGEX]

It needs the network as a module: `resnet20_cifar10_folded.onnx` and its like (He et al. 2016, with
shortcuts that subsample and pad) are built anew in PyTorch with the weights of the file, and score
the same. Channels within the blocks go by magnitude (`GroupMagnitudeImportance`, L2), each block
losing the same share, or by one ranking for all (`global_pruning`), at the least ratio that leaves
the MACs asked for. Prints a table; DATA is as in bench/tables.py.

Needs torch and torch-pruning (1.6); this is no part of the package.
"""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path

import numpy as np
import onnx
import torch
import torch_pruning as tp
from onnx import numpy_helper
from torch import nn
from torch.nn import functional as F

TARGETS = {"resnet20_cifar10_folded": (1.5, 2.1), "resnet56_cifar10_folded": (2.1, 2.57, 4.0)}
_HALVINGS = 9
"""Of the range in which the ratio is searched."""


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1)
        self.more = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.conv2(torch.relu(self.conv1(x)))
        if self.more:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.more, self.more))
        return torch.relu(h + x)


class ResNet(nn.Module):
    """Three stages of so many blocks."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        widths = [16] * (blocks + 1) + [32] * blocks + [64] * blocks
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.blocks = nn.Sequential(*map(Block, widths[:-1], widths[1:]))
        self.last = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.blocks(torch.relu(self.stem(x)))
        return self.last(h.mean(dim=(2, 3)))


def rebuilt(path: Path) -> ResNet:
    """The network of a file, as a module."""
    graph = onnx.load(path).graph
    stored = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
    layers = [n for n in graph.node if n.op_type in ("Conv", "Gemm")]
    net = ResNet((len(layers) - 2) // 6)
    modules = [m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    modules.sort(key=lambda m: m is net.last)
    for module, node in zip(modules, layers, strict=True):
        module.weight.data, module.bias.data = (stored[i] for i in node.input[1:3])
    return net.eval()


def pruned(net: ResNet, times: float, together: bool) -> tuple[ResNet, float]:
    """A copy with so many times fewer MACs at least, and how many times it came to."""
    sample = torch.zeros(1, 3, 32, 32)
    whole, _ = tp.utils.count_ops_and_params(net, sample)
    low, high, best = 0.0, 0.98, (net, 1.0)
    for _ in range(_HALVINGS):
        ratio, slim = (low + high) / 2, copy.deepcopy(net)
        tp.pruner.BasePruner(
            slim, sample, importance=tp.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=ratio, global_pruning=together, max_pruning_ratio=0.95,
            ignored_layers=[slim.stem, slim.last, *(b.conv2 for b in slim.blocks)],
        ).step()  # fmt: skip
        left, _ = tp.utils.count_ops_and_params(slim, sample)
        if left <= whole / times:
            high, best = ratio, (slim, whole / left)
        else:
            low = ratio
    return best


def accuracy(net: ResNet, x: torch.Tensor, labels: np.ndarray) -> float:
    with torch.no_grad():
        return 100 * float((net(x).argmax(1).numpy() == labels).mean())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'model target'")
    args = parser.parse_args()
    arrays = np.load(args.data / "cifar10.npz")
    pixels = (arrays["test_x"] / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    x = torch.from_numpy(pixels.transpose(0, 3, 1, 2).astype(np.float32))
    print("| network | MACs / | how | accuracy |\n| --- | --- | --- | --- |")
    for name, targets in TARGETS.items():
        net = rebuilt(args.models / f"{name}.onnx")
        whole = accuracy(net, x, arrays["test_y"])
        for target in targets:
            for together in (False, True) if re.search(args.only, f"{name} {target}") else ():
                slim, times = pruned(net, target, together)
                how = f"torch-pruning, {'one ranking' if together else 'the same share'}"
                found = accuracy(slim, x, arrays["test_y"])
                print(f"| {name} ({whole:.1f}) | {times:.2f} | {how} | {found:.1f} |", flush=True)


if __name__ == "__main__":
    main()
