"""Dense, recurrent and attention networks."""

import numpy as np

from models.blocks import (
    Core,
    attend,
    attention,
    encoder_layer,
    feed_forward,
    glu,
    heads_of,
    sequence,
    swiglu,
)
from models.builder import Cell, G, Tensor
from models.registry import model


def tokens(g: G, length: int = 6, width: int = 32) -> str:
    return g.input("x", ("N", length, width))


def ids(g: G, length: int = 6) -> str:
    return g.input("ids", ("N", length), np.int64)


# Dense


@model("mlp", opset=7, transposed=True)
@model("mlp_tf", opset=13, transposed=False)
@model("mlp_float64", opset=14, transposed=True, dtype=np.float64)
def mlp(g: G, transposed: bool) -> str:
    x = g.relu(g.gemm(g.input("x", ("N", 20)), 48, transposed=transposed))
    x = g.op("Tanh", g.gemm(x, 37, transposed=transposed))
    return g.op("Softmax", g.gemm(x, 10, transposed=transposed), axis=1)


@model("mlp_batch_norm", opset=15)
def mlp_batch_norm(g: G) -> str:
    x = g.relu(g.batch_norm(g.gemm(g.input("x", ("N", 20)), 48)))
    y = g.batch_norm(g.gemm(g.relu(g.gemm(x, 29)), 48))
    return g.gemm(g.relu(g.op("Add", x, y)), 10)


@model("tied_autoencoder", opset=13)
def tied_autoencoder(g: G) -> str:
    """The decoder is the encoder's matrix, transposed in the graph."""
    w = g.weight(24, 40, std=0.2)
    x = g.op("MatMul", g.input("x", ("N", 24)), w)
    x = g.relu(g.op("Add", x, g.weight(40, std=0.2)))
    return g.op("Add", g.op("MatMul", x, g.transpose(w, 1, 0)), g.weight(24, std=0.2))


@model("glu", opset=13)
@model("glu_num_outputs", opset=18)
def glu_net(g: G) -> str:
    return g.linear(glu(g, g.relu(g.linear(g.input("x", ("N", 20)), 30)), 25), 10)


@model("mlp_mixer", opset=16)
def mlp_mixer(g: G) -> str:
    """Tokens and channels in turn."""
    x = tokens(g)
    y = g.transpose(g.layer_norm(x), 0, 2, 1)
    x = g.op("Add", x, g.transpose(g.linear(g.gelu(g.linear(y, 18)), 6), 0, 2, 1))
    x = g.op("Add", x, feed_forward(g, g.layer_norm(x), 64))
    return g.gemm(g.reduce("Mean", x, 1, keepdims=False), 10)


# Attention


@model("vit", opset=13, core="matmul", fused=True)
@model("vit_layer_norm", opset=17, core="matmul", fused=True)
@model("vit_einsum", opset=14, core="einsum", fused=False)
def vit(g: G, core: Core, fused: bool) -> str:
    """Patches, class token, two layers; the class token is read out."""
    x = g.conv(g.input("x", ("N", 3, 16, 16)), 32, 4, stride=4, pad=0)
    x = g.transpose(g.reshape(x, [0, 32, -1]), 0, 2, 1)
    batch = g.slice(g.op("Shape", x), 0, 1, 0)
    target = g.concat(batch, g.const([1, 32]), axis=0)
    token = Tensor(g.tensors[x].elem, ("N", 1, 32))
    x = g.concat(g.op("Expand", g.weight(1, 1, 32, std=0.5), target, like=token), x)
    x = g.op("Add", x, g.weight(1, 17, 32, std=0.5))
    for _ in range(2):
        x = encoder_layer(g, x, 4, 64, core=core, fused=fused)
    x = g.op("Gather", g.layer_norm(x), np.int64(0), axis=1)
    return g.gemm(x, 10)


@model("vit_scripted", opset=14)
def vit_scripted(g: G) -> str:
    """As TorchScript exports it: q, k and v unbound from (3, N, heads, T, D), and the sizes of
    reshapes and the attention's scale read off shapes.
    """
    x = g.input("x", ("N", 7, 32))
    elem = g.tensors[x].elem
    y = g.layer_norm(x)
    shape = g.op("Shape", y)
    n, t, c = (g.unsqueeze(g.op("Gather", shape, np.int64(i), axis=0), 0) for i in range(3))
    dim = g.op("Div", c, [4])
    target = g.concat(n, t, g.const([3, 4]), dim, axis=0)
    qkv = g.reshape(g.linear(y, 96), target, like=Tensor(elem, ("N", 7, 3, 4, 8)))
    qkv = g.transpose(qkv, 2, 0, 3, 1, 4)
    q, k, v = (g.op("Gather", qkv, np.int64(i), axis=0) for i in range(3))
    size = g.op("Gather", g.op("Shape", q), np.int64(-1), axis=0)
    scale = g.op("Sqrt", g.op("Cast", size, to=elem, like=Tensor(elem, ())))
    logits = g.op("Div", g.op("MatMul", q, g.transpose(k, 0, 1, 3, 2)), scale)
    y = g.op("MatMul", g.op("Softmax", logits, axis=-1), v)
    target = g.concat(n, t, c, axis=0)
    y = g.reshape(g.transpose(y, 0, 2, 1, 3), target, like=g.tensors[x])
    x = g.op("Add", x, g.linear(y, 32))
    x = g.op("Add", x, feed_forward(g, g.layer_norm(x), 64))
    return g.gemm(g.reduce("Mean", x, 1, keepdims=False), 10)


