"""Second moments of what a consumer reads and should give: all that least squares needs.

With u (rows, D) the taps and a one, and t (rows, O) the targets: G = E[u u'], R = E[u t'], and
E[t t'] summed over outputs. The squared error of any weights W (D, O) follows without the samples:
tr(W' G W) - 2 tr(W' R) + E|t|^2.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Moments:
    """Sums over rows; `rows` counts them."""

    size: int
    outputs: int
    rows: int = 0
    g: Array = field(init=False)
    r: Array = field(init=False)
    t: float = 0.0

    def __post_init__(self) -> None:
        self.g = np.zeros((self.size, self.size))
        self.r = np.zeros((self.size, self.outputs))

    def add(self, taps: np.ndarray, targets: np.ndarray) -> None:
        """Add rows: taps (n, D - 1) without the one, targets (n, O)."""
        taps, targets = (a.astype(np.float32, copy=False) for a in (taps, targets))  # no half sums
        u = np.concatenate([taps, np.ones((len(taps), 1), np.float32)], axis=1)
        self.g += u.T @ u
        self.r += u.T @ targets
        self.t += float((targets.astype(np.float64) ** 2).sum())
        self.rows += len(taps)

    def error(self, w: Array) -> float:
        """Mean squared error of weights (D, O), summed over outputs."""
        n = max(1, self.rows)
        return float(np.sum(w * (self.g @ w)) - 2 * np.sum(w * self.r) + self.t) / n


def ridge(m: Moments, w0: Array, share: float, *, free_bias: bool = True) -> Array:
    """Least squares with a pull towards `w0` (D, O), `share` of the mean power of the taps.

    The last row, the bias, is hardly held: it must be free to take up the mean. Where it can't
    change (`free_bias` False), the other rows are solved for with the bias as it is.
    """
    from scipy.linalg import solve

    power = np.trace(m.g[:-1, :-1]) / max(1, m.size - 1)
    hold = np.full(m.size, share * power + 1e-10)
    hold[-1] = 1e-8 * max(m.rows, 1)
    if not free_bias:
        goal = m.r[:-1] - m.g[:-1, -1:] * w0[-1:] + hold[:-1, None] * w0[:-1]
        w = solve(m.g[:-1, :-1] + np.diag(hold[:-1]), goal, assume_a="pos")
        return np.concatenate([w, w0[-1:]])
    return np.asarray(solve(m.g + np.diag(hold), m.r + hold[:, None] * w0, assume_a="pos"))
