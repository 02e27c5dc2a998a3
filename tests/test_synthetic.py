"""Synthetic images, batch norm statistics measured on them, and the repair that uses both."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

from onnxprune.axes.view import View
from onnxprune.cut.cut import cut
from onnxprune.cut.weights import Stored
from onnxprune.errors import UsageError
from onnxprune.repair.batchnorm import norms, stand_in
from onnxprune.repair.images import ImageBatches, Images
from onnxprune.repair.linear import Fitted, refit
from onnxprune.repair.synthetic import SCALES, dead_leaves, draw, noise, synthetic_batches
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import open_session
from tests.choosing import analysed, model_of

MODELS = Path(__file__).parents[1] / "models"

# Images


def test_the_same_seed_draws_the_same_images() -> None:
    one = draw(9, (20, 24), 3, 5)
    assert one.shape == (9, 20, 24, 3)
    assert one.dtype == np.uint8
    np.testing.assert_array_equal(one, draw(9, (20, 24), 3, 5))
    assert (one != draw(9, (20, 24), 3, 6)).mean() > 0.5
    assert draw(3, (8, 8), 1, 0).shape == (3, 8, 8, 1)


def _near(values: np.ndarray, axis: int) -> float:
    """Correlation of neighbours along an axis."""
    z = np.moveaxis(values - values.mean(), axis, 0)
    return float((z[1:] * z[:-1]).mean() / (z * z).mean())


def test_they_are_like_photographs() -> None:
    """Mean, spread, smoothness and colours as of photographs."""
    pixels = draw(64, (32, 32), 3, 0) / 255
    assert np.abs(pixels.mean(axis=(0, 1, 2)) - (0.485, 0.456, 0.406)).max() < 0.05
    assert ((pixels.std(axis=(0, 1, 2)) > 0.15) & (pixels.std(axis=(0, 1, 2)) < 0.3)).all()
    assert 0.75 < _near(pixels, 1) < 0.98
    assert 0.75 < _near(pixels, 2) < 0.98
    colours = np.corrcoef(pixels.reshape(-1, 3).T)
    assert colours.min() > 0.6


def test_leaves_have_edges_and_noise_has_none() -> None:
    rng = np.random.default_rng(0)
    kinds = [dead_leaves(32, (48, 48), 1, rng), noise(32, (48, 48), 1, 1.5, rng)]
    steps = [np.diff(k, axis=2).ravel() / np.diff(k, axis=2).std() for k in kinds]
    peaked = [float((s**4).mean()) for s in steps]
    assert peaked[0] > 8 > 4 > peaked[1] > 2  # 3 is normal


def test_noise_falls_with_frequency() -> None:
    values = noise(64, (64, 64), 1, 1.0, np.random.default_rng(0))[..., 0]
    power = (np.abs(np.fft.fft(values, axis=2)) ** 2).mean(axis=(0, 1))
    slope = np.polyfit(np.log(np.arange(3, 30)), np.log(power[3:30]), 1)[0]
    assert -1.6 < slope < -0.7  # along a line; the power of a plane falls by 2


# What a model takes


def _first_norm(scale: str, batch: int | str = "n", seed: int = 0) -> ModelProto:
    """x -> Conv -> BatchNormalization -> Relu -> Conv -> y, the norm trained at this scale."""
    mean, std = (np.array(v) for v in SCALES[scale])
    pixels = draw(64, (16, 16), 3, 99) / 255
    rng = np.random.default_rng(seed)
    w = rng.standard_normal((6, 3, 3, 3)) * 0.3
    x = ((pixels - mean) / std).transpose(0, 3, 1, 2).astype(np.float32)
    model = model_of([("Conv", ["x", "w"], ["y"], {})], {"w": w.astype(np.float32)},
                     ["n", 3, 16, 16], ["n", 6, 14, 14])  # fmt: skip
    with open_session(model) as session:
        y = session.run({"x": x})["y"]
    weights = {
        "w": w, "gamma": rng.uniform(0.5, 1.5, 6), "beta": rng.standard_normal(6) * 0.5,
        "mean": y.mean(axis=(0, 2, 3)), "var": y.var(axis=(0, 2, 3)),
        "w2": rng.standard_normal((4, 6, 3, 3)), "gamma2": rng.uniform(0.5, 1.5, 4),
        "beta2": rng.standard_normal(4), "mean2": rng.standard_normal(4), "var2": np.ones(4) * 5,
    }  # fmt: skip
    return model_of(
        [
            ("Conv", ["x", "w"], ["c"], {}),
            ("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["n1"], {}),
            ("Relu", ["n1"], ["r"], {}),
            ("Conv", ["r", "w2"], ["d"], {}),
            ("BatchNormalization", ["d", "gamma2", "beta2", "mean2", "var2"], ["y"], {}),
        ],
        {k: v.astype(np.float32) for k, v in weights.items()},
        [batch, 3, 16, 16],
        [batch, 4, 12, 12],
    )


@pytest.mark.parametrize("scale", SCALES)
def test_images_are_scaled_as_the_first_norm_was_trained(scale: str) -> None:
    batches = synthetic_batches(analysed(_first_norm(scale)).facts, 40)
    mean, std = SCALES[scale]
    assert isinstance(batches, ImageBatches)
    assert (batches.canvas.mean, batches.canvas.std) == (mean, std)
    assert sum(len(b["x"]) for b in batches) == 40


def test_a_scale_that_was_asked_for_is_taken() -> None:
    facts = analysed(_first_norm("0 to 255")).facts
    batches = synthetic_batches(facts, 8, images=Images(mean=(0.5,), std=(0.25,)))
    assert isinstance(batches, ImageBatches)
    assert batches.canvas.mean == (0.5,)
    values = batches[0]["x"]
    assert -2.01 <= values.min() < values.max() <= 2.01


def test_without_a_norm_they_are_normalised_as_usual() -> None:
    w = np.ones((4, 1, 3, 3), np.float32)
    nodes: Any = [("Conv", ["x", "w"], ["y"], {})]
    facts = analysed(model_of(nodes, {"w": w}, ["n", 1, 28, 28], ["n", 4, 26, 26])).facts
    batches = synthetic_batches(facts, 64)
    values = np.concatenate([b["x"] for b in batches])
    assert values.shape == (64, 1, 28, 28)
    assert abs(values.mean()) < 0.3
    assert 0.6 < values.std() < 1.3


def test_batches_are_as_the_model_takes_them() -> None:
    facts = analysed(_first_norm("normalised", 6)).facts
    assert [len(b["x"]) for b in synthetic_batches(facts, 20)] == [6, 6, 6, 6]


@pytest.mark.parametrize("shape", [["n", 7], ["n", 4, 8, 8], ["n", 5, 3]])
def test_other_inputs_are_refused_with_what_is_possible(shape: list[int | str]) -> None:
    model = model_of([("Relu", ["x"], ["y"], {})], {}, shape, shape)
    with pytest.raises(UsageError, match=r"take images[\s\S]*--calib[\s\S]*--repair auto"):
        synthetic_batches(analysed(model).facts)


def test_an_open_size_must_be_said() -> None:
    model = model_of([("Relu", ["x"], ["y"], {})], {}, ["n", 3, "h", "w"], ["n", 3, "h", "w"])
    facts = analysed(model).facts
    with pytest.raises(UsageError, match="--image-size is needed"):
        synthetic_batches(facts)
    batches = synthetic_batches(facts, 4, images=Images(size=(8, 9)))
    assert batches[0]["x"].shape == (4, 3, 8, 9)


# Statistics


@pytest.mark.parametrize("batch", ["n", 1])
def test_every_norm_gives_its_mean_and_spread_again(batch: int | str) -> None:
    found = analysed(_first_norm("0 to 1", batch))
    rng = np.random.default_rng(1)
    x = rng.standard_normal((24, 3, 16, 16)).astype(np.float32) * 3 + 2  # nothing like images
    step = 8 if batch == "n" else 1
    batches = [{"x": x[k : k + step]} for k in range(0, 24, step)]
    other = stand_in(found.facts, batches)
    assert set(other.statistics) == {"n1", "y"}
    proto = other.facts.model.source.proto
    with open_session(proto, extra_outputs=["n1"]) as session:
        runs = [session.run(b) for b in batches]
    for out, n in (("n1", ""), ("y", "2")):
        y = np.concatenate([r[out] for r in runs])
        stored = {t.name: numpy_helper.to_array(t) for t in proto.graph.initializer}
        np.testing.assert_allclose(y.mean(axis=(0, 2, 3)), stored[f"beta{n}"], atol=1e-4)
        np.testing.assert_allclose(y.std(axis=(0, 2, 3)), stored[f"gamma{n}"], rtol=1e-3)


def test_the_stand_in_shares_everything_else() -> None:
    found = analysed(_first_norm("0 to 1"))
    batches = synthetic_batches(found.facts, 16)
    before = found.facts.model.source.proto.SerializeToString()
    other = stand_in(found.facts, batches)
    assert found.facts.model.source.proto.SerializeToString() == before
    assert other.facts.labels is found.facts.labels
    model = other.facts.model
    for node in norms(other.facts):
        mean, var = (model.array(model.constants[i]) for i in node.inputs[3:5])
        np.testing.assert_allclose(mean, other.statistics[node.outputs[0]].mean, rtol=1e-6)
        np.testing.assert_allclose(var, other.statistics[node.outputs[0]].var, rtol=1e-6)


def test_without_norms_the_stand_in_is_the_original() -> None:
    w = np.ones((4, 1, 3, 3), np.float32)
    nodes: Any = [("Conv", ["x", "w"], ["y"], {})]
    found = analysed(model_of(nodes, {"w": w}, ["n", 1, 8, 8], ["n", 4, 6, 6]))
    assert stand_in(found.facts, synthetic_batches(found.facts, 4)).facts is found.facts


def test_dead_channels_and_broken_runs_keep_what_the_file_says() -> None:
    model = _first_norm("0 to 1")
    w = next(t for t in model.graph.initializer if t.name == "w")
    values = numpy_helper.to_array(w).copy()
    values[2] = 0
    values[3] = np.inf
    w.CopyFrom(numpy_helper.from_array(values, "w"))
    found = analysed(model)
    other = stand_in(found.facts, [{"x": np.ones((4, 3, 16, 16), np.float32)}])
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    s = other.statistics["n1"]
    assert s.var[2] == pytest.approx(1e-3 * stored["var"][2])
    assert s.mean[2] == 0
    assert (s.mean[3], s.var[3]) == (stored["mean"][3], stored["var"][3])


# Repair


def _halved(model: ModelProto) -> tuple[View, Any]:
    found = analysed(model)
    group = found.by_name("w")
    view = View.of(found.solution, found.groups, {group.id: range(0, 6, 2)})
    return view, cut(view)


def _untouched(
    view: View, model: ModelProto, weights: Sequence[Stored], batches: Sequence[Feeds]
) -> tuple[ModelProto, tuple[Fitted, ...]]:
    return model, ()


@pytest.mark.parametrize("how", ["as it is", "shared statistics", "IR 3", "Constant nodes"])
def test_the_statistics_of_the_file_come_back(how: str) -> None:
    model = _first_norm("0 to 1")
    if how == "shared statistics":  # one tensor is a mean here and a variance there
        model.graph.node[1].input[3] = "var"
    if how == "IR 3":
        model.ir_version = 3
        for t in model.graph.initializer:
            info = onnx.helper.make_tensor_value_info(t.name, t.data_type, t.dims)
            model.graph.input.append(info)
        model.opset_import[0].version = 8
    if how == "Constant nodes":
        stored = {t.name: t for t in model.graph.initializer if t.name.startswith("var")}
        for k, (name, tensor) in enumerate(stored.items()):
            node = onnx.helper.make_node("Constant", [], [name], value=tensor)
            model.graph.node.insert(k, node)
        kept = [t for t in model.graph.initializer if t.name not in stored]
        del model.graph.initializer[:]
        model.graph.initializer.extend(kept)
    view, done = _halved(model)
    batches = synthetic_batches(view.facts, 16)
    other = stand_in(view.facts, batches)
    seen: list[ModelProto] = []

    def look(v: View, m: ModelProto, w: Any, b: Any) -> tuple[ModelProto, tuple[Fitted, ...]]:
        seen.append(ModelProto.FromString(m.SerializeToString()))
        assert v.facts is other.facts
        return _untouched(v, m, w, b)

    lent = done.model.SerializeToString()
    model_again, _ = other.repaired(view, done.model, done.weights, batches, look)
    assert done.model.SerializeToString() == lent
    assert model_again.SerializeToString() == lent
    # what it was repaired in: the kept channels of the measured statistics
    stored = {t.name: numpy_helper.to_array(t) for t in seen[0].graph.initializer}
    node = next(n for n in seen[0].graph.node if n.output[0] == "n1")
    measured = other.statistics["n1"]
    np.testing.assert_allclose(stored[node.input[3]], measured.mean[::2], rtol=1e-6)
    np.testing.assert_allclose(stored[node.input[4]], measured.var[::2], rtol=1e-6)


def test_only_layers_change_and_they_get_closer() -> None:
    """On other images than it was repaired with: noise that nobody drew for it."""
    model = _first_norm("normalised")
    view, done = _halved(model)
    batches = synthetic_batches(view.facts, 128)
    other = stand_in(view.facts, batches)
    repaired, fitted = other.repaired(view, done.model, done.weights, batches, refit)
    onnx.checker.check_model(repaired)
    assert len(fitted) == 1
    same = {t.name for t in done.model.graph.initializer if t.name != "w2"}
    old = {t.name: t.SerializeToString() for t in done.model.graph.initializer}
    new = {t.name: t.SerializeToString() for t in repaired.graph.initializer}
    assert {n for n in same if old[n] != new[n]} <= {"w"}  # what makes the channels may move
    assert set(new) - set(old) <= {"c/bias", "d/bias"}
    x = ((draw(32, (16, 16), 3, 77) / 255 - 0.45) / 0.225).transpose(0, 3, 1, 2).astype(np.float32)
    runs = []
    for m in (model, done.model, repaired):
        with open_session(m) as session:
            runs.append(session.run({"x": x})["y"])
    y, sliced, after = runs
    assert ((after - y) ** 2).mean() < 0.5 * ((sliced - y) ** 2).mean()
