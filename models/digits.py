"""The networks that `train` trains on 8x8 images of handwritten digits, with random weights.

All of them map x (N, 1, 8, 8), pixels between 0 and 1, to logits (N, 10).
"""

import onnx

from models.blocks import basic_block, conv_relu, encoder_layer, head, sequence
from models.builder import G


def resnet() -> onnx.ModelProto:
    """Four residual blocks; batch normalisation stays a node."""
    g = G(0, opset=17)
    x = conv_relu(g, g.input("x", ("N", 1, 8, 8)), 48)
    x = basic_block(g, basic_block(g, x, 48), 48)
    return g.model(logits=head(g, basic_block(g, basic_block(g, x, 64, 2), 64)))


def transformer() -> onnx.ModelProto:
    """Sixteen patches, two layers; LayerNorm and attention are decomposed."""
    g = G(0, opset=13)
    x = g.conv(g.input("x", ("N", 1, 8, 8)), 64, 2, stride=2, pad=0)
    x = g.transpose(g.reshape(x, [0, 64, -1]), 0, 2, 1)
    x = g.op("Add", x, g.weight(1, 16, 64, std=0.5))
    for _ in range(2):
        x = encoder_layer(g, x, 4, 128)
    return g.model(logits=g.gemm(g.reduce("Mean", g.layer_norm(x), 1, keepdims=False), 10))


def lstm() -> onnx.ModelProto:
    """The rows of the image as a sequence, read in both directions, then forwards."""
    g = G(0, opset=14)
    x = g.transpose(g.squeeze(g.input("x", ("N", 1, 8, 8)), 1), 1, 0, 2)
    x = sequence(g, "LSTM", sequence(g, "LSTM", x, 64, both=True), 64)
    return g.model(logits=g.gemm(g.squeeze(g.slice(x, -1, 2**31, 0), 0), 10))


NETWORKS = {"resnet": resnet, "transformer": transformer, "lstm": lstm}
