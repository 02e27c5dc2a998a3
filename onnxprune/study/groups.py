"""The groups that a study looks at: those that `slim` would touch, in the order of the network."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group
from onnxprune.choose.allocate import excluded
from onnxprune.errors import NothingToPrune
from onnxprune.runtime.feeds import Feeds


def studied(facts: Facts, groups: Sequence[Group]) -> tuple[list[Group], tuple[str, ...]]:
    """The groups that a request without any wishes could prune, and notes on those left out.

    Raises:
        NothingToPrune: there is none.
    """
    left = excluded(facts, groups, (), ())
    found = in_order(facts, [g for g in groups if g.id not in left and g.size > 1])
    if not found:
        why = "; ".join(dict.fromkeys(left.values())) or "every channel of the model is fixed"
        raise NothingToPrune("nothing to study", why=why)
    names = {g.id: g.name for g in groups}
    return found, tuple(f"{names[k]} was left out: {why}" for k, why in left.items())


def in_order(facts: Facts, groups: Sequence[Group]) -> list[Group]:
    """Groups by the first node that works with one of their weights."""
    place = {node: k for k, node in enumerate(facts.model.walk())}

    def first(g: Group) -> int:
        users = (u for m in g.members for u, _ in facts.model.uses.get(m.value, ()))
        return min((place[u] for u in users), default=len(place))

    return sorted(groups, key=first)


def samples_of(feeds: Feeds) -> int:
    """How many samples a batch has; one where nothing says so."""
    return min((len(a) for a in feeds.values() if np.ndim(a)), default=1)
