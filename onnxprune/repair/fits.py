"""Least squares that are judged on samples they have not seen, and the pull that this chooses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, Self

import numpy as np

from onnxprune.repair.jobs import Job, goal, goal_rows, rows_at
from onnxprune.repair.moments import Array, Moments
from onnxprune.repair.samples import ROWS, Samples, Table
from onnxprune.repair.stream import Kept, Stream

FOLDS = 4
"""Parts of the samples, for judging what the others solve for."""
AFFORDABLE = 1500
"""Columns up to which every part is judged; beyond, the last one stands for all."""


class Known(Protocol):
    """What is known of some rows that a layer reads and should give: `Moments`, or `Samples`."""

    @property
    def rows(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def t(self) -> float: ...
    @property
    def finite(self) -> bool: ...
    def plus(self, other: Self) -> Self: ...
    def minus(self, part: Self) -> Self: ...
    def error(self, w: Array) -> float: ...
    def ridge(self, w0: Array, share: float, *, free_bias: bool = True) -> Array: ...
    def bias_only(self, w0: Array) -> Array: ...


@dataclass(frozen=True, eq=False)
class Folds:
    """A layer's rows by parts of the samples: each is judged by what the others solve for."""

    parts: tuple[Known, ...]

    @cached_property
    def all(self) -> Known:
        total = self.parts[0]
        for part in self.parts[1:]:
            total = total.plus(part)
        return total

    @property
    def power(self) -> float:
        """Of the targets, summed over outputs."""
        return max(self.all.t / max(1, self.all.rows), 1e-30)

    @property
    def density(self) -> float:
        """Rows for each column."""
        return self.all.rows / self.all.size

    def errors(self, solve: Callable[[Known], Array]) -> Array:
        """(parts,) squared error of each part, as its share of the mean over all rows."""
        whole = self.all
        if len(self.parts) == 1:
            return np.array([whole.error(solve(whole))])
        judged = self.parts[-1:] if whole.size > AFFORDABLE else self.parts
        found = [p.error(solve(whole.minus(p))) * p.rows for p in judged]
        return np.array(found) / max(1, sum(p.rows for p in judged))


def fold_of(k: int, batches: int) -> int:
    """Which part batch `k` belongs to."""
    return k % min(FOLDS, batches)


def folded(batches: int, rows: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Folds:
    """Moments of the taps (*lead, n, D - 1) and targets (*lead, n, O) that each batch gives."""
    parts: list[Moments] = []
    for k in range(batches):
        taps, targets = rows(k)
        if not parts:
            size, outputs, lead = taps.shape[-1] + 1, targets.shape[-1], taps.shape[:-2]
            parts = [Moments(size, outputs, lead) for _ in range(min(FOLDS, batches))]
        parts[fold_of(k, batches)].add(taps, targets)
    return Folds(tuple(parts))


def tabled(batches: int, rows: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Folds:
    """Some of the rows themselves, for a layer that reads too many columns for their moments."""
    taps, targets, of = [], [], []
    for k in range(batches):
        x, t = rows(k)
        some = np.linspace(0, len(x) - 1, min(len(x), max(1, ROWS // batches))).astype(np.int64)
        taps.append(x[some])
        targets.append(t[some])
        of += [fold_of(k, batches)] * len(some)
    x, t = (np.concatenate(side).astype(np.float32, copy=False) for side in (taps, targets))
    table = Table(x, t)
    return Folds(tuple(Samples(table, np.nonzero(np.array(of) == p)[0]) for p in sorted(set(of))))


def gather(job: Job, was: Stream, now: Stream, inputs: Sequence[Kept] = ()) -> Folds:
    """Moments of what a layer reads and should give; `inputs` by batch win over what it reads."""

    def rows(k: int) -> tuple[np.ndarray, np.ndarray]:
        x, y = inputs[k].array if inputs else now.get(job.x, k), goal(job, was, now, k)
        return rows_at(job, x, y, k), goal_rows(job, y, k)

    return (tabled if job.is_wide else folded)(len(now.batches), rows)


@dataclass(frozen=True, eq=False)
class Fit:
    """What a solve gave: the pull, the errors of parts that it had not seen, the weights."""

    share: float
    errors: Array
    weights: Array
    density: float
    """See `Folds`."""

    @property
    def error(self) -> float:
        return float(self.errors.sum())

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.errors).all() and np.isfinite(self.weights).all())


def best_fit(folds: Folds, w0: Array, shares: Sequence[float], *, free: bool) -> Fit:
    """The pull with the least error on samples not seen; its weights are of all samples."""
    errors = {
        s: folds.errors(lambda m, s=s: m.ridge(w0, s, free_bias=free))  # type: ignore[misc]
        for s in shares
    }
    share = min(shares, key=lambda s: errors[s].sum())
    weights = folds.all.ridge(w0, share, free_bias=free)
    return Fit(share, errors[share], weights, folds.density)
