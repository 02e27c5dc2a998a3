"""How long one inference of a model takes, against one of the original on the same inputs."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from onnxprune.runtime.timing import interleave

_ROUNDS = 30
"""A comparison has at least so many."""
_PARTS = 3
_AGREE = 0.04
"""The shares from the parts of all rounds differ by no more when a comparison ends early."""
_QUANTILES = (10, 25, 50)
"""Of the times, the best first. On a quiet machine they all tell the same; on a busy one the fast
runs are those that nothing came between, but if runs are long there are hardly any.
"""


@dataclass(frozen=True, slots=True)
class Latency:
    """One inference of a model and one of the original, timed in turn."""

    ms: float
    original_ms: float
    share: float
    """Of the original's time."""
    low: float
    high: float
    """The shares in parts of the rounds: how sure it is."""


def compare(
    original: Callable[[], object], other: Callable[[], object], *, patience: float = 5.0
) -> Latency:
    """Time a model against the original until parts of the rounds agree about the share.

    The fastest quantile of the times counts in which they agree. `patience` is in seconds; a model
    that takes long gets `_ROUNDS` rounds nevertheless.
    """
    runs = {"original": original, "other": other}
    pair = sum(t.median_ms for t in interleave(runs, rounds=2).values()) / 1e3
    end = time.monotonic() + max(patience, _ROUNDS * pair)
    samples = np.zeros((2, 0))
    while True:
        block = max(0.4, _ROUNDS / 3 * pair)
        timed = interleave(runs, duration=block, warmup=0, seed=samples.shape[1])
        samples = np.hstack([samples, [timed["original"].samples, timed["other"].samples]])
        rounds = samples.shape[1]
        if rounds < _PARTS:
            continue
        found = [_at(samples, q) for q in _QUANTILES]
        agreed = [f for f in found if f.high <= f.low * (1 + _AGREE)]
        if agreed and rounds >= _ROUNDS:
            return agreed[0]
        if time.monotonic() > end:
            return min(found, key=lambda f: f.high / f.low)


def _at(samples: np.ndarray, quantile: float) -> Latency:
    original, other = np.percentile(samples, quantile, axis=1).tolist()
    parts = [np.percentile(samples[:, k::_PARTS], quantile, axis=1) for k in range(_PARTS)]
    shares = sorted(float(b / a) for a, b in parts)
    return Latency(other, original, other / original, shares[0], shares[-1])
