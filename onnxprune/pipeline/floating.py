"""What repair looks at in place of a quantised model: its float twin, cut where it is cut."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from onnx import ModelProto

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Solution, solve
from onnxprune.axes.view import View
from onnxprune.axes.walk import analyse
from onnxprune.errors import PruneError
from onnxprune.graph.model import normalise
from onnxprune.pipeline.analysis import ANY_SIZES, Analysis, Sizes, found_facts
from onnxprune.repair.requantise import Rounding, requantised
from onnxprune.repair.twin import Twin, twin_of


@dataclass(frozen=True, eq=False)
class Floating:
    """The float twin of an analysed model, labelled with the model's own channels."""

    twin: Twin
    solution: Solution
    """Of the twin's values, with the roots of the model's solution: its groups are the same."""

    def view(self, view: View) -> View:
        """The twin's values as a view of the model keeps them."""
        return View(self.solution, view.keep)

    def slim(self, view: View, model: ModelProto) -> Twin | None:
        """The twin of a slim model; None where it does not fit what the view keeps."""
        mine, twin = self.view(view), twin_of(model, self.solution.facts.model.source.folder)
        if twin is None:
            return None
        dims = {t.name: tuple(t.dims) for t in twin.model.graph.initializer}
        facts = mine.facts
        fits = all(
            mine.shape(v) == dims.get(facts.model.in_file(v))
            for v in facts.axes
            if v in facts.model.constants and facts.model.in_file(v) in self.twin.links
        )
        return twin if fits else None

    def rounding(self, slim: ModelProto, twin: Twin) -> Rounding:
        """How the file of a slim model rounds its weights."""
        return Rounding(slim, twin, self.solution.facts.model.source.folder)

    def returned(self, slim: ModelProto, twin: Twin, refitted: ModelProto) -> ModelProto:
        """A slim model with the weights of its refitted twin."""
        return requantised(slim, twin, refitted, self.solution.facts.model.source.folder)


def floating(analysis: Analysis, sizes: Sizes = ANY_SIZES) -> Floating | None:
    """The float twin of a model; None if it has none, or is no quantised model."""
    source = analysis.source
    twin = twin_of(source.proto, source.folder)
    if twin is None:
        return None
    from onnxprune.runtime.session import open_session

    try:
        with open_session(twin.model, folder=source.folder):
            facts = found_facts(normalise(replace(source, proto=twin.model)), sizes)
    except PruneError:
        return None  # codes are computed with in some other way: nothing is refitted
    if analysis.whole_groups:
        facts = analyse(facts.model, facts.trace, facts.other, whole_groups=True)
    return Floating(twin, _labelled(facts, twin, analysis.solution))


def _labelled(facts: Facts, twin: Twin, model: Solution) -> Solution:
    """A solution of the twin in terms of the model's channels; what has none of them is kept."""
    own = solve(facts)
    least = np.full(len(own.root), len(model.root), np.int64)
    most = np.full(len(own.root), -1, np.int64)
    for value, other, perm in _common(facts, twin, model.facts):
        mine, theirs = facts.axes[value], model.facts.axes[other]
        if perm:
            theirs = [theirs[k] for k in perm]
        if [len(v) for v in mine] == [len(v) for v in theirs]:
            for a, b in zip(mine, theirs, strict=True):
                np.minimum.at(least, own.root[a], model.root[b])
                np.maximum.at(most, own.root[a], model.root[b])
    of = np.where(least == most, least, model.zero)
    of[own.zero] = model.zero
    return Solution(facts, of[own.root], own.edges)


def _common(facts: Facts, twin: Twin, other: Facts) -> Iterator[tuple[str, str, tuple[int, ...]]]:
    """Values of the twin and of the model that have the same channels, and how axes are turned."""
    there = {other.model.in_file(v): v for v in other.axes if v not in other.model.constants}
    nodes = {other.model.in_file(n.outputs[0]): n for n in other.model.graph.nodes if n.outputs}
    for value in facts.axes:
        name = facts.model.in_file(value)
        link = twin.links.get(name)
        if link is not None:
            made, k = link.place
            held = nodes[made].inputs[k] if made in nodes else ""
            if held in other.axes:
                yield value, held, link.perm
        elif name in there:
            yield value, there[name], ()
