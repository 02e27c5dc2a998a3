"""The numbers of repair: taps of convolutions, moments and ridge, and what OBS says is lost."""

import numpy as np
import pytest

from onnxprune.graph.files import load
from onnxprune.graph.model import normalise
from onnxprune.repair.moments import Moments
from onnxprune.repair.obs import (
    _costs,
    _greedy,
    _layers,
    _reads,
    _remove,
    _Seen,
    _unseen,
    obs_scores,
)
from onnxprune.repair.taps import at_places, conv_taps, draw_places
from onnxprune.runtime.session import open_session
from tests.choosing import analysed, model_of, two_layers

# What a convolution multiplies

CONVS = {
    "1-D": ((9,), (3,), {}),
    "1-D, one-sided pads, stride, dilation": (
        (11,), (3,), {"pads": [3, 0], "strides": [2], "dilations": [2]},
    ),
    "2-D": ((6, 7), (3, 3), {}),
    "2-D, padded": ((6, 7), (3, 3), {"pads": [1, 1, 1, 1]}),
    "2-D, all pads different": ((6, 7), (3, 2), {"pads": [2, 0, 1, 3]}),
    "2-D, strides": ((8, 9), (3, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1]}),
    "2-D, dilations": ((9, 11), (3, 2), {"dilations": [2, 3], "pads": [2, 1, 0, 3]}),
    "2-D, SAME_UPPER": ((7, 8), (4, 3), {"auto_pad": "SAME_UPPER", "strides": [2, 1]}),
    "2-D, SAME_LOWER": ((7, 8), (4, 2), {"auto_pad": "SAME_LOWER", "strides": [2, 3]}),
    "2-D, SAME_LOWER, even kernel": ((5, 5), (2, 2), {"auto_pad": "SAME_LOWER"}),
    "2-D, VALID": ((7, 8), (3, 3), {"auto_pad": "VALID", "strides": [2, 1]}),
    "3-D": ((5, 6, 4), (2, 3, 1), {"pads": [1, 0, 0, 0, 2, 0], "strides": [2, 1, 1]}),
}  # fmt: skip


@pytest.mark.parametrize("what", CONVS)
def test_taps_times_weight_is_the_convolution(what: str) -> None:
    size, kernel, attributes = CONVS[what]
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 3, *size)).astype(np.float32)
    w = rng.standard_normal((5, 3, *kernel)).astype(np.float32)
    proto = model_of(
        [("Conv", ["x", "w"], ["y"], attributes)],
        {"w": w},
        ["n", 3, *size],
        ["n", 5, *"abc"][: len(size) + 2],
    )
    with open_session(proto) as session:
        y = session.run({"x": x})["y"]
    (node,) = normalise(load(proto)).graph.nodes
    places = draw_places(y.shape, 7, rng)
    assert places[0].shape == (len(x), min(7, np.prod(y.shape[2:])))
    taps = conv_taps(x, node, kernel, places)
    np.testing.assert_allclose(taps @ w.reshape(5, -1).T, at_places(y, places), atol=2e-5)


def test_places_are_different_and_cover_small_maps() -> None:
    rng = np.random.default_rng(0)
    for size, count in (((8, 9), 40), ((20, 30), 64), ((3, 4), 64)):
        drawn = np.stack(draw_places((5, 2, *size), count, rng), axis=-1)
        assert drawn.shape == (5, min(count, np.prod(size)), 2)
        assert (drawn >= 0).all()
        assert (drawn < size).all()
        if count * 8 > np.prod(size):
            assert all(len(np.unique(d, axis=0)) == len(d) for d in drawn)
        alike = all((drawn[0] == d).all() for d in drawn)
        assert alike == (count >= np.prod(size))


# Least squares from moments