@model("swin_windows", opset=13)
def swin_windows(g: G) -> str:
    """Attention inside 4x4 windows of an 8x8 map, shifted by a roll."""
    x = g.conv(g.input("x", ("N", 3, 16, 16)), 24, 2, stride=2, pad=0)
    x = g.transpose(x, 0, 2, 3, 1)
    y = g.layer_norm(x)
    for axis in (1, 2):
        y = g.concat(g.slice(y, 2, 2**31, axis), g.slice(y, 0, 2, axis), axis=axis)
    y = g.transpose(g.reshape(y, [-1, 2, 4, 2, 4, 24]), 0, 1, 3, 2, 4, 5)
    y = attention(g, g.reshape(y, [-1, 16, 24]), 3, fused=True)
    y = g.transpose(g.reshape(y, [-1, 2, 2, 4, 4, 24]), 0, 1, 3, 2, 4, 5)
    y = g.reshape(y, [-1, 8, 8, 24], like=g.tensors[x])
    for axis in (1, 2):
        y = g.concat(g.slice(y, 6, 2**31, axis), g.slice(y, 0, 6, axis), axis=axis)
    x = g.op("Add", x, y)
    x = g.op("Add", x, g.linear(g.gelu(g.linear(g.layer_norm(x), 48)), 24))
    return g.gemm(g.reduce("Mean", g.layer_norm(x), 1, 2, keepdims=False), 10)


@model("bert_fused", opset=14, fused=True)
@model("bert", opset=12, fused=False)
def bert(g: G, fused: bool) -> dict[str, str]:
    """Word and position embeddings, post-norm layers, pooler."""
    words = g.op("Gather", g.weight(50, 32, std=0.7), ids(g), axis=0)
    x = g.layer_norm(g.op("Add", words, g.weight(1, 6, 32, std=0.7)))
    for _ in range(2):
        x = g.layer_norm(g.op("Add", x, attention(g, x, 4, fused=fused)))
        x = g.layer_norm(g.op("Add", x, feed_forward(g, x, 64)))
    first = g.op("Gather", x, np.int64(0), axis=1)
    return {"hidden": x, "pooled": g.op("Tanh", g.gemm(first, 32))}


@model("llama", opset=16)
@model("llama_norm_op", opset=23)
def llama(g: G) -> str:
    """Grouped queries, rotary positions, RMSNorm, SwiGLU."""
    x = g.op("Gather", g.weight(50, 32, std=0.7), ids(g), axis=0)
    for _ in range(2):
        y = attention(g, g.rms_norm(x), 4, kv_heads=2, turned=True, causal=True, bias=False)
        x = g.op("Add", x, y)
        x = g.op("Add", x, swiglu(g, g.rms_norm(x), 72))
    return g.linear(g.rms_norm(x), 50, bias=False)


@model("attention_op", opset=23, kv_heads=4, turned=False)
@model("attention_op_gqa", opset=23, kv_heads=2, turned=False)
@model("attention_op_4d", opset=24, kv_heads=4, turned=True)
def attention_op(g: G, kv_heads: int, turned: bool) -> str:
    """ai.onnx's own Attention, over (N, T, C) or over (N, heads, T, D)."""
    x = tokens(g)
    y = attention(g, g.layer_norm(x), 4, kv_heads=kv_heads, turned=turned, core="op")
    x = g.op("Add", x, y)
    x = g.op("Add", x, feed_forward(g, g.layer_norm(x), 48))
    return g.gemm(g.reduce("Mean", x, 1, keepdims=False), 10)


@model("cross_attention", opset=15)
def cross_attention(g: G) -> str:
    """Queries from one input, keys and values from another of another width and length."""
    x, memory = tokens(g), g.input("memory", ("N", 9, 20))
    q = heads_of(g, g.linear(x, 24), 3)
    k, v = (heads_of(g, g.linear(memory, 24), 3) for _ in range(2))
    y = g.transpose(attend(g, q, k, v, 8**-0.5), 0, 2, 1, 3)
    return g.op("Add", x, g.linear(g.reshape(y, [0, 0, 24]), 32))


