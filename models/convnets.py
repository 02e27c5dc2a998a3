"""Convolutional networks."""

import numpy as np
import onnx

from models.blocks import (
    Norm,
    basic_block,
    bottleneck,
    c2f,
    channel_shuffle,
    conv_norm,
    conv_relu,
    convnext_block,
    dense_layers,
    fire,
    group_norm,
    head,
    inception,
    inverted_residual,
    padded_block,
    preact_block,
    shuffle_unit_v1,
    shuffle_unit_v2,
    squeeze_excite,
)
from models.builder import G, Tensor
from models.registry import model


def image(g: G, size: int = 16, channels: int = 3) -> str:
    return g.input("x", ("N", channels, size, size))


# Chains, and batch normalisation in its three states


@model("conv_bn", opset=9, norm="node")
@model("conv_bn_folded", opset=7, norm="folded")
@model("conv_bn_decomposed", opset=13, norm="decomposed")
def conv_bn(g: G, norm: Norm) -> str:
    x = conv_relu(g, image(g), 16, norm=norm)
    x = conv_relu(g, x, 24, stride=2, norm=norm)
    return head(g, conv_relu(g, x, 31, norm=norm))


@model("vgg_flatten", opset=7)
def vgg_flatten(g: G) -> str:
    """The classifier reads 4x4 pixels of each channel."""
    x = g.pool(g.relu(g.conv(image(g), 12)))
    x = g.pool(g.relu(g.conv(x, 20)))
    x = g.op("Dropout", g.relu(g.gemm(g.flatten(x), 48)))
    return g.gemm(x, 10)


@model("gap_dynamic_reshape", opset=11)
def gap_dynamic_reshape(g: G) -> str:
    """Flattened as TorchScript does it: Shape, Gather, Concat, Reshape."""
    x = g.pool(conv_relu(g, image(g), 16), "Average")
    x = conv_relu(g, x, 20)
    batch = g.unsqueeze(g.op("Gather", g.op("Shape", x), np.int64(0), axis=0), 0)
    target = g.concat(batch, g.const([-1]), axis=0)
    pooled = g.gap(x)
    flat = Tensor(g.tensors[x].elem, ("N", 20))
    return g.gemm(g.reshape(pooled, target, like=flat), 10)


@model("prelu", opset=9)
def prelu(g: G) -> str:
    x = g.prelu(g.conv(image(g), 16))
    return head(g, g.prelu(g.batch_norm(g.conv(x, 20, stride=2))))


@model("instance_norm", opset=10)
def instance_norm(g: G) -> str:
    x = g.relu(g.instance_norm(g.conv(image(g), 16)))
    y = g.instance_norm(g.conv(x, 16))
    x = g.op("LeakyRelu", g.op("Add", x, y), alpha=0.1)
    return g.op("Tanh", g.conv(x, 3))


@model("group_norm", opset=21)
@model("group_norm_decomposed", opset=13)
def group_norm_net(g: G) -> str:
    x = g.silu(group_norm(g, g.conv(image(g), 24), 4))
    y = g.silu(group_norm(g, g.conv(x, 24), 6))
    return head(g, g.op("Add", x, y))


@model("lrn", opset=8)
def lrn(g: G) -> str:
    """AlexNet's stem: its channels are mixed with their neighbours."""
    x = g.op("LRN", g.relu(g.conv(image(g), 12)), size=5, alpha=0.5, beta=0.75, bias=1.0)
    x = g.relu(g.conv(g.pool(x), 24, groups=2))
    return head(g, g.relu(g.conv(x, 16)))


@model("conv1d_tcn", opset=12)
def conv1d_tcn(g: G) -> str:
    """Temporal convolutions: causal padding, dilation, residual."""
    x = g.conv(g.input("x", ("N", 5, 32)), 20, 1)
    for dilation in (1, 2, 4):
        y = g.pad(x, [0, 0, 2 * dilation], [0, 0, 0])
        y = g.relu(g.conv(y, 28, dilation=dilation, pad=0))
        x = g.op("Add", x, g.conv(y, 20, 1))
    return g.conv(g.relu(x), 4, 1)


