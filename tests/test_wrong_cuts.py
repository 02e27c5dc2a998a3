"""Deliberately wrong cuts are caught: each of them loads and runs, and only its numbers are wrong.

Most are made by an engine that makes a mistake (a tie left out, a fix that is not done), so that
the mask shares the mistake with the cut, as it would in life.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from models.builder import G
from onnxprune.axes.analyse import facts_of
from onnxprune.axes.labels import Vector
from onnxprune.axes.solve import Solution, groups
from onnxprune.axes.view import View
from onnxprune.check.verify import verify
from onnxprune.choose.heads import resolve
from onnxprune.cut import cut as cutting
from onnxprune.cut.cut import Cut, cut
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise


def solved(model: onnx.ModelProto, *, whole_groups: bool = False) -> Solution:
    return resolve(facts_of(normalise(load(model)), whole_groups=whole_groups), "auto", 0.5)


def halved(s: Solution, seed: int = 0) -> View:
    """Half of every group's channels go, drawn at random."""
    rng = np.random.default_rng(seed)
    kept = {g.id: np.sort(rng.permutation(g.size)[g.size // 2 :]).tolist() for g in groups(s)}
    assert kept
    return View.of(s, groups(s), kept)


def untied(s: Solution, one: Vector, other: Vector) -> Solution:
    """What an engine would find that misses what ties these labels to each other."""
    a, b = s.edges
    mixed = (np.isin(a, one) & np.isin(b, other)) | (np.isin(a, other) & np.isin(b, one))
    a, b = a[~mixed], b[~mixed]
    count = s.facts.labels.count
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(count, count))
    return Solution(
        s.facts, connected_components(graph, directed=False)[1].astype(np.int64), (a, b)
    )


def keeping(s: Solution, wanted: Sequence[tuple[Vector, Sequence[int]]]) -> View:
    """These indices of these axes stay, all that is not named stays too."""
    keep = np.ones(int(s.root.max()) + 1, bool)
    for labels, indices in wanted:
        gone = np.setdiff1d(np.arange(len(labels)), indices)
        keep[s.root[labels[gone]]] = False
    keep[s.zero] = True
    return View(s, keep)


def stored(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(t for t in model.graph.initializer if t.name == name)


def changed(
    model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]
) -> onnx.ModelProto:
    """A copy in which one stored tensor has another content of the same shape."""
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    tensor = stored(copy, name)
    array = numpy_helper.to_array(tensor)
    new = np.asarray(change(array.copy()), array.dtype, order="C")
    assert new.shape == array.shape
    assert not np.array_equal(new, array)
    tensor.CopyFrom(numpy_helper.from_array(new, name))
    return copy


def input_of(model: onnx.ModelProto, op: str, k: int) -> str:
    return next(n.input[k] for n in model.graph.node if n.op_type == op)


def assert_only_right_passes(view: View, right: onnx.ModelProto, wrong: onnx.ModelProto) -> None:
    good, bad = verify(view, right), verify(view, wrong)
    assert good.passed, good.first_bad
    assert not good.vacuous
    assert not bad.passed
    assert bad.first_bad
    assert "does not run" not in bad.first_bad  # that would be too easy


def small_net() -> onnx.ModelProto:
    g = G(0)
    x = g.relu(g.conv(g.input("x", ["N", 3, 8, 8]), 8))
    x = g.relu(g.conv(x, 12))
    return g.model(y=g.gemm(g.flatten(g.gap(x)), 5))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_swapped_index_in_one_weight(seed: int) -> None:
    model = small_net()
    view = halved(solved(model), seed)
    right = cut(view).model
    name = input_of(right, "Conv", 1)
    kept = view.kept(name, 0)
    filters = numpy_helper.to_array(stored(model, name))

    def swap(array: np.ndarray) -> np.ndarray:
        array[0] = filters[~kept][0]  # a filter that the plan removes, in the place of one it keeps
        return array

    assert_only_right_passes(view, right, changed(right, name, swap))


def test_two_filters_in_another_order() -> None:
    view = halved(solved(small_net()))
    right = cut(view).model
    wrong = changed(right, input_of(right, "Conv", 1), lambda w: w[[1, 0, *range(2, len(w))]])
    assert_only_right_passes(view, right, wrong)


def test_a_bias_of_another_channel() -> None:
    view = halved(solved(small_net()))
    right = cut(view).model
    bias = input_of(right, "Conv", 2)
    assert_only_right_passes(view, right, changed(right, bias, lambda b: np.roll(b, 1)))


def test_a_split_off_by_one() -> None:
    g = G(1, 18)
    x = g.relu(g.conv(g.input("x", [2, 3, 8, 8]), 12))
    a, b = g.split(x, [4, 8])
    sums = [g.reduce("Sum", part, 1) for part in (g.op("Tanh", a), b)]
    view = halved(solved(g.model(y=g.conv(g.op("Add", *sums), 4))))
    right = cut(view).model
    wrong = changed(right, input_of(right, "Split", 1), lambda s: s + np.array([1, -1]))
    assert_only_right_passes(view, right, wrong)


def test_slice_bounds_off_by_one() -> None:
    g = G(2)
    x = g.relu(g.conv(g.input("x", [2, 3, 8, 8]), 12))
    a, b = g.slice(x, 0, 6), g.slice(x, 6, 12)
    view = halved(solved(g.model(y=g.conv(g.op("Mul", g.op("Tanh", a), b), 4))))
    right = cut(view).model
    slices = [n for n in right.graph.node if n.op_type == "Slice"]
    wrong = onnx.ModelProto.FromString(right.SerializeToString())
    node = next(n for n in wrong.graph.node if n.name == slices[1].name)
    for k in (1, 2):
        bound = numpy_helper.to_array(stored(wrong, node.input[k])) - 1
        wrong.graph.initializer.append(numpy_helper.from_array(bound, f"moved_{k}"))
        node.input[k] = f"moved_{k}"
    assert_only_right_passes(view, right, wrong)


def test_a_ragged_choice_through_a_shuffle() -> None:
    g = G(3)
    x = g.conv(g.input("x", [2, 4, 6, 6]), 8, 1, groups=2)
    x = g.reshape(g.transpose(g.reshape(x, [2, 2, 4, 6, 6]), 0, 2, 1, 3, 4), [2, 8, 6, 6])
    model = g.model(y=g.conv(x, 4, 1))
    tied = solved(model)
    weight = input_of(model, "Conv", 1)
    labels = tied.facts.axes[weight][0]
    even = cut(keeping(tied, [(labels, [0, 1, 4, 5])]))
    view = keeping(untied(tied, labels, labels), [(labels, [0, 1, 6, 7])])
    ragged = cut(view)
    content = {s.name: stored(ragged.model, s.name) for s in ragged.weights}
    wrong = onnx.ModelProto.FromString(even.model.SerializeToString())
    for name, tensor in content.items():
        stored(wrong, name).CopyFrom(tensor)
    assert_only_right_passes(view, ragged.model, wrong)


def two_branches() -> tuple[onnx.ModelProto, str, str]:
    g = G(4)
    x = g.input("x", ["N", 3, 8, 8])
    a, b = g.conv(x, 8), g.conv(x, 8)
    model = g.model(y=g.conv(g.relu(g.op("Add", a, b)), 4))
    first, second = [n.input[1] for n in model.graph.node if n.op_type == "Conv"][:2]
    return model, first, second


def test_a_coupling_left_out() -> None:
    model, first, second = two_branches()
    s = solved(model)
    a, b = s.facts.axes[first][0], s.facts.axes[second][0]
    right = keeping(s, [(a, [0, 1, 2, 3])])
    wrong = keeping(untied(s, a, b), [(a, [0, 1, 2, 3]), (b, [2, 3, 4, 5])])
    assert verify(right, cut(right).model).passed
    slim = cut(wrong).model
    assert [d for n in (first, second) for d in stored(slim, n).dims[:1]] == [4, 4]
    verdict = verify(wrong, slim)
    assert not verdict.passed
    assert "Add" in verdict.first_bad


def test_gates_in_another_order() -> None:
    g = G(5)
    x = g.input("x", [6, 2, 5])
    y = g.recurrent("LSTM", x, 8)[0]
    view = halved(solved(g.model(y=g.op("MatMul", g.squeeze(y, 1), g.weight(8, 3)))))
    right = cut(view).model
    name = input_of(right, "LSTM", 1)

    def other_gate_order(w: np.ndarray) -> np.ndarray:
        gates = w.reshape(1, 4, -1, w.shape[-1])
        return gates[:, [1, 0, 2, 3]].reshape(w.shape)

    assert_only_right_passes(view, right, changed(right, name, other_gate_order))


def mean_net() -> onnx.ModelProto:
    g = G(6)
    x = g.relu(g.conv(g.input("x", [2, 3, 8, 8]), 8))
    return g.model(y=g.conv(g.reduce("Mean", x, 1), 4))


def test_a_mean_without_its_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    view = halved(solved(mean_net()))
    right = cut(view).model
    monkeypatch.setattr(cutting, "mean", lambda *_: None)
    assert_only_right_passes(view, right, cut(view).model)


def test_a_mean_with_a_wrong_factor() -> None:
    view = halved(solved(mean_net()))
    right = cut(view).model
    factor = next(n for n in right.graph.node if n.op_type == "Mul").input
    name = next(i for i in factor if i in {t.name for t in right.graph.initializer})
    assert_only_right_passes(view, right, changed(right, name, lambda f: f * 1.01))


def test_another_group() -> None:
    g = G(7)
    x = g.relu(g.conv(g.input("x", [2, 3, 6, 6]), 8, 1))
    x = g.relu(g.conv(x, 8, groups=4))
    view = halved(solved(g.model(y=g.conv(x, 4, 1)), whole_groups=True))
    right = cut(view).model
    node = next(n for n in right.graph.node if any(a.name == "group" and a.i > 1
                                                   for a in n.attribute))  # fmt: skip
    wrong = changed(right, node.input[1], lambda w: np.roll(w, len(w) // 2, axis=0))
    assert_only_right_passes(view, right, wrong)


def test_a_mistake_behind_a_layer_scale() -> None:
    """A branch that starts at 1e-6 hides everything, until that is made random in both."""
    g = G(8)
    x = g.conv(g.input("x", [2, 4, 6, 6]), 4)
    y = g.conv(g.relu(g.conv(x, 8)), 4)
    scale = g.const(np.full((4, 1, 1), 1e-9, np.float32), "scale")
    model = g.model(y=g.op("Add", x, g.op("Mul", y, scale)))
    view = halved(solved(model))
    slim: Cut = cut(view)
    second = [n.input[1] for n in slim.model.graph.node if n.op_type == "Conv"][1]
    wrong = changed(slim.model, second, lambda w: w[::-1])
    assert_only_right_passes(view, slim.model, wrong)
    assert "random" in " ".join(verify(view, slim.model).notes)


def test_a_mistake_before_a_choice() -> None:
    """An ArgMax may well come out the same: what it chooses from does not."""
    g = G(9)
    x = g.flatten(g.relu(g.conv(g.input("x", [1, 3, 4, 4]), 6)))
    g.op("ArgMax", g.gemm(x, 5), axis=1)
    view = halved(solved(g.model(y="ArgMax_0_out")))
    right = cut(view).model
    wrong = changed(right, input_of(right, "Conv", 1), lambda w: w * np.float32(1.001))
    assert verify(view, right).compared != ("y",)
    assert_only_right_passes(view, right, wrong)


def test_the_right_cut_under_a_wrong_plan() -> None:
    s = solved(small_net())
    view, other = halved(s, 0), halved(s, 1)
    assert verify(other, cut(other).model).passed
    assert not verify(other, cut(view).model).passed
    assert not verify(keeping_all(other), cut(view).model).passed


def keeping_all(view: View) -> View:
    """The plan that removes nothing."""
    return View(replace(view.solution), np.ones_like(view.keep))
