"""Do criteria agree? Rank correlations between them, and the channels they would both remove.

The first of two blind spots of pruning criteria (Huang et al. 2021, "Rethinking the pruning
criteria for convolutional neural network"): inside a layer most norms rank channels nearly alike,
so that choosing between them chooses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from onnxprune.choose.allocate import lowest_gone
from onnxprune.choose.limits import share

Array = NDArray[np.float64]
Table = Sequence[Array | None]
"""Scores of one group by several criteria, None where one has nothing to say."""


@dataclass(frozen=True, eq=False)
class Similarity:
    """(K, K) symmetric tables over K criteria, NaN where two never meet."""

    layer: Array
    """Mean over groups of Spearman's rank correlation inside a group."""
    network: Array
    """Spearman's rank correlation over all channels together, as `--scope global` ranks them."""
    common: Array
    """Share of the channels that both remove among those that one removes, group by group."""
    chance: float
    """What `common` would be for two criteria that have nothing to do with each other."""


def rank_correlation(table: Table) -> Array:
    """(K, K) Spearman's rank correlation between the criteria of one group.

    NaN for a criterion that is missing or gives every channel the same score.
    """
    out = np.full((len(table), len(table)), np.nan)
    there = [k for k, scores in enumerate(table) if scores is not None and np.ptp(scores) > 0]
    if there:
        ranks = np.stack([rankdata(table[k]) for k in there])
        out[np.ix_(there, there)] = np.atleast_2d(np.corrcoef(ranks))
    return out


def in_common(table: Table, ratio: float) -> tuple[Array, int]:
    """(K, K) how many channels two criteria would both remove of a group, and how many each does.

    NaN for a criterion that is missing.
    """
    out = np.full((len(table), len(table)), np.nan)
    there = [k for k, scores in enumerate(table) if scores is not None]
    size = next((len(scores) for scores in table if scores is not None), 0)
    gone = np.ones((len(there), size))
    for row, k in enumerate(there):
        scores = table[k]
        assert scores is not None
        gone[row, lowest_gone(scores, size - share(size, ratio))] = 0
    if there:
        out[np.ix_(there, there)] = gone @ gone.T
    return out, share(size, ratio)


def similarity(groups: Sequence[Table], ratio: float) -> Similarity:
    """How alike K criteria are over the groups of a network, which all have the same K.

    `ratio` is the share of its channels that each group would lose.
    """
    count = len(groups[0]) if groups else 0
    inside = np.stack([rank_correlation(t) for t in groups]) if groups else np.zeros((0, 0, 0))
    both, each = np.zeros((count, count)), np.zeros((count, count))
    expected = removed = 0.0
    for table in groups:
        found, lost = in_common(table, ratio)
        size = max((len(scores) for scores in table if scores is not None), default=1)
        both += np.nan_to_num(found)
        each += np.where(np.isnan(found), 0, lost)
        expected += lost * lost / size
        removed += lost
    return Similarity(
        layer=_mean(inside) if groups else np.zeros((0, 0)),
        network=_over_all(groups),
        common=_ratio(both, each),
        chance=expected / removed if removed else ratio,
    )


def _over_all(groups: Sequence[Table]) -> Array:
    """(K, K) rank correlation over the channels of all groups that both of two criteria score."""
    count = len(groups[0]) if groups else 0
    out = np.full((count, count), np.nan)
    for i in range(count):
        for j in range(i + 1):
            pairs = [(t[i], t[j]) for t in groups if t[i] is not None and t[j] is not None]
            if pairs:
                a, b = (np.concatenate(side) for side in zip(*pairs, strict=True))
                out[i, j] = out[j, i] = rank_correlation([a, b])[0, 1]
    return out


def _mean(stack: Array) -> Array:
    there = ~np.isnan(stack)
    return _ratio(np.where(there, stack, 0).sum(axis=0), there.sum(axis=0))


def _ratio(a: Array, b: Array) -> Array:
    return np.asarray(np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0))
