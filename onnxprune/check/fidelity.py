"""How close a slim model's outputs are to the original's on the same samples; no labels needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import open_session

HIGHEST = 150.0
"""dB that are reported at most: float32 ends there, and equal outputs have no finite ratio."""

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """One output of the slim model against the original's."""

    output: str
    snr_db: float | None
    """10 log10 of the power of the original's output over that of the difference."""
    agreement: float | None
    """Share of samples whose largest entry (or, of integers, whose entries) are the same."""
    kl: float | None
    """Mean KL(original || slim) of the class probabilities, in nats."""


@dataclass(eq=False)
class _Sums:
    """Of one output, over the batches."""

    power: float = 0.0
    error: float = 0.0
    """Both of floats alone."""
    rows: int = 0
    """Rows of class scores, or entries of an output of integers."""
    same: int = 0
    kl: float = 0.0
    floats: bool = False
    classes: bool = True
    compared: bool = True


def fidelity(
    original: ModelProto,
    slim: ModelProto,
    folder: Path | None,
    batches: Sequence[Feeds],
    provider: str = "cpu",
) -> tuple[Fidelity, ...]:
    """Compare the outputs on these samples; those whose sizes depend on values are left out.

    Agreement and KL are for outputs that look like class scores: a row of at least two numbers per
    sample. Rows that are no probabilities go through a softmax first.

    Raises:
        Unreadable: ONNX Runtime can't run one of the models.
    """
    sums: dict[str, _Sums] = {}
    with (
        open_session(original, provider=provider, optimise=True, folder=folder) as one,
        open_session(slim, provider=provider, optimise=True, folder=folder) as two,
    ):
        for feeds in batches:
            want, got = one.run(feeds), two.run(feeds)
            for name, a in want.items():
                s = sums.setdefault(name, _Sums())
                s.compared &= name in got and got[name].shape == a.shape and a.dtype.kind in "fiuV"
                if s.compared:
                    _add(s, a, got[name])
    return tuple(_told(name, s) for name, s in sums.items() if s.compared)


def output_error(rows: Sequence[Fidelity]) -> float:
    """Squared difference over power, the mean over float outputs; 0 where there are none."""
    found = [10 ** (-row.snr_db / 10) for row in rows if row.snr_db is not None]
    return float(np.mean(found)) if found else 0.0


def _add(s: _Sums, a: np.ndarray, b: np.ndarray) -> None:
    if a.dtype.kind in "iu":
        s.rows += a.size
        s.same += int((a == b).sum())
        return
    s.floats = True
    x, y = a.astype(np.float64), b.astype(np.float64)
    finite = np.isfinite(x)
    s.power += float(np.square(x[finite]).sum())
    s.error += float(np.square(y[finite] - x[finite]).sum())
    rows = _class_rows(x)
    if rows is None:
        s.classes = False
        return
    other = y.reshape(rows.shape)
    s.rows += len(rows)
    s.same += int((rows.argmax(axis=1) == other.argmax(axis=1)).sum())
    p, log_p, log_q = _log_probabilities(rows, other)
    s.kl += float((p * (log_p - log_q)).sum())


def _class_rows(x: Array) -> Array | None:
    """(samples, classes) of an output that looks like class scores."""
    if x.ndim < 2 or x.shape[1] < 2 or x.size != x.shape[0] * x.shape[1]:
        return None
    return x.reshape(x.shape[:2]) if np.isfinite(x).all() else None


def _log_probabilities(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """p, log p and log q of rows of probabilities, or of logits."""
    if (a >= 0).all() and np.allclose(a.sum(axis=1), 1, atol=1e-3):
        p = a
        log_p, log_q = np.log(np.maximum(a, 1e-12)), np.log(np.maximum(b, 1e-12))
    else:
        log_p, log_q = (v - v.max(axis=1, keepdims=True) for v in (a, b))
        log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        log_q = log_q - np.log(np.exp(log_q).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
    return p, log_p, log_q


def _told(name: str, s: _Sums) -> Fidelity:
    snr = agreement = kl = None
    if s.floats and s.power > 0:
        bound = 10 ** (HIGHEST / 10)
        ratio = s.power / s.error if s.error > 0 else bound
        snr = float(10 * np.log10(min(max(np.nan_to_num(ratio), 1 / bound), bound)))
    if s.classes and s.rows:
        agreement = s.same / s.rows
        if s.floats and np.isfinite(s.kl):
            kl = max(0.0, s.kl / s.rows)
    return Fidelity(name, snr, agreement, kl)
