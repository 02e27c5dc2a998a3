"""THE TABLE: one line per operator. Read `axes/spec.py` for the language.

An entry is a spec line, or a function (node, walk) -> spec line where attributes or ranks decide.
Operators that move data are in `axes/movers.py`, fused attention and the few that need more than
a line in `axes/special.py`. The key is (domain, operator): the same name in another domain is
another operator. What has no entry anywhere is unknown: pinned and reported.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from onnxprune.graph.model import Node

if TYPE_CHECKING:
    from onnxprune.axes.facts import Facts
    from onnxprune.axes.walk import Walk

Rule = str | Callable[[Node, "Walk"], str]
MS = "com.microsoft"


def _letters(rank: int, prefix: str = "a") -> list[str]:
    return [f"{prefix}{k}" for k in range(rank)]


def _matmul(a: str, b: str, c: str, n: Node, w: Walk, first: int, second: int) -> str:
    """MatMul with operands at `first` and `second`; rank 1 drops a letter (numpy's rules)."""
    ra, rb = w.rank(n.inputs[first]), w.rank(n.inputs[second])
    out = f"*b {'m ' if ra > 1 else ''}{'n' if rb > 1 else ''}".strip()
    return a.format("*b m k" if ra > 1 else "k") + b.format("*b k n" if rb > 1 else "k") + c + out


def matmul(n: Node, w: Walk) -> str:
    return _matmul("{}, ", "{}", " -> ", n, w, 0, 1)


def matmul_integer(n: Node, w: Walk) -> str:
    return _matmul("{}, ", "{}, _, n", " -> ", n, w, 0, 1)


def qlinear_matmul(n: Node, w: Walk) -> str:
    return _matmul("{}, _, _, ", "{}, n, n, _, _", " -> ", n, w, 0, 3)


def matmul_to_float(n: Node, w: Walk) -> str:
    return _matmul("{}, ", "{}, _, n, _, n, n", " -> ", n, w, 0, 1)


def dynamic_quantize_matmul(n: Node, w: Walk) -> str:
    w.pin_range(n, n.inputs[0])
    return _matmul("{}, ", "{}, n, n, n", " -> ", n, w, 0, 1)


def fused_matmul(n: Node, w: Walk) -> str:
    a = "*b k m" if n.attrs.get("transA") else "*b m k"
    b = "*b n k" if n.attrs.get("transB") else "*b k n"
    return f"{a}, {b} -> *b m n"


def _gemm_sides(n: Node) -> tuple[str, str]:
    return "k m" if n.attrs.get("transA") else "m k", "n k" if n.attrs.get("transB") else "k n"


def gemm(n: Node, w: Walk) -> str:
    a, b = _gemm_sides(n)
    if len(n.inputs) < 3 or not n.inputs[2]:
        return f"{a}, {b} -> m n"
    c = {0: "_", 1: "n", 2: "m n"}[w.rank(n.inputs[2])]
    return f"{a}, {b}, {c} -> m n"


def qgemm(n: Node, w: Walk) -> str:
    a, b = _gemm_sides(n)
    return f"{a}, _, _, {b}, n, n, n, _, _ -> m n"


def einsum(n: Node, w: Walk) -> str:
    """An Einsum's equation is its spec."""
    terms, right = equation(n)

    def side(text: str, value: str = "") -> str:
        letters = text.replace("...", "")
        if len(set(letters)) != len(letters):
            raise w.refuse("the equation takes a diagonal")
        if "..." in text and not text.startswith("..."):
            raise w.refuse("the ellipsis is not in front")
        words = ["*e"] if "..." in text else []
        for k, c in enumerate(letters):
            alone = value and c not in right and sum(c in t for t in terms) == 1
            # a sum over one operand: exact only where what goes is zero
            mixed = alone and not w.is_zero(value, k - len(letters))
            words.append(f"x{c}!" if mixed else f"x{c}")
        return " ".join(words)

    left = ", ".join(side(t, i) for t, i in zip(terms, n.inputs, strict=True))
    return f"{left} -> {side(right)}"


def equation(n: Node) -> tuple[list[str], str]:
    """The terms of an Einsum, and its output: every letter that occurs once, if left out."""
    text = n.attrs["equation"].replace(" ", "")
    left, arrow, right = text.partition("->")
    if not arrow:
        once = sorted(c for c in set(left) if c.isalpha() and left.count(c) == 1)
        right = ("..." if "..." in left else "") + "".join(once)
    return left.split(","), right


def _mixing(n: Node, w: Walk, axes: set[int], extra: str = "", outputs: int = 1) -> str:
    rank = w.rank(n.inputs[0])
    x = " ".join(a + ("!" if k in axes else "") for k, a in enumerate(_letters(rank)))
    return f"{x}{extra} -> " + ", ".join([x] * outputs)


def softmax(n: Node, w: Walk) -> str:
    rank = w.rank(n.inputs[0])
    new = n.version >= 13
    axis = n.attrs.get("axis", -1 if new else 1) % max(rank, 1)
    return _mixing(n, w, {axis} if new else set(range(axis, rank)))


def last_axes(n: Node, w: Walk) -> str:
    """Layer and RMS normalisation: every axis from `axis` on is mixed, and so are its weights."""
    rank = w.rank(n.inputs[0])
    axis = n.attrs.get("axis", -1) % max(rank, 1)
    rest = _letters(rank)[axis:]
    weights = "".join(
        ", " + (" ".join(f"{a}!" for a in rest[len(rest) - w.rank(i) :]) or "_")
        for i in n.inputs[1:]
        if i
    )
    x = " ".join(a + ("!" if k >= axis else "") for k, a in enumerate(_letters(rank)))
    stat = " ".join(a if k < axis else "_" for k, a in enumerate(_letters(rank)))
    return f"{x}{weights} -> {x}, {stat}, {stat}"


def skip_norm(n: Node, w: Walk) -> str:
    x = "*b c!"
    weights = "".join(", c!" if k > 1 else ", *b c!" for k in range(1, len(n.inputs)))
    return f"{x}{weights} -> {x}, _, _, {x}"


def embed_norm(n: Node, w: Walk) -> str:
    return "_, _, _ c!, _ c!, _ c!, c!, c!, _, _ -> _ _ c!, _, _ _ c!"


def one_axis(default: int, outputs: int = 1) -> Callable[[Node, Walk], str]:
    """The operator mixes along attribute `axis`."""

    def rule(n: Node, w: Walk) -> str:
        rank = w.rank(n.inputs[0])
        extra = ", _" * (len(n.inputs) - 1)
        return _mixing(n, w, {n.attrs.get("axis", default) % max(rank, 1)}, extra, outputs)

    return rule


def cumsum(n: Node, w: Walk) -> str:
    axis = w.known(n.inputs[1])
    if axis is None:
        raise w.refuse("its axis is not constant")
    return _mixing(n, w, {int(axis.ravel()[0]) % w.rank(n.inputs[0])}, ", _")


def topk(n: Node, w: Walk) -> str:
    rank = w.rank(n.inputs[0])
    axis = n.attrs.get("axis", -1) % rank
    x = " ".join(a + ("!" if k == axis else "") for k, a in enumerate(_letters(rank)))
    y = " ".join("_" if k == axis else a for k, a in enumerate(_letters(rank)))
    return f"{x}{', _' * (len(n.inputs) - 1)} -> {y}, {y}"


def trilu(n: Node, w: Walk) -> str:
    rank = w.rank(n.inputs[0])
    return _mixing(n, w, {rank - 1, rank - 2}, ", _" * (len(n.inputs) - 1))


def mean_variance(n: Node, w: Walk) -> str:
    rank = w.rank(n.inputs[0])
    return _mixing(n, w, {a % rank for a in n.attrs.get("axes", [0, 2, 3])})


def reduced_axes(n: Node, f: Facts, rank: int) -> set[int] | None:
    """The axes that a Reduce or Arg operator reduces; None where they depend on the input."""
    if n.op.startswith("Arg"):
        axes = [n.attrs.get("axis", 0)]
    elif "axes" in n.attrs:
        axes = n.attrs["axes"]
    elif len(n.inputs) > 1 and n.inputs[1]:
        known = f.known(n.inputs[1])
        if known is None:
            return None
        axes = known.ravel().tolist()
    else:
        axes = [] if n.attrs.get("noop_with_empty_axes") else list(range(rank))
    if not axes and not n.attrs.get("noop_with_empty_axes"):
        axes = list(range(rank))
    return {a % rank for a in axes}


SUMS = frozenset("ReduceSum ReduceSumSquare ReduceL1 ReduceL2 ReduceMean".split())


def reduce(n: Node, w: Walk) -> str:
    """Sums over channels are exact where removed channels are 0 (means after a factor)."""
    axes = reduced_axes(n, w.facts, w.rank(n.inputs[0]))
    if axes is None:
        raise w.refuse("its axes are not constant")
    x, y = [], []
    if n.op == "ReduceMean":
        w.facts.means.append((n, tuple(sorted(axes))))
    for k, a in enumerate(_letters(w.rank(n.inputs[0]))):
        free = n.op in SUMS and w.is_zero(n.inputs[0], k)
        x.append(a if k not in axes or free else f"{a}!")
        if k not in axes:
            y.append(a)
        elif n.attrs.get("keepdims", 1):
            y.append("_")
    return f"{' '.join(x)}{', _' * (len(n.inputs) - 1)} -> {' '.join(y)}"


def one_hot(n: Node, w: Walk) -> str:
    rank = w.rank(n.inputs[0])
    axis = n.attrs.get("axis", -1) % (rank + 1)
    x = _letters(rank)
    return f"{' '.join(x)}, _, _ -> {' '.join([*x[:axis], '_', *x[axis:]])}"


def gather_elements(n: Node, w: Walk) -> str:
    rank = w.rank(n.inputs[0])
    x = " ".join(f"{a}!" for a in _letters(rank))
    return f"{x}, {x} -> {x}"


def scatter_elements(n: Node, w: Walk) -> str:
    x = " ".join(f"{a}!" for a in _letters(w.rank(n.inputs[0])))
    return f"{x}, _, _ -> {x}"


def gather_nd(n: Node, w: Walk) -> str:
    """Axes behind the indexed ones pass whole."""
    rank, batch = w.rank(n.inputs[0]), n.attrs.get("batch_dims", 0)
    q = w.rank(n.inputs[1])
    depth = w.shape(n.inputs[1])[-1]
    x = [f"{a}!" if k < batch + depth else a for k, a in enumerate(_letters(rank))]
    y = ["_"] * (q - 1) + x[batch + depth :]
    return f"{' '.join(x)}, _ -> {' '.join(y)}"


def scatter_nd(n: Node, w: Walk) -> str:
    """Axes behind the indexed ones pass whole, in the data and in the updates."""
    rank, q = w.rank(n.inputs[0]), w.rank(n.inputs[1])
    depth = w.shape(n.inputs[1])[-1]
    x = [f"{a}!" if k < depth else a for k, a in enumerate(_letters(rank))]
    u = ["_"] * (q - 1) + x[depth:]
    return f"{' '.join(x)}, _, {' '.join(u)} -> {' '.join(x)}"


def reverse_sequence(n: Node, w: Walk) -> str:
    axes = {n.attrs.get("time_axis", 0), n.attrs.get("batch_axis", 1)}
    return _mixing(n, w, axes, ", _")


def nbits(n: Node, w: Walk) -> str:
    """Blocks of a few bits along the contracted axis: filters go, and blocks of what they read.

    Zero points may be packed, several blocks to a byte: then these go together.
    """
    zero, order = (n.inputs[k] if k < len(n.inputs) else "" for k in (3, 4))
    blocks, size = w.shape(n.inputs[1])[1], int(n.attrs["block_size"])
    flat = w.rank(n.inputs[2]) == 1, bool(zero) and w.rank(zero) == 1
    held = blocks if not zero or flat[1] else w.shape(zero)[1]  # columns of zero points
    whole = held > 1 and blocks % held == 0 and blocks * size == n.attrs["K"]
    if whole and not any(flat) and not order:
        p = f"p {blocks // held}" if held < blocks else "p"
        return f"*b ({p} {size}), n ({p}) _, n ({p}), n p, _, n -> *b n"
    scales, zeros = "(n q)" if flat[0] else "n _", "(n p)" if flat[1] else "n _"
    return f"*b k!, n _ _, {scales}, {zeros}, _, n -> *b n"


def max_pool(n: Node, w: Walk) -> str:
    """Indices count positions in the whole tensor: only a MaxUnpool cut alike can read them."""
    indices = n.outputs[1] if len(n.outputs) > 1 else ""
    readers = w.model.uses.get(indices, []) if indices else []
    if indices in w.model.graph.outputs or any(u.op != "MaxUnpool" for u, _ in readers):
        return "n! c! ... -> n! c! ..., n! c! ..."
    return "n c ... -> n c ..., n c ..."


def max_unpool(n: Node, w: Walk) -> str:
    made = w.model.producer.get(n.inputs[1])
    sized = len(n.inputs) > 2 and n.inputs[2]  # its rank is not known before it runs
    if made is None or made.op != "MaxPool" or sized:
        return "n! c! ..., n! c! ..., _ -> n! c! ..."
    return "n c ..., n c ..., _ -> n c ..."


def pool_all(n: Node, w: Walk) -> str:
    if n.attrs.get("channels_last"):
        return "n ... c, _, _, _, _ -> n ... c"
    return "n c ..., _, _, _, _ -> n c ..."


def quantised_lstm(n: Node, w: Walk) -> str:
    """An LSTM on int8 weights; what comes in is quantised by its range, and so are the states."""
    for i in (n.inputs[0], *filter(None, n.inputs[5:6])):
        w.pin_range(n, i)
    scales = ["d! (4 h)" if i and w.rank(i) == 2 else "_" for i in n.inputs[8:12]]
    return (
        "t! b i, d! i (4 h), d! h~ (4 h), d! (8 h), b, d! b h, d! b h, d! (3 h), "
        + f"{', '.join(scales)} -> {_RECURRENT}"
    )


_CONV = "n (g i) ..., (g o) i ..., (g o) -> n (g o) ..."
_POOL = "n c ... -> n c ..."
_RECURRENT = ", ".join(["t! d! b h"] + ["d! b h"] * 2)

SPECS: dict[tuple[str, str], Rule] = {
    # -- multiply and add
    ("", "Conv"): _CONV,
    ("", "ConvInteger"): "n (g i) ..., (g o) i ..., _, (g o) -> n (g o) ...",
    ("", "QLinearConv"): "n (g i) ..., _, _, (g o) i ..., (g o), (g o), _, _, (g o) -> n (g o) ...",
    ("", "ConvTranspose"): "n (g i) ..., (g i) o ..., (g o) -> n (g o) ...",
    ("", "DeformConv"): "n (g i) ..., (g o) i ..., _, (g o), _ -> n (g o) ...",
    ("", "Gemm"): gemm,
    ("", "MatMul"): matmul,
    ("", "MatMulInteger"): matmul_integer,
    ("", "QLinearMatMul"): qlinear_matmul,
    ("", "Einsum"): einsum,
    ("", "LSTM"): "t! b i, d! (4 h) i, d! (4 h) h~, d! (8 h), b, d! b h, d! b h, d! (3 h) -> "
    + _RECURRENT,
    ("", "GRU"): "t! b i, d! (3 h) i, d! (3 h) h~, d! (6 h), b, d! b h -> t! d! b h, d! b h",
    ("", "RNN"): "t! b i, d! h i, d! h h~, d! (2 h), b, d! b h -> t! d! b h, d! b h",
    (MS, "DynamicQuantizeLSTM"): quantised_lstm,
    (MS, "FusedConv"): "n (g i) ..., (g o) i ..., (g o), n (g o) ... -> n (g o) ...",
    (MS, "FusedGemm"): gemm,
    (MS, "FusedMatMul"): fused_matmul,
    (MS, "TransposeMatMul"): fused_matmul,
    (MS, "MatMulIntegerToFloat"): matmul_to_float,
    (MS, "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
    (MS, "QGemm"): qgemm,
    (MS, "MatMulNBits"): nbits,
    (MS, "BiasSplitGelu"): "*b (2 h), (2 h) -> *b h",
    # -- normalisation
    ("", "BatchNormalization"): "n c ..., c, c, c, c -> n c ..., c, c, c, c",
    ("", "InstanceNormalization"): "n c ..., c, c -> n c ...",
    ("", "LayerNormalization"): last_axes,
    ("", "RMSNormalization"): last_axes,
    ("", "SimplifiedLayerNormalization"): last_axes,
    ("", "MeanVarianceNormalization"): mean_variance,
    ("", "LpNormalization"): one_axis(-1),
    ("", "LRN"): "n c! ... -> n c! ...",
    (MS, "SkipLayerNormalization"): skip_norm,
    (MS, "SkipSimplifiedLayerNormalization"): skip_norm,
    (MS, "EmbedLayerNormalization"): embed_norm,
    # -- pooling
    ("", "MaxPool"): max_pool,
    ("", "AveragePool"): _POOL,
    ("", "LpPool"): _POOL,
    ("", "GlobalAveragePool"): _POOL,
    ("", "GlobalMaxPool"): _POOL,
    ("", "GlobalLpPool"): _POOL,
    ("", "MaxUnpool"): max_unpool,
    ("", "MaxRoiPool"): "_ c ..., _ -> _ c ...",
    ("", "RoiAlign"): "_ c ..., _, _ -> _ c ...",
    ("", "GridSample"): "n c ..., n ... -> n c ...",
    (MS, "QLinearAveragePool"): "n c ..., _, _, _, _ -> n c ...",
    (MS, "QLinearGlobalAveragePool"): pool_all,
    # -- along one axis
    ("", "Softmax"): softmax,
    ("", "LogSoftmax"): softmax,
    ("", "Hardmax"): softmax,
    (MS, "QLinearSoftmax"): lambda n, w: softmax(n, w).replace(" ->", ", _, _, _, _ ->"),
    ("", "CumSum"): cumsum,
    ("", "CumProd"): cumsum,
    ("", "ReverseSequence"): reverse_sequence,
    ("", "TopK"): topk,
    ("", "Trilu"): trilu,
    ("", "OneHot"): one_hot,
    ("", "GatherElements"): gather_elements,
    ("", "ScatterElements"): scatter_elements,
    ("", "Scatter"): scatter_elements,
    ("", "GatherND"): gather_nd,
    ("", "ScatterND"): scatter_nd,
    ("", "ArgMax"): reduce,
    ("", "ArgMin"): reduce,
    **{
        ("", f"Reduce{kind}"): reduce
        for kind in "Sum Mean Max Min Prod L1 L2 SumSquare LogSum LogSumExp".split()
    },
}

_UNARY = """
    Relu Sigmoid Clip Erf Tanh Sqrt HardSwish HardSigmoid LeakyRelu Gelu Exp Log Neg Abs Reciprocal
    Floor Ceil Round Sign Sin Cos Tan Asin Acos Atan Sinh Cosh Asinh Acosh Atanh Softplus Softsign
    Elu Selu Celu ThresholdedRelu Mish Not IsNaN IsInf Swish Shrink BitwiseNot CastLike
    Identity Cast Dropout
"""
_BROADCAST = """
    Add Mul Sub Div Pow Where PRelu Max Min Sum Mean And Or Xor Equal Less Greater LessOrEqual
    GreaterOrEqual Mod BitShift BitwiseAnd BitwiseOr BitwiseXor
"""

ELEMENTWISE: dict[tuple[str, str], tuple[int, ...] | None] = {
    # operands that carry data (None: all); the others are control and pinned
    **{("", op): (0,) for op in _UNARY.split()},
    **{("", op): None for op in _BROADCAST.split()},
    (MS, "BiasGelu"): None,
    (MS, "BiasAdd"): None,
    (MS, "FastGelu"): None,
    (MS, "QuickGelu"): (0,),
    (MS, "Gelu"): (0,),
    (MS, "QLinearAdd"): (0, 3),
    (MS, "QLinearMul"): (0, 3),
    (MS, "QLinearSigmoid"): (0,),
    (MS, "QLinearLeakyRelu"): (0,),
    (MS, "QLinearWhere"): (0, 1, 4),
    (MS, "BiasDropout"): (0, 1, 2),
}


def offset(n: Node, value: str, rank: int, out: int) -> int:
    """The output axis that the first axis of an element-wise operand lines up with.

    On the right, like numpy; before opset 7 an attribute could say otherwise, and a PRelu's slopes
    were those of axis 1.
    """
    if n.version < 7 and not n.domain and rank < out and value == n.inputs[-1]:
        if n.op == "PRelu" and rank == 1:
            return 1
        if n.attrs.get("broadcast") and "axis" in n.attrs:
            return int(n.attrs["axis"]) % out
    return out - rank


ZERO_KEEPING = frozenset(
    """Relu LeakyRelu Tanh Erf Gelu HardSwish Sqrt Abs Neg Elu Selu Celu Sin Tan Sinh Asin Atan
    Asinh Atanh Mish Softsign Swish Sign Floor Ceil Round Shrink ThresholdedRelu Identity Cast
    Dropout QuickGelu""".split()
)
"""Element-wise with f(0) = 0 (the other zero rules are in `axes/zero.py`)."""

UNMASKED_OPERANDS: dict[str, tuple[int, ...]] = {
    "Div": (1,), "Pow": (1,), "Mod": (1,), "BatchNormalization": (3, 4),
    "QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "Reciprocal": (0,), "Log": (0,),
"QLinearConv": (1, 2, 4, 5, 6, 7), "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "ConvInteger": (2, 3), "MatMulInteger": (2, 3), "MatMulIntegerToFloat": (2, 3, 4, 5),
    "DynamicQuantizeLSTM": (8, 9, 10, 11),
    "DynamicQuantizeMatMul": (2, 3), "QGemm": (1, 2, 4, 5, 7, 8),
}  # fmt: skip
"""Operands whose constants are never zeroed when masking: divisors, exponents, quantiser scales."""

_ML = "ai.onnx.ml"
_REASONS: dict[str, str] = {
    "NonMaxSuppression": "keeps boxes by their values",
    "NonZero Compress Unique": "keeps entries by their values",
    "TensorScatter": "writes to places that the input names",
    "Det": "mixes a whole matrix",
    "DFT STFT MelWeightMatrix HannWindow HammingWindow BlackmanWindow": "is signal processing",
    "Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike":
        "draws random numbers: on a smaller tensor, other ones",
    "EyeLike": "has a diagonal",
    "AffineGrid CenterCropPad Col2Im ImageDecoder": "is about pixels",
    "NegativeLogLikelihoodLoss SoftmaxCrossEntropyLoss": "is a loss over classes",
    "TfIdfVectorizer StringNormalizer StringConcat StringSplit RegexFullMatch": "is about text",
    "Optional OptionalGetElement OptionalHasElement": "wraps an optional value",
    "BitCast": "reads other numbers from the same bits",
    "SwiGLU LinearAttention CausalConvWithState": "is fused in a way that is not followed",
    f"{_ML}.TreeEnsembleClassifier {_ML}.TreeEnsembleRegressor {_ML}.TreeEnsemble":
        "asks for single features",
    f"{_ML}.LinearClassifier {_ML}.LinearRegressor {_ML}.SVMClassifier {_ML}.SVMRegressor":
        "has its weights in attributes",
    f"{_ML}.ArrayFeatureExtractor {_ML}.FeatureVectorizer {_ML}.DictVectorizer {_ML}.ZipMap "
    f"{_ML}.CastMap {_ML}.LabelEncoder {_ML}.CategoryMapper {_ML}.OneHotEncoder":
        "maps features to names or numbers",
    f"{_ML}.Binarizer {_ML}.Imputer {_ML}.Normalizer {_ML}.Scaler": "works on features by place",
    f"{MS}.QAttention {MS}.QOrderedAttention {MS}.PackedAttention {MS}.PackedMultiHeadAttention "
    f"{MS}.DecoderAttention {MS}.DecoderMaskedSelfAttention {MS}.DecoderMaskedMultiHeadAttention "
    f"{MS}.LongformerAttention {MS}.QOrderedLongformerAttention {MS}.SparseAttention "
    f"{MS}.PagedAttention {MS}.LinearAttention {MS}.GatedRelativePositionBias "
    f"{MS}.RelativePositionBias {MS}.GemmaRotaryEmbedding {MS}.MRotaryEmbedding":
        "is fused attention that is not followed",
    f"{MS}.RemovePadding {MS}.RestorePadding": "packs a batch by the lengths in it",
    f"{MS}.NhwcConv {MS}.NhwcFusedConv {MS}.NhwcMaxPool {MS}.QLinearConv":
        "has the layout of one provider",
    f"{MS}.GatherBlockQuantized {MS}.MatMulBnb4 {MS}.MatMulFpQ4 {MS}.QMoE":
        "packs several weights into one number",
    f"{MS}.MatMulNBitsMlp {MS}.MatMulNBitsQkv {MS}.MoE {MS}.FusedMatMulActivation "
    f"{MS}.GemmFastGelu {MS}.GemmFloat8": "is fused in a way that is not followed",
    f"{MS}.AttnLSTM": "is a recurrent net that is not followed",
    f"{MS}.QEmbedLayerNormalization {MS}.QOrderedLayerNormalization {MS}.BiasSoftmax "
    f"{MS}.QLinearReduceMean {MS}.ReduceSumInteger": "mixes an axis",
    f"{MS}.QOrderedMatMul {MS}.QOrderedGelu {MS}.QuantizeWithOrder {MS}.DequantizeWithOrder "
    f"{MS}.QuantizeBFP {MS}.DequantizeBFP": "has a layout of its own",
    f"{MS}.Rfft {MS}.Irfft {MS}.ComplexMul {MS}.ComplexMulConj {MS}.Inverse {MS}.CDist":
        "mixes a whole matrix or signal",
    f"{MS}.BeamSearch {MS}.GreedySearch {MS}.Sampling {MS}.WhisperBeamSearch "
    f"{MS}.NGramRepeatBlock {MS}.BifurcationDetector": "runs a search of its own",
    f"{MS}.Tokenizer {MS}.MurmurHash3 {MS}.WordConvEmbedding {MS}.TorchEmbedding":
        "looks things up",
    f"{MS}.EPContext {MS}.Snpe": "is compiled for one device",
    f"{MS}.Unique {MS}.GatherND {MS}.Pad {MS}.Trilu {MS}.Range {MS}.ExpandDims {MS}.UnfoldTensor "
    f"{MS}.CropAndResize {MS}.GridSample {MS}.MaxpoolWithMask {MS}.ConvTransposeWithDynamicPads "
    f"{MS}.DynamicTimeWarping {MS}.SampleOp {MS}.IsAllFinite {MS}.SparseToDenseMatMul":
        "is an old form that is not followed",
}  # fmt: skip

PINNED: dict[tuple[str, str], str] = {
    (domain, op): why
    for names, why in _REASONS.items()
    for domain, _, op in (name.rpartition(".") for name in names.split())
}
"""Known operators that nothing can be pruned through, and why. They count as covered."""
