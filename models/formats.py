"""The same kind of networks in other clothes: quantised, fused, half, with bodies and functions."""

import ml_dtypes
import numpy as np
from onnx import TensorProto, helper

from models.blocks import basic_block, conv_relu, encoder_layer, head, heads_of
from models.builder import MS, G, Tensor
from models.registry import model


def image(g: G, size: int = 12) -> str:
    return g.input("x", ("N", 3, size, size))


# Types, and where the weights live


@model("float16", opset=13, dtype=np.float16)
@model("constant_nodes", opset=11, store="constant")
@model("ir3_inputs", opset=8, store="input")
def resnet(g: G) -> str:
    x = g.pool(conv_relu(g, image(g), 12))
    return head(g, basic_block(g, basic_block(g, x, 12), 20, 2))


@model("float16_transformer", opset=17, dtype=np.float16)
def float16_transformer(g: G) -> str:
    x = g.input("x", ("N", 6, 32))
    return g.linear(encoder_layer(g, x, 4, 48), 10)


@model("bfloat16", opset=17, dtype=ml_dtypes.bfloat16, runs=False)
def bfloat16(g: G) -> str:
    x = g.relu(g.linear(g.input("x", ("N", 20)), 40))
    return g.linear(x, 10)


@model("constant_of_shape", opset=12)
def constant_of_shape(g: G) -> str:
    """onnx's light models: every matrix is one value, born in the graph."""
    x = image(g)
    for width in (12, 20):
        value = helper.make_tensor("value", TensorProto.FLOAT, [1], [g.rng.uniform(0.05, 0.1)])
        w = g.op("ConstantOfShape", [width, g.size(x, 1), 3, 3], value=value)
        x = g.relu(g.conv(x, width, weight=w))
    return head(g, x)


@model("weights_behind_nodes", opset=13)
def weights_behind_nodes(g: G) -> str:
    """Matrices behind Identity, Cast from half, Transpose and Reshape."""
    x = g.input("x", ("N", 20))
    x = g.relu(g.op("MatMul", x, g.op("Identity", g.weight(20, 32, std=0.2))))
    half = g.const(g.rng.normal(0, 0.2, (32, 28)).astype(np.float16))
    x = g.relu(g.op("MatMul", x, g.op("Cast", half, to=TensorProto.FLOAT)))
    x = g.relu(g.op("MatMul", x, g.transpose(g.weight(24, 28, std=0.2), 1, 0)))
    return g.op("MatMul", x, g.reshape(g.weight(24 * 10, std=0.2), [24, 10]))


# Bodies and functions


@model("if_conv", opset=13)
def if_conv(g: G) -> str:
    """Both branches convolve what the outer graph made; weights inside and outside."""
    x = conv_relu(g, image(g), 16)
    flag = g.input("flag", (), np.bool_)
    outer = g.weight(20, 16, 3, 3)
    then, other = g.sub(), g.sub()
    a = then.relu(then.conv(x, 20, weight=outer))
    b = other.op("Tanh", other.conv(other.relu(other.conv(x, 12)), 20, 1))
    y = g.op(
        "If",
        flag,
        then_branch=then.body("then", a),
        else_branch=other.body("else", b),
        like=g.tensors[x]._replace(shape=("N", 20, 12, 12)),
    )
    return head(g, g.conv(y, 16))


@model("loop_conv", opset=13)
def loop_conv(g: G) -> str:
    """Three residual steps with the same weights, carried by Loop."""
    x = conv_relu(g, image(g), 16)
    outer = g.weight(16, 22, 3, 3)
    body = g.sub()
    body.input("step", (), np.int64)
    go_on = body.input("go_on", (), np.bool_)
    state = body.input("state", g.shape(x))
    y = body.conv(body.relu(body.conv(state, 22)), 16, weight=outer)
    parts = (body.op("Identity", go_on), body.op("Add", state, y))
    y = g.op("Loop", np.int64(3), np.bool_(True), x, body=body.body("body", *parts), like=x)
    return head(g, conv_relu(g, y, 20))