@model("conv3d", opset=16)
def conv3d(g: G) -> str:
    x = g.relu(g.batch_norm(g.conv(g.input("x", ("N", 2, 4, 8, 8)), 10, bias=False)))
    x = g.pool(x)
    y = g.batch_norm(g.conv(x, 10, bias=False))
    return head(g, g.relu(g.op("Add", x, y)))


# Residual


@model("resnet", opset=11, norm="node")
@model("resnet_folded", opset=12, norm="folded")
@model("resnet_decomposed", opset=18, norm="decomposed")
def resnet(g: G, norm: Norm) -> str:
    x = g.pool(conv_relu(g, image(g), 16, norm=norm), "Max", 3, 2)
    x = basic_block(g, basic_block(g, x, 16, norm=norm), 16, norm=norm)
    return head(g, basic_block(g, basic_block(g, x, 32, 2, norm=norm), 32, norm=norm))


@model("preact_resnet", opset=13)
def preact_resnet(g: G) -> str:
    x = g.conv(image(g), 16)
    x = preact_block(g, preact_block(g, x, 16), 24, 2)
    return head(g, g.relu(g.batch_norm(preact_block(g, x, 24))))


@model("bottleneck", opset=12, groups=1)
@model("resnext", opset=15, groups=4)
def bottleneck_net(g: G, groups: int) -> str:
    x = conv_relu(g, image(g), 16)
    x = bottleneck(g, x, 16, 32, groups=groups)
    x = bottleneck(g, x, 16, 32, groups=groups)
    return head(g, bottleneck(g, x, 24, 48, stride=2, groups=groups))


@model("option_a", opset=10)
@model("option_a_pad_input", opset=14)
def option_a(g: G) -> str:
    x = basic_block(g, conv_relu(g, image(g), 16), 16)
    return head(g, padded_block(g, padded_block(g, x, 24), 43))


@model("grouped_conv", opset=9)
def grouped_conv(g: G) -> str:
    """Groups that follow one another, with sizes that differ."""
    x = g.relu(g.conv(image(g), 24))
    x = g.relu(g.conv(x, 36, groups=4))
    x = g.relu(g.conv(x, 30, groups=6))
    return head(g, g.relu(g.conv(x, 20, groups=2)))


# Depthwise and gates


@model("mobilenet_v2", opset=10, se=False)
@model("mobilenet_se", opset=19, se=True)
def mobilenet(g: G, se: bool) -> str:
    x = g.clip(conv_norm(g, image(g), 12, stride=2), 0.0, 6.0)
    x = inverted_residual(g, inverted_residual(g, x, 12, se=se), 16, stride=2, se=se)
    return head(g, g.clip(conv_norm(g, inverted_residual(g, x, 16, se=se), 40, 1), 0.0, 6.0))


@model("mobilenet_v3", opset=14)
def mobilenet_v3(g: G) -> str:
    x = g.hard_swish(conv_norm(g, image(g), 12, stride=2))
    y = g.hard_swish(conv_norm(g, x, 36, 1))
    y = g.hard_swish(conv_norm(g, y, 36, 5, groups=36))
    gate = g.relu(g.conv(g.gap(y), 9, 1))
    y = g.op("Mul", y, g.op("HardSigmoid", g.conv(gate, 36, 1), alpha=1 / 6, beta=0.5))
    x = g.op("Add", x, conv_norm(g, y, 12, 1))
    x = g.hard_swish(conv_norm(g, x, 40, 1))
    return g.conv(g.hard_swish(g.conv(g.gap(x), 32, 1)), 10, 1)


@model("depthwise_multiplier", opset=14)
def depthwise_multiplier(g: G) -> str:
    """Each channel makes two."""
    x = conv_relu(g, image(g), 14)
    x = conv_relu(g, x, 28, groups=14)
    return head(g, conv_relu(g, x, 20, 1))


