"""What consumers read: measured statistics against numpy, promised ones against closed forms, and
the criteria that are made of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from onnx import ModelProto
from scipy.stats import norm

from models.zoo import ZOO, feeds
from onnxprune.choose.activity import measured
from onnxprune.choose.criteria import CRITERIA, inputs_for
from onnxprune.choose.gaussian import expected
from onnxprune.choose.reads import Inputs, Moments, reads
from onnxprune.choose.scores import group_scores
from onnxprune.errors import Unreadable, UsageError
from onnxprune.runtime.session import open_session
from tests.choosing import Analysed, analysed, model_of, two_layers
from tests.commands import onnxprune

RNG = np.random.default_rng(0)
NET = Path(__file__).parents[1] / "models" / "digits_resnet.onnx"
Arrays = dict[str, np.ndarray]


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def relative(values: np.ndarray) -> np.ndarray:
    return np.asarray(values / values.mean())


# ---- measured -----------------------------------------------------------------------------------


def seen(a: Analysed, values: Sequence[str], batches: list[Arrays]) -> dict[str, list[np.ndarray]]:
    """Tensors as a plain run of the model gives them, per batch."""
    names = {v: a.facts.model.in_file(v) for v in values}
    asked = sorted({n for n in names.values() if n not in batches[0]})
    with open_session(a.facts.model.proto, extra_outputs=asked) as session:
        runs = [{**b, **session.run(b, asked)} for b in batches]
    return {v: [r[n] for r in runs] for v, n in names.items()}


@pytest.mark.parametrize(
    "name",
    ["resnet", "densenet", "vgg_flatten", "grouped_conv", "vit", "lstm_both", "float16", "mlp",
     "unet_deconv", "constant_nodes", "ir3_inputs", "qdq", "llama", "se_block"],
)  # fmt: skip
def test_moments_are_those_of_the_activations(name: str) -> None:
    proto = ZOO[name](0)
    a = analysed(proto)
    batches = [feeds(proto, seed) for seed in range(3)]
    found = measured(a.solution, a.groups, batches)
    plain = seen(a, [r.value for each in found.values() for r, _ in each], batches)
    near, looked = 1e-2 if "16" in name else 1e-4, 0  # it runs optimised
    for g in a.groups:
        for read, moments in found[g.id]:
            parts = [np.moveaxis(x, read.axis, -1).reshape(-1, x.shape[read.axis])
                     for x in plain[read.value]]  # fmt: skip
            x = np.concatenate(parts).astype(np.float64)
            if np.array_equal(read.source, read.channel):
                assert np.allclose(moments.mean, x.mean(0), rtol=near, atol=1e-6)
                assert np.allclose(moments.square, (x**2).mean(0), rtol=near)
                assert np.allclose(moments.variance, x.var(0), rtol=near, atol=1e-6)
            else:  # a grouped convolution: the same channel of every group
                for c in range(g.size):
                    mine = x[:, read.source == c]
                    assert np.allclose(moments.mean[read.channel == c], mine.mean(), rtol=near)
            looked += 1
    assert looked


def test_batches_of_other_sizes_weigh_by_their_samples() -> None:
    a = analysed(two_layers(normal(8, 5), normal(3, 8)))
    x = normal(7, 5)
    (one,) = measured(a.solution, a.groups, [{"x": x}])[0]
    (two,) = measured(a.solution, a.groups, [{"x": x[:6]}, {"x": x[6:]}])[0]
    assert np.allclose(one[1].mean, two[1].mean)
    assert np.allclose(one[1].square, two[1].square)


def test_long_sums_stay_exact() -> None:
    """Variance next to a large mean: float32 sums would lose it."""
    shift = np.full(4, 1000, np.float32)
    a = analysed(two_layers(0.01 * normal(4, 3), normal(2, 4), shift))
    x = normal(50_000, 3)
    ((_, moments),) = measured(a.solution, a.groups, [{"x": x}])[0]
    hidden = seen(a, ["r"], [{"x": x}])["r"][0].astype(np.float64)
    assert np.allclose(moments.variance, hidden.var(0), rtol=1e-3)


def test_quantised_activations_count_from_their_zero_point() -> None:
    proto = ZOO["qoperator"](0)
    a = analysed(proto)
    batches = [feeds(proto, seed) for seed in range(2)]
    found = measured(a.solution, a.groups, batches)
    moved = 0
    for read, moments in (pair for each in found.values() for pair in each):
        x = np.concatenate(seen(a, [read.value], batches)[read.value]).astype(np.float64)
        zero = float(a.facts.model.array(a.facts.model.constants[read.node.inputs[2]]))
        axes = tuple(k for k in range(x.ndim) if k != read.axis)
        assert np.allclose(moments.mean, (x - zero).mean(axes))
        moved += zero != 0
    assert moved


def test_what_is_made_inside_a_body_is_left_out() -> None:
    proto = ZOO["if_conv"](0)
    a = analysed(proto)
    made = a.facts.model.producer
    inside = {(r.node.label, r.value) for each in reads(a.solution, a.groups).values()
              for r in each if r.value in made and made[r.value].site.path}  # fmt: skip
    found = measured(a.solution, a.groups, [feeds(proto)])
    assert inside
    assert not inside & {(r.node.label, r.value) for each in found.values() for r, _ in each}
    assert any(found.values())


# ---- promised by norms --------------------------------------------------------------------------


def normed(
    nodes: list[tuple[str, list[str], list[str], dict[str, object]]],
    weights: Arrays,
    *,
    channels: int = 6,
    last: int | None = None,
) -> Analysed:
    """x -> Conv -> BatchNormalization h -> nodes -> r -> Conv -> y."""
    n = channels
    some = {
        "w1": normal(n, 3, 1, 1), "w2": normal(4, n if last is None else last, 1, 1),
        "mean": normal(n), "var": RNG.uniform(1, 2, n).astype(np.float32),
    }  # fmt: skip
    first = [
        ("Conv", ["x", "w1"], ["c"], {}),
        ("BatchNormalization", ["c", "gamma", "beta", "mean", "var"], ["h"], {}),
    ]
    proto = model_of(
        [*first, *nodes, ("Conv", ["r", "w2"], ["y"], {})], {**some, **weights},
        ["n", 3, 8, 8], ["n", 4, 8, 8],
    )  # fmt: skip
    return analysed(proto)


def only(found: Inputs) -> Moments:
    ((_, moments),) = (pair for each in found.values() for pair in each)
    return moments


GAMMA = np.array([1, 0.5, 2, -1.5, 1e-3, 0.7], np.float32)
BETA = np.array([0, -1, 0.5, 1, 0.3, -4], np.float32)


def test_a_rectifier_has_the_moments_of_a_rectified_normal() -> None:
    a = normed([("Relu", ["h"], ["r"], {})], {"gamma": GAMMA, "beta": BETA})
    moments = only(expected(a.solution, a.groups))
    b, g = BETA.astype(float), np.abs(GAMMA).astype(float)
    t = b / g
    mean = b * norm.cdf(t) + g * norm.pdf(t)
    square = (b**2 + g**2) * norm.cdf(t) + b * g * norm.pdf(t)
    assert np.allclose(moments.mean, mean, rtol=2e-3, atol=1e-6)
    assert np.allclose(moments.square, square, rtol=2e-3, atol=1e-6)


def test_no_function_in_between_has_gamma_and_beta() -> None:
    a = normed([("Identity", ["h"], ["r"], {})], {"gamma": GAMMA, "beta": BETA})
    moments = only(expected(a.solution, a.groups))
    assert np.allclose(moments.mean, BETA, atol=1e-5)
    assert np.allclose(np.sqrt(moments.variance), np.abs(GAMMA), rtol=1e-3, atol=1e-5)


SIGMOID = ("Sigmoid", ["h"], ["s"], {})


@pytest.mark.parametrize(
    ("nodes", "weights", "function"),
    [
        ([SIGMOID, ("Mul", ["h", "s"], ["r"], {})], {}, lambda h: h / (1 + np.exp(-h))),
        ([("Clip", ["h", "low", "high"], ["r"], {})],
         {"low": np.float32(0), "high": np.float32(1.5)}, lambda h: np.clip(h, 0, 1.5)),
        ([("PRelu", ["h", "slope"], ["r"], {})],
         {"slope": np.linspace(0, 1, 6, dtype=np.float32).reshape(6, 1, 1)},
         lambda h: np.where(h < 0, h * np.linspace(0, 1, 6), h)),
        ([("HardSwish", ["h"], ["r"], {})], {}, lambda h: h * np.clip(h / 6 + 0.5, 0, 1)),
        ([("Relu", ["h"], ["q"], {}), ("MaxPool", ["q"], ["r"], {"kernel_shape": [1, 1]})], {},
         lambda h: np.maximum(h, 0)),
    ],
    ids=["silu", "clip", "prelu", "hardswish", "pooled"],
)  # fmt: skip
def test_any_activation_function(nodes: list, weights: Arrays, function) -> None:  # type: ignore[no-untyped-def, type-arg]
    a = normed(nodes, {"gamma": GAMMA, "beta": BETA, **weights})
    moments = only(expected(a.solution, a.groups))
    z = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    drawn = function(BETA.astype(float) + np.outer(z, GAMMA.astype(float)))
    assert np.allclose(moments.mean, drawn.mean(0), atol=3e-3)
    assert np.allclose(moments.square, (drawn**2).mean(0), rtol=5e-3, atol=1e-5)


def test_terms_of_a_sum_are_independent() -> None:
    """The same norm twice moves together; another one does not."""
    other = [
        ("Conv", ["x", "w3"], ["c2"], {}),
        ("BatchNormalization", ["c2", "gamma2", "beta2", "mean", "var"], ["h2"], {}),
    ]
    weights = {"gamma": GAMMA, "beta": BETA, "gamma2": 2 * GAMMA, "beta2": BETA + 1,
               "w3": normal(6, 3, 1, 1)}  # fmt: skip
    a = normed([*other, ("Add", ["h", "h2"], ["r"], {})], weights)
    moments = only(expected(a.solution, a.groups))
    assert np.allclose(moments.mean, 2 * BETA + 1, atol=1e-5)
    assert np.allclose(moments.variance, 5 * GAMMA**2, rtol=1e-3, atol=1e-5)
    a = normed([("Add", ["h", "h"], ["r"], {})], {"gamma": GAMMA, "beta": BETA})
    assert np.allclose(only(expected(a.solution, a.groups)).variance, 4 * GAMMA**2, rtol=1e-3,
                       atol=1e-5)  # fmt: skip


def test_channels_are_found_again_behind_movers() -> None:
    order = np.array([3, 1, 5, 0, 2, 4])
    a = normed([("Gather", ["h", "order"], ["r"], {"axis": 1})],
               {"gamma": GAMMA, "beta": BETA, "order": order})  # fmt: skip
    assert np.allclose(only(expected(a.solution, a.groups)).mean, BETA[order], atol=1e-5)


def test_halves_of_one_norm_do_not_move_together() -> None:
    """A gate: h is split, and one half scales the other."""
    nodes = [("Split", ["h"], ["u", "v"], {"axis": 1, "num_outputs": 2}),
             ("Add", ["u", "v"], ["r"], {})]  # fmt: skip
    a = normed(nodes, {"gamma": GAMMA, "beta": BETA}, last=3)
    moments = only(expected(a.solution, a.groups))
    assert np.allclose(moments.variance, GAMMA[:3] ** 2 + GAMMA[3:] ** 2, rtol=1e-3)


def test_nothing_is_known_without_a_norm() -> None:
    a = analysed(ZOO["resnet_folded"](0))
    assert not any(expected(a.solution, a.groups).values())
    scores = group_scores(a.facts, a.groups, "bn-wanda",
                          inputs=inputs_for("bn-wanda", a.solution, a.groups, None))  # fmt: skip
    assert "ranked by l2: what its consumers read is not known" in scores.notes[0]


def test_norms_of_a_trained_net_promise_what_data_show() -> None:
    a = analysed(NET)
    x = np.load(NET.with_name("digits_calib.npz"))["x"]
    shown = measured(a.solution, a.groups, [{"x": x}])
    promised = expected(a.solution, a.groups)
    for g in a.groups:
        for (_, m), (_, p) in zip(shown[g.id], promised[g.id], strict=True):
            assert np.corrcoef(m.mean, p.mean)[0, 1] > 0.9
            assert np.corrcoef(m.variance, p.variance)[0, 1] > 0.7


# ---- criteria -----------------------------------------------------------------------------------


def test_energy_and_wanda_by_hand() -> None:
    w1, w2 = normal(8, 5), normal(3, 8)
    a = analysed(two_layers(w1, w2))
    x = normal(100, 5)
    h = np.maximum(x @ w1.T, 0)
    wanted = {
        "energy": h.var(0) * (w2**2).sum(0),
        "wanda": np.abs(w2).sum(0) * np.sqrt((h**2).mean(0)),
    }
    for name, values in wanted.items():
        inputs = inputs_for(name, a.solution, a.groups, [{"x": x}])
        scores = group_scores(a.facts, a.groups, name, inputs=inputs)
        assert np.allclose(scores.by_group[0], relative(values), rtol=1e-4)
        assert scores.notes == ()


def test_a_constant_channel_has_no_energy_but_weighs() -> None:
    w1, b1 = normal(8, 5), np.zeros(8, np.float32)
    w1[2], b1[2] = 0, 3
    a = analysed(two_layers(w1, normal(3, 8), b1))
    batches = [{"x": normal(100, 5)}]
    energy, wanda = (
        group_scores(a.facts, a.groups, n, inputs=inputs_for(n, a.solution, a.groups, batches))
        for n in ("energy", "wanda")
    )
    assert energy.by_group[0][2] < 1e-9
    assert wanda.by_group[0][2] > 0.5


def test_a_flattened_map_sums_over_its_positions() -> None:
    proto = ZOO["vgg_flatten"](0)
    a = analysed(proto)
    inputs = measured(a.solution, a.groups, [feeds(proto)])
    read, moments, g = next((r, m, g) for g in a.groups for r, m in inputs[g.id]
                            if len(r.channel) > g.size)  # fmt: skip
    w = np.moveaxis(np.asarray(a.facts.model.array(a.facts.model.constants[read.weight])),
                    read.weight_axis, 0).astype(float)  # fmt: skip
    each = np.abs(w).reshape(len(w), -1).sum(1) * np.sqrt(moments.square)
    wanted = relative(np.array([each[read.channel == c].sum() for c in range(g.size)]))
    alone = {g.id: ((read, moments),)}
    scores = group_scores(a.facts, [g], "wanda", inputs=alone).by_group[g.id]
    assert np.allclose(scores, wanted, rtol=1e-5)


@pytest.mark.parametrize("name", sorted(ZOO))
def test_criteria_that_see_data_on_every_kind_of_net(name: str) -> None:
    proto = ZOO[name](0)
    a = analysed(proto)
    inputs = measured(a.solution, a.groups, [feeds(proto)])
    for criterion in ("energy", "wanda"):
        scores = group_scores(a.facts, a.groups, criterion, inputs=inputs)
        for g in a.groups:
            values = scores.by_group[g.id]
            assert values.shape == (g.size,)
            assert np.isfinite(values).all()
            assert values.mean() == pytest.approx(1, abs=1e-3)


def test_what_needs_data_says_so(net: Path) -> None:
    a = analysed(two_layers(normal(8, 5), normal(3, 8)))
    needy = [name for name, c in CRITERIA.items() if c.needs == "data"]
    assert sorted(needy) == ["energy", "wanda"]
    for name in needy:
        with pytest.raises(UsageError, match=f"--criterion {name} needs calibration data"):
            inputs_for(name, a.solution, a.groups, None)
        with pytest.raises(UsageError, match="needs calibration data"):
            group_scores(a.facts, a.groups, name)
        ended = onnxprune("slim", net, "--ratio", 0.5, "--criterion", name)
        assert ended.code == 2
        assert "--calib" in ended.err
        assert f"bn-{name}" in ended.err


def test_batches_that_do_not_fit() -> None:
    proto: ModelProto = ZOO["resnet"](0)
    a = analysed(proto)
    with pytest.raises(Unreadable):
        measured(a.solution, a.groups, [{"x": normal(1, 9, 9, 9)}])
