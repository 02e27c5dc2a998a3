"""Fixed signal processing at a model's front: filters that were computed, not learned.

An STFT or mel filter bank looks prunable and is not meant to be: its channels are frequencies.
The tests are on exact structure that training never leaves, so a learned weight does not pass.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group
from onnxprune.choose.rows import holds_weights, real_values

_CHANNELS, _TAPS = 8, 16
_EXACT = 2e-3
"""Relative to a filter's peak: half types round by about 5e-4."""
_SAMPLE = 8

Filters = NDArray[np.floating]
"""(channels, taps)"""


def fixed_filters(group: Group, facts: Facts) -> str | None:
    """Why a group's creating weight is a fixed filter bank; None for all others."""
    for m in group.members:
        shape = facts.trace.shapes[m.value]
        taps = [d for k, d in enumerate(shape) if k != m.axis and d > 1]
        if m.role != "creates" or shape[m.axis] < _CHANNELS or len(taps) != 1 or taps[0] < _TAPS:
            continue
        if holds_weights(m.value, facts):
            w = np.moveaxis(real_values(m.value, facts), m.axis, 0).reshape(shape[m.axis], -1)
            kind = filter_bank(w)
            if kind is not None:
                return f"'{facts.model.in_file(m.value)}' is a fixed filter bank ({kind})"
    return None


def filter_bank(w: Filters) -> str | None:
    """What kind of computed filters these are: 'windowed sinusoids', 'triangles', or None."""
    for kind, test, sampled in (
        ("windowed sinusoids", _mirrored, _spread(w)),
        ("windowed sinusoids", _quadrature, _pairs(w)),
        ("triangles", _triangles, _spread(w)),
    ):
        if test(sampled) and test(w):
            return kind
    return None


def _spread(w: Filters) -> Filters:
    return np.asarray(w[np.linspace(0, len(w) - 1, _SAMPLE).astype(int)])


def _pairs(w: Filters) -> Filters:
    """A few pairs, those of both layouts: (k, k + half) where they are stacked, (2k, 2k + 1)."""
    half = len(w) // 2
    at = np.unique(np.linspace(0, half - 1, _SAMPLE // 2).astype(int))
    stacked = w[np.concatenate([at, half + at])]
    mixed = w[np.stack([2 * at, 2 * at + 1], axis=1).ravel()]
    return np.asarray(stacked if _quadrature(stacked) else mixed)


def _oscillate(w: Filters) -> bool:
    """Do filters change along their taps and from one to the next (some are 0 or constant)?"""
    peak = np.abs(w).max()
    along = np.ptp(w, axis=1) > _EXACT * peak
    across = np.abs(np.diff(w, axis=0)).max(axis=1) > _EXACT * peak
    return bool(peak > 0 and along.mean() >= 0.5 and across.mean() >= 0.5)


def _mirrored(w: Filters) -> bool:
    """Is every filter even or odd about one centre, as sines and cosines under a window are?"""
    peak = np.abs(w).max(axis=1, keepdims=True)
    peak = np.maximum(peak, max(_EXACT * peak.max(), np.finfo(np.float32).tiny))  # sin(0) is noise
    for v in (w[:, 1:] / peak, w / peak):  # a periodic window, a symmetric one
        turned = v[:, ::-1]
        even, odd = (np.abs(v - s * turned).max(axis=1) <= _EXACT for s in (1, -1))
        if (even | odd).all():
            return _oscillate(w)
    return False


def _quadrature(w: Filters) -> bool:
    """Do pairs of filters have one envelope, cos^2 + sin^2 = window^2?"""
    if len(w) % 2:
        return False
    for a, b in ((w[: len(w) // 2], w[len(w) // 2 :]), (w[::2], w[1::2])):
        envelope = np.square(a, dtype=np.float64) + np.square(b, dtype=np.float64)
        if np.ptp(envelope, axis=0).max() <= _EXACT * envelope.max():
            return _oscillate(w)
    return False


def _triangles(w: Filters) -> bool:
    """Is every filter one rise and one fall from zero, further along than the one before?"""
    if w.min() < 0 or not 0.5 <= (w == 0).mean() < 1:
        return False
    live = w[w.any(axis=1)]
    on = np.pad(live > 0, ((0, 0), (1, 1))).astype(np.int8)
    one_run = (np.abs(np.diff(on, axis=1)).sum(axis=1) == 2).all()
    sign = np.sign(np.diff(np.pad(live, ((0, 0), (1, 1))), axis=1))
    falls_once = all(not (np.diff(s[s != 0]) > 0).any() for s in sign)
    forward = (np.diff(live.argmax(axis=1)) >= 0).all()
    wide = (live > 0).sum(axis=1).mean() >= 2
    return bool(one_run and falls_once and forward and wide and len(live) >= 0.75 * len(w))
