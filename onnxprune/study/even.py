"""Ratios at which every group costs about the same, and the file that `slim --per-layer` reads.

Between the measured points of a curve the error is taken as linear in the channels removed, and
never falling. Beyond the last point nothing is assumed: no group loses more than was measured.
Errors that nobody would notice do not decide which group gives more: there, shares do.
The error that all groups may cost is as large as it can be with at most the wanted share of the
network's channels gone.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Member
from onnxprune.choose.filters import compiled, group_names, ratio_of
from onnxprune.choose.limits import share
from onnxprune.study.curves import Curve

NEGLIGIBLE = 1e-4
"""An error of the outputs, over their power, that is as good as none."""
_DIGITS = 10_000
"""Ratios are written with four digits, rounded up: floor(channels * ratio) is what was meant."""


@dataclass(frozen=True)
class Even:
    """Ratios by group id, the error that none of them exceeds, and the channels that go."""

    ratios: Mapping[int, float]
    error: float
    share: float
    """Of all channels of the groups that were measured."""


def even(curves: Sequence[Curve], ratio: float) -> Even:
    """The ratios at which all groups cost the same error, `ratio` of all channels gone in all."""
    costs = {c.id: _costs(c) for c in curves}
    total = sum(c.channels for c in curves)
    levels = np.unique(np.concatenate([*costs.values(), [0.0]]))

    def removed(level: float) -> dict[int, int]:
        # the last count that costs no more: a group loses at least as many as a cheaper one costs
        return {k: int(np.searchsorted(v, level, "right")) - 1 for k, v in costs.items()}

    low, high = 0, len(levels) - 1
    while low < high:  # the largest level that takes no more than is wanted
        middle = (low + high + 1) // 2
        fits = sum(removed(levels[middle]).values()) <= share(total, ratio)
        low, high = (middle, high) if fits else (low, middle - 1)
    counts = removed(levels[low])
    ratios = {c.id: _written(counts[c.id], c.channels) for c in curves}
    return Even(ratios, float(levels[low]), sum(counts.values()) / max(1, total))


def _costs(curve: Curve) -> NDArray[np.float64]:
    """(most + 1,) the error when 0, 1, ... channels are gone, always growing a little."""
    gone = [0, *(curve.channels - p.kept for p in curve.points)]
    errors = np.maximum.accumulate([0.0, *(p.error for p in curve.points)])
    counts = np.arange(gone[-1] + 1)
    return np.interp(counts, gone, errors) + NEGLIGIBLE * counts / curve.channels


def _written(count: int, channels: int) -> float:
    return ceil(count / channels * _DIGITS - 1e-9) / _DIGITS


def selectors(facts: Facts, groups: Sequence[Group]) -> dict[int, str]:
    """A regular expression per group that finds it, and no other where one such exists.

    A member is found by its tensor and axis; one that is in few groups is preferred, then one that
    creates the channels.
    """
    owners = Counter(name for g in groups for name in {_axis(m, facts) for m in g.members})
    found = {}
    for g in groups:
        best = min(g.members, key=lambda m: (owners[_axis(m, facts)], m.role != "creates"))
        found[g.id] = f"^{re.escape(_axis(best, facts))}$".replace("\\ ", " ")  # for people
    return found


def _axis(m: Member, facts: Facts) -> str:
    """As `choose.filters.member_names` has it."""
    return f"{facts.model.in_file(m.value)}, axis {m.axis}"


def per_layer(
    facts: Facts, groups: Sequence[Group], ratios: Mapping[int, float]
) -> tuple[dict[str, float], dict[int, float]]:
    """The table for `--per-layer`, and the ratios that the groups have by it.

    Groups that share every member with others (the parts of a packed weight) get the smallest of
    their ratios.
    """
    table: dict[str, float] = {}
    for k, pattern in selectors(facts, groups).items():
        if k in ratios:
            table[pattern] = min(ratios[k], table.get(pattern, 1.0))
    own = list(zip(compiled(list(table), "--per-layer"), table.values(), strict=True))
    known = {g.id: ratio_of(own, group_names(g, facts)) for g in groups}
    return table, {k: r for k, r in known.items() if r is not None}