@model("scan_cell", opset=11)
def scan_cell(g: G) -> dict[str, str]:
    """A recurrent cell written out, carried by Scan over time; its matrices are outside."""
    x = g.input("x", (5, "N", 12))
    elem = g.tensors[x].elem
    first = g.op("Tanh", g.gemm(g.input("context", ("N", 16)), 24))
    w, r = g.weight(12, 24, std=0.3), g.weight(24, 24, std=0.2)
    body = g.sub()
    state, step = body.input("state", ("N", 24)), body.input("step", ("N", 12))
    mixed = body.op("Add", body.op("MatMul", step, w), body.op("MatMul", state, r))
    state = body.op("Tanh", mixed)
    parts = (state, body.op("Identity", state))
    last, steps = g.ops(
        "Scan",
        first,
        x,
        outputs=2,
        body=body.body("body", *parts),
        num_scan_inputs=1,
        like=[Tensor(elem, ("N", 24)), Tensor(elem, (5, "N", 24))],
    )
    return {"y": g.linear(steps, 10), "score": g.gemm(last, 3)}


@model("local_function", opset=17)
def local_function(g: G) -> str:
    """A convolution with its norm and activation as a function of the model's own."""
    conv = helper.make_node("Conv", ["x", "w", "b"], ["conv"], pads=[1, 1, 1, 1])
    mul = helper.make_node("Mul", ["conv", "scale"], ["scaled"])
    relu = helper.make_node("Relu", ["scaled"], ["y"])
    g.functions.append(
        helper.make_function(
            "zoo",
            "ConvScaleRelu",
            ["x", "w", "b", "scale"],
            ["y"],
            [conv, mul, relu],
            [helper.make_opsetid("", g.opset)],
        )
    )
    x = image(g)
    for width in (16, 24):
        w = g.weight(width, g.size(x, 1), 3, 3)
        bias, scale = g.weight(width, std=0.2), g.positive(width, 1, 1)
        like = g.tensors[x]._replace(shape=("N", width, 12, 12))
        x = g.op("ConvScaleRelu", x, w, bias, scale, domain="zoo", like=like)
    return head(g, x)


# Eight bits


SCALE = np.float32(0.05)
ZERO = np.uint8(128)


def int8_weight(g: G, *shape: int) -> tuple[str, str, str]:
    """A random int8 weight with a scale and a zero point for each entry of its first axis."""
    fan = int(np.prod(shape[1:]))
    scale = (g.rng.uniform(0.7, 1.3, shape[0]) * (2 / fan) ** 0.5 / 40).astype(np.float32)
    value = np.clip(g.rng.normal(0, 40, shape), -127, 127).astype(np.int8)
    return g.const(value), g.const(scale), g.const(np.zeros(shape[0], np.int8))


@model("qdq", opset=13)
def qdq(g: G) -> str:
    """Activations and weights quantised per channel, computed in float between the pairs."""

    def requantise(x: str) -> str:
        q = g.op("QuantizeLinear", x, SCALE, ZERO)
        return g.op("DequantizeLinear", q, SCALE, ZERO)

    def conv(x: str, out: int) -> str:
        w, scale, zero = int8_weight(g, out, g.size(x, 1), 3, 3)
        bias = g.const(g.rng.integers(-200, 200, out).astype(np.int32))
        bias_scale = g.const(g.values[scale] * SCALE)
        return g.op(
            "Conv",
            x,
            g.op("DequantizeLinear", w, scale, zero, axis=0),
            g.op("DequantizeLinear", bias, bias_scale, np.zeros(out, np.int32), axis=0),
            pads=[1, 1, 1, 1],
        )

    x = requantise(g.relu(conv(requantise(image(g)), 16)))
    y = requantise(conv(requantise(g.relu(conv(x, 24))), 16))
    x = requantise(g.relu(g.op("Add", x, y)))
    w, scale, zero = int8_weight(g, 10, 16)
    w = g.op("DequantizeLinear", w, scale, zero, axis=0)
    x = requantise(g.flatten(g.gap(x)))
    return g.op("Gemm", x, w, g.weight(10, std=0.2), transB=1)


