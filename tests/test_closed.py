"""Repair in closed form: exact where it can be, better than nothing elsewhere, and predicted."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models.zoo import ZOO, feeds
from onnxprune.axes.view import View
from onnxprune.cut.cut import cut
from onnxprune.repair.closed import Closed, closed_form, closed_scores
from onnxprune.runtime.session import open_session
from tests.choosing import analysed, model_of
from tests.test_repair_nets import _combinations, _conv, _gemm, _matmul, _w

MODELS = Path(__file__).parents[1] / "models"


def _half(model: onnx.ModelProto, name: str, kept: range = range(4)) -> View:
    """A view that keeps the first channels of a group."""
    found = analysed(model)
    group = found.by_name(name)
    return View.of(found.solution, found.groups, {group.id: kept})


def _run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    with open_session(model) as session:
        return session.run({"x": x})["y"].astype(np.float64)


def _errors(
    model: onnx.ModelProto, view: View, x: np.ndarray, **how: bool
) -> tuple[float, float, tuple[Closed, ...]]:
    """Mean squared error over the output's variance: sliced, and repaired."""
    done = cut(view)
    repaired, fitted = closed_form(view, done.model, done.weights, **how)
    onnx.checker.check_model(repaired)
    y = _run(model, x)
    power = float(np.mean((y - y.mean()) ** 2))
    sliced, after = (float(np.mean((_run(m, x) - y) ** 2)) for m in (done.model, repaired))
    return sliced / power, after / power, fitted


def _samples(*shape: int) -> np.ndarray:
    return np.random.default_rng(9).standard_normal(shape).astype(np.float32)


EXACT = {
    "scaled filters, convolutions": (_conv, "w1", (64, 3, 8, 8)),
    "mixed filters, no activation": (_gemm, "w1", (64, 6)),
    "scaled filters, the bias in an Add": (_matmul, "w1", (16, 7, 6)),
}


@pytest.mark.parametrize("name", EXACT)
def test_channels_that_others_can_stand_for_are_merged(name: str) -> None:
    build, group, shape = EXACT[name]
    model = build()[0]
    sliced, after, fitted = _errors(model, _half(model, group), _samples(*shape))
    assert sliced > 0.1
    assert after < 1e-3
    assert [f.form for f in fitted] == ["filters"]
    assert all(f.after < 0.02 * f.before for f in fitted)


