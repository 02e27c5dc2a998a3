"""How many channels each group keeps, and which: ratios, thresholds, floors, caps, alignment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group
from onnxprune.choose.filters import any_match, check_per_layer, compiled, group_names, ratio_of
from onnxprune.choose.frontend import fixed_filters
from onnxprune.choose.limits import Kept, Limits, legal, share
from onnxprune.choose.scores import Scores
from onnxprune.errors import NothingToPrune, UsageError


@dataclass(frozen=True, slots=True)
class Request:
    """How much to remove, and where."""

    ratio: float | None = None
    """Share of channels to remove: of each group, or of all groups together."""
    threshold: float | None = None
    """Remove what scores under it, whatever the ratio."""
    scope: Literal["layer", "global"] = "layer"
    per_layer: Mapping[str, float] = field(default_factory=dict)
    """Regular expression -> ratio; wins over `ratio` where it matches."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, eq=False)
class Allocation:
    """What is kept of every group, and which groups were left alone and why."""

    kept: Mapping[int, Kept]
    left: Mapping[int, str]


def check(request: Request) -> None:
    """Raise UsageError for a request that makes no sense."""
    for value, name in ((request.ratio, "--ratio"), (request.limits.max_ratio, "--max-ratio")):
        if value is not None and not 0 <= value < 1:
            raise UsageError(
                f"{name} must be from 0 to below 1", where=f"{name} {value}",
                why="it is the share of channels that go; some must stay",
            )  # fmt: skip
    for count, name in ((request.limits.align, "--align"),
                        (request.limits.min_channels, "--min-channels")):  # fmt: skip
        if count < 1:
            raise UsageError(f"{name} must be at least 1", where=f"{name} {count}")
    if request.ratio is not None and request.threshold is not None:
        raise UsageError(
            "--ratio and --threshold exclude each other",
            hint="--max-ratio caps what a threshold removes of a group",
        )
    check_per_layer(request.per_layer.items(), "--per-layer")


def allocate(facts: Facts, groups: Sequence[Group], scores: Scores, request: Request) -> Allocation:
    """Choose the channels that stay, the lowest scores first to go, ties by index.

    Raises:
        UsageError: the request makes no sense.
        NothingToPrune: every group is left as it is; the error says why.
    """
    check(request)
    left = excluded(facts, groups, request.include, request.exclude)
    free = [g for g in groups if g.id not in left]
    counts = _counts(facts, free, scores, request)
    kept = {
        g.id: lowest_gone(scores.by_group[g.id], counts[g.id])
        if g.id in counts
        else np.arange(g.size)
        for g in groups
    }
    if all(len(kept[g.id]) == g.size for g in groups):
        raise _nothing(groups, left, request)
    return Allocation(kept, left)


def excluded(
    facts: Facts, groups: Sequence[Group], include: Sequence[str], exclude: Sequence[str]
) -> dict[int, str]:
    """Groups that are left alone, and why: by request, or as fixed filters nobody asked for."""
    wanted, unwanted = compiled(include, "--include"), compiled(exclude, "--exclude")
    left: dict[int, str] = {}
    for g in groups:
        names = group_names(g, facts)
        if any_match(unwanted, names):
            left[g.id] = "--exclude matches it"
        elif wanted and not any_match(wanted, names):
            left[g.id] = "--include does not match it"
        elif not wanted and (why := fixed_filters(g, facts)) is not None:
            left[g.id] = f"{why}: name it with --include to prune it"
    return left


def lowest_gone(scores: NDArray[np.floating], count: int) -> Kept:
    """The `count` channels with the highest scores; of equal ones those with lower indices go."""
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - count :])


def _counts(
    facts: Facts, groups: Sequence[Group], scores: Scores, request: Request
) -> dict[int, int]:
    """Kept count by group id; groups that nothing was asked of are absent."""
    own = list(zip(compiled(list(request.per_layer), "--per-layer"),
                   request.per_layer.values(), strict=True))  # fmt: skip
    counts: dict[int, int] = {}
    rest = []
    for g in groups:
        ratio = ratio_of(own, group_names(g, facts)) if own else None
        if ratio is None and request.scope == "layer":
            ratio = request.ratio
        if ratio is not None:
            counts[g.id] = g.size - share(g.size, ratio)
        elif request.threshold is not None:
            counts[g.id] = int((scores.by_group[g.id] >= request.threshold).sum())
        else:
            rest.append(g)
    if request.ratio is not None and rest:
        counts |= _together(rest, scores, request.ratio, request.limits)
    return {g.id: legal(counts[g.id], g.size, request.limits) for g in groups if g.id in counts}


def _together(
    groups: Sequence[Group], scores: Scores, ratio: float, limits: Limits
) -> dict[int, int]:
    """That share of all channels, ranked against each other.

    A group that reached its floor passes its part on to the others. Equal scores go at equal
    shares of their groups, so that a tie over the whole network ends evenly.
    """
    value, place, owner = [], [], []
    for g in groups:
        loses = g.size - legal(0, g.size, limits)
        value.append(np.sort(scores.by_group[g.id])[:loses])
        place.append(np.arange(1, loses + 1) / g.size)
        owner.append(np.full(loses, g.id))
    order = np.lexsort([np.concatenate(owner), np.concatenate(place), np.concatenate(value)])
    gone = np.concatenate(owner)[order[: share(sum(g.size for g in groups), ratio)]]
    return {g.id: g.size - int((gone == g.id).sum()) for g in groups}


def _nothing(groups: Sequence[Group], left: Mapping[int, str], request: Request) -> NothingToPrune:
    if not groups:
        return NothingToPrune("nothing can be pruned", why="every channel of the model is fixed")
    if len(left) == len(groups):
        why = "; ".join(dict.fromkeys(left.values()))
        return NothingToPrune("nothing is left to prune", why=why)
    if request.threshold is not None:
        return NothingToPrune(
            "no channel goes", why=f"none scores under {request.threshold}, within the limits",
            hint="a higher --threshold: 1 is the average of a group",
        )  # fmt: skip
    if request.ratio is None:
        return NothingToPrune("no channel goes", why="no ratio of --per-layer removes one")
    largest = max(g.size for g in groups if g.id not in left)
    return NothingToPrune(
        "no channel goes",
        why=f"{request.ratio} of at most {largest} channels rounds to none, within the limits",
        hint="a higher --ratio, a smaller --align or --min-channels, or --scope global",
    )
