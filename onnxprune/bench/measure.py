"""Rounds upon rounds, in blocks, until the answer is sure enough or the time is up."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

from onnxprune.runtime.timing import Timing, interleave, pool, speedup, steadiness

BLOCKS = 6
"""At least so many, where there is time for them: each has new sessions, in another order, so that
the luck of where memory lies is averaged, and shows in the interval."""

_PRECISION = 0.01
"""Half of the interval that is sure enough to stop early."""
_ACCEPTABLE = 0.02
"""Half of the interval that is sure enough when the time is up. A model alone, whose noise nothing
cancels, may stop early with that."""
_PATIENCE = 3
"""So many times the budget is taken at most for an answer that is not even that sure."""
_BLOCK_SECONDS = 0.5
_BLOCK_ROUNDS = 8
_OPENING_SHARE = 5
"""A block takes at least so many times as long as it takes to open its sessions."""
_WARM_SECONDS = (0.2, 1.0)
"""Warming up takes at least the first, and no new round begins after the second."""
_WARM_ROUNDS = 3

Runs = Mapping[str, Callable[[], None]]


@dataclass(frozen=True)
class Budget:
    """How long to measure."""

    seconds: float
    """Of timing; opening sessions and warming up come on top. On a very busy machine more."""
    rounds: int | None = None
    early: bool = True
    """Stop as soon as the answer is sure enough; otherwise when the budget is used up."""


def measure(
    names: Sequence[str],
    opened: Callable[[Sequence[str]], AbstractContextManager[Runs]],
    budget: Budget,
    tell: Callable[[float], None],
) -> dict[str, Timing]:
    """Time contestants in turn; the first is the one that the others are held against.

    `opened` makes their sessions in the order that it is given, and closes them; `tell` hears what
    share of the budget is used up.
    """
    shuffled = random.Random(0)
    blocks: list[dict[str, Timing]] = []
    order = list(names)
    spent, done, told = 0.0, 0, 0.0
    while True:
        if len(blocks) % 2:
            order.reverse()
        else:
            shuffled.shuffle(order)
        start = time.perf_counter()
        with opened(order) as runs:
            opening = time.perf_counter() - start
            a_round = _warm_up(runs)
            start = time.perf_counter()
            rounds, seconds = _block(budget, names, spent, done, opening, a_round)
            in_order = {name: runs[name] for name in names}
            seed = len(blocks)
            blocks.append(
                interleave(in_order, rounds=rounds, duration=seconds, warmup=0, seed=seed)
            )
            spent += time.perf_counter() - start
        done += next(iter(blocks[-1].values())).rounds
        timings = pool(blocks)
        used = _used(budget, timings, names, spent)
        told = max(told, min(used, 1))
        tell(told)
        if used >= 1:
            return timings


def _block(
    budget: Budget,
    names: Sequence[str],
    spent: float,
    done: int,
    opening: float,
    a_round: float,
) -> tuple[int | None, float]:
    """Rounds and seconds of the next block, which ends with the first that is reached."""
    if budget.rounds is not None:
        share = max(_BLOCK_ROUNDS, math.ceil(budget.rounds / BLOCKS))
        return min(share, budget.rounds - done), budget.seconds - spent
    wish = max(_BLOCK_SECONDS, _OPENING_SHARE * opening, _BLOCK_ROUNDS * a_round)
    end = budget.seconds if spent < budget.seconds else _limit(budget, names)
    return None, min(wish, end - spent)


def _used(
    budget: Budget, timings: Mapping[str, Timing], names: Sequence[str], spent: float
) -> float:
    """What share of the work is done; from 1 on it is enough."""
    blocks = timings[names[0]].blocks
    if not budget.early:
        rounds = sum(blocks) / budget.rounds if budget.rounds else 0
        return max(spent / budget.seconds, rounds)
    late = spent >= budget.seconds
    sure = _sureness(timings, names, late) if late or len(blocks) >= BLOCKS else 0
    return max(spent / _limit(budget, names), sure)


def _limit(budget: Budget, names: Sequence[str]) -> float:
    """Seconds after which nothing more is measured."""
    return budget.seconds * (_PATIENCE if budget.early and len(names) > 1 else 1)


def _sureness(timings: Mapping[str, Timing], names: Sequence[str], late: bool) -> float:
    """What share of the rounds that a sure enough answer takes is done: noise falls as a root."""
    first = timings[names[0]]
    if len(names) == 1:
        spread, wanted = steadiness(first), _ACCEPTABLE
    else:
        spread = max(speedup(first, timings[name]).spread for name in names[1:])
        wanted = _ACCEPTABLE if late else _PRECISION
    return (wanted / max(spread, 1e-9)) ** 2


def _warm_up(runs: Runs) -> float:
    """Run all a few times; seconds that a round takes now."""
    start = end = time.perf_counter()
    done = 0
    least, most = _WARM_SECONDS
    while not done or end - start < least or (done < _WARM_ROUNDS and end - start < most):
        before = end
        for run in runs.values():
            run()
        end = time.perf_counter()
        done += 1
    return end - before
