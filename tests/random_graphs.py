"""Small networks put together at random: `random_model(seed)` is valid for every seed."""

from collections.abc import Callable

import numpy as np
import onnx

from models import blocks
from models.builder import G

OPSETS = (9, 11, 12, 13, 14, 15, 17, 18, 20, 21, 22)
# Odd, prime, and with many divisors.
WIDTHS = (5, 6, 7, 8, 11, 12, 13, 16, 18, 21, 24)


def random_model(seed: int) -> onnx.ModelProto:
    """A model of some three to six blocks, float32, with random weights throughout.

    Images, sequences or plain vectors come in; inputs are floats, and the batch is dynamic in
    about half of the models.
    """
    # Two streams: the structure must not change with the number of weights drawn.
    rng = np.random.default_rng(seed)
    store = rng.choice(["initializer", "constant"], p=[0.85, 0.15])
    g = G(seed, int(rng.choice(OPSETS)), store=store)
    batch = "N" if rng.random() < 0.5 else 2
    make = (_images, _images, _tokens, _vectors)[rng.integers(4)]
    return g.model(**make(g, rng, batch))


def _width(rng: np.random.Generator) -> int:
    return int(rng.choice(WIDTHS))


def _divisors(n: int) -> list[int]:
    return [d for d in range(2, n + 1) if n % d == 0]


def _activation(g: G, rng: np.random.Generator, x: str) -> str:
    kinds: list[Callable[[str], str]] = [
        g.relu,
        g.silu,
        g.hard_swish,
        lambda y: g.op("LeakyRelu", y, alpha=0.1),
        lambda y: g.op("Tanh", y),
        lambda y: g.clip(y, 0.0, 6.0),
    ]
    if g.size(x, 1) > 1 and len(g.shape(x)) > 2:
        kinds.append(g.prelu)
    return kinds[rng.integers(len(kinds))](x)


# Images (N, C, H, W)


def _conv(g: G, rng: np.random.Generator, x: str) -> str:
    norm = rng.choice(["node", "folded", "decomposed"])
    kernel = int(rng.choice([1, 3]))
    return _activation(g, rng, blocks.conv_norm(g, x, _width(rng), kernel, norm=norm))


def _normed(g: G, rng: np.random.Generator, x: str) -> str:
    x = g.conv(x, _width(rng))
    if rng.random() < 0.5:
        return g.relu(g.instance_norm(x))
    return g.relu(blocks.group_norm(g, x, int(rng.choice(_divisors(g.size(x, 1))))))


def _residual(g: G, rng: np.random.Generator, x: str) -> str:
    out = g.size(x, 1) if rng.random() < 0.6 else _width(rng)
    stride = 2 if g.size(x, 2) >= 8 and rng.random() < 0.3 else 1
    kind = rng.integers(3)
    if kind == 0:
        return blocks.basic_block(g, x, out, stride, rng.choice(["node", "folded", "decomposed"]))
    if kind == 1:
        return blocks.preact_block(g, x, out, stride)
    return blocks.bottleneck(g, x, _width(rng), out, stride=stride)


def _padded(g: G, rng: np.random.Generator, x: str) -> str:
    if g.opset < 10 or g.size(x, 2) < 8:
        return _residual(g, rng, x)
    return blocks.padded_block(g, x, g.size(x, 1) + int(rng.integers(1, 12)))


def _depthwise(g: G, rng: np.random.Generator, x: str) -> str:
    c = g.size(x, 1)
    if rng.random() < 0.5:
        out = c if rng.random() < 0.5 else _width(rng)
        return blocks.inverted_residual(g, x, out, expand=2, se=bool(rng.integers(2)))
    times = int(rng.integers(1, 4))
    return g.conv(g.relu(g.conv(x, c * times, groups=c)), _width(rng), 1)


def _grouped(g: G, rng: np.random.Generator, x: str) -> str:
    """A chain of grouped convolutions, with or without a shuffle between them."""
    groups = int(rng.integers(2, 5))
    x = g.relu(g.conv(x, groups * int(rng.integers(2, 7)), 1))
    x = g.relu(g.conv(x, groups * int(rng.integers(2, 7)), groups=groups))
    if rng.random() < 0.5:
        x = blocks.channel_shuffle(g, x, int(rng.choice(_divisors(g.size(x, 1)))))
    other = int(rng.choice(_divisors(g.size(x, 1))))
    return g.relu(g.conv(x, other * int(rng.integers(1, 4)), groups=other))


def _shuffle_net(g: G, rng: np.random.Generator, x: str) -> str:
    half = int(rng.integers(4, 11))
    x = g.relu(g.conv(x, 2 * half, 1))
    for _ in range(rng.integers(1, 3)):
        x = blocks.shuffle_unit_v2(g, x)
    return x