def _data(rows: int = 200, inputs: int = 6, outputs: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((rows, inputs)).astype(np.float32) + 0.5
    t = x @ rng.standard_normal((inputs, outputs)) + rng.standard_normal((rows, outputs)) + 3
    return x, t.astype(np.float32)


def _moments(x: np.ndarray, t: np.ndarray, parts: int = 3) -> Moments:
    m = Moments(x.shape[1] + 1, t.shape[1])
    for a, b in zip(np.array_split(x, parts), np.array_split(t, parts), strict=True):
        m.add(a, b)
    return m


def _with_one(x: np.ndarray) -> np.ndarray:
    return np.concatenate([x, np.ones((len(x), 1))], axis=1)


def test_the_error_from_moments_is_the_error() -> None:
    x, t = _data()
    w = np.random.default_rng(2).standard_normal((7, 3))
    direct = ((_with_one(x) @ w - t) ** 2).sum(axis=1).mean()
    assert _moments(x, t).error(w) == pytest.approx(direct, rel=1e-5)


def test_ridge_goes_from_least_squares_to_where_it_starts() -> None:
    x, t = _data()
    m, w0 = _moments(x, t), np.random.default_rng(3).standard_normal((7, 3))
    best = np.linalg.lstsq(_with_one(x), t, rcond=None)[0]
    np.testing.assert_allclose(m.ridge(w0, 1e-12), best, atol=1e-4)
    np.testing.assert_allclose(m.ridge(w0, 1e9)[:-1], w0[:-1], atol=1e-6)
    errors = [m.error(m.ridge(w0, s)) for s in (1e-9, 1e-2, 1e-1, 1.0, 10.0)]
    assert errors == sorted(errors)


def test_the_bias_is_free() -> None:
    x, t = _data()
    m, w0 = _moments(x, t), np.random.default_rng(3).standard_normal((7, 3))
    held = m.ridge(w0, 1e9)
    np.testing.assert_allclose(held[-1], (t - x @ w0[:-1]).mean(axis=0), atol=1e-4)


def test_a_bias_that_can_not_change_is_reckoned_with() -> None:
    x, t = _data()
    m, w0 = _moments(x, t), np.random.default_rng(3).standard_normal((7, 3))
    best = np.linalg.lstsq(x, t - w0[-1], rcond=None)[0]
    held = m.ridge(w0, 1e-12, free_bias=False)
    np.testing.assert_allclose(held[:-1], best, atol=1e-4)
    np.testing.assert_array_equal(held[-1], w0[-1])


def test_half_precision_taps_do_not_overflow() -> None:
    x, t = np.full((300, 2), 20, np.float16), np.full((300, 1), 20, np.float16)
    m = _moments(x, t, 1)
    assert m.g[0, 0] == m.r[0, 0] == m.t == 300 * 400
    assert m.g[-1, -1] == 300


# OBS


def _least_loss(
    x: np.ndarray, t: np.ndarray, w0: np.ndarray, hold: np.ndarray, free: list[int]
) -> float:
    """min over W, zero outside `free`, of the mean squared error + hold * (W - w0)^2; directly."""
    u, n = _with_one(x.astype(np.float64)), len(x)
    a = np.concatenate([u / n**0.5, np.diag(hold**0.5)])[:, free]
    b = np.concatenate([t / n**0.5, hold[:, None] ** 0.5 * w0])
    return float(((a @ np.linalg.lstsq(a, b, rcond=None)[0] - b) ** 2).sum())


def _consumer(rows: int, blocks: int, taps: int, outputs: int, seed: int):  # type: ignore[no-untyped-def]
    """Data of a consumer and its layer as `_layer` makes it."""
    rng = np.random.default_rng(seed)
    size = blocks * taps
    x = (rng.standard_normal((rows, size)) @ rng.standard_normal((size, size))).astype(np.float32)
    w = rng.standard_normal((size, outputs)).astype(np.float32)
    t = x @ w + rng.standard_normal(outputs).astype(np.float32)
    proto = model_of([("MatMul", ["x", "w"], ["y"], {})], {"w": w}, ["n", size], ["n", outputs])
    found = analysed(proto)
    (read,) = _reads(found.solution)
    energy = float((t**2).sum(axis=1).mean())
    seen = _Seen(_moments(x, t), Moments(size + 1, outputs), energy * rows)
    (layer,) = _layers(read, seen, found.solution)
    g = _with_one(x).T @ _with_one(x) / rows
    hold = np.full(size + 1, 1e-2 * np.trace(g[:-1, :-1]) / size)
    hold[-1] = 1e-10
    index = [np.arange(j * taps, (j + 1) * taps) for j in range(blocks)]
    start = np.concatenate([w, np.zeros((1, outputs))]).astype(np.float64)

    def loss(removed: list[int]) -> float:
        gone = {i for j in removed for i in index[j].tolist()}
        return _least_loss(x, t, start, hold, [i for i in range(size + 1) if i not in gone])

    return layer, index, loss


@pytest.mark.parametrize("taps", [1, 4])
def test_costs_are_what_a_refit_loses_also_after_removals(taps: int) -> None:
    layer, index, loss = _consumer(400, 6, taps, 3, seed=5)
    alive, gone = np.ones(6, bool), []
    for j in (4, 1, 5):
        costs = _costs(layer, index, alive)
        base = loss(gone)
        for k in np.nonzero(alive)[0].tolist():
            assert costs[k] == pytest.approx(loss([*gone, k]) - base, rel=1e-3), (gone, k)
        assert len(set(costs.round(6))) > 1
        _remove(layer, index[j])
        alive[j] = False
        gone.append(j)


def _seen(learnt: int, judged: int, channels: int = 32, taps: int = 1) -> tuple[_Seen, np.ndarray]:
    """Samples of a layer whose channels tell of each other, by half; and its weights."""
    rng = np.random.default_rng(3)
    mix = rng.standard_normal((2 * channels * taps, channels * taps))
    w = rng.standard_normal((channels * taps, 5))

    def moments(rows: int) -> Moments:
        x = (rng.standard_normal((rows, len(mix))) @ mix).astype(np.float32)
        return _moments(x, (x @ w).astype(np.float32), 1) if rows else Moments(len(w) + 1, 5)

    w0 = np.concatenate([w, np.zeros((1, 5))])
    return _Seen(moments(learnt), moments(judged), 1.0), w0


@pytest.mark.parametrize("taps", [1, 3])
def test_refits_on_few_rows_are_worth_less_on_others(taps: int) -> None:
    many, w0 = _seen(30_000, 10_000, taps=taps)
    assert _unseen(many, w0, taps) == pytest.approx(1, abs=0.03)
    few, w0 = _seen(120 * taps, 10_000, taps=taps)
    # n rows for D columns: (1 + D/n) / (1 - D/n), the ridge aside
    share = (24 * taps + 1) / (120 * taps)
    assert _unseen(few, w0, taps) == pytest.approx((1 + share) / (1 - share), rel=0.2)


def test_without_samples_to_judge_by_nothing_is_known() -> None:
    assert _unseen(*_seen(0, 100), 1) == 1
    assert _unseen(*_seen(100, 0), 1) == 1


def test_starved_layers_are_known() -> None:
    """The same channels, seen at few positions or at many: what few rows say is trusted less."""
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((24, 8)), rng.standard_normal((6, 24))
    found = analysed(two_layers(w1.astype(np.float32), w2.astype(np.float32)))
    (group,) = found.groups

    def unseen(batches: int, size: int) -> float:
        data = np.random.default_rng(1)
        samples = [{"x": data.standard_normal((size, 8)).astype(np.float32)}
                   for _ in range(batches)]  # fmt: skip
        return obs_scores(found.solution, found.groups, samples, 0.5).unseen[group.id]

    assert unseen(8, 6) > 1.5
    assert unseen(8, 600) < 1.1


def test_greedy_takes_the_cheapest_over_both_consumers() -> None:
    parts, losses = [], []
    for seed, taps in ((6, 1), (7, 3)):
        layer, _, loss = _consumer(300, 5, taps, 4, seed)
        parts.append((layer, np.repeat(np.arange(5), taps)))
        losses.append((loss, layer.share))
    scores = _greedy(parts, 5, 3)
    gone: list[int] = []
    paid: list[float] = []
    for _ in range(3):
        costs = {
            k: sum(share * (loss([*gone, k]) - loss(gone)) for loss, share in losses)
            for k in range(5) if k not in gone
        }  # fmt: skip
        cheapest = min(costs, key=costs.__getitem__)
        paid.append(costs[cheapest])
        gone.append(cheapest)
    assert np.argsort(scores, kind="stable")[:3].tolist() == gone
    np.testing.assert_allclose(scores[gone], np.maximum.accumulate(paid), rtol=1e-3)
    rest = [k for k in range(5) if k not in gone]
    assert (scores[rest] > scores[gone].max()).all()


def test_a_channel_that_another_one_repeats_goes_first() -> None:
    rng = np.random.default_rng(0)
    w1, w2 = rng.standard_normal((6, 5)), rng.standard_normal((4, 6)) * 2
    w1[3] = 3 * w1[0]  # large, read by large weights: l2 would keep it
    w2[:, 3] *= 5
    found = analysed(two_layers(w1.astype(np.float32), w2.astype(np.float32)))
    batches = [{"x": rng.standard_normal((64, 5)).astype(np.float32)} for _ in range(4)]
    (group,) = found.groups
    scores = obs_scores(found.solution, found.groups, batches, 0.5).by_group[group.id]
    assert np.argmin(scores) in (0, 3)
    gone = np.argsort(scores)[:3].tolist()
    assert not {0, 3} <= set(gone)