@model("decoder_with_cache", opset=14)
def decoder_with_cache(g: G) -> dict[str, str]:
    """One step of generation: past keys and values come in, and go out one longer."""
    x = g.input("x", ("N", 1, 32))
    past = [g.input(f"past_{n}", ("N", 4, "P", 8)) for n in ("key", "value")]
    q, k, v = (heads_of(g, g.linear(x, 32), 4) for _ in range(3))
    grown = Tensor(g.tensors[x].elem, ("N", 4, "P + 1", 8))
    k, v = (
        g.op("Concat", old, new, axis=2, like=grown) for old, new in zip(past, (k, v), strict=True)
    )
    y = g.transpose(attend(g, q, k, v, 8**-0.5), 0, 2, 1, 3)
    x = g.op("Add", x, g.linear(g.reshape(y, [0, 0, 32]), 32))
    return {"y": g.op("Add", x, swiglu(g, x, 40)), "key": k, "value": v}


@model("tied_embedding", opset=13)
def tied_embedding(g: G) -> str:
    """The table is also the output matrix, transposed in the graph."""
    table = g.weight(50, 32, std=0.3)
    x = g.op("Gather", table, ids(g), axis=0)
    x = g.op("Add", x, feed_forward(g, x, 48))
    return g.op("MatMul", x, g.transpose(table, 1, 0))


# Recurrent


@model("lstm", opset=9, kind="LSTM", both=False)
@model("gru", opset=11, kind="GRU", both=False)
@model("rnn", opset=7, kind="RNN", both=False)
@model("lstm_both", opset=14, kind="LSTM", both=True)
@model("gru_both", opset=13, kind="GRU", both=True)
@model("rnn_both", opset=22, kind="RNN", both=True)
def recurrent(g: G, kind: Cell, both: bool) -> str:
    """Two layers, joined by Squeeze, or by Transpose and Reshape where there are directions."""
    x = g.transpose(g.input("x", ("N", 5, 12)), 1, 0, 2)
    x = sequence(g, kind, x, 24, both=both)
    x = sequence(g, kind, x, 17, both=both)
    x = g.slice(x, -1, 2**31, 0)
    return g.gemm(g.squeeze(x, 0), 10)


@model("lstm_last_state", opset=14)
def lstm_last_state(g: G) -> str:
    """The classifier reads both directions' last hidden states."""
    x = g.input("x", (5, "N", 12))
    _, last, _ = g.recurrent("LSTM", x, 20, both=True)
    flat = g.reshape(g.transpose(last, 1, 0, 2), [0, 40])
    return g.gemm(flat, 10)


@model("lstm_zero_states", opset=12, kind="LSTM", birth="constant_of_shape")
@model("gru_zero_states", opset=14, kind="GRU", birth="expand")
def zero_states(g: G, kind: Cell, birth: str) -> dict[str, str]:
    """Initial states made in the graph, for the batch that comes."""
    x = g.input("x", (5, "N", 12))
    elem = g.tensors[x].elem
    batch = g.slice(g.op("Shape", x), 1, 2, 0)
    target = g.concat(g.const([1]), batch, g.const([24]), axis=0)
    like = Tensor(elem, (1, "N", 24))
    zeros = np.zeros(1, g.dtype)
    states = [
        g.op("ConstantOfShape", target, like=like)
        if birth == "constant_of_shape"
        else g.op("Expand", zeros, target, like=like)
        for _ in range(2 if kind == "LSTM" else 1)
    ]
    y, last, *_ = g.recurrent(kind, x, 24, initial=states)
    return {"y": g.linear(g.squeeze(y, 1), 10), "score": g.gemm(g.squeeze(last, 0), 3)}


@model("lstm_computed_states", opset=13)
def lstm_computed_states(g: G) -> str:
    """Captioning: the initial states are computed from another input."""
    x, context = g.input("x", (5, "N", 12)), g.input("context", ("N", 16))
    states = [g.unsqueeze(g.op("Tanh", g.gemm(context, 24)), 0) for _ in range(2)]
    y = g.squeeze(g.recurrent("LSTM", x, 24, initial=states)[0], 1)
    return g.linear(y, 10)


@model("crnn", opset=11)
def crnn(g: G) -> str:
    """Text recognition: columns of a feature map become time steps."""
    x = g.pool(g.relu(g.conv(g.input("x", ("N", 1, 8, 24)), 12)))
    x = g.pool(g.relu(g.batch_norm(g.conv(x, 20))))
    x = g.reshape(x, [0, 40, 6])
    x = sequence(g, "LSTM", g.transpose(x, 2, 0, 1), 16, both=True)
    return g.op("LogSoftmax", g.linear(x, 11), axis=2)
