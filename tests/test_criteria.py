"""What channels are worth: every criterion against plain numpy, on every layout of a weight."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from onnx import ModelProto

from models.zoo import ZOO
from onnxprune.choose.criteria import CRITERIA, geometric_median, inputs_for, l1, l2, linf
from onnxprune.choose.frontend import filter_bank
from onnxprune.choose.rows import holds_weights, real_values, rows
from onnxprune.choose.scores import group_scores, load_scores
from onnxprune.errors import Unreadable, UsageError
from onnxprune.graph.files import load
from onnxprune.graph.model import WEIGHT_TYPES, normalise
from tests.choosing import SHARED, analysed, model_of, two_layers

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def relative(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / values.mean())


# ---- criteria ---------------------------------------------------------------------------------


def test_norms() -> None:
    w = normal(6, 10)
    assert np.allclose(l1(w), np.abs(w).sum(1))
    assert np.allclose(l2(w), np.linalg.norm(w, axis=1))
    assert np.allclose(linf(w), np.abs(w).max(1))


def test_geometric_median_is_the_sum_of_distances() -> None:
    w = normal(7, 5) + 100  # far from zero: the differences must not drown
    direct = [sum(np.linalg.norm(a - b) for b in w.astype(float)) for a in w.astype(float)]
    assert np.allclose(geometric_median(w), direct, rtol=1e-6)


def test_score_is_the_mean_over_members_without_biases() -> None:
    w1, w2, b1 = normal(8, 5), 1000 * normal(3, 8), 1e6 * normal(8)
    a = analysed(two_layers(w1, w2, b1))
    scores = group_scores(a.facts, a.groups, "l2")
    wanted = relative(np.linalg.norm(w1, axis=1)) + relative(np.linalg.norm(w2, axis=0))
    assert np.allclose(scores.by_group[0], wanted / 2)
    assert scores.notes == ()
    assert scores.by_group[0].mean() == pytest.approx(1)


def test_flattened_maps_and_gates_stand_in_one_row() -> None:
    a = analysed(ZOO["vgg_flatten"](0))
    found = 0
    for g in a.groups:
        for m in g.members:
            repeats = len(m.channel) // g.size
            if m.role == "contracts" and repeats > 1:
                w = real_values(m.value, a.facts)
                table = np.moveaxis(w, m.axis, 0).reshape(g.size, -1)
                assert np.array_equal(m.channel, np.repeat(np.arange(g.size), repeats))
                assert np.allclose(
                    np.linalg.norm(rows(m, g.size, a.facts), axis=1), np.linalg.norm(table, axis=1)
                )
                found += 1
    assert found
    a = analysed(ZOO["lstm"](0))
    g, m = next((g, m) for g in a.groups for m in g.members if len(m.channel) == 4 * g.size)
    w = np.moveaxis(real_values(m.value, a.facts), m.axis, 0)
    gates = w.reshape(4, g.size, -1).transpose(1, 0, 2).reshape(g.size, -1)
    assert np.array_equal(rows(m, g.size, a.facts), gates)


def test_channels_of_another_group_stay_out() -> None:
    """A consumer of a Concat has two groups on one axis: each sees its own slice."""
    w1, w2, w3 = normal(4, 3), normal(6, 3), normal(2, 10)
    proto = model_of(
        [
            ("Gemm", ["x", "w1"], ["a"], {"transB": 1}),
            ("Gemm", ["x", "w2"], ["b"], {"transB": 1}),
            ("Concat", ["a", "b"], ["c"], {"axis": 1}),
            ("Gemm", ["c", "w3"], ["y"], {"transB": 1}),
        ],
        {"w1": w1, "w2": w2, "w3": w3},
        ["n", 3],
        ["n", 2],
    )
    a = analysed(proto)
    scores = group_scores(a.facts, a.groups).by_group
    for name, w, part in (("w1", w1, w3[:, :4]), ("w2", w2, w3[:, 4:])):
        wanted = relative(np.linalg.norm(w, axis=1)) + relative(np.linalg.norm(part, axis=0))
        assert np.allclose(scores[a.by_name(name).id], wanted / 2)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_every_criterion_on_every_kind_of_net(name: str) -> None:
    a = analysed(ZOO[name](0))
    for criterion in CRITERIA:
        if CRITERIA[criterion].needs == "data":
            continue  # tests/test_activity.py
        inputs = inputs_for(criterion, a.solution, a.groups, None)
        scores = group_scores(a.facts, a.groups, criterion, inputs=inputs)
        for g in a.groups:
            values = scores.by_group[g.id]
            assert values.shape == (g.size,)
            assert np.isfinite(values).all()
            assert criterion == "random" or values.mean() == pytest.approx(1, abs=1e-3)


def test_random_is_seeded() -> None:
    a = analysed(two_layers(normal(8, 5), normal(3, 8)))
    first, again, other = (
        group_scores(a.facts, a.groups, "random", s).by_group[0] for s in (1, 1, 2)
    )
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_unknown_criterion() -> None:
    a = analysed(two_layers(normal(8, 5), normal(3, 8)))
    with pytest.raises(UsageError, match="no criterion 'l3'"):
        group_scores(a.facts, a.groups, "l3")


# ---- quantised and half weights ---------------------------------------------------------------


def quantised(axis: int, zero: np.ndarray, scale: np.ndarray) -> tuple[ModelProto, np.ndarray]:
    q = RNG.integers(-100, 100, (8, 5)).astype(np.int8)
    proto = model_of(
        [
            ("DequantizeLinear", ["q", "scale", "zero"], ["w1"], {"axis": axis}),
            ("Gemm", ["x", "w1"], ["h"], {"transB": 1}),
            ("Relu", ["h"], ["r"], {}),
            ("Gemm", ["r", "w2"], ["y"], {"transB": 1}),
        ],
        {"q": q, "scale": scale, "zero": zero, "w2": np.ones((3, 8), np.float32)},
        ["n", 5],
        ["n", 3],
    )
    shape = (-1, 1) if axis == 0 else (1, -1)
    wide = (q.astype(np.float32) - zero.astype(np.float32).reshape(shape)) * scale.reshape(shape)
    return proto, wide


@pytest.mark.parametrize(("axis", "n"), [(0, 8), (1, 5), (0, 1)])
def test_quantised_weights_are_scored_at_their_values(axis: int, n: int) -> None:
    zero, scale = RNG.integers(-50, 50, n).astype(np.int8), np.abs(normal(n)) + 0.1
    proto, w = quantised(axis, zero, scale)
    a = analysed(proto)
    g = a.groups[0]
    scored = [m for m in g.members if m.role != "follows" and holds_weights(m.value, a.facts)]
    assert {m.value for m in scored} == {"q", "w2"}, "scales and zero points are no weights"
    wanted = relative(np.linalg.norm(w, axis=1)) + 1
    assert np.allclose(group_scores(a.facts, a.groups).by_group[g.id], wanted / 2, rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_weights_are_scored_in_float32(dtype: type) -> None:
    w = np.full((8, 600), 300, np.float32)  # squares overflow in float16
    w[3] = 150
    a = analysed(ZOO["float16"](0))
    assert all(np.isfinite(v).all() for v in group_scores(a.facts, a.groups).by_group.values())
    proto = two_layers(w.astype(dtype), np.ones((3, 8), dtype))
    for v in (*proto.graph.input, *proto.graph.output):
        v.type.tensor_type.elem_type = proto.graph.initializer[0].data_type
    a = analysed(proto)
    scores = group_scores(a.facts, a.groups).by_group[0]
    assert scores.argmin() == 3
    assert scores[3] == pytest.approx((150 / (2250 / 8) + 1) / 2, rel=1e-3)


# ---- bn-scale ---------------------------------------------------------------------------------


def bn_net(kind: str, gamma: np.ndarray) -> ModelProto:
    n = len(gamma)
    ones = np.ones(n, np.float32)
    column = [("Unsqueeze", [v, "axes"], [f"{v}_"], {}) for v in ("gamma", "beta")]
    norm = {
        "node": [("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["h"], {})],
        "decomposed": [
            *column,
            ("Mul", ["c", "gamma_"], ["m"], {}),
            ("Add", ["m", "beta_"], ["h"], {}),
        ],
        "folded": [("Identity", ["c"], ["h"], {})],
    }[kind]
    weights = {
        "w1": normal(n, 3, 3, 3), "w2": normal(4, n, 1, 1), "gamma": gamma, "beta": ones,
        "mean": 0 * ones, "var": ones, "axes": np.array([1, 2]),
    }  # fmt: skip
    return model_of(
        [
            ("Conv", ["x", "w1"], ["c"], {}),
            *norm,
            ("Relu", ["h"], ["r"], {}),
            ("Conv", ["r", "w2"], ["y"], {}),
        ],
        weights,
        ["n", 3, 8, 8],
        ["n", 4, 6, 6],
    )


@pytest.mark.parametrize("kind", ["node", "decomposed"])
def test_bn_scale_reads_gamma(kind: str) -> None:
    gamma = normal(8)
    a = analysed(bn_net(kind, gamma))
    scores = group_scores(a.facts, a.groups, "bn-scale")
    assert np.allclose(scores.by_group[0], relative(np.abs(gamma)), rtol=1e-5)
    assert scores.notes == ()


def test_bn_scale_says_where_it_has_none() -> None:
    a = analysed(bn_net("folded", normal(8)))
    scores = group_scores(a.facts, a.groups, "bn-scale")
    assert np.array_equal(scores.by_group[0], group_scores(a.facts, a.groups).by_group[0])
    assert len(scores.notes) == 1
    assert "1 of 1 groups were ranked by l2" in scores.notes[0]


@pytest.mark.parametrize("name", ["conv_bn", "conv_bn_decomposed", "decomposed_bn_unsqueezed"])
def test_bn_scale_on_exported_forms(name: str) -> None:
    a = analysed(ZOO[name](0))
    assert group_scores(a.facts, a.groups, "bn-scale").notes == ()


# ---- scores from a file -----------------------------------------------------------------------


def test_scores_from_a_file_win(tmp_path: Path) -> None:
    a = analysed(ZOO["mlp"](0))
    g = next(g for g in a.groups if any(m.role == "creates" for m in g.members))
    values = np.arange(g.size)[::-1].astype(float)
    np.savez(tmp_path / "s.npz", **{g.name: values})
    scores = group_scores(a.facts, a.groups, given=load_scores(tmp_path / "s.npz"))
    assert np.array_equal(scores.by_group[g.id], values)
    rest = group_scores(a.facts, a.groups).by_group
    others = [h.id for h in a.groups if h is not g]
    assert all(np.array_equal(scores.by_group[k], rest[k]) for k in others)
    assert bool(others) == any("ranked by l2" in n for n in scores.notes)


def test_scores_per_gate_or_per_unit() -> None:
    a = analysed(ZOO["lstm"](0))
    g, m = next((g, m) for g in a.groups for m in g.members
                if len(m.channel) == 4 * g.size and m.role == "creates")  # fmt: skip
    name = a.facts.model.in_file(m.value)
    unit = RNG.uniform(size=g.size)
    for given in (unit, np.tile(unit, 4)):
        scores = group_scores(a.facts, [g], given={name: given})
        assert np.allclose(scores.by_group[g.id], unit)


def test_scores_that_fit_nothing() -> None:
    a = analysed(two_layers(normal(8, 5), normal(3, 8)))
    with pytest.raises(UsageError, match="no weight is called 'w11'") as e:
        group_scores(a.facts, a.groups, given={"w11": np.ones(8)})
    assert "did you mean" in str(e.value)
    with pytest.raises(UsageError, match="8 output channels, not 5"):
        group_scores(a.facts, a.groups, given={"w1": np.ones(5)})
    notes = group_scores(a.facts, a.groups, given={"w2": np.ones(3)}).notes
    assert any("creates no channels that could go" in n for n in notes)


def test_scores_that_are_no_scores(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(Unreadable):
        load_scores(tmp_path / "text.npz")
    with pytest.raises(Unreadable):
        load_scores(tmp_path / "none.npz")
    np.save(tmp_path / "one.npy", np.ones(3))
    with pytest.raises(Unreadable, match=r"not a \.npz"):
        load_scores(tmp_path / "one.npy")
    for bad in (np.ones((2, 2)), np.array([1, np.nan]), np.array(["a"])):
        np.savez(tmp_path / "bad.npz", w=bad)
        with pytest.raises(UsageError, match="one finite number"):
            load_scores(tmp_path / "bad.npz")


# ---- fixed filter banks -----------------------------------------------------------------------


def stft(n: int, window: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    angle = 2 * np.pi * np.arange(n // 2 + 1)[:, None] * np.arange(n)[None] / n
    return window * np.cos(angle), -window * np.sin(angle)


def mel(bands: int, bins: int) -> np.ndarray:
    edge = np.linspace(0, bins ** (1 / 2), bands + 2) ** 2
    at = np.arange(bins)
    rise = (at - edge[:-2, None]) / (edge[1:-1] - edge[:-2])[:, None]
    fall = (edge[2:, None] - at) / (edge[2:] - edge[1:-1])[:, None]
    return np.maximum(0, np.minimum(rise, fall))


@pytest.mark.parametrize("window", [np.ones(64), np.hanning(65)[:64], np.hamming(64)])
def test_stft_and_mel_are_known(window: np.ndarray) -> None:
    real, imaginary = stft(64, window)
    stacked = np.concatenate([real, imaginary])
    mixed = np.stack([real, imaginary], 1).reshape(-1, 64)
    for bank in (stacked, mixed):
        assert filter_bank(bank.astype(np.float32)) == "windowed sinusoids"
        assert filter_bank(bank.astype(np.float16).astype(np.float32)) == "windowed sinusoids"
        noisy = bank + 0.02 * RNG.standard_normal(bank.shape)  # trained on: no longer fixed
        assert filter_bank(noisy) is None
    assert filter_bank(mel(20, 129)) == "triangles"
    assert filter_bank(mel(20, 129) + 1e-3 * (RNG.uniform(size=(20, 129)) > 0.5)) is None


def test_plain_weights_are_no_filter_banks() -> None:
    assert filter_bank(np.ones((16, 32))) is None
    assert filter_bank(np.zeros((16, 32))) is None
    assert filter_bank(np.eye(32)) is None
    assert filter_bank(np.tile(RNG.standard_normal(32), (16, 1))) is None


def banks(model: ModelProto | Path) -> set[str]:
    """All weights of a model that look like filter banks, whichever axis is taken."""
    m = normalise(load(model))
    found = set()
    for c in m.constants.values():
        if c.tensor.data_type in WEIGHT_TYPES and c.size >= 128:
            w = m.array(c).astype(np.float32)
            for axis, n in enumerate(c.dims):
                taps = [d for k, d in enumerate(c.dims) if k != axis and d > 1]
                fits = n >= 8 and len(taps) == 1 and taps[0] >= 16
                if fits and filter_bank(np.moveaxis(w, axis, 0).reshape(n, -1)):
                    found.add(c.name)
    return found


def test_no_learned_weight_is_taken_for_a_filter_bank() -> None:
    if not SHARED.exists():
        pytest.skip(f"no {SHARED}")
    found = {name for path in sorted(SHARED.glob("*.onnx")) for name in banks(path)}
    assert found == {
        "onnx::MatMul_3414",  # gtcrn: bands of equal rectangular bandwidth, and back
        "onnx::MatMul_3932",
        "model.feature_extractor.forward_basis_buffer",
        "model_8k.feature_extractor.forward_basis_buffer",
        *(n for n in found if n.endswith("stft.forward_basis_buffer")),
    }
    assert not any(banks(build(0)) for build in ZOO.values())