def _concat(g: G, rng: np.random.Generator, x: str) -> str:
    kind = rng.integers(4)
    if kind == 0:
        return blocks.dense_layers(g, x, int(rng.integers(3, 8)), 2)
    if kind == 1:
        return blocks.inception(g, x, tuple(int(n) for n in rng.integers(2, 9, 4)))
    if kind == 2:
        return blocks.fire(g, x, int(rng.integers(2, 6)), _width(rng))
    return blocks.c2f(g, x, 2 * int(rng.integers(3, 9)), 1)


def _split(g: G, rng: np.random.Generator, x: str) -> str:
    """Unequal pieces; one is convolved, one is negated, and they change places."""
    x = g.conv(x, max(6, _width(rng)))
    first = int(rng.integers(2, g.size(x, 1) - 3))
    a, b = g.split(x, [first, g.size(x, 1) - first])
    return g.relu(g.concat(g.op("Neg", b), g.conv(g.relu(a), first)))


def _gate(g: G, rng: np.random.Generator, x: str) -> str:
    if rng.random() < 0.5:
        return blocks.squeeze_excite(g, x, 2)
    width = _width(rng)
    a, b = g.conv(x, width, 1), g.conv(x, width)
    return g.op("Mul", a, g.op("Sigmoid", b))


def _gated_half(g: G, rng: np.random.Generator, x: str) -> str:
    a, b = g.halves(g.conv(x, 2 * _width(rng), 1))
    return g.op("Mul", g.op("Tanh", a), g.op("Sigmoid", b))


def _up_and_down(g: G, rng: np.random.Generator, x: str) -> str:
    """A step of a U-Net: pool, convolve, come back up, concatenate or add the skip."""
    if g.size(x, 2) % 2 or g.size(x, 2) < 4:
        return _conv(g, rng, x)
    y = g.relu(g.conv(g.pool(x, str(rng.choice(["Max", "Average"]))), _width(rng)))
    y = g.deconv(y, g.size(x, 1)) if rng.random() < 0.5 else g.conv(g.resize(y), g.size(x, 1))
    return g.op("Add", x, y) if rng.random() < 0.4 else g.concat(x, y)


def _rearranged(g: G, rng: np.random.Generator, x: str) -> str:
    """Channels sliced, gathered, repeated, or turned into pixels and back."""
    c, kind = g.size(x, 1), rng.integers(5)
    if kind == 0:
        return g.slice(x, int(rng.integers(0, 2)), c - int(rng.integers(0, 2)))
    if kind == 1:
        index = rng.integers(0, c, int(rng.integers(3, c + 4)))
        return g.conv(g.op("Gather", x, index.tolist(), axis=1), _width(rng), 1)
    if kind == 2 and g.opset >= 10:
        return g.concat(*(g.slice(x, i, 2**31, step=2) for i in range(2)))
    if kind == 3 and g.size(x, 2) % 2 == 0:
        return g.conv(g.op("SpaceToDepth", x, blocksize=2), _width(rng), 1)
    mode = str(rng.choice(["CRD", "DCR"])) if g.opset >= 11 else None
    if g.size(x, 2) > 8:
        return g.concat(x, x)
    return g.op("DepthToSpace", g.conv(x, 4 * int(rng.integers(3, 9))), blocksize=2, mode=mode)


def _pool(g: G, rng: np.random.Generator, x: str) -> str:
    if g.size(x, 2) < 4:
        return _conv(g, rng, x)
    return g.pool(_conv(g, rng, x), str(rng.choice(["Max", "Average"])))


IMAGE_BLOCKS = (
    _conv, _normed, _residual, _residual, _padded, _depthwise, _grouped, _shuffle_net, _concat,
    _split, _gate, _gated_half, _up_and_down, _rearranged, _pool,
)  # fmt: skip


def _images(g: G, rng: np.random.Generator, batch: int | str) -> dict[str, str]:
    size = int(rng.choice([8, 12]))
    x = g.conv(g.input("x", (batch, int(rng.integers(1, 5)), size, size)), _width(rng))
    for _ in range(rng.integers(2, 6)):
        x = IMAGE_BLOCKS[rng.integers(len(IMAGE_BLOCKS))](g, rng, x)
    kind = rng.integers(5)
    if kind == 0:
        return {"map": g.conv(x, int(rng.integers(1, 5)), 1)}
    if kind == 1:
        # The columns are time steps.
        x = g.relu(g.conv(x, _width(rng)))
        c, h, w = (g.size(x, axis) for axis in (1, 2, 3))
        x = g.transpose(g.reshape(x, [0, c * h, w]), 2, 0, 1)
        return {"steps": g.linear(_recurrent(g, rng, x), 4)}
    if kind == 2:
        return {"logits": blocks.head(g, x, 7)}
    if kind == 3:
        # Patches are tokens.
        c, h, w = (g.size(x, axis) for axis in (1, 2, 3))
        x = g.transpose(g.reshape(x, [0, c, h * w]), 0, 2, 1)
        return _pooled(g, _attention(g, rng, g.linear(x, 4 * int(rng.integers(2, 7)))))
    x = g.flatten(g.relu(g.conv(g.pool(x) if g.size(x, 2) >= 4 else x, _width(rng))))
    return {"logits": g.gemm(_dense(g, rng, x), 5), "flat": x}