@model("qoperator", opset=12)
def qoperator(g: G) -> str:
    """Computed in eight bits: QLinearConv, and com.microsoft's QLinearAdd and pool."""

    def conv(x: str, out: int) -> str:
        w, scale, zero = int8_weight(g, out, g.size(x, 1), 3, 3)
        bias = g.const(g.rng.integers(-200, 200, out).astype(np.int32))
        y = (SCALE, ZERO)
        return g.op("QLinearConv", x, SCALE, ZERO, w, scale, zero, *y, bias, pads=[1, 1, 1, 1])

    x = conv(g.op("QuantizeLinear", image(g), SCALE, ZERO), 16)
    y = conv(conv(x, 24), 16)
    quantiser = (SCALE, ZERO)
    x = g.op("QLinearAdd", x, *quantiser, y, *quantiser, *quantiser, domain=MS, like=x)
    pooled = g.tensors[x]._replace(shape=("N", 16, 1, 1))
    x = g.op(
        "QLinearGlobalAveragePool",
        x,
        *quantiser,
        *quantiser,
        domain=MS,
        like=pooled,
        channels_last=0,
    )
    w = np.clip(g.rng.normal(0, 40, (16, 10)), -127, 127).astype(np.int8)
    x = g.op("QLinearMatMul", g.flatten(x), *quantiser, w, SCALE, np.int8(0), *quantiser)
    return g.op("DequantizeLinear", x, *quantiser)


@model("qoperator_attention", opset=17)
def qoperator_attention(g: G) -> str:
    """Queries and keys that are multiplied as codes, of which 0 is not the lowest."""
    quantiser = (SCALE, ZERO)

    def dense(x: str, out: int) -> str:
        w = np.clip(g.rng.normal(0, 30, (g.size(x, -1), out)), -127, 127).astype(np.int8)
        return g.op("QLinearMatMul", x, *quantiser, w, SCALE / 8, np.int8(0), *quantiser)

    def one(op: str, x: str, **attributes: int) -> str:
        return g.op(op, x, *quantiser, *quantiser, domain=MS, like=x, **attributes)

    x = g.op("QuantizeLinear", g.input("x", ("N", 5, 12)), *quantiser)
    queries, keys = (one("QLinearSigmoid", dense(x, 18)) for _ in range(2))
    scores = g.op("QLinearMatMul", queries, *quantiser, g.transpose(keys, 0, 2, 1), *quantiser,
                  *quantiser)  # fmt: skip
    weights = one("QLinearSoftmax", scores, axis=-1, opset=17)
    mixed = g.op("QLinearMatMul", weights, *quantiser, dense(x, 14), *quantiser, *quantiser)
    return g.op("DequantizeLinear", dense(mixed, 10), *quantiser)