@model("se_block", opset=14)
def se_block(g: G) -> str:
    x = conv_relu(g, image(g), 16)
    x = g.op("Add", x, squeeze_excite(g, conv_norm(g, x, 16)))
    return head(g, g.relu(x))


@model("se_dense", opset=13)
def se_dense(g: G) -> str:
    """Squeeze and excitation with dense layers, reshaped there and back."""
    x = conv_relu(g, image(g), 24)
    y = g.relu(g.gemm(g.flatten(g.gap(x)), 6))
    gate = g.reshape(g.op("Sigmoid", g.gemm(y, 24)), [-1, 24, 1, 1])
    return head(g, conv_relu(g, g.op("Mul", x, gate), 16))


@model("cbam", opset=17)
def cbam(g: G) -> str:
    """Channel gate with a shared MLP, then a pixel gate from the mean and max over channels."""
    x = conv_relu(g, image(g), 16)
    down, up = g.weight(6, 16, 1, 1), g.weight(16, 6, 1, 1)
    pooled = [g.gap(x), g.gap(x, "Max")]
    mlp = [g.conv(g.relu(g.conv(p, 6, 1, weight=down)), 16, 1, weight=up) for p in pooled]
    x = g.op("Mul", x, g.op("Sigmoid", g.sum(mlp)))
    seen = g.concat(g.reduce("Mean", x, 1), g.reduce("Max", x, 1))
    x = g.op("Mul", x, g.op("Sigmoid", g.conv(seen, 1, 7)))
    return head(g, conv_relu(g, x, 24))


@model("eca", opset=13)
def eca(g: G) -> str:
    """A convolution *along* the channel axis."""
    x = conv_relu(g, image(g), 16)
    line = g.transpose(g.squeeze(g.gap(x), 3), 0, 2, 1)
    gate = g.transpose(g.conv(line, 1, 3, bias=False), 0, 2, 1)
    x = g.op("Mul", x, g.op("Sigmoid", g.unsqueeze(gate, 3)))
    return head(g, conv_relu(g, x, 24))


@model("gated_branches", opset=15)
def gated_branches(g: G) -> str:
    x = conv_relu(g, image(g), 16)
    a, b = g.op("Tanh", g.conv(x, 22)), g.op("Sigmoid", g.conv(x, 22))
    return head(g, g.conv(g.op("Mul", a, b), 16))


@model("convnext", opset=17, grn=False)
@model("convnext_v2_grn", opset=13, grn=True)
def convnext(g: G, grn: bool) -> str:
    x = g.conv(image(g), 16, 4, stride=4, pad=0)
    return head(g, convnext_block(g, convnext_block(g, x, grn=grn), grn=grn))


# Concat, split and shuffle


@model("shufflenet_v1", opset=9)
def shufflenet_v1(g: G) -> str:
    x = conv_relu(g, image(g), 24)
    return head(g, shuffle_unit_v1(g, shuffle_unit_v1(g, x, 3), 3))


@model("shufflenet_v2", opset=13)
def shufflenet_v2(g: G) -> str:
    x = conv_relu(g, image(g), 24)
    for _ in range(3):
        x = shuffle_unit_v2(g, x)
    return head(g, conv_relu(g, x, 32, 1))


@model("shuffle_plain", opset=16)
def shuffle_plain(g: G) -> str:
    """A shuffle between full convolutions."""
    x = channel_shuffle(g, conv_relu(g, image(g), 30), 5)
    return head(g, conv_relu(g, x, 20))


@model("densenet", opset=12)
def densenet(g: G) -> str:
    x = dense_layers(g, g.conv(image(g), 16), 8, 3)
    x = g.pool(g.conv(g.relu(g.batch_norm(x)), 20, 1, bias=False), "Average")
    return head(g, g.relu(g.batch_norm(dense_layers(g, x, 8, 2))))


