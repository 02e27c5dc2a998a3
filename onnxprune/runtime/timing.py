"""Timing that a noisy machine does not fool: everything interleaved, compared round by round."""

import gc
import math
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

RESOLUTION = 0.02
"""Ratios nearer to 1 than this are no change: alignment and luck alone reach it."""


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


@dataclass(frozen=True, slots=True)
class Speedup:
    """How many times faster, with the 95 % interval of its median."""

    ratio: float
    low: float
    high: float
    measurable: bool
    """Whether it differs from 1 by more than noise."""


def interleave(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int | None = None,
    duration: float | None = None,
    warmup: int = 3,
    seed: int = 0,
) -> dict[str, Timing]:
    """Time all `runs` in turn, A B A B, in an order drawn anew for each round.

    Stops after `rounds`, or after the round in which `duration` seconds have passed, whichever is
    first; raises ValueError if neither is given. `warmup` rounds are run and not counted.
    """
    if rounds is None and duration is None:
        raise ValueError("give rounds, or a duration, or both")
    order, shuffle = list(runs), random.Random(seed).shuffle
    samples: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(warmup):
        for name in order:
            runs[name]()
    collecting = gc.isenabled()
    gc.disable()
    try:
        end = math.inf if duration is None else time.perf_counter() + duration
        done = 0
        # At least one round, or there would be nothing to say.
        while done == 0 or (done < (rounds or math.inf) and time.perf_counter() < end):
            shuffle(order)
            for name in order:
                start = time.perf_counter_ns()
                runs[name]()
                samples[name].append((time.perf_counter_ns() - start) / 1e6)
            done += 1
    finally:
        if collecting:
            gc.enable()
    return {name: _timing(values) for name, values in samples.items()}


def speedup(a: Timing, b: Timing) -> Speedup:
    """How many times faster `b` is than `a`, from paired rounds of one `interleave`.

    Drift of the machine hits both halves of a pair and cancels. The interval is that of the
    median by order statistics: no assumption about the noise. Raises ValueError if unpaired.
    """
    if a.rounds != b.rounds:
        raise ValueError(f"not of the same rounds: {a.rounds} and {b.rounds}")
    ratios = np.sort(np.array(a.samples) / np.array(b.samples))
    n = len(ratios)
    # Ranks n/2 +- 0.98 sqrt(n) hold the median 95 times of 100 (normal limit of the binomial).
    first = max(math.floor(n / 2 - 0.98 * math.sqrt(n)), 0)
    low, high = float(ratios[first]), float(ratios[n - 1 - first])
    ratio = float(np.median(ratios))
    apart = not low <= 1 <= high and abs(math.log(ratio)) > math.log1p(RESOLUTION)
    # Below 6 rounds all of them together on one side of 1 are still likely by chance.
    return Speedup(ratio, low, high, measurable=apart and n >= 6)


def _timing(values: list[float]) -> Timing:
    p25, median, p75, p95 = (float(q) for q in np.percentile(values, (25, 50, 75, 95)))
    return Timing(median, p25, p75, p95, min(values), len(values), tuple(values))
