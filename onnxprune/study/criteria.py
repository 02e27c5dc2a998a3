"""What the criteria see in a model: do they agree, and can they tell the channels apart?

Two blind spots of pruning criteria (Huang et al. 2021): see `choose.similarity` and
`choose.applicability`. Everything here is data; `study.text` prints it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from onnxprune.axes.solve import Group, Solution
from onnxprune.choose.applicability import (
    Normality,
    Spread,
    group_gaussian_cv,
    normality,
    spread,
)
from onnxprune.choose.criteria import CRITERIA, Context, Missing, Values
from onnxprune.choose.reads import Inputs
from onnxprune.choose.similarity import Similarity, rank_correlation, similarity
from onnxprune.runtime.feeds import Feeds
from onnxprune.study.groups import samples_of, studied

SCHEMA = "onnxprune/criteria/1"
DATA = "obs"
"""What other criteria are held against where there is calibration data."""
SAME = 0.9
"""Share of removed channels in common from which two criteria make the same choice."""
ALIKE = 0.7
"""Rank correlation from which a criterion is said to stand in for another."""
_BINS = 20


@dataclass(frozen=True)
class GroupRow:
    """One group: how its scores spread, by criterion, and how alike the criteria rank it."""

    id: int
    name: str
    channels: int
    spread: Mapping[str, Spread]
    normality: Normality
    correlation: tuple[tuple[float | None, ...], ...]
    """Spearman's rank correlation, rows and columns as in `CriteriaStudy.criteria`."""
    scores: Mapping[str, Mapping[str, Any]]
    """By criterion: a histogram, bin `edges` and `counts`."""


@dataclass(frozen=True)
class SpreadRow:
    """One criterion over all groups."""

    criterion: str
    cv: float
    """Median over groups of standard deviation over mean."""
    gaussian: float | None
    """Median over groups of what it would be by chance."""
    close: int
    """Groups whose scores spread no further than by chance."""
    groups: int
    """Groups of which that can be said."""


@dataclass(frozen=True)
class CriteriaStudy:
    """All that is known about how criteria rank a model."""

    tool: str
    model: str
    criteria: tuple[str, ...]
    ratio: float
    """The share of its channels that each group would lose where choices are compared."""
    samples: int
    """Calibration samples; 0 without data."""
    layer: tuple[tuple[float | None, ...], ...]
    network: tuple[tuple[float | None, ...], ...]
    common: tuple[tuple[float | None, ...], ...]
    chance: float
    """See `choose.similarity.Similarity`."""
    spread: tuple[SpreadRow, ...]
    normality: Normality
    groups: tuple[GroupRow, ...]
    advice: tuple[str, ...]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """The study as plain data (schema onnxprune/criteria/1)."""
        return {"schema": SCHEMA, **asdict(self)}


def study_criteria(
    solution: Solution,
    groups: Sequence[Group],
    calib: Sequence[Feeds] | None = None,
    *,
    ratio: float = 0.5,
    seed: int = 0,
    tool: str = "",
    model: str = "",
    tell: Callable[[str], None] = lambda text: None,
) -> CriteriaStudy:
    """Rank every group by every criterion that applies, and compare.

    Args:
        calib: calibration batches; with them come the criteria that see data, block OBS too.

    Raises:
        NothingToPrune: no group may shrink.
        Unreadable: ONNX Runtime can't run the model on a batch.
    """
    facts = solution.facts
    mine, notes = studied(facts, groups)
    table, more = _scores(solution, mine, calib, seed, tell)
    names = tuple(table)
    tell("comparing the criteria")
    by_group = [[table[name].get(g.id) for name in names] for g in mine]
    alike = similarity(by_group, ratio)
    rows = tuple(
        GroupRow(
            g.id, g.name, g.size,
            {n: spread(s, group_gaussian_cv(n, g, facts))
             for n, s in zip(names, scores, strict=True) if s is not None},
            normality(g, facts),
            _plain(rank_correlation(scores)),
            {n: _histogram(s) for n, s in zip(names, scores, strict=True) if s is not None},
        )
        for g, scores in zip(mine, by_group, strict=True)
    )  # fmt: skip
    spreads = tuple(_over_groups(name, rows) for name in names)
    normal = Normality(sum(r.normality.normal for r in rows), sum(r.normality.tested for r in rows))
    samples = sum(samples_of(feeds) for feeds in calib or ())
    return CriteriaStudy(
        tool, model, names, ratio, samples,
        _plain(alike.layer), _plain(alike.network), _plain(alike.common), alike.chance,
        spreads, normal, rows, advice(names, alike, spreads), (*notes, *more),
    )  # fmt: skip


