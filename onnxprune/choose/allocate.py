"""How many channels each group keeps, and which: ratios, thresholds, floors, caps, alignment."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
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
from onnxprune.choose.target import Target
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
    """Regular expression -> ratio; wins over everything else where it matches."""
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    limits: Limits = field(default_factory=Limits)
    target: Target | None = None
    """What the model may cost."""
    max_drop: float | None = None
    """How much of a metric may be lost, in its own units."""

    @property
    def asks(self) -> dict[str, object]:
        """What says how much goes, by option; `per_layer` aside."""
        amounts = {"--ratio": self.ratio, "--threshold": self.threshold,
                   "--target": self.target, "--max-drop": self.max_drop}  # fmt: skip
        return {name: value for name, value in amounts.items() if value is not None}


@dataclass(frozen=True, eq=False)
class Allocation:
    """What is kept of every group, and which groups were left alone and why."""

    kept: Mapping[int, Kept]
    left: Mapping[int, str]


@dataclass(frozen=True, eq=False)
class Pool:
    """The channels that a request chooses from, and what is settled before it does."""

    groups: tuple[Group, ...]
    scores: Scores
    limits: Limits
    left: Mapping[int, str]
    """Groups that stay whole, and why."""
    named: Mapping[int, int]
    """Kept counts of the groups that `--per-layer` names."""

    @property
    def open(self) -> list[Group]:
        """Groups that the request as a whole decides about."""
        return [g for g in self.groups if g.id not in self.left and g.id not in self.named]

    def allocation(self, counts: Mapping[int, int]) -> Allocation:
        """The channels that stay, for kept counts by id of the open groups (others stay whole)."""
        counts = {**counts, **self.named}
        kept = {
            g.id: lowest_gone(self.scores.by_group[g.id], counts[g.id])
            if g.id in counts
            else np.arange(g.size)
            for g in self.groups
        }
        return Allocation(kept, self.left)


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
    if request.max_drop is not None and not 0 <= request.max_drop < float("inf"):
        raise UsageError(
            "--max-drop must be 0 or more", where=f"--max-drop {request.max_drop}",
            why="it is what the metric may lose, in its own units: 0.01 is a point of accuracy",
        )  # fmt: skip
    if len(asked := list(request.asks)) > 1:
        raise UsageError(
            f"{asked[0]} and {asked[1]} exclude each other",
            hint="--max-ratio caps what is removed of a group, whoever asks for it",
        )
    check_per_layer(request.per_layer.items(), "--per-layer")


def pool_of(facts: Facts, groups: Sequence[Group], scores: Scores, request: Request) -> Pool:
    """What there is to choose from.

    Raises:
        UsageError: a regular expression is none.
    """
    left = excluded(facts, groups, request.include, request.exclude)
    own = list(zip(compiled(list(request.per_layer), "--per-layer"),
                   request.per_layer.values(), strict=True))  # fmt: skip
    named: dict[int, int] = {}
    for g in groups:
        ratio = ratio_of(own, group_names(g, facts)) if own and g.id not in left else None
        if ratio is not None:
            named[g.id] = legal(g.size - share(g.size, ratio), g.size, request.limits)
    return Pool(tuple(groups), scores, request.limits, left, named)


def allocate(facts: Facts, groups: Sequence[Group], scores: Scores, request: Request) -> Allocation:
    """Choose the channels that stay, the lowest scores first to go, ties by index.

    For a ratio, a threshold or ratios per layer; `choose.budget` has targets.

    Raises:
        UsageError: the request makes no sense.
        NothingToPrune: every group is left as it is; the error says why.
    """
    check(request)
    pool = pool_of(facts, groups, scores, request)
    counts: Mapping[int, int] = {}
    if request.threshold is not None:
        above = {g.id: int((scores.by_group[g.id] >= request.threshold).sum()) for g in pool.open}
        counts = {g.id: legal(above[g.id], g.size, pool.limits) for g in pool.open}
    elif request.ratio is not None:
        counts = route(pool, request.scope)(request.ratio)
    found = pool.allocation(counts)
    if all(len(found.kept[g.id]) == g.size for g in groups):
        raise _nothing(groups, pool.left, request)
    return found


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
            left[g.id] = f"--include {', '.join(map(repr, include))} does not match it"
        elif not wanted and (why := fixed_filters(g, facts)) is not None:
            left[g.id] = f"{why}: name it with --include to prune it"
    return left


def lowest_gone(scores: NDArray[np.floating], count: int) -> Kept:
    """The `count` channels with the highest scores; of equal ones those with lower indices go."""
    return np.sort(np.argsort(scores, kind="stable")[len(scores) - count :])


Route = Callable[[float], Mapping[int, int]]
"""Share of the channels to remove, from 0 to 1 -> legal kept counts by group id, never rising."""


def route(pool: Pool, scope: Literal["layer", "global"]) -> Route:
    """The way from nothing removed to everything that may go: a share of each of the open groups,
    or of all of them together.
    """
    groups, limits = pool.open, pool.limits
    if scope == "layer" or not groups:
        return lambda ratio: {g.id: legal(g.size - share(g.size, ratio), g.size, limits)
                              for g in groups}  # fmt: skip
    # A group that reached its floor passes its part on to the others. Equal scores go at equal
    # shares of their groups, so that a tie over the whole network ends evenly.
    value, place, owner = [], [], []
    for k, g in enumerate(groups):
        loses = g.size - legal(0, g.size, limits)
        value.append(np.sort(pool.scores.by_group[g.id])[:loses])
        place.append(np.arange(1, loses + 1) / g.size)
        owner.append(np.full(loses, k))
    owners = np.concatenate(owner)
    owners = owners[np.lexsort([owners, np.concatenate(place), np.concatenate(value)])]
    total = sum(g.size for g in groups)

    def together(ratio: float) -> Mapping[int, int]:
        gone = np.bincount(owners[: share(total, ratio)], minlength=len(groups)).tolist()
        return {g.id: legal(g.size - n, g.size, limits)
                for g, n in zip(groups, gone, strict=True)}  # fmt: skip

    return together


def _nothing(groups: Sequence[Group], left: Mapping[int, str], request: Request) -> NothingToPrune:
    if (error := nothing_open(groups, left)) is not None:
        return error
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


def nothing_open(groups: Sequence[Group], left: Mapping[int, str]) -> NothingToPrune | None:
    """The error for a model whose groups all stay; None where one may shrink."""
    if not groups:
        return NothingToPrune("nothing can be pruned", why="every channel of the model is fixed")
    if len(left) == len(groups):
        why = "; ".join(dict.fromkeys(left.values()))
        names = ", ".join(f"'{g.name}'" for g in groups[:3])
        hint = f"the groups are called {names}{' ...' * (len(groups) > 3)}: see onnxprune inspect"
        return NothingToPrune("nothing is left to prune", why=why, hint=hint)
    return None
