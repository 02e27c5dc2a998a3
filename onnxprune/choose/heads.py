"""Heads or dims? Where channels split in two ways, one side is kept whole."""

from __future__ import annotations

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Choice, Solution, choices, freeze, labels_of, solve
from onnxprune.choose.limits import share

POLICIES = ("auto", "whole", "dims")


def resolve(
    facts: Facts, policy: str, ratio: float, frozen: tuple[tuple[int, ...], ...] = ()
) -> Solution:
    """Solve with every such choice made.

    auto: the side of which `ratio` removes the larger share (3 heads at 0.5 lose 1 of 3, their
    64 dims lose 32: dims). whole: heads. dims: the same dims of every head. `frozen` replays
    choices that were made before.
    """
    solution = solve(facts)
    for step in frozen:
        solution = freeze(solution, step)
    while open_ := choices(solution):
        made: tuple[int, ...] = ()
        for c in open_:
            made += labels_of(solution, c.inner if _whole(c, policy, ratio) else c.outer)
        solution = freeze(solution, made)
    return solution


def _whole(c: Choice, policy: str, ratio: float) -> bool:
    if policy != "auto":
        return policy == "whole"
    shares = [share(len(s), ratio) / len(s) for s in (c.outer, c.inner)]
    return shares[0] >= shares[1]
