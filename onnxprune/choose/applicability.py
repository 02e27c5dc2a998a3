"""Can a criterion tell channels apart, or is its ranking noise?

The second of two blind spots (Huang et al. 2021). Weights of a trained filter are close to normal.
Were all n weights of all K filters drawn from one normal distribution, no filter would be worth
more than another, and the scores would still differ a little. Their coefficient of variation
(standard deviation over mean) would then be

    l2                 1 / sqrt(2 n)                        (chi distribution; exact form below)
    l1                 sqrt((pi/2 - 1) / n)                 (sum of n half normals)
    linf               that of the largest of n half normals
    geometric-median   half of l2's, for many channels      (sum of K - 1 distances)

A score of a group is the mean over M weights, each over its own average: sqrt(sum cv^2) / M. Scores
that spread no further than that, by a chi-square test of their variance, are too close to call.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group
from onnxprune.choose.criteria import scored_members
from onnxprune.choose.rows import Rows, holds_weights, rows

Array = NDArray[np.float64]

LEVEL = 0.05
"""Of both tests: how often chance alone is taken for more than chance."""
_FEWEST = 20
"""Weights of a filter from which the normality test holds (Anscombe & Glynn 1983)."""
_QUANTILES = 4096


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the scores of a group's channels lie apart."""

    cv: float
    """Standard deviation over mean."""
    gaussian: float | None
    """What it would be were all weights drawn from one normal distribution; None where the
    criterion is no norm and has no such figure.
    """
    close: bool | None
    """Is it no more than that?"""


def spread(scores: Array, gaussian: float | None = None) -> Spread:
    """The spread of one group's scores, against what chance would give."""
    mean = float(scores.mean())
    cv = float(scores.std(ddof=1)) / mean if len(scores) > 1 and mean > 0 else 0.0
    if gaussian is None:
        return Spread(cv, None, None)
    degrees = max(1, len(scores) - 1)
    limit = gaussian * np.sqrt(stats.chi2.ppf(1 - LEVEL, degrees) / degrees)
    return Spread(cv, gaussian, bool(cv <= limit))


def gaussian_cv(norm: str, weights: int, channels: int) -> float | None:
    """Coefficient of variation of a norm over `channels` filters of so many standard normal
    weights; None for a criterion that is no norm.
    """
    n, k = weights, channels
    if norm == "l2":
        chi = stats.chi(n)
        return float(chi.std() / chi.mean())
    if norm == "l1":
        return float(np.sqrt((np.pi / 2 - 1) / n))
    if norm == "linf":
        # quantiles of a maximum: F(x)^n = u; written so that u^(1/n) near 1 keeps its digits
        u = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
        largest = stats.norm.isf(-np.expm1(np.log(u) / n) / 2)
        return float(largest.std() / largest.mean())
    if norm == "geometric-median":
        # |w - v| is about sqrt(2 n) + (a + b - 2 wv) / sqrt(8 n), a = |w|^2 - n and b = |v|^2 - n.
        # Of w's sum over v, a has variance 2 n but lies in the others' sums too (once in each), and
        # each wv, variance n, in one other: together K (K-2) / (4 (K-1)^2) for a mean distance.
        return float(np.sqrt(k * (k - 2) / (8 * n)) / (k - 1)) if k > 1 else 0.0
    return None


def group_gaussian_cv(norm: str, group: Group, facts: Facts) -> float | None:
    """What `gaussian_cv` says of a group's score: the mean over its members."""
    found = []
    for m in scored_members(group, facts):
        w = rows(m, group.size, facts)
        if w.any():
            found.append(gaussian_cv(norm, w.shape[1], group.size))
    known = [cv for cv in found if cv is not None]
    if not known or len(known) < len(found):
        return None
    return float(np.sqrt(np.sum(np.square(known))) / len(known))


@dataclass(frozen=True, slots=True)
class Normality:
    """How many of the filters that make a group's channels look as if drawn from a normal
    distribution, of those with enough weights to tell.
    """

    normal: int
    tested: int


def normality(group: Group, facts: Facts) -> Normality:
    """Test each filter of each weight that creates the channels (D'Agostino & Pearson 1973).

    A filter whose weights are all alike (pruned away, or never trained) is not normal.
    """
    normal = tested = 0
    for m in group.members:
        if m.role == "creates" and holds_weights(m.value, facts):
            w = rows(m, group.size, facts)
            found = normal_filters(w)
            normal, tested = normal + int(found.sum()), tested + len(found)
    return Normality(normal, tested)


def normal_filters(w: Rows) -> NDArray[np.bool_]:
    """(channels,) which filters pass the test; () where they have too few weights for it."""
    if w.shape[1] < _FEWEST:
        return np.zeros(0, bool)
    wide = w.astype(np.float64)
    alive = np.ptp(wide, axis=1) > 0
    out = np.zeros(len(w), bool)
    if alive.any():
        out[alive] = stats.normaltest(wide[alive], axis=1).pvalue > LEVEL
    return out