@model("inception", opset=8)
def inception_net(g: G) -> str:
    x = conv_relu(g, image(g), 16, norm="folded")
    return head(g, inception(g, inception(g, x, (8, 12, 6, 5)), (10, 16, 8, 7)))


@model("squeezenet", opset=7)
def squeezenet(g: G) -> str:
    """No dense layer: the last convolution is the classifier."""
    x = fire(g, g.pool(g.relu(g.conv(image(g), 16))), 6, 12)
    return g.flatten(g.gap(g.relu(g.conv(fire(g, x, 8, 16), 10, 1))))


@model("yolo", opset=17)
def yolo(g: G) -> dict[str, str]:
    """C2f backbone, upsampled and concatenated neck, one head flattened over two scales."""
    p3 = c2f(g, g.silu(conv_norm(g, image(g, 32), 16, stride=2)), 16)
    p4 = c2f(g, g.silu(conv_norm(g, p3, 32, stride=2)), 32)
    neck = c2f(g, g.concat(g.resize(p4), p3), 16)
    levels = []
    for level in (neck, p4):
        box, cls = g.conv(level, 8, 1), g.conv(g.silu(conv_norm(g, level, 14)), 5, 1)
        levels.append(g.reshape(g.concat(box, cls), [0, 13, -1]))
    boxes, classes = g.split(g.concat(*levels, axis=2), [8, 5])
    return {"boxes": boxes, "scores": g.op("Sigmoid", classes)}


@model("nms_head", opset=11)
def nms_head(g: G) -> dict[str, str]:
    """A detector that ends in NonMaxSuppression: how many boxes are left depends on the data."""
    x = conv_relu(g, conv_relu(g, image(g), 16, stride=2), 24, stride=2)
    boxes, scores = (g.reshape(g.conv(x, width, 1), [0, width, -1]) for width in (4, 3))
    boxes, scores = g.transpose(boxes, 0, 2, 1), g.op("Sigmoid", scores)
    limits = (np.int64(5), np.float32(0.5), np.float32(0.1))
    found = Tensor(onnx.TensorProto.INT64, ("found", 3))
    return {
        "boxes": boxes,
        "kept": g.op("NonMaxSuppression", boxes, scores, *limits, like=found),
    }


@model("spectrogram", opset=13)
def spectrogram(g: G) -> str:
    """Sound: a fixed Fourier front end written as convolutions, then learnt ones."""
    phase = 2 * np.pi * np.outer(np.arange(1, 13), np.arange(32)) / 32
    window = np.hanning(32)
    x = g.input("x", ("N", 1, 256))
    waves = (g.const((wave(phase) * window)[:, None].astype(g.dtype)) for wave in (np.sin, np.cos))
    parts = (g.conv(x, 12, 32, stride=16, pad=0, bias=False, weight=w) for w in waves)
    power = g.sum(g.op("Mul", p, p) for p in parts)
    x = g.relu(g.batch_norm(g.conv(g.op("Log", g.op("Add", power, 1e-3)), 24, bias=False)))
    return head(g, g.relu(g.conv(x, 16)))


@model("argmax_head", opset=13)
def argmax_head(g: G) -> dict[str, str]:
    """Segmentation whose only output is an index."""
    x = conv_relu(g, image(g), 16)
    return {"label": g.op("ArgMax", g.conv(conv_relu(g, x, 20), 5, 1), axis=1, keepdims=0)}


# Changing resolution


@model("unet_deconv", opset=11, up="deconv")
@model("unet_resize", opset=16, up="resize")
@model("unet_upsample", opset=9, up="resize")
def unet(g: G, up: str) -> str:
    top = conv_relu(g, image(g), 12)
    middle = conv_relu(g, g.pool(top), 24)
    bottom = conv_relu(g, g.pool(middle), 40)
    for skip, width in ((middle, 24), (top, 12)):
        wide = g.deconv(bottom, width) if up == "deconv" else g.resize(bottom)
        bottom = conv_relu(g, g.concat(wide, skip), width)
    return g.op("Sigmoid", g.conv(bottom, 1, 1))


