"""Networks of realistic size with random weights, written by hand: nothing is downloaded.

    NETWORKS["resnet50"].model()                    a ModelProto, float32, batch open
    NETWORKS["resnet50"].model(np.float16)
    python -m bench.networks FOLDER [NAME ...]      as files

Batch normalisation is a node of its own, as a network is exported for further training: the tool
and its peers get what a user has.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
from numpy.typing import DTypeLike

from models.blocks import (
    attention,
    basic_block,
    bottleneck,
    c2f,
    conv_norm,
    conv_relu,
    encoder_layer,
    feed_forward,
    head,
    sequence,
)
from models.builder import G

Activation = Literal["relu", "relu6", "hard_swish", "silu"]


@dataclass(frozen=True)
class Network:
    """An architecture: `write(g, x)` appends it to a graph and returns its output's name."""

    write: Callable[[G, str], str]
    input: tuple[int, ...]
    """Shape of a sample; the batch axis comes before it and is open."""
    values: DTypeLike | None = None
    """Type of the input; None for that of the weights."""
    batch: int = 64
    """The large batch that it is timed at on a GPU."""

    def model(self, dtype: DTypeLike = np.float32) -> onnx.ModelProto:
        """The network with random weights of this type, the same ones each time."""
        g = G(0, opset=17, dtype=dtype)
        x = g.input("x", ("N", *self.input), self.values)
        return g.model(y=self.write(g, x))


# Convolutional classifiers, (N, 3, H, W) -> (N, 1000)


def resnet18(g: G, x: str) -> str:
    """He et al. 2016, 'Deep residual learning for image recognition'."""
    x = g.pool(conv_relu(g, x, 64, 7, stride=2), "Max", 3, 2)
    for k, width in enumerate((64, 128, 256, 512)):
        for block in range(2):
            x = basic_block(g, x, width, stride=2 if k and not block else 1)
    return head(g, x, 1000)


def resnet50(g: G, x: str) -> str:
    """He et al. 2016, with the stride in the 3x3 convolutions, as torchvision has it."""
    x = g.pool(conv_relu(g, x, 64, 7, stride=2), "Max", 3, 2)
    stages = ((3, 64), (4, 128), (6, 256), (3, 512))
    for k, (blocks, width) in enumerate(stages):
        for block in range(blocks):
            x = bottleneck(g, x, width, 4 * width, stride=2 if k and not block else 1)
    return head(g, x, 1000)


def vgg16(g: G, x: str) -> str:
    """Simonyan and Zisserman 2015, configuration D, no batch normalisation."""
    for width, layers in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3)):
        for _ in range(layers):
            x = conv_relu(g, x, width, norm="folded")
        x = g.pool(x)
    x = g.flatten(x)
    for _ in range(2):
        x = g.relu(g.gemm(x, 4096))
    return g.gemm(x, 1000)


def mobilenet_v2(g: G, x: str) -> str:
    """Sandler et al. 2018, table 2: expansion, width, blocks and stride of each stage."""
    x = _activated(g, conv_norm(g, x, 32, stride=2), "relu6")
    stages = (
        (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2),
        (6, 320, 1, 1),
    )  # fmt: skip
    for expand, out, blocks, stride in stages:
        for block in range(blocks):
            wide = expand * g.size(x, 1)
            x = _inverted(g, x, wide, out, stride=1 if block else stride, activation="relu6")
    return head(g, _activated(g, conv_norm(g, x, 1280, 1), "relu6"), 1000)


def mobilenet_v3_large(g: G, x: str) -> str:
    """Howard et al. 2019, table 1: kernel, expanded and output width, squeeze, activation, stride.

    Squeezed to a quarter, rounded to a multiple of 8 as torchvision does.
    """
    x = _activated(g, conv_norm(g, x, 16, stride=2), "hard_swish")
    blocks: tuple[tuple[int, int, int, int, Activation, int], ...] = (
        (3, 16, 16, 0, "relu", 1), (3, 64, 24, 0, "relu", 2), (3, 72, 24, 0, "relu", 1),
        (5, 72, 40, 24, "relu", 2), (5, 120, 40, 32, "relu", 1), (5, 120, 40, 32, "relu", 1),
        (3, 240, 80, 0, "hard_swish", 2), (3, 200, 80, 0, "hard_swish", 1),
        (3, 184, 80, 0, "hard_swish", 1), (3, 184, 80, 0, "hard_swish", 1),
        (3, 480, 112, 120, "hard_swish", 1), (3, 672, 112, 168, "hard_swish", 1),
        (5, 672, 160, 168, "hard_swish", 2), (5, 960, 160, 240, "hard_swish", 1),
        (5, 960, 160, 240, "hard_swish", 1),
    )  # fmt: skip
    for kernel, wide, out, squeeze, activation, stride in blocks:
        x = _inverted(g, x, wide, out, kernel=kernel, stride=stride, activation=activation,
                      squeeze=squeeze, gate="HardSigmoid")  # fmt: skip
    x = g.flatten(g.gap(_activated(g, conv_norm(g, x, 960, 1), "hard_swish")))
    return g.gemm(g.hard_swish(g.gemm(x, 1280)), 1000)


