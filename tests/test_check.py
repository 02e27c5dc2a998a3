"""The proof: what it runs, what it forgives, what it says. Wrong cuts are in test_wrong_cuts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from models.builder import G
from onnxprune.axes.view import View
from onnxprune.check.case import outputs
from onnxprune.check.files import verify_files
from onnxprune.check.inputs import hints
from onnxprune.check.parts import Part, Whole
from onnxprune.check.probes import comparable, probes
from onnxprune.check.room import growth, least_bytes
from onnxprune.check.signature import signature_problems
from onnxprune.check.steps import by_node
from onnxprune.check.verdict import difference, moved, tolerance
from onnxprune.check.verify import verify
from onnxprune.cut.cut import cut
from onnxprune.cut.mask import masked
from onnxprune.errors import CheckFailed, OutOfMemory
from onnxprune.graph.files import load, save
from onnxprune.runtime.providers import failed
from tests.test_wrong_cuts import changed, halved, input_of, keeping_all, small_net, solved, stored

F32 = np.float32


def array(*values: float, dtype: type = np.float32) -> np.ndarray:
    return np.array(values, dtype)


# Comparing


@pytest.mark.parametrize(
    ("a", "b", "error"),
    [
        (array(0, 10), array(0, 10), 0.0),
        (array(0, 10), array(0.001, 10), 1e-4),
        (array(0, 0), array(0, 0), 0.0),
        (array(0, 0), array(0, 1), np.inf),
        (array(np.nan, 1), array(np.nan, 1), 0.0),
        (array(np.nan, 1), array(1, 1), np.inf),
        (array(1, 1), array(np.nan, 1), np.inf),
        (array(np.inf, 1), array(np.inf, 1), 0.0),
        (array(np.inf, 1), array(-np.inf, 1), np.inf),
        (array(1, 2), array(1, 2, 3), np.inf),
        (array(), array(), 0.0),
        (array(0, 255, dtype=np.uint8), array(255, 0, dtype=np.uint8), 255),
        (array(-128, dtype=np.int8), array(127, dtype=np.int8), 255),
        (array(1, 2, dtype=np.int64), array(1, 3, dtype=np.int64), 0.5),
        (array(1e38, 0), array(-1e38, 0), 2.0),
    ],
)
def test_difference(a: np.ndarray, b: np.ndarray, error: float) -> None:
    assert difference("t", a, b).error == pytest.approx(error, rel=1e-3)


def test_half_precision_is_measured_in_float32() -> None:
    big = np.array([60000, -60000], np.float16)
    assert difference("t", big, -big).error == 2.0


def test_a_type_that_changed_is_bad() -> None:
    assert difference("t", array(1), array(1, dtype=np.float64)).bad


@pytest.mark.parametrize(
    ("dtype", "allowed"),
    [("f4", 1e-4), ("f8", 1e-4), ("f2", 1e-2), ("i1", 1), ("u1", 1), ("i8", 0), ("?", 0)],
)
def test_tolerance(dtype: str, allowed: float) -> None:
    assert tolerance(np.dtype(dtype)) == allowed


def test_moved_is_relative_to_the_larger() -> None:
    assert moved(array(0, 0), array(0, 5)) == 1.0
    assert moved(array(2, 4), array(2, 3)) == 0.25
    assert moved(array(1), array(np.nan)) == np.inf


# What is run


def test_two_seeds_and_two_sizes() -> None:
    view = halved(solved(small_net()))
    verdict = verify(view, cut(view).model)
    assert verdict.passed
    assert verdict.moved > 0.1
    assert verdict.compared == ("y",)
    assert [f.seed for f in verdict.inputs] == [0, 1, 0, 1]
    assert len({f.shapes["x"] for f in verdict.inputs}) == 2


def test_given_inputs_are_used() -> None:
    view = halved(solved(small_net()))
    feeds = [{"x": np.ones((4, 3, 8, 8), F32)}]
    verdict = verify(view, cut(view).model, feeds=feeds)
    assert verdict.passed
    assert [(f.shapes["x"], f.seed) for f in verdict.inputs] == [((4, 3, 8, 8), None)]


def test_nothing_is_changed() -> None:
    model = small_net()
    before = model.SerializeToString()
    view = halved(solved(model))
    slim = cut(view).model
    after = slim.SerializeToString()
    verify(view, slim)
    assert (model.SerializeToString(), slim.SerializeToString()) == (before, after)


def test_the_empty_plan_passes_and_says_so() -> None:
    view = keeping_all(halved(solved(small_net())))
    verdict = verify(view, cut(view).model)
    assert verdict.passed
    assert "nothing was removed" in verdict.notes[0]


def test_integer_inputs_stay_inside_the_tables_they_index() -> None:
    g = G(0)
    ids = g.input("ids", ["N", 4], np.int64)
    x = g.op("Gather", g.weight(3, 8), ids)
    model = g.model(y=g.op("MatMul", g.relu(g.op("MatMul", x, g.weight(8, 8))), g.weight(8, 2)))
    view = halved(solved(model))
    assert hints(view.facts)["ids"].bound == 3
    assert verify(view, cut(view).model).passed


def test_a_sampling_rate_is_read_off_the_graph() -> None:
    g = G(0)
    x, rate = g.input("x", [1, 6]), g.input("sr", [], np.int64)
    h = g.relu(g.gemm(x, 8))
    valid = g.op("Cast", g.op("Equal", rate, g.const(np.int64(16000))), to=TensorProto.INT64)
    # Reshape to 0 x ... fails for any other rate.
    size = g.op("Mul", g.op("Unsqueeze", valid, [0]), g.const(np.array([8], np.int64)))
    h = g.op("Reshape", h, size, like=g.tensors[h])
    y = g.op("MatMul", g.op("Unsqueeze", h, [0], like=g.tensors[h]), g.weight(8, 2))
    view = halved(solved(g.model(y=y)))
    assert hints(view.facts)["sr"].known == (16000,)
    assert verify(view, cut(view).model).passed


def test_both_branches_of_a_known_value_are_run() -> None:
    g = G(0)
    x, rate = g.input("x", [2, 6]), g.input("sr", [], np.int64)
    h = g.relu(g.gemm(x, 8))
    high, low = (g.op("MatMul", h, g.weight(8, 2, name=n)) for n in ("high", "low"))
    y = g.op("Where", g.op("Equal", rate, g.const(np.int64(16000))), high, low)
    view = halved(solved(g.model(y=y)))
    slim = cut(view).model
    assert verify(view, slim).passed
    assert len(verify(view, slim).inputs) == 4
    assert not verify(view, changed(slim, "low", lambda w: w[::-1])).passed


def test_a_model_that_nothing_runs_is_unproven() -> None:
    view = halved(solved(small_net()))
    view.facts.model.proto.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(CheckFailed, match="unproven") as caught:
        verify(view, cut(view).model)
    assert "NoSuchOperator" in str(caught.value)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float64", "float16"])
def test_other_float_types(dtype: str) -> None:
    g = G(0, 22, dtype=helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(
        {"float64": "DOUBLE"}.get(dtype, dtype.upper()))))  # fmt: skip
    x = g.relu(g.conv(g.input("x", [2, 3, 8, 8]), 8))
    view = halved(solved(g.model(y=g.conv(x, 4))))
    verdict = verify(view, cut(view).model)
    assert verdict.passed
    if dtype == "bfloat16":
        assert any("float32 copy" in note for note in verdict.notes)


def test_random_numbers_are_the_same_in_both() -> None:
    g = G(0)
    x = g.relu(g.gemm(g.input("x", [4, 6]), 8))
    x = g.gemm(x, 5)
    model = g.model(y=g.op("Add", x, g.op("RandomNormalLike", x)))
    view = halved(solved(model))
    assert verify(view, cut(view).model).passed


# What is compared


def test_a_choice_is_compared_by_what_it_chooses_from() -> None:
    g = G(0)
    x = g.gemm(g.relu(g.gemm(g.input("x", [4, 6]), 8)), 5)
    model = g.model(label=g.op("ArgMax", x, axis=1), loud=g.op("Relu", x))
    view = halved(solved(model))
    assert list(probes(view, cut(view).model)) == [x]
    assert set(verify(view, cut(view).model).compared) == {"label", "loud", x}


def test_an_inner_tensor_is_compared_on_its_kept_channels() -> None:
    g = G(0)
    x = g.relu(g.gemm(g.input("x", [4, 6]), 8))
    total = g.reduce("Sum", x, 1)
    model = g.model(y=g.op("Cast", g.op("Greater", total, 1.0), to=TensorProto.INT32))
    view = halved(solved(model))
    verdict = verify(view, cut(view).model)
    assert verdict.passed
    assert total in verdict.compared


def chaos() -> tuple[View, onnx.ModelProto]:
    """Squaring and shifting over and over doubles the rounding each time."""
    g = G(0)
    x = g.reduce("Sum", g.op("Tanh", g.gemm(g.input("x", [2, 64]), 64)), 1)
    x = g.op("Tanh", x)
    for _ in range(24):
        x = g.op("Sub", 1.0, g.op("Mul", 2.0, g.op("Mul", x, x)))
    view = halved(solved(g.model(y=x)))
    return view, cut(view).model


def test_rounding_that_a_network_amplifies_is_not_an_error() -> None:
    view, slim = chaos()
    verdict = verify(view, slim)
    assert verdict.passed
    assert verdict.by_node
    assert verdict.max_rel_err < verdict.tolerance
    assert any("rounding" in note for note in verdict.notes)


def test_an_error_in_an_amplifying_network_is_one() -> None:
    view, slim = chaos()
    wrong = changed(slim, input_of(slim, "Gemm", 2), lambda b: b * F32(1.001))
    verdict = verify(view, wrong)
    assert not verdict.passed
    assert "Gemm" in verdict.first_bad


def test_the_first_wrong_node_is_named() -> None:
    view = halved(solved(small_net()))
    slim = cut(view).model
    second = [n for n in slim.graph.node if n.op_type == "Conv"][1]
    verdict = verify(view, changed(slim, second.input[1], lambda w: w[::-1]))
    assert verdict.first_bad.startswith(second.name)


def test_an_error_too_small_for_the_outputs_is_found_by_node() -> None:
    g = G(0)
    x = g.input("x", [2, 6])
    small = g.op("Mul", g.gemm(g.relu(g.gemm(x, 8)), 4), g.const(np.array([1e-3, 2e-3, 1e-3, 3e-3])
                                                                 .astype(F32)))  # fmt: skip
    view = halved(solved(g.model(y=g.op("Add", g.gemm(x, 4), small))))
    slim = cut(view).model
    bias = input_of(slim, "Gemm", 2)
    verdict = verify(view, changed(slim, bias, lambda b: b + F32(1e-3)))
    assert not verdict.passed
    assert "Gemm" in verdict.first_bad


def test_the_inside_of_a_shuffle_is_not_compared() -> None:
    g = G(3)
    x = g.conv(g.input("x", [2, 4, 6, 6]), 8, 1, groups=2)
    inner = g.reshape(x, [2, 2, 4, 6, 6])
    x = g.reshape(g.transpose(inner, 0, 2, 1, 3, 4), [2, 8, 6, 6])
    view = halved(solved(g.model(y=g.conv(x, 4, 1))))
    assert inner not in comparable(view)
    assert x in comparable(view)
    assert verify(view, cut(view).model).passed


def test_by_node_in_several_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    view = halved(solved(small_net()))
    slim, feeds = cut(view).model, {"x": np.ones((2, 3, 8, 8), F32)}
    whole = by_node(view, masked(view), slim, feeds)
    monkeypatch.setattr("onnxprune.check.steps._BUDGET", 1)
    assert by_node(view, masked(view), slim, feeds) == whole
    assert whole.count == 7
    assert not whole.first_bad


def test_channels_without_influence_prove_nothing() -> None:
    g = G(0)
    x = g.input("x", [2, 4])
    h = g.op("MatMul", g.relu(g.gemm(x, 8)), g.weight(8, 4))
    never = g.op("Less", g.op("Abs", x), -1.0)
    view = halved(solved(g.model(y=g.op("Where", never, h, x))))
    verdict = verify(view, cut(view).model)
    assert verdict.passed
    assert verdict.vacuous
    assert "proves nothing" in " ".join(verdict.notes)


@pytest.mark.parametrize("break_it", ["load", "run"])
def test_a_slim_model_that_does_not_run_fails(break_it: str) -> None:
    view = halved(solved(small_net()))
    wrong = onnx.ModelProto.FromString(cut(view).model.SerializeToString())
    if break_it == "load":
        del wrong.graph.node[1]
    else:
        weight = stored(wrong, input_of(wrong, "Gemm", 1))
        weight.CopyFrom(numpy_helper.from_array(np.ones((5, 3), F32), weight.name))
    verdict = verify(view, wrong)
    assert not verdict.passed
    assert "does not run" in verdict.first_bad


def test_a_slim_model_without_an_output_fails() -> None:
    view = halved(solved(small_net()))
    wrong = cut(view).model
    wrong.graph.node[-1].output[0] = wrong.graph.output[0].name = "z"
    assert "does not give" in verify(view, wrong).first_bad


# Files


def on_disk(folder: Path, *models: onnx.ModelProto) -> Sequence[Path]:
    paths = [folder / f"{k}.onnx" for k in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        save(model, path, None)
    return paths


def test_verify_files(tmp_path: Path) -> None:
    model = small_net()
    view = halved(solved(model))
    a, b = on_disk(tmp_path, model, cut(view).model)
    assert verify_files(load(a), load(b), view).passed


def test_another_signature_fails(tmp_path: Path) -> None:
    model = small_net()
    view = halved(solved(model))
    slim = cut(view).model
    slim.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "M"
    assert list(signature_problems(model, slim)) == ["x is float[M,3,8,8], not float[N,3,8,8]"]
    slim.graph.output[0].name = "z"
    a, b = on_disk(tmp_path, model, slim)
    verdict = verify_files(load(a), load(b), view)
    assert not verdict.passed
    assert "outputs" in verdict.first_bad


def test_an_unsound_file_fails(tmp_path: Path) -> None:
    model = small_net()
    view = halved(solved(model))
    slim = cut(view).model
    slim.graph.node[0].attribute.append(helper.make_attribute("flavour", 1))
    a, b = on_disk(tmp_path, model, slim)
    assert "checker" in verify_files(load(a), load(b), view).first_bad


def repaired_net() -> tuple[onnx.ModelProto, View, onnx.ModelProto]:
    """A convolution without bias, then a dense layer; repair corrects both and adds a bias."""
    g = G(0)
    x = g.relu(g.conv(g.input("x", ["N", 3, 8, 8]), 8, bias=False))
    x = g.relu(g.conv(x, 12, bias=False))
    model = g.model(y=g.op("MatMul", g.flatten(g.gap(x)), g.weight(12, 5)))
    view = halved(solved(model))
    slim = cut(view).model
    slim = changed(slim, input_of(slim, "Conv", 1), lambda w: w * F32(1.1))
    second = [n for n in slim.graph.node if n.op_type == "Conv"][1]
    bias = np.linspace(-1, 1, stored(slim, second.input[1]).dims[0], dtype=F32)
    slim.graph.initializer.append(numpy_helper.from_array(bias, "bias"))
    second.input.append("bias")
    last = slim.graph.node[-1]
    last.output[0] = "product"
    slim.graph.initializer.append(numpy_helper.from_array(np.arange(5, dtype=F32), "shift"))
    slim.graph.node.append(helper.make_node("Add", ["product", "shift"], ["y"]))
    return model, view, slim


def test_a_repaired_model_is_held_against_its_own_weights(tmp_path: Path) -> None:
    model, view, slim = repaired_net()
    a, b = on_disk(tmp_path, model, slim)
    assert not verify_files(load(a), load(b), view).passed
    verdict = verify_files(load(a), load(b), view, repaired=True)
    assert verdict.passed, verdict.first_bad
    assert verdict.moved > 0.1


def test_a_wrong_structure_of_a_repaired_model_fails() -> None:
    _, view, slim = repaired_net()
    relu = next(n for n in slim.graph.node if n.op_type == "Relu")
    relu.op_type = "Tanh"
    assert not verify(view, slim, own_weights=True).passed


# Memory


def no_model_fits(size: int) -> View:
    """A net whose output is spread over `size` columns."""
    g = G(0)
    x = g.relu(g.gemm(g.input("x", ["N", 6]), 8))
    wide = g.op("Expand", g.gemm(x, 1), g.const(np.array([1, size], np.int64)))
    return halved(solved(g.model(y=g.reduce("Max", wide, 1))))


def test_too_little_memory_is_said_before_the_system_kills(monkeypatch: pytest.MonkeyPatch) -> None:
    view = no_model_fits(1000)
    monkeypatch.setattr("onnxprune.check.room.free_bytes", lambda: 1000)
    with pytest.raises(CheckFailed, match="unproven: out of memory") as caught:
        verify(view, cut(view).model)
    assert caught.value.exit_code == 1
    assert "GB are free" in str(caught.value)
    assert "--no-verify" in str(caught.value)


def test_the_largest_size_that_fits_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    view = no_model_fits(1000)
    monkeypatch.setattr("onnxprune.check.room.free_bytes", lambda: 6000)
    verdict = verify(view, cut(view).model)
    assert verdict.passed
    assert {f.shapes["x"] for f in verdict.inputs} == {(1, 6)}


@pytest.mark.parametrize("error", [OutOfMemory("no room"), MemoryError("no room")])
@pytest.mark.parametrize("call", [0, 1])
def test_no_memory_for_a_model_is_unproven(
    monkeypatch: pytest.MonkeyPatch, error: Exception, call: int
) -> None:
    """The masked original (0) or the slim model (1): neither is wrong for that."""
    calls: list[int] = []

    def run(*arguments: Any) -> Any:
        calls.append(len(calls))
        if calls[-1] == call:
            raise error
        return outputs(*arguments)

    monkeypatch.setattr("onnxprune.check.verify.outputs", run)
    view = halved(solved(small_net()))
    with pytest.raises(CheckFailed, match="unproven: out of memory") as caught:
        verify(view, cut(view).model)
    assert "no room" in str(caught.value)


def test_without_memory_for_the_nodes_the_outputs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any) -> Any:
        raise OutOfMemory("no room")

    monkeypatch.setattr("onnxprune.check.parts.Whole.open", opened)
    view = halved(solved(small_net()))
    right = cut(view).model
    verdict = verify(view, right)
    assert verdict.passed
    assert "outputs alone" in " ".join(verdict.notes)
    with pytest.raises(CheckFailed, match="unproven: out of memory"):
        verify(view, changed(right, input_of(right, "Conv", 1), lambda w: w[::-1]))


@pytest.mark.parametrize(
    ("says", "is_memory"),
    [
        (MemoryError("std::bad_alloc"), True),
        (RuntimeError("Failed to allocate memory for requested buffer of size 157351936"), True),
        (RuntimeError("CUDA failure 2: out of memory ; GPU=0"), True),
        (RuntimeError("bad allocation"), True),
        (RuntimeError("Non-zero status code returned while running Conv node"), False),
    ],
)
def test_errors_that_mean_memory(says: Exception, is_memory: bool) -> None:
    assert isinstance(failed("it does not run", says), OutOfMemory) == is_memory


def test_activations_are_counted_while_they_live() -> None:
    g = G(0)
    x = g.input("x", [1, 1000])
    a = g.op("MatMul", x, g.weight(1000, 500))
    b = g.op("MatMul", a, g.weight(500, 250))  # a and b
    c = g.op("MatMul", b, g.weight(250, 100))  # b and c: less
    facts = solved(g.model(y=g.op("MatMul", c, g.weight(100, 10)))).facts
    assert least_bytes(facts) == 4 * 500  # b may take the place of a
    assert growth(facts, {"x": (3, 1000)}) == 3


def test_by_node_hands_on_what_is_read_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """A skip connection over all parts; every node of the masked original runs once."""
    g = G(0)
    x = first = g.relu(g.conv(g.input("x", [1, 3, 8, 8]), 8))
    for _ in range(3):
        x = g.relu(g.conv(x, 8))
    view = halved(solved(g.model(y=g.conv(g.concat(x, first), 4))))
    slim, feeds = cut(view).model, {"x": np.ones((1, 3, 8, 8), F32)}
    full, opened, plain = masked(view), list[int](), Whole.open

    def counted(whole: Whole, part: Part, *rest: Any) -> Any:
        if whole.model is full:
            opened.extend(part.nodes)
        return plain(whole, part, *rest)

    monkeypatch.setattr(Whole, "open", counted)
    monkeypatch.setattr("onnxprune.check.steps._BUDGET", 1)
    steps = by_node(view, full, slim, feeds)
    assert (steps.first_bad, steps.stuck) == ("", "")
    assert sorted(opened) == list(range(len(full.graph.node)))
