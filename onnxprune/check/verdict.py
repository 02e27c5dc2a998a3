"""What a proof found, and the yardstick that it was held against."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

FLOAT32_TOLERANCE = 1e-4
HALF_TOLERANCE = 1e-2

_BLOCK = 1 << 20  # entries that are compared at once: what lies between takes no memory to speak of
_NOTHING = 1e-30  # smaller magnitudes are zero: the range of float32 ends at 1e-38


@dataclass(frozen=True, slots=True)
class Difference:
    """How far a tensor of the slim model is from the masked original's.

    `error` is max|a - b| / max|masked| for floats, in quantisation steps for 8-bit integers, and
    the share of unequal entries for everything else; it is inf where `why` says what can't be
    compared at all.
    """

    tensor: str
    error: float
    tolerance: float
    why: str = ""

    @property
    def bad(self) -> bool:
        return not self.error <= self.tolerance

    @property
    def badness(self) -> float:
        """Error in units of the tolerance, to compare tensors of different types."""
        error = np.inf if np.isnan(self.error) else self.error
        return error / self.tolerance if self.tolerance else error * 1e9

    def __str__(self) -> str:
        return f"{self.tensor}: {self.why or f'{self.error:.1e} > {self.tolerance:.0e}'}"


@dataclass(frozen=True, slots=True)
class Fed:
    """Inputs of one comparison: shapes by name, and the seed that drew them (None: given)."""

    shapes: Mapping[str, tuple[int, ...]]
    seed: int | None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a proof.

    `max_rel_err` belongs to `worst`, the tensor that comes closest to its `tolerance` or exceeds it
    most. Where outputs differ by more, but every node on its own agrees, it was rounding
    (`by_node`), and both numbers are those of the worst single node.
    """

    passed: bool
    max_rel_err: float
    tolerance: float
    inputs: tuple[Fed, ...] = ()
    compared: tuple[str, ...] = ()
    """Outputs, and tensors before outputs that jump."""
    vacuous: bool = False
    """The removed channels had no influence on what was compared: nothing was shown."""
    moved: float = 0.0
    """How far the mask moved what was compared, relative; inf where values became infinite."""
    worst: str = ""
    nodes: int = 0
    """Tensors that were also compared one by one, each node fed with the original's own values."""
    by_node: bool = False
    first_bad: str = ""
    """Where it goes wrong first; empty if it passed."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0


def tolerance(dtype: np.dtype) -> float:
    """What may be rounding in a tensor of this type (see `Difference.error` for its unit)."""
    if dtype.kind in "fc" and dtype.itemsize >= 4:
        return FLOAT32_TOLERANCE
    if dtype.kind in "fV":
        return HALF_TOLERANCE
    return 1.0 if dtype.kind in "iu" and dtype.itemsize == 1 else 0.0


def difference(tensor: str, masked: np.ndarray, slim: np.ndarray, share: float = 1) -> Difference:
    """Hold a tensor against the masked original's; `share` of the usual tolerance is granted."""
    allowed = tolerance(masked.dtype)
    if masked.dtype.kind in "fcV":
        allowed *= share
    if masked.shape != slim.shape:
        why = f"its shape is {slim.shape}, not {masked.shape}"
        return Difference(tensor, np.inf, allowed, why)
    if masked.dtype != slim.dtype:
        return Difference(tensor, np.inf, allowed, f"its type is {slim.dtype}, not {masked.dtype}")
    if not masked.size:
        return Difference(tensor, 0.0, allowed)
    if masked.dtype.kind in "iu" and masked.dtype.itemsize == 1:
        steps = np.abs(masked.astype(np.int16) - slim.astype(np.int16)).max()
        return Difference(tensor, float(steps), allowed)
    if masked.dtype.kind not in "fcV":
        return Difference(tensor, float((masked != slim).mean()), allowed)
    distance = size = 0.0
    for a, b in _blocks(masked, slim):
        finite = np.isfinite(a)
        if not finite.all():
            if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
                return Difference(tensor, np.inf, allowed, "NaN or infinite values differ")
            a, b = a[finite], b[finite]
        if not np.isfinite(b).all():
            return Difference(tensor, np.inf, allowed, "it has NaN or infinite values")
        distance, size = max(distance, _distance(a, b)), max(size, _size(a))
    return Difference(tensor, _relative(distance, size), allowed)


def moved(before: np.ndarray, after: np.ndarray) -> float:
    """max|a - b| over the larger of the two; 0 for what is no float or has no values.

    inf where one is finite and the other is not.
    """
    if before.shape != after.shape or before.dtype.kind not in "fcV":
        return 0.0
    distance = size = 0.0
    for a, b in _blocks(before, after):
        finite = np.isfinite(a) & np.isfinite(b)
        if not finite.all():
            if (np.isfinite(a) != np.isfinite(b)).any():
                return np.inf
            a, b = a[finite], b[finite]
        distance, size = max(distance, _distance(a, b)), max(size, _size(a), _size(b))
    return _relative(distance, size)


def _relative(distance: float, size: float) -> float:
    if distance <= _NOTHING:
        return 0.0
    return distance / size if size > _NOTHING else np.inf


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    with np.errstate(over="ignore"):
        return float(np.abs(a - b).max(initial=0))


def _size(a: np.ndarray) -> float:
    return float(np.abs(a).max(initial=0))


def _blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Two arrays of one shape, a million entries at a time, half types in float32."""
    a, b = a.reshape(-1), b.reshape(-1)
    for k in range(0, a.size, _BLOCK):
        yield _wide(a[k : k + _BLOCK]), _wide(b[k : k + _BLOCK])


def _wide(array: np.ndarray) -> np.ndarray:
    """Half types in float32, where differences don't overflow or round away."""
    return array.astype(np.float32) if array.dtype.itemsize < 4 else array
