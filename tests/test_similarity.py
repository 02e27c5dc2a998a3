"""Agreement of criteria against scipy, spreads against simulated filters."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from onnxprune.choose.applicability import (
    LEVEL,
    gaussian_cv,
    group_gaussian_cv,
    normal_filters,
    normality,
    spread,
)
from onnxprune.choose.criteria import geometric_median, l1, l2, linf
from onnxprune.choose.similarity import in_common, rank_correlation, similarity
from tests.choosing import analysed, two_layers

NORMS = {"l1": l1, "l2": l2, "linf": linf, "geometric-median": geometric_median}


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# ---- similarity ---------------------------------------------------------------------------------


def test_rank_correlation_is_scipys() -> None:
    a, b = rng().standard_normal((2, 40))
    b = (b + a).round(1)  # with ties
    found = rank_correlation([a, b, a**3])
    assert found[0, 1] == pytest.approx(spearmanr(a, b).statistic)
    assert found[0, 2] == pytest.approx(1), "ranks alone count"
    assert np.allclose(found, found.T)


def test_what_can_not_be_ranked_has_no_correlation() -> None:
    a = np.arange(5.0)
    found = rank_correlation([a, np.ones(5), None, -a])
    assert found[0, 3] == pytest.approx(-1)
    assert np.isnan(found[1]).all()
    assert np.isnan(found[2]).all()
    assert np.isnan(rank_correlation([np.ones(3), None])).all()


def test_channels_in_common_by_hand() -> None:
    a, b = np.array([1.0, 2, 3, 4, 5]), np.array([1.0, 5, 4, 2, 3])
    found, lost = in_common([a, b, None], 0.5)
    assert lost == 2  # a removes 0 and 1, b removes 0 and 3
    assert found[:2, :2].tolist() == [[2, 1], [1, 2]]
    assert np.isnan(found[2]).all()


def test_the_network_is_the_mean_inside_and_the_ranking_over_all() -> None:
    a = [np.array([1.0, 2, 3, 4]), np.array([10.0, 20, 30])]
    b = [np.array([1.0, 2, 3, 4]), np.array([3.0, 2, 1])]
    found = similarity([[x, y] for x, y in zip(a, b, strict=True)], 0.5)
    assert found.layer[0, 1] == pytest.approx(0), "1 in one group, -1 in the other"
    every = spearmanr(np.concatenate(a), np.concatenate(b)).statistic
    assert found.network[0, 1] == pytest.approx(every)
    assert found.common[0, 1] == pytest.approx(2 / 3)  # 2 of 2, and 0 of 1
    assert found.chance == pytest.approx((2 * 2 / 4 + 1 * 1 / 3) / 3)


def test_unrelated_criteria_have_as_much_in_common_as_by_chance() -> None:
    groups = [list(rng(seed).standard_normal((2, 30))) for seed in range(100)]
    found = similarity(groups, 0.3)
    assert found.chance == pytest.approx(0.3)
    assert found.common[0, 1] == pytest.approx(0.3, abs=0.04)
    assert found.layer[0, 1] == pytest.approx(0, abs=0.05)


def test_groups_that_a_criterion_does_not_score_do_not_count() -> None:
    a = np.arange(6.0)
    found = similarity([[a, a], [a, None], [None, None]], 0.5)
    assert found.layer[0, 1] == found.network[0, 1] == found.common[0, 1] == 1


# ---- applicability ------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("weights", "channels"), [(27, 16), (64, 4), (144, 32), (400, 8)])
def test_spreads_of_gaussian_filters(norm: str, weights: int, channels: int) -> None:
    """The formulas against filters that were drawn: root mean square of the observed spreads."""
    found = []
    for seed in range(150):
        scores = NORMS[norm](rng(seed).standard_normal((channels, weights)))
        found.append(scores.var(ddof=1) / scores.mean() ** 2)
    wanted = gaussian_cv(norm, weights, channels)
    assert wanted is not None
    assert np.sqrt(np.mean(found)) == pytest.approx(wanted, rel=0.08)


def test_l2_is_the_published_figure() -> None:
    """1/sqrt(2 n), Huang et al. 2021."""
    for n in (100, 4608, 1_000_000):
        assert gaussian_cv("l2", n, 64) == pytest.approx(1 / np.sqrt(2 * n), rel=2 / n + 1e-4)


def test_what_is_no_norm_has_no_figure() -> None:
    assert gaussian_cv("wanda", 100, 10) is None
    assert gaussian_cv("random", 100, 10) is None


def test_two_channels_have_one_distance() -> None:
    assert gaussian_cv("geometric-median", 9, 2) == 0
    assert spread(geometric_median(rng().standard_normal((2, 9))), 0.0).close


@pytest.mark.parametrize("norm", ["l1", "l2"])
def test_filters_from_one_distribution_are_too_close_to_call(norm: str) -> None:
    """But for the share of them that the test gets wrong on purpose."""
    close = []
    for seed in range(200):
        w = rng(seed).standard_normal((64, 72))
        close.append(spread(NORMS[norm](w), gaussian_cv(norm, 72, 64)).close)
    assert 1 - np.mean(close) == pytest.approx(LEVEL, abs=0.045)


def test_filters_of_other_sizes_are_told_apart() -> None:
    w = rng().standard_normal((64, 72)) * np.linspace(0.7, 1.3, 64)[:, None]
    found = spread(l2(w), gaussian_cv("l2", 72, 64))
    assert found.close is False
    assert found.gaussian is not None
    assert found.cv > 2 * found.gaussian


def test_a_group_is_the_mean_of_its_members() -> None:
    """Two weights of 50 and 30 entries a channel: scores spread as their mean does."""
    found = []
    for seed in range(200):
        w1, w2 = rng(seed).standard_normal((12, 50)), rng(seed + 999).standard_normal((30, 12))
        scores = l2(w1) / l2(w1).mean() + l2(w2.T) / l2(w2.T).mean()
        found.append(scores.var(ddof=1) / scores.mean() ** 2)
    a = analysed(two_layers(w1.astype(np.float32), w2.astype(np.float32)))
    wanted = group_gaussian_cv("l2", a.groups[0], a.facts)
    assert wanted == pytest.approx(np.sqrt(np.mean(found)), rel=0.05)
    assert group_gaussian_cv("obs", a.groups[0], a.facts) is None


def test_scores_that_are_all_alike() -> None:
    assert spread(np.ones(8), 0.1).close
    assert spread(np.ones(8)).close is None
    assert spread(np.zeros(8)).cv == 0


def test_normal_filters() -> None:
    w = rng().standard_normal((200, 100))
    assert normal_filters(w).mean() == pytest.approx(1 - LEVEL, abs=0.05)
    heavy = rng().standard_t(3, (200, 100))
    assert normal_filters(heavy).mean() < 0.4
    assert normal_filters(rng().uniform(-1, 1, (50, 100))).mean() < 0.2
    w[:7] = 0
    assert not normal_filters(w)[:7].any()
    assert normal_filters(w[:, :9]).size == 0, "too few weights to tell"


def test_normality_looks_at_what_creates_the_channels() -> None:
    w1 = rng().standard_normal((10, 40)).astype(np.float32)
    w2 = rng().uniform(-1, 1, (300, 10)).astype(np.float32)
    a = analysed(two_layers(w1, w2))
    found = normality(a.groups[0], a.facts)
    assert found.tested == 10
    assert found.normal == normal_filters(w1).sum() >= 8
