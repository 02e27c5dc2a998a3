"""Scores of all groups: by a criterion, or from a file where it has them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Member
from onnxprune.choose.criteria import (
    CRITERIA,
    Context,
    Missing,
    Values,
    l2,
    no_data,
    over_members,
)
from onnxprune.choose.reads import Inputs
from onnxprune.errors import Unreadable, UsageError


@dataclass(frozen=True, eq=False)
class Scores:
    """(channels,) scores by group id, and what a reader should know about where they come from."""

    by_group: Mapping[int, Values]
    notes: tuple[str, ...] = ()
    losses: frozenset[int] = frozenset()
    """Ids of the groups whose scores are losses: what is lost when a channel goes, after all that
    score lower have gone, on one scale for all of them. Others are only ranked within a group.
    """
    unseen: Mapping[int, float] = field(default_factory=dict)
    """How many times larger losses may be on samples that they were not told by, by group id."""

    def wary(self, power: float) -> Scores:
        """The same with losses that weigh more where less is known about them."""
        by_group = {k: v * self.unseen.get(k, 1.0) ** power for k, v in self.by_group.items()}
        return replace(self, by_group=by_group)


def group_scores(
    facts: Facts,
    groups: Sequence[Group],
    criterion: str = "l2",
    seed: int = 0,
    given: Mapping[str, NDArray[np.floating]] | None = None,
    inputs: Inputs | None = None,
) -> Scores:
    """Score the channels of these groups; only the weights of their members are read.

    `given` holds scores by weight name, a value per output channel: they win over the criterion.
    `inputs` is what `inputs_for` says that the criterion needs.

    Raises:
        UsageError: no such criterion, or one that needs data, without `inputs`; or `given` names no
            weight, or has not its length.
    """
    if criterion not in CRITERIA:
        raise UsageError(
            f"no criterion '{criterion}'", where="--criterion", hint=", ".join(sorted(CRITERIA))
        )
    if CRITERIA[criterion].needs == "data" and inputs is None:
        raise no_data(criterion)
    context, score = Context(facts, seed, inputs), CRITERIA[criterion].score
    mine, notes = _given(facts, groups, given) if given is not None else ({}, [])
    out: dict[int, Values] = {}
    missing: Counter[str] = Counter()
    for g in groups:
        if g.id in mine:
            out[g.id] = mine[g.id]
            continue
        found = score(g, context)
        if isinstance(found, Missing):
            missing[found.why] += 1
            found = over_members(l2, g, facts)
        out[g.id] = found
    notes += [
        f"{criterion}: {n} of {len(groups)} groups were ranked by l2: {why}"
        for why, n in missing.items()
    ]
    if mine and len(mine) < len(out):
        notes.append(
            f"--scores: {len(out) - len(mine)} of {len(out)} groups have none there and were "
            f"ranked by {criterion}"
        )
    return Scores(out, tuple(notes))


def load_scores(path: str | Path) -> dict[str, NDArray[np.floating]]:
    """Scores from a .npz file: weight name -> a value per output channel.

    Raises:
        Unreadable: it is no .npz file.
        UsageError: an entry is no list of finite numbers.
    """
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise Unreadable("not a .npz file", where=str(path), why="it is a single array")
        with file:
            table = {name: file[name] for name in file.files}
    except (OSError, ValueError, BadZipFile, EOFError) as error:
        raise Unreadable(
            "the scores can't be read", where=str(path), why=str(error)[:200],
            hint="write them with numpy.savez(path, **{weight name: one value per output channel})",
        ) from None  # fmt: skip
    for name, values in table.items():
        if values.ndim != 1 or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
            raise UsageError(
                "scores must be one finite number per output channel", where=f"'{name}' in {path}",
                why=f"it has shape {values.shape} and type {values.dtype}, or is not finite",
            )  # fmt: skip
    return table


def _given(
    facts: Facts, groups: Sequence[Group], table: Mapping[str, NDArray[np.floating]]
) -> tuple[dict[int, Values], list[str]]:
    """Scores by group, from scores by weight; several weights of a group count alike."""
    model = facts.model
    known = {c.name for c in model.constants.values()} | {model.in_file(v) for v in facts.derived}
    by_name: dict[str, list[tuple[Group, Member]]] = {}
    for g in groups:
        for m in g.members:
            by_name.setdefault(model.in_file(m.value), []).append((g, m))
    total: dict[int, Values] = {}
    count: Counter[int] = Counter()
    notes = []
    for name, values in table.items():
        if name not in known:
            raise UsageError(
                f"no weight is called '{name}'", where="--scores", hint=_closest(name, known)
            )
        places = by_name.get(name, [])
        places = [p for p in places if p[1].role == "creates"] or [
            p for p in places if p[1].role == "follows"
        ]
        if not places:
            notes.append(f"--scores: '{name}' creates no channels that could go")
        for g, m in places:
            channel = m.channel
            if len(values) == g.size != len(channel) and (channel >= 0).all():
                channel = np.arange(g.size)  # a value per unit, where an axis repeats its units
            if len(values) != len(channel):
                raise UsageError(
                    f"'{name}' has {len(channel)} output channels, not {len(values)}",
                    where="--scores",
                )
            mine = channel >= 0
            n = np.bincount(channel[mine], minlength=g.size)
            mean = np.bincount(channel[mine], values[mine], g.size) / np.maximum(n, 1)
            total[g.id] = total.get(g.id, np.zeros(g.size)) + mean
            count[g.id] += 1
    return {k: v / count[k] for k, v in total.items()}, notes


def _closest(name: str, known: set[str]) -> str | None:
    near = get_close_matches(name, known, 3)
    return f"did you mean {', '.join(near)}?" if near else None
