"""Second moments of what a layer reads and should give: all that least squares needs.

With u (rows, D) the taps and a one, and t (rows, O) the targets: G = E[u u'], R = E[u t'], and
E[t t'] summed over outputs. The squared error of any weights W (D, O) follows without the samples:
tr(W' G W) - 2 tr(W' R) + E|t|^2. A convolution in groups has them for each of its groups.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass
class Moments:
    """Sums over rows; `rows` counts them. `lead` is (groups,) for a layer in groups, else ()."""

    size: int
    outputs: int
    lead: tuple[int, ...] = ()
    rows: int = 0
    g: Array = field(init=False)
    """(*lead, D, D)."""
    r: Array = field(init=False)
    """(*lead, D, O)."""
    t: float = 0.0

    def __post_init__(self) -> None:
        self.g = np.zeros((*self.lead, self.size, self.size))
        self.r = np.zeros((*self.lead, self.size, self.outputs))

    def add(self, taps: np.ndarray, targets: np.ndarray, *, gram: bool = True) -> None:
        """Add rows: taps (*lead, n, D - 1) without the one, targets (*lead, n, O).

        Without `gram`, G is left alone: it is known already.
        """
        taps, targets = (a.astype(np.float32, copy=False) for a in (taps, targets))  # no half sums
        u = np.concatenate([taps, np.ones((*taps.shape[:-1], 1), np.float32)], axis=-1)
        across = np.swapaxes(u, -1, -2)
        if gram:
            self.g += across @ u
        self.r += across @ targets
        self.t += float(np.vdot(targets.astype(np.float64), targets))
        self.rows += taps.shape[-2]

    def plus(self, other: Moments) -> Moments:
        """Those of both sets of rows."""
        both = Moments(self.size, self.outputs, self.lead, self.rows + other.rows)
        both.g, both.r, both.t = self.g + other.g, self.r + other.r, self.t + other.t
        return both

    def minus(self, part: Moments) -> Moments:
        """Those of the other rows."""
        rest = Moments(self.size, self.outputs, self.lead, self.rows - part.rows)
        rest.g, rest.r, rest.t = self.g - part.g, self.r - part.r, self.t - part.t
        return rest

    def columns(self, keep: NDArray[np.bool_]) -> Moments:
        """Those of some of the columns."""
        some = Moments(int(keep.sum()), self.outputs, self.lead, self.rows)
        some.g, some.r, some.t = self.g[..., keep, :][..., keep], self.r[..., keep, :], self.t
        return some

    @property
    def finite(self) -> bool:
        return bool(np.isfinite(self.g).all() and np.isfinite(self.r).all() and np.isfinite(self.t))

    def error(self, w: Array) -> float:
        """Mean squared error of weights (*lead, D, O), summed over outputs."""
        n = max(1, self.rows)
        return float(np.sum(w * (self.g @ w)) - 2 * np.sum(w * self.r) + self.t) / n

    def ridge(self, w0: Array, share: float, *, free_bias: bool = True) -> Array:
        """Least squares with a pull towards `w0` (*lead, D, O), `share` of the taps' mean power.

        The last row, the bias, is hardly held: it must be free to take up the mean. Where it can't
        change (`free_bias` False), the other rows are solved for with the bias as it is.
        """
        hold = np.zeros((*self.lead, self.size))
        power = np.diagonal(self.g, axis1=-2, axis2=-1)[..., :-1].mean(axis=-1)
        power = np.maximum(power, 1e-4 * power.mean())  # a dead group has none
        hold[...] = (share * power + 1e-10)[..., None]
        hold[..., -1] = 1e-8 * max(self.rows, 1)
        if not free_bias:
            bias = w0[..., -1:, :]
            goal = self.r[..., :-1, :] - self.g[..., :-1, -1:] * bias
            goal = goal + hold[..., :-1, None] * w0[..., :-1, :]
            w = _solve(self.g[..., :-1, :-1], hold[..., :-1], goal)
            return np.concatenate([w, bias], axis=-2)
        return _solve(self.g, hold, self.r + hold[..., None] * w0)

    def bias_only(self, w0: Array) -> Array:
        """The weights as they are, with the bias that takes up the mean error."""
        w = w0.copy()
        left = self.r[..., -1, :] - (self.g[..., -1:, :] @ w0)[..., 0, :]
        w[..., -1, :] += left / max(1, self.rows)
        return w


def _solve(g: Array, hold: Array, goal: Array) -> Array:
    a = g.copy()
    index = np.arange(a.shape[-1])
    a[..., index, index] += hold
    if a.ndim > 2:
        return np.asarray(np.linalg.solve(a, goal), np.float64)
    from scipy.linalg import cho_factor, cho_solve

    try:
        return np.asarray(cho_solve(cho_factor(a), goal))
    except np.linalg.LinAlgError:  # rounding in the sums has left it not quite positive
        return np.asarray(np.linalg.lstsq(a, goal)[0])