# Sequences (N, T, C)


def _attention(g: G, rng: np.random.Generator, x: str) -> str:
    """One transformer layer, its options at random."""
    c = g.size(x, 2)
    heads = int(rng.choice([h for h in (1, 2, 3, 4, 6) if c % h == 0]))
    turned = c // heads % 2 == 0 and rng.random() < 0.3
    fewer = [d for d in range(1, heads + 1) if heads % d == 0]
    core: blocks.Core = "einsum" if g.opset >= 12 and rng.random() < 0.2 else "matmul"
    y = blocks.attention(
        g,
        _norm(g, rng, x),
        heads,
        kv_heads=int(rng.choice(fewer)),
        fused=bool(rng.integers(2)),
        turned=turned,
        causal=bool(rng.integers(2)),
        bias=bool(rng.integers(2)),
        core=core,
    )
    x = g.op("Add", x, y)
    feed = blocks.feed_forward if rng.random() < 0.5 else blocks.swiglu
    return g.op("Add", x, feed(g, _norm(g, rng, x), _width(rng)))


def _norm(g: G, rng: np.random.Generator, x: str) -> str:
    kind = rng.integers(3)
    if kind == 0:
        return x
    return g.layer_norm(x) if kind == 1 else g.rms_norm(x)


def _recurrent(g: G, rng: np.random.Generator, x: str) -> str:
    """One to two layers over x (T, N, C)."""
    for _ in range(rng.integers(1, 3)):
        kind = rng.choice(["LSTM", "GRU", "RNN"])
        x = blocks.sequence(g, kind, x, _width(rng), both=bool(rng.integers(2)))
    return x


def _recurrent_tokens(g: G, rng: np.random.Generator, x: str) -> str:
    y = g.transpose(_recurrent(g, rng, g.transpose(x, 1, 0, 2)), 1, 0, 2)
    return g.op("Add", x, g.linear(y, g.size(x, 2))) if rng.random() < 0.5 else y


def _convolved_tokens(g: G, rng: np.random.Generator, x: str) -> str:
    y = g.relu(g.conv(g.transpose(x, 0, 2, 1), _width(rng)))
    if rng.random() < 0.5:
        y = g.conv(y, g.size(y, 1), groups=g.size(y, 1))
    return g.transpose(y, 0, 2, 1)


def _dense_tokens(g: G, rng: np.random.Generator, x: str) -> str:
    if rng.random() < 0.5:
        return blocks.glu(g, x, _width(rng))
    return g.gelu(g.linear(x, _width(rng)))


TOKEN_BLOCKS = (_attention, _attention, _recurrent_tokens, _convolved_tokens, _dense_tokens)


def _pooled(g: G, x: str) -> dict[str, str]:
    return {"logits": g.gemm(g.reduce("Mean", x, 1, keepdims=False), 6)}


def _tokens(g: G, rng: np.random.Generator, batch: int | str) -> dict[str, str]:
    x = g.input("x", (batch, int(rng.integers(3, 7)), _width(rng)))
    x = g.linear(x, _width(rng))
    for _ in range(rng.integers(1, 4)):
        x = TOKEN_BLOCKS[rng.integers(len(TOKEN_BLOCKS))](g, rng, x)
    return {"y": g.linear(x, 5)} if rng.random() < 0.5 else _pooled(g, x)


# Vectors (N, C)


def _dense(g: G, rng: np.random.Generator, x: str) -> str:
    kind = rng.integers(4)
    if kind == 0:
        return blocks.glu(g, x, _width(rng))
    if kind == 1:
        y = g.relu(g.gemm(x, _width(rng), transposed=bool(rng.integers(2))))
        return g.op("Add", x, g.gemm(y, g.size(x, 1)))
    if kind == 2:
        return g.relu(g.batch_norm(g.gemm(x, _width(rng), bias=False)))
    a, b = (g.gemm(x, _width(rng)) for _ in range(2))
    return g.op("Sigmoid", g.concat(a, g.op("Neg", b)))


def _vectors(g: G, rng: np.random.Generator, batch: int | str) -> dict[str, str]:
    x = g.relu(g.gemm(g.input("x", (batch, int(rng.integers(4, 20)))), _width(rng)))
    for _ in range(rng.integers(1, 5)):
        x = _dense(g, rng, x)
    if rng.random() < 0.3:
        x = g.reshape(g.gemm(x, 6 * 16), [-1, 6, 4, 4])
        return {"map": g.conv(g.relu(g.deconv(x, _width(rng))), 3)}
    return {"logits": g.gemm(x, 5)}
