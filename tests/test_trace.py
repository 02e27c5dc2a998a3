"""Shapes and small values: what the trace says is what ONNX Runtime makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper

from onnxprune.axes.analyse import trace_pair
from onnxprune.axes.trace import Trace
from onnxprune.graph.binding import free_inputs
from onnxprune.graph.files import load
from onnxprune.graph.model import Model, normalise

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"
SMALL = 20_000_000


def model(text: str, opset: int = 17) -> Model:
    head = f'<ir_version: 8, opset_import: ["" : {opset}]>'
    return normalise(load(onnx.parser.parse_model(f"{head} {text}")))


def real_models() -> list[Path]:
    found = sorted(p for p in MODELS.rglob("*.onnx") if p.stat().st_size < SMALL)
    return found[:: max(1, len(found) // 8)]


def made(m: Model, t: Trace) -> dict[str, tuple[int, ...]]:
    """The shapes that ONNX Runtime gives to every value of the main graph that it can name."""
    import onnxruntime as ort

    proto = onnx.ModelProto()
    proto.CopyFrom(m.source.proto)
    ours = {m.in_file(v): s for v, s in t.shapes.items()}
    have = {o.name for o in proto.graph.output}
    stored = {i.name for i in proto.graph.initializer} | {i.name for i in proto.graph.input}
    values = {o for n in proto.graph.node for o in n.output if o and o in ours} - stored
    proto.graph.output.extend(onnx.ValueInfoProto(name=v) for v in sorted(values - have))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rng = np.random.default_rng(0)
    feeds = {}
    for i in free_inputs(m.source.proto.graph):
        kind = helper.tensor_dtype_to_np_dtype(i.type.tensor_type.elem_type)
        shape = t.binding.shape(i) or ()
        feeds[i.name] = rng.integers(0, 2, shape).astype(kind)
    names = [o.name for o in session.get_outputs()]
    results = session.run(names, feeds)
    return {n: r.shape for n, r in zip(names, results, strict=True) if isinstance(r, np.ndarray)}


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"{MODELS} is not here")
@pytest.mark.parametrize("path", real_models() if MODELS.is_dir() else [], ids=lambda p: p.stem)
def test_shapes_are_those_of_onnx_runtime(path: Path) -> None:
    m = normalise(load(path))
    for t in trace_pair(m):
        if t.failures or t.guessed:
            pytest.skip(f"its shapes depend on the data: {t.failures[:1]}")
        try:
            actual = made(m, t)
        except Exception as e:
            pytest.skip(f"it does not run on these sizes: {str(e)[:100]}")
        ours = {m.in_file(v): s for v, s in t.shapes.items()}
        assert actual
        assert {n: ours[n] for n in actual if n in ours} == actual


def test_two_bindings_differ_where_sizes_are_dynamic() -> None:
    m = model("""g (float[N, 3] x) => (float[N, 4] y) <float[3, 4] w = {1,1,1,1,1,1,1,1,1,1,1,1}>
        { y = MatMul(x, w) }""")
    a, b = trace_pair(m)
    assert (a.shapes["y"], b.shapes["y"]) == ((2, 4), (3, 4))


def test_a_static_model_is_traced_once() -> None:
    a, b = trace_pair(model("g (float[2, 3] x) => (float[2, 3] y) { y = Relu(x) }"))
    assert a is b


def test_shape_arithmetic_is_followed() -> None:
    m = model("""g (float[N, 6, 4] x) => (float[N, h, d] y) {
        s = Shape(x)
        zero = Constant <value: tensor = int64[1] {0}> ()
        n = Gather(s, zero)
        rest = Constant <value: tensor = int64[2] {3, -1}> ()
        target = Concat <axis=0> (n, rest)
        y = Reshape(x, target)
    }""")
    a, b = trace_pair(m)
    assert (a.shapes["y"], b.shapes["y"]) == ((2, 3, 8), (3, 3, 8))
    assert a.values["target"].tolist() == [2, 3, -1]
    assert not a.failures


def test_sizes_that_the_data_decides_differ_between_bindings() -> None:
    a, b = trace_pair(model("g (float[4] x) => (int64[1, K] y) { y = NonZero(x) }"))
    assert a.guessed
    assert a.shapes["y"] != b.shapes["y"]


def test_a_huge_constant_is_never_made() -> None:
    m = model("""g (float[1] x) => (float[100000, 100000] y) {
        s = Constant <value: tensor = int64[2] {100000, 100000}> ()
        big = ConstantOfShape(s)
        y = Add(big, x)
    }""")
    a, _ = trace_pair(m)
    assert a.shapes["y"] == (100_000, 100_000)
    assert "big" not in a.values


def test_failures_are_told_and_not_raised() -> None:
    text = "g (float[2, 3] x) => (float[2, 3] y) { y = Add(x, x)\n z = NoSuchOperator(y) }"
    a, _ = trace_pair(model(text))
    (failure,) = a.failures
    assert failure[1].startswith("NoSuchOperator: ")
    assert a.shapes["y"] == (2, 3)


@pytest.mark.parametrize(
    ("attributes", "position", "shape"),
    [("axis=1, keepdims=0", 1, (2, 4)), ("axis=1", -1, (2, 1, 4)), ("axis=-1", 2, (2, 3, 1))],
)
def test_elements_of_a_sequence(attributes: str, position: int, shape: tuple[int, ...]) -> None:
    m = model(f"""g (float[2, 3, 4] x) => (float y) {{
        s = SplitToSequence <{attributes}> (x)
        k = Constant <value: tensor = int64 {{{position}}}> ()
        y = SequenceAt(s, k)
    }}""")
    a, _ = trace_pair(m)
    assert a.shapes["y"] == shape
    assert a.types["y"] == TensorProto.FLOAT


LOOP = """g (float[N, 7, 4] x) => (float y, float z) {{
    begins = Constant <value: tensor = int64[2] {{0, 2}}> ()
    ends = Constant <value: tensor = int64[2] {{2, 7}}> ()
    axes = Constant <value: tensor = int64[1] {{1}}> ()
    count = Constant <value: tensor = int64[1] {{{count}}}> ()
    go = Constant <value: tensor = bool {{1}}> ()
    none = SequenceEmpty()
    parts = Loop <body = turn (int64 i, bool c, seq(float) had) => (bool d, seq(float) has) {{
        first = Gather(begins, i)
        last = Gather(ends, i)
        zero = Constant <value: tensor = int64[1] {{0}}> ()
        one = Unsqueeze(first, zero)
        two = Unsqueeze(last, zero)
        part = Slice(x, one, two, axes)
        same = Relu(x)
        has = SequenceInsert(had, part)
        d = Identity(c)
    }}> (count, go, none)
    p = Constant <value: tensor = int64 {{0}}> ()
    q = Constant <value: tensor = int64 {{1}}> ()
    y = SequenceAt(parts, p)
    z = SequenceAt(parts, q)
}}"""


def test_a_loop_over_a_sequence_is_traced_turn_by_turn() -> None:
    a, b = trace_pair(model(LOOP.format(count=2)))
    assert not a.failures
    assert (a.shapes["y"], a.shapes["z"]) == ((2, 2, 4), (2, 5, 4))
    assert (b.shapes["y"], b.shapes["z"]) == ((3, 2, 4), (3, 5, 4))
    # Of what differs from turn to turn nothing may be taken for known.
    assert a.shapes["same"] == (2, 7, 4)
    assert not {"part", "has"} & (a.shapes.keys() | a.sequences.keys())
    assert not {"i", "first", "last", "one", "two"} & a.values.keys()


@pytest.mark.parametrize("count", [1, 100])
def test_turns_that_can_not_be_followed_are_told(count: int) -> None:
    a, _ = trace_pair(model(LOOP.format(count=count)))
    assert "z" in dict(a.failures)