def _normed(beta: np.ndarray, gamma: np.ndarray, groups: int = 1) -> onnx.ModelProto:
    """x -> Conv -> BatchNormalization, its statistics those of white x -> Relu -> Conv -> y."""
    c = len(beta)
    w = _w(c, c)
    weights = {
        "w": w[:, :, None, None], "gamma": gamma, "beta": beta, "mean": np.zeros(c),
        "var": (w**2).sum(axis=1),
        "w2": _w(6, c // groups, 3, 3),
    }  # fmt: skip
    return model_of(
        [
            ("Conv", ["x", "w"], ["a"], {}),
            ("BatchNormalization", ["a", "gamma", "beta", "mean", "var"], ["n"], {}),
            ("Relu", ["n"], ["r"], {}),
            ("Conv", ["r", "w2"], ["y"], {"pads": [1, 1, 1, 1], "group": groups}),
        ],
        {k: np.asarray(v, np.float32) for k, v in weights.items()},
        ["n", c, "h", "w"],
        ["n", 6, "h", "w"],
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_the_predicted_errors_are_those_of_normal_inputs(
    groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """White inputs: what the moments say is what happens."""
    monkeypatch.setattr("onnxprune.repair.normal.NEARBY", 0.0)
    rng = np.random.default_rng(4)
    model = _normed(rng.normal(0.3, 0.7, 8), rng.uniform(0.3, 1.5, 8), groups)
    kept = {1: range(5), 2: (0, 1, 4, 5)}[groups]  # as many of each group
    x = _samples(100, 8, 20, 20)
    found = analysed(model)
    group = next(g for g in found.groups if g.name == "w")
    size = {g.id: (kept if g.size == 8 else range(2)) for g in found.groups if g.id == group.id}
    view = View.of(found.solution, found.groups, size)
    done = cut(view)
    repaired, (fitted,) = closed_form(view, done.model, done.weights)
    assert fitted.form == "norms"
    y = _run(model, x)
    power = y.var(axis=(0, 2, 3)).sum()
    for got, said in ((done.model, fitted.before), (repaired, fitted.after)):
        error = np.mean((_run(got, x) - y) ** 2, axis=(0, 2, 3)).sum() / power
        assert error == pytest.approx(said, rel=0.1)
    assert fitted.after < 0.8 * fitted.before


def test_a_constant_channel_goes_into_the_bias() -> None:
    beta, gamma = np.full(8, 0.5), np.ones(8)
    gamma[4:] = 0  # relu(0.5) everywhere
    model = _normed(beta, gamma)
    x = _samples(8, 8, 8, 8)
    sliced, after, (fitted,) = _errors(model, _half(model, "w"), x, weights_too=False)
    assert sliced > 0.1
    assert fitted.after < 1e-9
    assert after < sliced / 3  # the border sees less of it, whatever the bias
    done = cut(_half(model, "w"))
    repaired, _ = closed_form(_half(model, "w"), done.model, done.weights, weights_too=False)
    gap = (_run(repaired, x) - _run(model, x))[:, :, 1:-1, 1:-1]
    border = (_run(repaired, x) - _run(model, x))[:, :, 0]
    assert np.abs(gap).max() < np.abs(border).max()


def test_biases_alone_leave_the_weights() -> None:
    rng = np.random.default_rng(4)
    model = _normed(rng.normal(0.3, 0.7, 8), rng.uniform(0.3, 1.5, 8))
    view = _half(model, "w")
    done = cut(view)
    repaired, _ = closed_form(view, done.model, done.weights, weights_too=False)
    before = {t.name: t.raw_data for t in done.model.graph.initializer}
    changed = {t.name for t in repaired.graph.initializer if before.get(t.name) != t.raw_data}
    assert changed == {"y/bias"}


def test_a_bias_that_can_not_change_is_reckoned_with() -> None:
    """The bias is read by two nodes: the weights alone make up for the means too."""
    rng = np.random.default_rng(4)
    model = _normed(rng.normal(1.5, 0.3, 8), rng.uniform(0.3, 0.5, 8))
    model.graph.node[3].input.append("b2")
    model.graph.initializer.append(numpy_helper.from_array(_w(6), "b2"))
    model.graph.node[3].output[0] = "z"
    shape = numpy_helper.from_array(np.array([1, 6, 1, 1]), "shape")
    model.graph.initializer.append(shape)
    model.graph.node.append(onnx.helper.make_node("Reshape", ["b2", "shape"], ["b3"]))
    model.graph.node.append(onnx.helper.make_node("Add", ["z", "b3"], ["y"]))
    x = _samples(64, 8, 8, 8)
    sliced, after, (fitted,) = _errors(model, _half(model, "w", range(5)), x)
    assert after < sliced / 3
    assert fitted.after < fitted.before


def test_what_is_not_cut_is_not_touched() -> None:
    model = _conv()[0]
    found = analysed(model)
    view = View.of(found.solution, found.groups, {})
    done = cut(view)
    repaired, fitted = closed_form(view, done.model, done.weights)
    assert repaired == done.model
    assert fitted == ()


def test_a_repair_that_would_make_it_worse_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model = _conv()[0]
    view = _half(model, "w1")
    done = cut(view)
    monkeypatch.setattr(
        "onnxprune.repair.closed._stand_in", lambda m, s, k, free: np.full((4, 4), 9.0)
    )
    repaired, fitted = closed_form(view, done.model, done.weights)
    assert repaired == done.model
    assert fitted == ()


@pytest.mark.parametrize("name", ZOO)
def test_any_network_can_be_repaired(name: str) -> None:
    """It loads, runs, and gives finite outputs; nothing but weights and biases changed."""
    model = ZOO[name](0)
    found = analysed(model)
    kept = {g.id: range((g.size + 1) // 2) for g in found.groups}
    view = View.of(found.solution, found.groups, kept)
    try:
        done = cut(view)
        with open_session(done.model) as session:
            inputs = feeds(done.model, 0)
            before = session.run(inputs)
    except Exception:
        pytest.skip("these channels can't go together, or it can't be run")
    repaired, fitted = closed_form(view, done.model, done.weights)
    assert all(f.after < f.before for f in fitted)
    with open_session(repaired) as session:
        after = session.run(inputs)
    for name_, y in before.items():
        if y.dtype.kind == "f" and np.isfinite(y).all():
            assert np.isfinite(after[name_]).all()
    assert len(repaired.graph.node) == len(done.model.graph.node)


# Ranking


def test_the_cheapest_is_a_channel_that_others_stand_for() -> None:
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((6, 5)), rng.standard_normal((4, 6)) * 2
    w1[3] = 3 * w1[0]  # large, read by large weights: l2 would keep it
    w2[:, 3] *= 5
    model = model_of(
        [
            ("Gemm", ["x", "w1"], ["h"], {"transB": 1}),
            ("Relu", ["h"], ["r"], {}),
            ("Gemm", ["r", "w2"], ["y"], {"transB": 1}),
        ],
        {"w1": w1.astype(np.float32), "w2": w2.astype(np.float32)},
        ["n", 5],
        ["n", 4],
    )
    found = analysed(model)
    (group,) = found.groups
    scores = closed_scores(found.solution, found.groups, 0.5)[group.id]
    assert np.argmin(scores) in (0, 3)
    gone = np.argsort(scores)[:3].tolist()
    assert not {0, 3} <= set(gone)
    assert (np.sort(scores) == scores[np.argsort(scores, kind="stable")]).all()
    assert len(np.unique(scores[gone])) == 3


def test_scores_are_what_a_repair_is_predicted_to_lose() -> None:
    """The first to go costs what the repair says that it leaves, over the output's variance."""
    rng = np.random.default_rng(4)
    model = _normed(rng.normal(0.3, 0.7, 8), rng.uniform(0.3, 1.5, 8))
    weight = next(t for t in model.graph.initializer if t.name == "w")  # independent channels
    root = np.diag([1, -1, 2, 1, 3, 1, 1, 2])[:, :, None, None]
    weight.CopyFrom(numpy_helper.from_array(root.astype(np.float32), "w"))
    found = analysed(model)
    group = found.by_name("w")
    scores = closed_scores(found.solution, found.groups, 0.5)[group.id]
    said = []
    for j in range(8):
        kept = [k for k in range(8) if k != j]
        view = View.of(found.solution, found.groups, {group.id: kept})
        done = cut(view)
        said.append(closed_form(view, done.model, done.weights)[1][0].after)
    assert int(np.argmin(scores)) == int(np.argmin(said))
    assert scores.min() == pytest.approx(min(said), rel=0.02)


def test_trained_networks_keep_more_with_it() -> None:
    """On our trained network: less of the output is lost than by slicing, data never seen."""
    path = MODELS / "digits_resnet.onnx"
    found = analysed(path)
    scores = closed_scores(found.solution, found.groups, 0.75)
    kept = {g.id: np.sort(np.argsort(scores[g.id])[int(g.size * 0.7) :]) for g in found.groups}
    view = View.of(found.solution, found.groups, kept)
    done = cut(view)
    repaired, fitted = closed_form(view, done.model, done.weights)
    x = np.load(MODELS / "digits_test.npz")["x"][:100]
    runs = []
    for model in (onnx.load(path), done.model, repaired):
        with open_session(model) as session:
            runs.append(session.run({"x": x})["logits"])
    y, sliced, after = runs
    assert ((after - y) ** 2).mean() < 0.6 * ((sliced - y) ** 2).mean()
    assert {f.form for f in fitted} == {"norms"}


def test_combinations_are_found_between_groups_of_a_layer() -> None:
    """A consumer in two groups: what goes is made up for inside its own group."""
    w1 = np.concatenate([_combinations(6), _combinations(6)])
    model = model_of(
        [
            ("Conv", ["x", "w1"], ["a"], {}),
            ("Conv", ["a", "w2"], ["y"], {"group": 2}),
        ],
        {"w1": w1[:, :, None, None], "w2": _w(4, 8, 1, 1)},
        ["n", 6, 5, 5],
        ["n", 4, 5, 5],
    )
    found = analysed(model)
    group = next(g for g in found.groups if g.name == "w1")
    kept = range(group.size // 2) if group.size == 8 else (0, 1, 2, 3, 8, 9, 10, 11)
    view = View.of(found.solution, found.groups, {group.id: kept})
    sliced, after, fitted = _errors(model, view, _samples(32, 6, 5, 5))
    assert sliced > 0.1
    assert after < 0.01
    assert len(fitted) == 1