@model("int4_weights", opset=21, block=None)
@model("int4_blocked", opset=21, block=16)
@model("int4_ragged", opset=21, block=32)
def int4_weights(g: G, block: int | None) -> str:
    """Four bit matrices with a scale a column, or one for every `block` rows of each, and
    the last block may be short.
    """
    x = g.input("x", ("N", 32))
    for width in (48, 10):
        rows = g.size(x, 1)
        value = np.clip(g.rng.normal(0, 3, (rows, width)).round(), -8, 7).astype(ml_dtypes.int4)
        shape = (width,) if block is None else (-(-rows // block), width)
        scale = (g.rng.uniform(0.2, 0.4, shape) / rows**0.5).astype(np.float32)
        w = g.op("DequantizeLinear", value, scale, axis=1 if block is None else 0, block_size=block)
        x = g.op("MatMul", g.relu(x), w)
    return x


@model("dynamic_int8", opset=11)
def dynamic_int8(g: G) -> str:
    """Activations quantised by the range they turn out to have."""
    x = image(g)
    q, x_scale, x_zero = g.ops("DynamicQuantizeLinear", x, outputs=3)
    w = g.rng.integers(-80, 80, (16, 3, 3, 3)).astype(np.int8)
    y = g.op("ConvInteger", q, w.view(np.uint8), x_zero, ZERO, pads=[1, 1, 1, 1])
    y = g.op("Cast", y, to=TensorProto.FLOAT)
    y = g.op("Mul", y, g.op("Mul", x_scale, np.float32(0.004)))
    x = g.flatten(g.gap(g.relu(g.op("Add", y, g.weight(1, 16, 1, 1, std=0.2)))))
    for width in (36, 10):
        x = g.relu(x)
        q, x_scale, x_zero = g.ops("DynamicQuantizeLinear", x, outputs=3)
        w = g.rng.integers(-80, 80, (g.size(x, 1), width)).astype(np.int8)
        scale = g.rng.uniform(0.003, 0.006, width).astype(np.float32)
        w_zero = g.rng.integers(-9, 10, width).astype(np.int8)
        y = g.op("MatMulInteger", q, w, x_zero, w_zero)
        y = g.op("Mul", g.op("Cast", y, to=TensorProto.FLOAT), g.op("Mul", x_scale, scale))
        x = g.op("Add", y, g.weight(width, std=0.2))
    return x


# ONNX Runtime's own operators


@model("ms_fused_conv", opset=12)
def ms_fused_conv(g: G) -> str:
    """What ONNX Runtime writes when it saves an optimised convnet."""

    def conv(x: str, out: int, *residual: str) -> str:
        w, bias = g.weight(out, g.size(x, 1), 3, 3), g.weight(out, std=0.2)
        like = g.tensors[x]._replace(shape=("N", out, 12, 12))
        return g.op(
            "FusedConv",
            x,
            w,
            bias,
            *residual,
            domain=MS,
            like=like,
            activation="Relu",
            pads=[1, 1, 1, 1],
            kernel_shape=[3, 3],
        )

    x = conv(image(g), 16)
    x = conv(conv(x, 22), 16, x)
    x = g.flatten(g.gap(x))
    like = g.tensors[x]._replace(shape=("N", 20))
    w, bias = g.weight(20, 16, std=0.3), g.weight(20, std=0.2)
    x = g.op("FusedGemm", x, w, bias, domain=MS, like=like, transB=1, activation="Relu")
    return g.gemm(x, 10)


def skip_norm(g: G, x: str, skip: str) -> str:
    c = g.size(x, 2)
    scale, shift, bias = g.positive(c), g.weight(c, std=0.3), g.weight(c, std=0.3)
    return g.op(
        "SkipLayerNormalization", x, skip, scale, shift, bias, domain=MS, like=x, epsilon=1e-5
    )


@model("ms_attention", opset=14, multi=False)
@model("ms_multi_head_attention", opset=17, multi=True)
def ms_transformer(g: G, multi: bool) -> str:
    """What ONNX Runtime's transformer optimiser writes."""
    x = g.input("x", ("N", 6, 32))
    for gelu in ("BiasGelu", "FastGelu"):
        if multi:
            q, k, v = (g.linear(x, 32, bias=False) for _ in range(3))
            y = g.op(
                "MultiHeadAttention",
                q,
                k,
                v,
                g.weight(96, std=0.2),
                domain=MS,
                like=x,
                num_heads=4,
            )
        else:
            w, bias = g.weight(32, 96, std=0.2), g.weight(96, std=0.2)
            y = g.op("Attention", x, w, bias, domain=MS, like=x, num_heads=4)
        x = skip_norm(g, g.linear(y, 32, bias=False), x)
        y = g.linear(x, 56, bias=False)
        y = g.op(gelu, y, g.weight(56, std=0.2), domain=MS, like=y)
        x = skip_norm(g, g.linear(y, 32, bias=False), x)
    return g.gemm(g.reduce("Mean", x, 1, keepdims=False), 10)


@model("ms_fused_matmul", opset=13)
def ms_fused_matmul(g: G) -> str:
    """Transposes and scales taken into the MatMul, of weights and of q k^T."""
    x = g.input("x", ("N", 6, 24))
    like = g.tensors[x]._replace(shape=("N", 6, 32))
    x = g.op("FusedMatMul", x, g.weight(32, 24, std=0.2), domain=MS, like=like, transB=1)
    x = g.relu(x)
    q, k, v = (heads_of(g, g.linear(x, 24), 3) for _ in range(3))
    like = g.tensors[q]._replace(shape=("N", 3, 6, 6))
    logits = g.op("FusedMatMul", q, k, domain=MS, like=like, transB=1, alpha=8**-0.5)
    y = g.op("MatMul", g.op("Softmax", logits, axis=-1), v)
    y = g.reshape(g.transpose(y, 0, 2, 1, 3), [0, 0, 24])
    return g.linear(y, 10)
