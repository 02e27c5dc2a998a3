"""Movers where sizes are dynamic: what the golden rules, being static, can't show."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.axes.analyse import facts_of
from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import groups, solve
from onnxprune.axes.view import View
from onnxprune.axes.zero import blocks
from onnxprune.choose.heads import resolve
from onnxprune.cut.cut import cut
from onnxprune.cut.mask import masked
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise


def model(
    body: str, x: str = "N, 4", y: str = "N, K", **weights: tuple[int, ...]
) -> onnx.ModelProto:
    """A model from x to y with random float weights; `NAME = 1 2 3` lines make index constants."""
    lines = []
    for line in filter(None, (text.strip() for text in body.splitlines())):
        name, _, values = line.partition(" := ")
        if values:
            n = len(values.split())
            items = ", ".join(values.split())
            line = f"{name} = Constant <value: tensor = int64[{n}] {{{items}}}> ()"
        lines.append(line)
    text = f"g (float[{x}] x) => (float[{y}] y) {{ " + "\n".join(lines) + " }"
    graph = onnx.parser.parse_graph(text)
    rng = np.random.default_rng(0)
    graph.initializer.extend(
        numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name)
        for name, shape in weights.items()
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def facts(m: onnx.ModelProto) -> Facts:
    return facts_of(normalise(load(m)))


def run(m: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    session = ort.InferenceSession(
        m.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    return y


def removed(m: onnx.ModelProto, seeds: int = 3) -> float:
    """Cut half of every group at random, check against the masked original at two batches.

    Returns the share of weights that went.
    """
    found = facts(m)
    share = 0.0
    for policy in ("whole", "dims"):
        solution = resolve(found, policy, 0.5)
        gs = groups(solution)
        for seed in range(seeds):
            rng = np.random.default_rng(seed)
            kept = {g.id: np.sort(rng.permutation(g.size)[g.size // 2 :]) for g in gs}
            view = View.of(solution, gs, kept)
            slim, mask = cut(view).model, masked(view)
            onnx.checker.check_model(slim)
            for batch in (2, 5):
                shape = [d.dim_value or batch for d in m.graph.input[0].type.tensor_type.shape.dim]
                x = rng.standard_normal(shape).astype(np.float32)
                np.testing.assert_allclose(run(slim, x), run(mask, x), rtol=1e-4, atol=1e-5)
            before, after = (
                sum(
                    np.prod(t.dims) for t in p.graph.initializer if t.data_type == TensorProto.FLOAT
                )
                for p in (m, slim)
            )
            share = max(share, 1 - float(after / before))
    return share


@pytest.mark.parametrize(
    ("a", "b", "want"),
    [
        ((2, 6), (2, 3, 2), [((0,), (0,)), ((1,), (1, 2))]),
        ((2, 3, 4), (6, 4), [((0, 1), (0,)), ((2,), (1,))]),
        ((2, 1, 6), (2, 6), [((0, 1), (0,)), ((2,), (1,))]),
        ((4, 6), (6, 4), [((0, 1), (0, 1))]),
        ((2, 3), (2, 3, 1), [((0,), (0,)), ((1,), (1, 2))]),
    ],
)
def test_blocks(a: tuple[int, ...], b: tuple[int, ...], want: list[tuple[tuple, tuple]]) -> None:
    assert [(tuple(p), tuple(q)) for p, q in blocks(a, b)] == want


def test_reshape_with_a_dynamic_batch() -> None:
    m = model(
        """
        h = MatMul(x, W)
        target := -1 3 4
        r = Reshape(h, target)
        t = Transpose <perm=[0,2,1]> (r)
        back := 0 12
        f = Reshape(t, back)
        y = MatMul(f, V)
        """,
        W=(4, 12), V=(12, 5),
    )  # fmt: skip
    assert removed(m) > 0.4


def test_a_reshape_that_folds_the_batch_into_channels_is_pinned() -> None:
    m = model(
        """
        h = MatMul(x, W)
        target := 6 -1
        r = Reshape(h, target)
        y = Relu(r)
        """,
        y="6, K", W=(4, 12),
    )  # fmt: skip
    assert groups(solve(facts(m))) == []


def test_split_into_two_halves_and_back() -> None:
    m = model(
        """
        h = MatMul(x, W)
        a, b = Split <axis=1> (h)
        r = Relu(a)
        c = Concat <axis=1> (b, r)
        y = MatMul(c, V)
        """,
        W=(4, 12), V=(12, 5),
    )  # fmt: skip
    assert removed(m) > 0.4


def test_slices_of_channels_that_are_not_evenly_kept() -> None:
    m = model(
        """
        h = MatMul(x, W)
        start := 1
        end := 1000
        axis := 1
        step := 3
        s = Slice(h, start, end, axis, step)
        y = MatMul(s, V)
        """,
        W=(4, 12), V=(4, 5),
    )  # fmt: skip
    assert removed(m) > 0.3


def test_a_slice_bound_read_off_a_shape() -> None:
    """Half of the channels, as `x[:, : x.shape[1] // 2]` is exported: Shape tells the old size."""
    m = model(
        """
        h = MatMul(x, W)
        shape = Shape(h)
        one := 1
        c = Gather(shape, one)
        two := 2
        half = Div(c, two)
        zero := 0
        s = Slice(h, zero, half, one)
        y = MatMul(s, V)
        """,
        W=(4, 12), V=(6, 5),
    )  # fmt: skip
    assert removed(m) > 0.3


def test_a_pad_gives_birth_to_channels() -> None:
    m = model(
        """
        h = MatMul(x, W)
        pads := 0 2 0 3
        p = Pad(h, pads)
        k = MatMul(x, U)
        s = Add(p, k)
        y = MatMul(s, V)
        """,
        W=(4, 8), U=(4, 13), V=(13, 5),
    )  # fmt: skip
    assert removed(m) > 0.3


def test_an_expand_to_a_dynamic_batch() -> None:
    m = model(
        """
        shape = Shape(x)
        zero := 0
        n = Gather(shape, zero)
        c := 8
        target = Concat <axis=0> (n, c)
        e = Expand(T, target)
        h = MatMul(x, W)
        s = Add(h, e)
        y = MatMul(s, V)
        """,
        T=(1, 8), W=(4, 8), V=(8, 5),
    )  # fmt: skip
    assert removed(m) > 0.3


def test_a_channel_shuffle_is_a_gather() -> None:
    m = model(
        """
        h = MatMul(x, W)
        split := 0 2 6
        r = Reshape(h, split)
        t = Transpose <perm=[0,2,1]> (r)
        join := 0 12
        s = Reshape(t, join)
        y = MatMul(s, V)
        """,
        W=(4, 12), V=(12, 5),
    )  # fmt: skip
    assert [s.index.tolist() for s in facts(m).shuffles] == [
        np.arange(12).reshape(2, 6).T.ravel().tolist()
    ]
    assert removed(m) > 0.4


def test_a_squeeze_without_axes_keeps_what_shrinks_to_one() -> None:
    m = model(
        """
        h = MatMul(x, W)
        q = Squeeze(h)
        y = MatMul(q, V)
        """,
        x="3, 1, 4", y="3, K", W=(4, 2), V=(2, 5),
    )  # fmt: skip
    assert removed(m) > 0.3


def test_a_scalar_index_stays_a_scalar() -> None:
    m = model(
        """
        h = MatMul(x, W)
        split := 0 3 4
        r = Reshape(h, split)
        two = Constant <value: tensor = int64 {2}> ()
        s = Gather <axis=1> (r, two)
        y = MatMul(s, V)
        """,
        W=(4, 12), V=(4, 5),
    )  # fmt: skip
    assert removed(m) > 0.1


def test_the_steps_of_a_loop_as_a_sequence() -> None:
    """A recurrent net as torch's exporter unrolls it: only the time axis stays."""
    m = model(
        """
        h = MatMul(x, W)
        s = SplitToSequence <axis=1, keepdims=0> (h)
        first = Constant <value: tensor = int64 {0}> ()
        last = Constant <value: tensor = int64 {-1}> ()
        a = SequenceAt(s, first)
        b = SequenceAt(s, last)
        r = MatMul(a, R)
        t = Add(r, b)
        u = Tanh(t)
        all = SequenceConstruct(u, b)
        c = ConcatFromSequence <axis=1, new_axis=1> (all)
        y = MatMul(c, V)
        """,
        x="N, 3, 4", y="N, 2, K", W=(4, 8), R=(8, 8), V=(8, 5),
    )  # fmt: skip
    assert removed(m) > 0.4


def test_elements_of_an_unknown_sequence_are_pinned() -> None:
    """A sequence that ends in an operator without a rule takes its elements with it."""
    m = model(
        """
        h = MatMul(x, W)
        s = SequenceConstruct(h, h)
        y = NoSuchOperator(s)
        """,
        W=(4, 8),
    )  # fmt: skip
    assert groups(solve(facts(m))) == []