@model("resize_to_skip", opset=13)
def resize_to_skip(g: G) -> str:
    """FPN: Resize to a size read off the other tensor; channels are read off it too."""
    top = g.relu(g.conv(image(g), 16))
    deep = g.relu(g.conv(top, 28, stride=2))
    lateral, deep = g.conv(top, 20, 1), g.conv(deep, 20, 1)
    batch_channels = g.slice(g.op("Shape", deep), 0, 2, 0)
    size = g.concat(batch_channels, g.slice(g.op("Shape", lateral), 2, 4, 0), axis=0)
    up = g.op(
        "Resize",
        deep,
        None,
        None,
        size,
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        like=g.tensors[lateral],
    )
    return g.conv(g.op("Add", lateral, up), 8)


@model("grouped_deconv", opset=13)
def grouped_deconv(g: G) -> str:
    """A GAN's generator from a dense layer, with a grouped ConvTranspose."""
    x = g.relu(g.gemm(g.input("z", ("N", 16)), 24 * 4 * 4))
    x = g.relu(g.batch_norm(g.deconv(g.reshape(x, [-1, 24, 4, 4]), 16, 4, pad=1)))
    x = g.relu(g.batch_norm(g.deconv(x, 12, 4, pad=1, groups=4)))
    return g.op("Tanh", g.conv(x, 3))


@model("pixel_shuffle_crd", opset=13, mode="CRD")
@model("pixel_shuffle_dcr", opset=11, mode="DCR")
def pixel_shuffle(g: G, mode: str) -> str:
    x = g.relu(g.conv(image(g, 8), 16))
    x = g.op("Add", x, g.conv(g.relu(g.conv(x, 20)), 16))
    x = g.op("DepthToSpace", g.conv(x, 12 * 4), blocksize=2, mode=mode)
    return g.conv(g.relu(x), 3)


@model("pixel_shuffle_reshaped", opset=12)
def pixel_shuffle_reshaped(g: G) -> str:
    """The same as Reshape, Transpose, Reshape."""
    x = g.relu(g.conv(image(g, 8), 40))
    x = g.transpose(g.reshape(x, [-1, 10, 2, 2, 8, 8]), 0, 1, 4, 2, 5, 3)
    return g.conv(g.relu(g.reshape(x, [-1, 10, 16, 16])), 3)


@model("space_to_depth", opset=13)
def space_to_depth(g: G) -> str:
    x = conv_relu(g, g.op("SpaceToDepth", image(g), blocksize=2), 16)
    x = conv_relu(g, g.op("SpaceToDepth", x, blocksize=2), 24)
    return head(g, x)


# Channels moved about


@model("slice_channels", opset=11)
def slice_channels(g: G) -> str:
    """Even channels, odd channels and a tail go different ways."""
    x = conv_relu(g, image(g), 24)
    even, odd = g.slice(x, 0, 24, step=2), g.slice(x, 1, 24, step=2)
    tail = g.slice(x, -7, 2**31)
    return head(g, g.concat(g.conv(even, 10), g.op("Neg", odd), tail))


@model("gather_channels", opset=13)
def gather_channels(g: G) -> str:
    """A constant reordering, with one channel twice and some left out."""
    x = conv_relu(g, image(g), 16)
    x = g.op("Gather", x, [5, 2, 11, 0, 5, 15, 8, 3, 1, 14], axis=1)
    return head(g, conv_relu(g, x, 12))


@model("tile_channels", opset=13)
def tile_channels(g: G) -> str:
    x = conv_relu(g, image(g), 12)
    wide = g.tensors[x]._replace(shape=("N", 36, 16, 16))
    x = g.op("Tile", x, [1, 3, 1, 1], like=wide)
    return head(g, conv_relu(g, x, 20))


