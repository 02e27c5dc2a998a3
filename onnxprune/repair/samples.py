"""Least squares for layers that read more than second moments can be kept of.

With few rows for many columns the normal equations are solved in the space of the rows: with u
(rows, D), targets t, holds d (D,) and weights w0 to be near to,

    w = w0 + diag(d)^-1 u' (u diag(d)^-1 u' + 1)^-1 (t - u w0)

is the ridge solution of `Moments.ridge` (the matrix inversion lemma). Only u u' is needed, once for
all parts of the rows and all pulls.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_factor, cho_solve

Array = NDArray[np.float64]
ROWS = 4096
"""Rows that are kept of a layer."""


@dataclass(frozen=True, eq=False)
class Table:
    """All rows of a layer: what it reads, without the one (n, D - 1), and its targets (n, O)."""

    x: NDArray[np.float32]
    t: NDArray[np.float32]

    @cached_property
    def inner(self) -> NDArray[np.float32]:
        """(n, n) products of rows."""
        return np.asarray(self.x @ self.x.T)


@dataclass(frozen=True, eq=False)
class Samples:
    """Some rows of a table; stands where `Moments` of fewer columns do."""

    table: Table
    index: NDArray[np.int64]

    @property
    def rows(self) -> int:
        return len(self.index)

    @property
    def size(self) -> int:
        """Columns, the one included."""
        return int(self.table.x.shape[1]) + 1

    @property
    def finite(self) -> bool:
        mine = (self.table.x[self.index], self.table.t[self.index])
        return all(bool(np.isfinite(a).all()) for a in mine)

    @property
    def t(self) -> float:
        """Energy of the targets."""
        return float(np.square(self.table.t[self.index], dtype=np.float64).sum())

    def plus(self, other: Samples) -> Samples:
        return Samples(self.table, np.concatenate([self.index, other.index]))

    def minus(self, part: Samples) -> Samples:
        return Samples(self.table, np.setdiff1d(self.index, part.index))

    def error(self, w: Array) -> float:
        """Mean squared error of weights (D, O), summed over outputs."""
        off = self._left(w)
        return float(np.vdot(off, off)) / max(1, self.rows)

    def _left(self, w: Array) -> Array:
        """(rows, O) what weights leave of the targets."""
        made = self.table.x[self.index] @ w[:-1].astype(np.float32) + w[-1]
        return np.asarray(self.table.t[self.index] - made, np.float64)

    def ridge(self, w0: Array, share: float, *, free_bias: bool = True) -> Array:
        """See `Moments.ridge`."""
        x = self.table.x[self.index]
        inner = self.table.inner[np.ix_(self.index, self.index)].astype(np.float64)
        hold = share * float(np.trace(inner)) / max(1, x.shape[1]) + 1e-10
        inner /= hold
        ones = 1e8 / max(self.rows, 1) if free_bias else 0.0  # the bias is hardly held
        inner += ones
        inner[np.diag_indices_from(inner)] += 1
        left = cho_solve(cho_factor(inner), self._left(w0))
        return np.concatenate([
            w0[:-1] + (x.T @ left.astype(np.float32)) / hold,
            w0[-1:] + ones * left.sum(axis=0),
        ])  # fmt: skip

    def bias_only(self, w0: Array) -> Array:
        """See `Moments.bias_only`."""
        w = w0.copy()
        w[-1] += self._left(w0).mean(axis=0)
        return w
