"""Timing that a noisy machine does not fool: everything interleaved, compared round by round."""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.runtime.waiting import waiting

RESOLUTION = 0.02
"""Ratios nearer to 1 than this are no change: alignment and luck alone reach it."""

_LONG_MS = 1.0
"""Runs from which waiting is corrected for. Shorter ones are either interrupted or not, which the
median deals with, and what they wait is mostly for their own threads to wake up."""
_MOST_POINTS = 400
"""Rounds that the slope is taken from: it looks at all pairs of them."""
_ENOUGH_BLOCKS = 3
"""Blocks from which their own spread counts."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Wall-clock times of one contestant, in milliseconds."""

    median_ms: float
    p25: float
    p75: float
    p95: float
    min_ms: float
    rounds: int
    samples: tuple[float, ...]
    """One a round: the same index is the same round for every contestant."""
    waited: tuple[float, ...] = ()
    """Share of each sample in which the calling thread waited for a core that others had."""
    blocks: tuple[int, ...] = ()
    """Rounds of each block, where the samples come from several: new sessions for each."""


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster, with the 95 % interval of its median."""

    ratio: float
    low: float
    high: float
    measurable: bool
    """Whether it differs from 1 by more than noise."""

    @property
    def spread(self) -> float:
        """Half the width of the interval, as a share of the ratio."""
        return max(self.high / self.ratio, self.ratio / self.low) - 1


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    duration: float | None = None,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time all `runs` in turn: in an order drawn for a round, then backwards in the next, A B B A.

    So each comes before each other equally often: who comes second finds the caches as the first
    has left them.

    Stops after `rounds`, or after the round in which `duration` seconds have passed, whichever is
    first; raises ValueError if neither is given. `warmup` rounds are run and not counted.
    """
    if rounds is None and duration is None:
        raise ValueError("give rounds, or a duration, or both")
    order, shuffle = list(runs), random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in runs}
    waits: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warmup):
        for name in order:
            runs[name]()
    collecting = gc.isenabled()
    gc.disable()
    try:
        with waiting() as waited:
            end = math.inf if duration is None else time.perf_counter() + duration
            done = 0
            # At least one round, or there would be nothing to say.
            while done == 0 or (done < (rounds or math.inf) and time.perf_counter() < end):
                if done % 2:
                    order.reverse()
                else:
                    shuffle(order)
                for name in order:
                    before, start = waited(), time.perf_counter_ns()
                    runs[name]()
                    took = time.perf_counter_ns() - start
                    samples[name].append(took / 1e6)
                    waits[name].append((waited() - before) / max(took, 1))
                done += 1
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(samples[name], waits[name]) for name in runs}


def pool(blocks: Sequence[Mapping[str, Timing]]) -> dict[str, Timing]:
    """Several `interleave`s of the same contestants as one, each of them a block."""
    counts = tuple(next(iter(block.values())).rounds for block in blocks)
    return {
        name: _timing(
            [s for block in blocks for s in block[name].samples],
            [w for block in blocks for w in block[name].waited],
            counts,
        )
        for name in blocks[0]
    }


def speedup(a: Timing, b: Timing) -> Speedup:
    """How many times faster `b` is than `a`, from paired rounds of `interleave`.

    The median of the rounds' ratios: drift of the machine hits both halves of a pair and cancels.
    What does not cancel, because one half waited longer for a core than the other, is taken out as
    a control variate (Lavenberg and Welch 1981): with w the share of a run spent waiting, the slope
    of log(a/b) over log((1-w_b)/(1-w_a)), estimated after Theil and Sen, times the latter. That
    needs both to wait alike in the long run; where one is seen to wait more, nothing is taken out.

    The interval is the wider of two: of the median by order statistics, and, where there are
    blocks, Student's of their medians, which also holds what a new pair of sessions changes (where
    their memory lies). Raises ValueError if the two are not of the same rounds.
    """
    if (a.rounds, a.blocks) != (b.rounds, b.blocks):
        raise ValueError(f"not of the same rounds: {a.rounds} and {b.rounds}")
    ratios = np.log(np.array(a.samples) / np.array(b.samples))
    if a.waited and b.waited and min(a.median_ms, b.median_ms) >= _LONG_MS:
        more = _log_waiting(a) - _log_waiting(b)
        least, most = _median_interval(more)
        if least <= 0 <= most:
            ratios = ratios - _slope(ratios, more) * more
    n, middle = len(ratios), float(np.median(ratios))
    least, most = _median_interval(ratios)
    reach = _between_blocks(ratios, a.blocks)
    low, high = math.exp(min(least, middle - reach)), math.exp(max(most, middle + reach))
    ratio = math.exp(middle)
    apart = not low <= 1 <= high and abs(middle) > math.log1p(RESOLUTION)
    # Below 6 rounds all of them together on one side of 1 are still likely by chance.
    return Speedup(ratio, low, high, measurable=apart and n >= 6)


def steadiness(timing: Timing) -> float:
    """Half the 95 % interval of the median over blocks, as a share of it; infinite below three."""
    if len(timing.blocks) < _ENOUGH_BLOCKS:
        return math.inf
    return math.expm1(_between_blocks(np.log(np.array(timing.samples)), timing.blocks))


def _median_interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """The 95 % interval of the median by order statistics: no assumption about the noise."""
    n, ordered = len(values), np.sort(values)
    # Ranks n/2 +- 0.98 sqrt(n) hold the median 95 times of 100 (normal limit of the binomial).
    first = max(math.floor(n / 2 - 0.98 * math.sqrt(n)), 0)
    return float(ordered[first]), float(ordered[n - 1 - first])


def _log_waiting(timing: Timing) -> NDArray[np.float64]:
    """By how much waiting made each run longer, as a logarithm."""
    return np.asarray(-np.log1p(-np.clip(np.array(timing.waited), 0, 0.99)))


def _slope(y: NDArray[np.float64], x: NDArray[np.float64]) -> float:
    """The median of the slopes between any two points (Theil 1950, Sen 1968), within 0 and 1."""
    some = np.unique(np.linspace(0, len(x) - 1, min(len(x), _MOST_POINTS)).astype(int))
    i, j = np.triu_indices(len(some), 1)
    run, rise = x[some][i] - x[some][j], y[some][i] - y[some][j]
    steps = run != 0
    return float(np.clip(np.median(rise[steps] / run[steps]), 0, 1)) if steps.any() else 0.0


def _between_blocks(values: NDArray[np.float64], blocks: Sequence[int]) -> float:
    """Half of Student's 95 % interval for the mean of the blocks' medians; 0 with too few."""
    if len(blocks) < _ENOUGH_BLOCKS:
        return 0.0
    from scipy.special import stdtrit

    medians = [np.median(part) for part in np.split(values, np.cumsum(blocks)[:-1])]
    error = float(np.std(medians, ddof=1)) / math.sqrt(len(medians))
    return float(stdtrit(len(medians) - 1, 0.975)) * error


def _timing(
    values: list[float], waited: Sequence[float] = (), blocks: tuple[int, ...] = ()
) -> Timing:
    p25, median, p75, p95 = (float(q) for q in np.percentile(values, (25, 50, 75, 95)))
    return Timing(
        median, p25, p75, p95, min(values), len(values), tuple(values), tuple(waited), blocks
    )
