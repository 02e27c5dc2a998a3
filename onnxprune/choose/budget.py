"""How many channels each group keeps so that the model costs no more than a budget.

Where scores are losses (see `Scores.losses`), what loses least for what it saves goes first: the
greedy rule for a knapsack whose losses never fall (Fox 1966), with savings taken anew as the counts
change, because a convolution's work depends on both of its sides. Elsewhere all groups lose the
same share, or with `--scope global` the lowest scores of all go. At the end single steps are put
back, so that the cost comes as near to the budget as it can from below.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.choose.allocate import Allocation, Pool, route
from onnxprune.choose.limits import ladder
from onnxprune.cost.budget import CostModel, Quantity

Array = NDArray[np.float64]
Worth = Callable[[int, int, int], float]
"""What a step of a group is worth: (position of the group, count below, count above)."""

_RUNGS = 64
"""Blocks in which a group is removed before single steps settle the rest."""
_ROUNDS = 50
"""Parts of the way to the budget, savings being taken anew after each."""
_SPARED = 8
"""The last eighth of a group goes only when nothing else is left: the losses there are least sure,
and one starved layer spoils a network (floor K/8).
"""
_TRIED = 8
"""Groups that are tried at a time where none fits as it is."""
_NEAR = 0.01
"""Share of the original's cost that a result may lie below the budget."""


def within(
    pool: Pool,
    model: CostModel,
    what: Quantity,
    budget: float,
    scope: Literal["layer", "global"] = "layer",
) -> Allocation:
    """What stays so that `model` costs at most `budget`, and less by less than one step.

    `model` holds the costs of `pool.groups`, in that order. Where the limits allow nothing as
    cheap as that, everything goes that may: the caller sees it in the cost.
    """
    if pool.scores.losses:
        counts = _by_loss(pool, model, what, budget)
    else:
        counts = _by_share(pool, model, what, budget, scope)
    return pool.allocation({g.id: int(n) for g, n in zip(pool.groups, counts, strict=True)
                            if g.id not in pool.left})  # fmt: skip


def smallest(pool: Pool) -> Allocation:
    """What stays when everything goes that may."""
    return pool.allocation({g.id: int(ladder(g.size, pool.limits)[0]) for g in pool.open})


@dataclass(frozen=True, eq=False)
class _Steps:
    """Steps of all open groups down their ladders, a row each, a group's in order of removal."""

    owner: NDArray[np.int64]
    """Position of the group."""
    channels: Array
    """How many channels the step removes."""
    loss: Array
    """Per channel; never falls along a group."""
    late: NDArray[np.bool_]
    """It goes into what is spared."""


def _start(pool: Pool) -> Array:
    """Kept counts before the request as a whole decides anything."""
    return np.array([pool.named.get(g.id, g.size) for g in pool.groups], np.float64)


def _ladders(pool: Pool, model: CostModel, what: Quantity) -> dict[int, NDArray[np.int64]]:
    """Legal counts by position of an open group, ascending; groups that save nothing stay."""
    saves = model.marginal(what, _start(pool)) > 0
    open_ = {g.id for g in pool.open}
    return {j: ladder(g.size, pool.limits)
            for j, g in enumerate(pool.groups) if g.id in open_ and saves[j]}  # fmt: skip


def _by_share(
    pool: Pool, model: CostModel, what: Quantity, budget: float, scope: Literal["layer", "global"]
) -> Array:
    """The smallest share of the channels that is enough, and then as much as fits put back."""
    ladders, start, way = _ladders(pool, model, what), _start(pool), route(pool, scope)

    def counts(share: float) -> Array:
        kept, wanted = start.copy(), way(share)
        for j in ladders:
            kept[j] = wanted[pool.groups[j].id]
        return kept

    low, high = 0.0, 1.0
    if float(model.total(what, counts(low))) <= budget:
        return counts(low)
    kept = counts(high)
    if float(model.total(what, kept)) > budget:
        return kept
    while high - low > 1e-7:
        middle = (low + high) / 2
        tried = counts(middle)
        if float(model.total(what, tried)) <= budget:
            high, kept = middle, tried
        else:
            low = middle
    return _settled(model, what, budget, kept, ladders, lambda j, n, up: 1 - n / start[j])


def _by_loss(pool: Pool, model: CostModel, what: Quantity, budget: float) -> Array:
    ladders, kept = _ladders(pool, model, what), _start(pool)
    losses = _losses(pool)
    steps = _steps(ladders, losses)
    done = np.zeros(len(steps.owner), bool)
    chunk = max(float(model.total(what, kept)) - budget, 0.0) / _ROUNDS
    while (excess := float(model.total(what, kept)) - budget) > 0 and not done.all():
        saves = model.marginal(what, kept)[steps.owner]
        order = np.lexsort([steps.loss / np.maximum(saves, 1e-300), steps.late])
        order = order[~done[order]]
        reached = np.cumsum((steps.channels * saves)[order])
        taken = order[: int(np.searchsorted(reached, min(chunk, excess))) + 1]
        done[taken] = True
        np.subtract.at(kept, steps.owner[taken], steps.channels[taken])
    if float(model.total(what, kept)) > budget:
        return kept
    sums = [np.concatenate([[0.0], np.cumsum(v)]) for v in losses]

    def regained(j: int, n: int, up: int) -> float:
        """Loss that a step back makes good, for what it costs at the allocation's end."""
        size = len(losses[j])
        return float((sums[j][size - n] - sums[j][size - up]) / max((up - n) * final[j], 1e-300))

    final = model.marginal(what, kept)
    return _settled(model, what, budget, kept, ladders, regained)