@model("expand_channels", opset=13)
def expand_channels(g: G) -> str:
    """One map, seen by all channels; and pooled values, seen by all pixels."""
    x = conv_relu(g, image(g), 16)
    wide = g.op("Expand", g.op("Sigmoid", g.conv(x, 1, 1)), [1, 16, 1, 1])
    pooled = g.op("Expand", g.gap(x), [1, 1, 16, 16])
    return head(g, g.conv(g.concat(g.op("Mul", x, wide), pooled), 20))


@model("flip_channels", opset=12)
def flip_channels(g: G) -> str:
    """A negative step reverses the channels (MaxViT, CoordConv exports and the like)."""
    x = conv_relu(g, image(g), 16)
    return head(g, conv_relu(g, g.op("Add", x, g.slice(x, -1, -(2**31), step=-1)), 20))


@model("mean_over_channels", opset=13)
def mean_over_channels(g: G) -> str:
    """Means over channels that are zero where removed: exact after a factor."""
    x = g.relu(g.conv(image(g), 20, bias=False))
    return g.concat(g.reduce("Mean", x, 1), g.conv(x, 2))


# Weights that are shared, or computed


@model("siamese", opset=12)
def siamese(g: G) -> str:
    """Two inputs, one set of weights, one distance."""
    w1, w2 = g.weight(16, 3, 3, 3), g.weight(24, 16, 3, 3)
    ends = []
    for name in ("left", "right"):
        x = g.input(name, ("N", 3, 16, 16))
        x = g.relu(g.conv(x, 16, weight=w1, bias=False))
        x = g.relu(g.conv(x, 24, stride=2, weight=w2, bias=False))
        ends.append(g.flatten(g.gap(x)))
    return g.gemm(g.op("Abs", g.op("Sub", *ends)), 1)


@model("shared_vectors", opset=13)
def shared_vectors(g: G) -> str:
    """One vector serves norms that are cut differently, as exporters that merge equals do."""
    v, positive = g.weight(16, std=0.5), g.positive(16)
    x = image(g)
    for _ in range(3):
        y = g.conv(x, 16, bias=False)
        x = g.relu(g.op("BatchNormalization", y, positive, v, v, positive))
    return head(g, x)


@model("weight_standardised", opset=13)
def weight_standardised(g: G) -> str:
    """The weights are normalised in the graph, by their own mean and variance."""
    x = image(g)
    for width in (16, 24):
        w = g.weight(width, g.size(x, 1), 3, 3)
        centred = g.op("Sub", w, g.reduce("Mean", w, 1, 2, 3))
        var = g.reduce("Mean", g.op("Mul", centred, centred), 1, 2, 3)
        w = g.op("Div", centred, g.op("Sqrt", g.op("Add", var, 1e-5)))
        w = g.op("Mul", w, g.weight(width, 1, 1, 1, std=0.2))
        x = g.relu(group_norm(g, g.conv(x, width, weight=w), 4))
    return head(g, x)


@model("weight_norm", opset=13)
def weight_norm(g: G) -> str:
    """g * v / |v|, the norm taken over all but the first axis."""
    x = image(g)
    for width in (16, 24):
        v = g.weight(width, g.size(x, 1), 3, 3)
        unit = g.op("Div", v, g.reduce("L2", v, 1, 2, 3))
        w = g.op("Mul", unit, g.positive(width, 1, 1, 1))
        x = g.relu(g.conv(x, width, weight=w))
    return head(g, x)


@model("decomposed_bn_unsqueezed", opset=13)
def decomposed_bn_unsqueezed(g: G) -> str:
    """Norm vectors stay rank 1 in the file, and are unsqueezed in the graph."""
    x = image(g)
    for width in (16, 20):
        x = g.conv(x, width, bias=False)
        x = g.op("Mul", x, g.unsqueeze(g.positive(width), 1, 2))
        x = g.relu(g.op("Add", x, g.unsqueeze(g.weight(width, std=0.3), 1, 2)))
    return head(g, x)
