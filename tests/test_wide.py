"""Layers that read too many columns for their moments: solved in the space of the samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest

from onnxprune import pipeline
from onnxprune.repair import jobs, obs
from onnxprune.repair.fits import tabled
from onnxprune.repair.moments import Moments
from onnxprune.repair.samples import Samples, Table
from onnxprune.runtime.session import open_session
from tests.choosing import analysed, model_of


def _both(n: int = 40, columns: int = 12, outputs: int = 3) -> tuple[Samples, Moments]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, columns)).astype(np.float32)
    t = rng.standard_normal((n, outputs)).astype(np.float32) + 2
    moments = Moments(columns + 1, outputs)
    moments.add(x, t)
    return Samples(Table(x, t), np.arange(n)), moments


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("share", [1e-3, 1e-1, 1.0])
def test_samples_give_the_solution_of_moments(share: float, free: bool) -> None:
    samples, moments = _both()
    w0 = np.random.default_rng(1).standard_normal((13, 3))
    a, b = (m.ridge(w0, share, free_bias=free) for m in (samples, moments))
    np.testing.assert_allclose(a, b, atol=2e-4)
    assert samples.error(a) == pytest.approx(moments.error(a), rel=1e-3)
    np.testing.assert_allclose(samples.bias_only(w0), moments.bias_only(w0), atol=1e-4)
    assert samples.t == pytest.approx(moments.t)


def test_parts_of_samples() -> None:
    whole, _ = _both()
    part = Samples(whole.table, np.arange(10))
    rest = whole.minus(part)
    assert rest.rows == 30
    assert sorted(rest.plus(part).index) == list(range(40))


def test_with_more_columns_than_rows_the_rows_are_met() -> None:
    samples, _ = _both(n=10, columns=50)
    w = samples.ridge(np.zeros((51, 3)), 1e-6)
    assert samples.error(w) < 1e-6 * samples.t / samples.rows


def test_a_table_is_bounded_and_has_rows_of_every_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxprune.repair.fits.ROWS", 32)

    def rows(k: int) -> tuple[np.ndarray, np.ndarray]:
        return np.full((100, 4), k, np.float32), np.zeros((100, 2), np.float32)

    folds = tabled(8, rows)
    assert folds.all.rows == 32
    assert [p.rows for p in folds.parts] == [8, 8, 8, 8]
    assert isinstance(folds.all, Samples)
    assert set(folds.all.table.x[:, 0]) == set(range(8))


def _flattened() -> onnx.ModelProto:
    """A map of 12 channels, of which 6 are mixtures of the others, flattened and read."""
    rng = np.random.default_rng(0)
    own = rng.standard_normal((6, 3, 3, 3))
    mixed = np.tensordot(rng.standard_normal((6, 6)), own, axes=1)
    weights = {
        "w1": np.concatenate([own, mixed]).astype(np.float32),
        "w2": rng.standard_normal((12 * 36, 5)).astype(np.float32),
        "b2": np.zeros(5, np.float32),
    }
    nodes: list[Any] = [
        ("Conv", ["x", "w1"], ["h"], {}), ("Flatten", ["h"], ["f"], {}),
        ("Gemm", ["f", "w2", "b2"], ["y"], {}),
    ]  # fmt: skip
    return model_of(nodes, weights, ["n", 3, 8, 8], ["n", 5])


def _batches(count: int, seed: int = 0) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((32, 3, 8, 8)).astype(np.float32)} for _ in range(count)]


def _run(model: onnx.ModelProto, x: dict[str, np.ndarray]) -> np.ndarray:
    with open_session(model) as session:
        return session.run(x)["y"].astype(np.float64)


@pytest.mark.parametrize("layer", ["dense", "convolution"])
def test_wide_layers_are_ranked_and_refitted(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of the channels can be told from the others: hardly anything is lost."""
    model = _flattened()
    if layer == "convolution":
        w = np.random.default_rng(5).standard_normal((5, 12, 6, 6)).astype(np.float32)
        nodes: list[Any] = [("Conv", ["x", "w1"], ["h"], {}), ("Conv", ["h", "w2"], ["y"], {})]
        first = onnx.numpy_helper.to_array(model.graph.initializer[0])
        model = model_of(nodes, {"w1": first, "w2": w}, ["n", 3, 8, 8], ["n", 5, 1, 1])
    how: dict[str, Any] = {"ratio": 0.5, "calib": _batches(32)}
    test, exact = _batches(1, 9)[0], pipeline.slim(model, **how)
    monkeypatch.setattr(jobs, "LARGEST", 100)
    monkeypatch.setattr(obs, "LARGEST", 100)
    wide, sliced = pipeline.slim(model, **how), pipeline.slim(model, repair="none", **how)
    assert not any("ranked by l2" in note for note in wide.report.notes)
    want = _run(model, test)
    power = float(np.square(want - want.mean(axis=0)).sum())

    def error(m: onnx.ModelProto) -> float:
        return float(np.square(_run(m, test) - want).sum()) / power

    assert error(exact.model) < 1e-3
    assert error(wide.model) < 0.02
    assert error(wide.model) < 0.05 * error(sliced.model)


def test_losses_tap_by_tap_are_those_of_independent_taps(monkeypatch: pytest.MonkeyPatch) -> None:
    """On white noise nothing but other channels at the same place makes up for a channel."""
    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((8, 6, 1, 1)).astype(np.float32),
        "w2": rng.standard_normal((8 * 16, 5)).astype(np.float32), "b2": np.zeros(5, np.float32),
    }  # fmt: skip
    nodes: list[Any] = [
        ("Conv", ["x", "w1"], ["h"], {}), ("Flatten", ["h"], ["f"], {}),
        ("Gemm", ["f", "w2", "b2"], ["y"], {}),
    ]  # fmt: skip
    a = analysed(model_of(nodes, weights, ["n", 6, 4, 4], ["n", 5]))
    group = a.by_name("w1")
    white = [{"x": rng.standard_normal((64, 6, 4, 4)).astype(np.float32)} for _ in range(64)]
    full = obs.obs_scores(a.solution, [group], white, 0.7).by_group[group.id]
    monkeypatch.setattr(obs, "LARGEST", 100)
    wide = obs.obs_scores(a.solution, [group], white, 0.7).by_group[group.id]
    assert full.max() > 10 * np.sort(full)[2]  # some could be told from others, some not
    np.testing.assert_allclose(np.sort(wide)[2:6], np.sort(full)[2:6], rtol=0.2)
    assert set(np.argsort(wide)[:3]) == set(np.argsort(full)[:3])