def _scores(
    solution: Solution, groups: Sequence[Group], calib: Sequence[Feeds] | None, seed: int,
    tell: Callable[[str], None],
) -> tuple[dict[str, dict[int, Values]], list[str]]:  # fmt: skip
    """Scores by criterion and group id, and notes on those that say nothing about some groups.

    Chance has no view; criteria that say nothing about any group are left out.
    """
    from onnxprune.choose.activity import measured
    from onnxprune.choose.gaussian import expected

    inputs: dict[str, Inputs] = {"norms": expected(solution, groups)}
    if calib:
        inputs["data"] = measured(solution, groups, calib, tell=tell)
    out: dict[str, dict[int, Values]] = {}
    notes: list[str] = []
    for name, criterion in CRITERIA.items():
        if name == "random" or (criterion.needs == "data" and not calib):
            continue
        tell(f"ranking by {name}")
        context = Context(solution.facts, seed, inputs.get(criterion.needs))
        found = {g.id: criterion.score(g, context) for g in groups}
        missing = {v.why for v in found.values() if isinstance(v, Missing)}
        out[name] = {k: v for k, v in found.items() if not isinstance(v, Missing)}
        if missing:
            count = len(groups) - len(out[name])
            notes.append(
                f"{name} says nothing about {count} of {len(groups)} groups: {'; '.join(missing)}"
            )
    if calib:
        from onnxprune.repair.obs import obs_scores

        out[DATA] = obs_scores(solution, groups, calib, 1.0, seed, tell).by_group
        if len(out[DATA]) < len(groups):
            count = len(groups) - len(out[DATA])
            notes.append(
                f"{DATA} says nothing about {count} of {len(groups)} groups: nothing that reads "
                "them can be refitted"
            )
    return {name: found for name, found in out.items() if found}, notes


def _over_groups(name: str, rows: Sequence[GroupRow]) -> SpreadRow:
    found = [r.spread[name] for r in rows if name in r.spread]
    gaussian = [s.gaussian for s in found if s.gaussian is not None]
    return SpreadRow(
        name, float(np.median([s.cv for s in found])),
        float(np.median(gaussian)) if gaussian else None,
        sum(bool(s.close) for s in found), len(gaussian),
    )  # fmt: skip


def advice(
    names: Sequence[str], alike: Similarity, spreads: Sequence[SpreadRow]
) -> tuple[str, ...]:
    """Sentences on what to do, each true for these numbers."""
    weights = [n for n in names if n in CRITERIA and CRITERIA[n].needs == "weights"]
    out = [*_same(names, weights, alike)]
    default = next((s for s in spreads if s.criterion == "l2"), None)
    if default is None:
        return tuple(out)
    seen = DATA in names
    if default.close:
        what = f"the l2 scores of {default.close} of {default.groups} groups are too close to call"
        out.append(what if seen else f"{what}: use --calib")
    else:
        apart = f"the l2 scores tell channels apart in all {default.groups} groups"
        out.append(apart if seen else f"{apart}; whether by what matters, only --calib can tell")
    if seen:
        out += _against_data(names, alike)
    return tuple(out)


def _same(names: Sequence[str], weights: Sequence[str], alike: Similarity) -> list[str]:
    """Which of the criteria that see weights alone make the same choice, if any."""

    def common(a: str, b: str) -> float:
        return float(alike.common[names.index(a), names.index(b)])

    sets: list[list[str]] = []
    for name in weights:  # a set is one of which any two agree
        home = next((s for s in sets if all(common(name, other) >= SAME for other in s)), None)
        if home is None:
            sets.append([name])
        else:
            home.append(name)
    together = [s for s in sets if len(s) > 1]
    if together:
        return [
            f"{_list(s)} choose nearly the same channels here: "
            f"{min(common(a, b) for a in s for b in s):.0%} or more in common, "
            f"{alike.chance:.0%} by chance"
            for s in together
        ]
    pairs = [(common(a, b), a, b) for k, a in enumerate(weights) for b in weights[:k]]
    pairs = [p for p in pairs if not np.isnan(p[0])]
    if not pairs:
        return []
    most, a, b = max(pairs)
    return [f"no two criteria choose the same channels: {b} and {a} come nearest, with "
            f"{most:.0%} in common, {alike.chance:.0%} by chance"]  # fmt: skip


def _against_data(names: Sequence[str], alike: Similarity) -> list[str]:
    """Which of the criteria that need no data comes nearest to those that do."""
    row = alike.layer[names.index(DATA)]
    free = [n for n in names if n in CRITERIA and CRITERIA[n].needs != "data"]
    known = [(float(row[names.index(n)]), n) for n in free]
    known = [k for k in known if not np.isnan(k[0])]
    if not known:
        return []
    best, name = max(known)
    nearest = f"of the criteria that need no data, {name} ranks most like {DATA}"
    what = "the one to use without data" if best >= ALIKE else "none stands in for data"
    return [f"{nearest} (rank correlation {best:.2f}): {what}"]


def _list(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"


def _histogram(scores: Values) -> dict[str, Any]:
    counts, edges = np.histogram(scores, _BINS)
    return {"edges": edges.round(6).tolist(), "counts": counts.tolist()}


def _plain(table: np.ndarray) -> tuple[tuple[float | None, ...], ...]:
    """A table for JSON, which has no NaN."""
    return tuple(tuple(None if np.isnan(v) else round(float(v), 4) for v in row) for row in table)