def _losses(pool: Pool) -> list[Array]:
    """Per group what each channel loses, in order of removal. Groups that are only ranked get the
    typical curve of the others: the median loss per share at the same share.
    """
    scores = pool.scores
    known = [np.sort(scores.by_group[g.id]) * g.size for g in pool.groups
             if g.id in scores.losses]  # fmt: skip
    shares = (np.arange(_RUNGS) + 0.5) / _RUNGS
    typical = np.median([np.interp(shares, _middles(len(v)), v) for v in known], axis=0)
    return [np.sort(scores.by_group[g.id]) if g.id in scores.losses
            else np.interp(_middles(g.size), shares, typical) / g.size
            for g in pool.groups]  # fmt: skip


def _middles(n: int) -> Array:
    return (np.arange(n) + 0.5) / n


def _steps(ladders: Mapping[int, NDArray[np.int64]], losses: Sequence[Array]) -> _Steps:
    """Down the ladders in at most `_RUNGS` blocks a group; none crosses into what is spared."""
    owner, channels, loss, late = [], [], [], []
    for j, rungs in ladders.items():
        size = len(losses[j])
        spared = size / _SPARED
        at = np.unique(np.linspace(0, len(rungs) - 1, _RUNGS + 1).astype(int))
        edge = int(np.searchsorted(rungs, spared))
        down = rungs[np.unique(np.append(at, min(edge, len(rungs) - 1)))][::-1]
        sums = np.concatenate([[0.0], np.cumsum(losses[j])])
        taken = down[:-1] - down[1:]
        gone = sums[size - down]
        owner.append(np.full(len(taken), j))
        channels.append(taken.astype(np.float64))
        loss.append(np.maximum.accumulate((gone[1:] - gone[:-1]) / taken))
        late.append(down[1:] < spared)
    if not owner:
        none = np.zeros(0)
        return _Steps(none.astype(np.int64), none, none, none.astype(bool))
    parts = (np.concatenate(p) for p in (owner, channels, loss, late))
    return _Steps(*parts)


def _settled(
    model: CostModel, what: Quantity, budget: float, kept: Array,
    ladders: Mapping[int, NDArray[np.int64]], worth: Worth,
) -> Array:  # fmt: skip
    """Single steps back while one fits, and where that ends far below, others in their place.

    A group whose step is larger than what is missing takes it, if others can give way for it.
    """
    kept = _put_back(model, what, budget, kept, ladders, worth)
    near = budget - _NEAR * float(model.total(what, model.full))
    closed: set[int] = set()
    while (cost := float(model.total(what, kept))) < near:
        steps = [(j, up) for j in ladders if (up := _above(ladders[j], int(kept[j]))) > kept[j]]
        steps = sorted((s for s in steps if s[0] not in closed),
                       key=lambda s: -worth(s[0], int(kept[s[0]]), s[1]))  # fmt: skip
        for j, up in steps[:_TRIED]:
            closed.add(j)
            other = kept.copy()
            other[j] = up
            rest = {i: rungs for i, rungs in ladders.items() if i not in closed}
            other = _take_off(model, what, budget, other, rest, worth)
            other = _put_back(model, what, budget, other, ladders, worth)
            if cost < float(model.total(what, other)) <= budget:
                kept = other
                break
        if not steps:
            break
    return kept


def _above(rungs: NDArray[np.int64], n: int) -> int:
    return int(rungs[min(int(np.searchsorted(rungs, n, "right")), len(rungs) - 1)])


def _below(rungs: NDArray[np.int64], n: int) -> int:
    return int(rungs[max(int(np.searchsorted(rungs, n, "left")) - 1, 0)])


def _take_off(
    model: CostModel, what: Quantity, budget: float, kept: Array,
    ladders: Mapping[int, NDArray[np.int64]], worth: Worth,
) -> Array:  # fmt: skip
    """Single steps off, the least worth first, until the budget is met or nothing is left."""
    kept = kept.copy()
    while float(model.total(what, kept)) > budget:
        steps = [(worth(j, down, int(kept[j])), j, down) for j, rungs in ladders.items()
                 if (down := _below(rungs, int(kept[j]))) < kept[j]]  # fmt: skip
        if not steps:
            break
        _, j, down = min(steps)
        kept[j] = down
    return kept


def _put_back(
    model: CostModel,
    what: Quantity,
    budget: float,
    kept: Array,
    ladders: Mapping[int, NDArray[np.int64]],
    worth: Worth,
) -> Array:
    """Single steps back while one fits, the worthiest first."""
    kept, up = kept.copy(), kept.copy()
    value = np.zeros(len(kept))

    def look(j: int) -> None:
        up[j] = _above(ladders[j], int(kept[j]))
        value[j] = worth(j, int(kept[j]), int(up[j]))

    for j in ladders:
        look(j)
    fits = up > kept
    while fits.any():
        slack = budget - float(model.total(what, kept))
        # Costs only rise with the counts, so the derivative tells what can't fit, now or later.
        cost = (up - kept) * model.marginal(what, kept)
        fits &= cost <= slack
        best = np.flatnonzero(fits)
        best = best[np.argsort(-value[best], kind="stable")]
        # Worth falls with each step, so the best of all groups are next; as many as fit together.
        count = int(np.searchsorted(np.cumsum(cost[best]), slack, "right"))
        while count:
            tried = kept.copy()
            tried[best[:count]] = up[best[:count]]
            if float(model.total(what, tried)) <= budget:
                break
            count //= 2
        if not count:
            fits[best[:1]] = False
            continue
        kept = tried
        for j in best[:count].tolist():
            look(j)
            fits[j] = up[j] > kept[j]
    return kept