def efficientnet_b0(g: G, x: str) -> str:
    """Tan and Le 2019, table 1: expansion, kernel, stride, width and blocks of each stage."""
    x = _activated(g, conv_norm(g, x, 32, stride=2), "silu")
    stages = (
        (1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3), (6, 5, 1, 112, 3),
        (6, 5, 2, 192, 4), (6, 3, 1, 320, 1),
    )  # fmt: skip
    for expand, kernel, stride, out, blocks in stages:
        for block in range(blocks):
            narrow = g.size(x, 1)
            x = _inverted(g, x, expand * narrow, out, kernel=kernel, stride=1 if block else stride,
                          activation="silu", squeeze=narrow // 4)  # fmt: skip
    return head(g, _activated(g, conv_norm(g, x, 1280, 1), "silu"), 1000)


def densenet121(g: G, x: str) -> str:
    """Huang et al. 2017, growth 32: each layer reads all before it."""
    x = g.pool(conv_relu(g, x, 64, 7, stride=2), "Max", 3, 2)
    for k, layers in enumerate((6, 12, 24, 16)):
        if k:
            x = g.conv(g.relu(g.batch_norm(x)), g.size(x, 1) // 2, 1, bias=False)
            x = g.pool(x, "Average")
        for _ in range(layers):
            y = conv_relu(g, g.relu(g.batch_norm(x)), 128, 1)
            x = g.concat(x, g.conv(y, 32, bias=False))
    return head(g, g.relu(g.batch_norm(x)), 1000)


def _activated(g: G, x: str, kind: Activation) -> str:
    if kind == "relu6":
        return g.clip(x, 0.0, 6.0)
    return {"relu": g.relu, "hard_swish": g.hard_swish, "silu": g.silu}[kind](x)


def _inverted(
    g: G, x: str, wide: int, out: int, *, activation: Activation, kernel: int = 3, stride: int = 1,
    squeeze: int = 0, gate: str = "Sigmoid",
) -> str:  # fmt: skip
    """An inverted residual: expand to `wide` channels, depthwise, squeeze and excite, project."""
    narrow, y = g.size(x, 1), x
    if wide != narrow:
        y = _activated(g, conv_norm(g, y, wide, 1), activation)
    y = _activated(g, conv_norm(g, y, wide, kernel, stride=stride, groups=wide), activation)
    if squeeze:
        # EfficientNet squeezes with its own activation, MobileNetV3 with ReLU and alpha 1/6.
        hard = gate == "HardSigmoid"
        small = _activated(g, g.conv(g.gap(y), squeeze, 1), "relu" if hard else activation)
        y = g.op("Mul", y, g.op(gate, g.conv(small, wide, 1), alpha=1 / 6 if hard else None))
    y = conv_norm(g, y, out, 1)
    return g.op("Add", x, y) if stride == 1 and narrow == out else y


# Pixels in, pixels or boxes out


def unet(g: G, x: str) -> str:
    """Ronneberger et al. 2015 at half its widths, padded, with batch normalisation."""

    def double(x: str, width: int) -> str:
        return conv_relu(g, conv_relu(g, x, width), width)

    skips = []
    for width in (32, 64, 128, 256):
        x = double(x, width)
        skips.append(x)
        x = g.pool(x)
    x = double(x, 512)
    for skip in reversed(skips):
        width = g.size(skip, 1)
        x = double(g.concat(skip, g.deconv(x, width)), width)
    return g.conv(x, 2, 1)


def yolo(g: G, x: str) -> str:
    """The smallest YOLOv8 (Jocher et al. 2023): CSP backbone, pyramid, a head with two branches.

    Three scales, flattened: (N, 4 * 16 + 80, boxes); distances are still distributions over 16.
    """

    def conv(x: str, out: int, kernel: int = 3, stride: int = 1) -> str:
        return g.silu(conv_norm(g, x, out, kernel, stride=stride))

    x = conv(conv(x, 16, stride=2), 32, stride=2)
    small = c2f(g, conv(c2f(g, x, 32, 1), 64, stride=2), 64, 2)
    middle = c2f(g, conv(small, 128, stride=2), 128, 2)
    x = conv(c2f(g, conv(middle, 256, stride=2), 256, 1), 128, 1)
    pooled = [x]
    for _ in range(3):
        pooled.append(g.pool(pooled[-1], "Max", 5, 1))
    large = conv(g.concat(*pooled), 256, 1)
    middle = c2f(g, g.concat(g.resize(large), middle), 128, 1)
    small = c2f(g, g.concat(g.resize(middle), small), 64, 1)
    middle = c2f(g, g.concat(conv(small, 64, stride=2), middle), 128, 1)
    large = c2f(g, g.concat(conv(middle, 128, stride=2), large), 256, 1)
    found = []
    for scale in (small, middle, large):
        boxes = g.conv(conv(conv(scale, 64), 64), 64, 1)
        classes = g.conv(conv(conv(scale, 80), 80), 80, 1)
        found.append(g.reshape(g.concat(boxes, classes), [0, 144, -1]))
    return g.concat(*found, axis=2)


# Sequences


def vit_small(g: G, x: str) -> str:
    """The small ViT of Touvron et al. 2021 (DeiT-S); tokens are averaged, as in Zhai et al. 2022,
    where Dosovitskiy et al. have one that stands for the class.
    """
    x = g.conv(x, 384, 16, stride=16, pad=0)
    x = g.transpose(g.reshape(x, [0, 384, 196]), 0, 2, 1)
    x = g.op("Add", x, g.weight(1, 196, 384, std=0.02))
    for _ in range(12):
        x = encoder_layer(g, x, 6, 1536, fused=True)
    x = g.reduce("Mean", g.layer_norm(x), 1, keepdims=False)
    return g.gemm(x, 1000)


def bert(g: G, x: str) -> str:
    """BERT (Devlin et al. 2019) in the size of MiniLM-L6-H384 (Wang et al. 2020): (N, 128) token
    numbers -> (N, 128, 384). Norms come after each sum.
    """
    words, places = g.weight(30522, 384, std=0.5), g.weight(1, 128, 384, std=0.5)
    x = g.layer_norm(g.op("Add", g.op("Gather", words, x), places))
    for _ in range(6):
        x = g.layer_norm(g.op("Add", x, attention(g, x, 12)))
        x = g.layer_norm(g.op("Add", x, feed_forward(g, x, 1536)))
    return x


def lstm(g: G, x: str) -> str:
    """Graves et al. 2013, 'Speech recognition with deep recurrent neural networks', CTC-3L-250H:
    (N, 128 frames, 123 features) -> (N, 128, 62 symbols).
    """
    x = g.transpose(x, 1, 0, 2)
    for _ in range(3):
        x = sequence(g, "LSTM", x, 250, both=True)
    return g.linear(g.transpose(x, 1, 0, 2), 62)


IMAGE = (3, 224, 224)
NETWORKS = {
    "resnet18": Network(resnet18, IMAGE),
    "resnet50": Network(resnet50, IMAGE),
    "vgg16": Network(vgg16, IMAGE),
    "mobilenet_v2": Network(mobilenet_v2, IMAGE),
    "mobilenet_v3_large": Network(mobilenet_v3_large, IMAGE),
    "efficientnet_b0": Network(efficientnet_b0, IMAGE),
    "densenet121": Network(densenet121, IMAGE),
    "vit_small": Network(vit_small, IMAGE),
    "bert": Network(bert, (128,), np.int64),
    "unet": Network(unet, (3, 256, 256), batch=16),
    "yolo": Network(yolo, (3, 640, 640), batch=16),
    "lstm": Network(lstm, (128, 123)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    args = parser.parse_args()
    unknown = set(args.names) - set(NETWORKS)
    if unknown:
        parser.error(f"no network {', '.join(sorted(unknown))}: {', '.join(NETWORKS)}")
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names or NETWORKS:
        onnx.save(NETWORKS[name].model(), args.folder / f"{name}.onnx")
        print(args.folder / f"{name}.onnx", flush=True)


if __name__ == "__main__":
    main()
