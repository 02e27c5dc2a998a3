"""What a group may lose at most: floors, caps and alignment, in one place."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from numpy.typing import NDArray

ALIGNED = 8
"""Widths that are multiples of it fill vectors and tensor cores nearly everywhere."""

Kept = NDArray[np.int64]
"""Sorted indices of a group's channels that stay."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What every group's kept count must obey, whoever asks for it."""

    min_channels: int = 1
    max_ratio: float | None = None
    """The largest share of its channels that a group may lose."""
    align: int = 1
    """Kept counts are rounded up to a multiple of it, never above the original."""
    yields: bool = False
    """The alignment gives way, halving itself, where a group could not be halved otherwise."""

    def align_of(self, channels: int) -> int:
        """What kept counts of a group of `channels` are multiples of."""
        align = self.align
        while self.yields and align > 1 and channels < 2 * align:
            align //= 2
        return align


def share(channels: int, ratio: float) -> int:
    """floor(channels * ratio), where 0.29 of 100 is 29 though floats make it 28.999..."""
    return floor(channels * ratio + 1e-9)


def legal(wanted: int, channels: int, limits: Limits) -> int:
    """The kept count nearest to `wanted` from above that a group of `channels` may have."""
    kept = max(wanted, 1, min(limits.min_channels, channels))
    if limits.max_ratio is not None:
        kept = max(kept, channels - share(channels, limits.max_ratio))
    align = limits.align_of(channels)
    return min(channels, ceil(kept / align) * align)


def ladder(channels: int, limits: Limits) -> Kept:
    """All kept counts that a group of `channels` may have, ascending; the last is `channels`."""
    first = legal(0, channels, limits)
    return np.unique(np.append(np.arange(first, channels, limits.align_of(channels)), channels))
