"""What can be pruned in a model: the facts, solved, with all choices made but the channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.axes.analyse import facts_of
from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Solution, groups
from onnxprune.axes.trace import Trace
from onnxprune.axes.view import View
from onnxprune.axes.walk import analyse
from onnxprune.choose.heads import resolve
from onnxprune.choose.limits import share
from onnxprune.cost.budget import cost_model
from onnxprune.cost.work import sizes_at_one, trace_at_one
from onnxprune.graph.binding import check_sizes
from onnxprune.graph.files import Source, load
from onnxprune.graph.model import Model, Node, normalise

AnyModel = str | PathLike[str] | ModelProto | Source


@dataclass(frozen=True)
class Sizes:
    """Sizes for dynamic axes: by symbol (`dims`) and whole shapes by input name."""

    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


ANY_SIZES = Sizes()
"""Nothing is said: the analysis picks them."""


@dataclass(frozen=True, eq=False)
class Analysis:
    """What can be pruned in a model, decided up to which channels."""

    source: Source
    facts: Facts
    solution: Solution
    groups: tuple[Group, ...]
    whole_groups: bool
    """Grouped convolutions lose whole groups (else the same channels of every group)."""

    def view(self, kept: Mapping[int, Any] | None = None) -> View:
        """What is kept, by group id; everything without an argument."""
        return View.of(self.solution, self.groups, kept or {})


def source_of(model: AnyModel) -> Source:
    """A loaded model, from whatever stands for it."""
    return model if isinstance(model, Source) else load(model)


def analyze(
    model: AnyModel,
    *,
    heads: str = "auto",
    ratio: float = 0.5,
    sizes: Sizes = ANY_SIZES,
) -> Analysis:
    """Find what can be pruned: labels, groups, and what is fixed and why.

    Args:
        heads: where channels split in two ways, keep whole heads ('whole'), the same dims of every
            head ('dims'), or whichever loses the larger share at `ratio` ('auto').

    Raises:
        Unreadable: the model can't be read.
        UsageError: `sizes` names what the model has not, or has otherwise.
    """
    source = source_of(model)
    check_sizes(source.proto.graph, sizes.dims, sizes.shapes)
    analysed = normalise(source)

    facts = found_facts(analysed, sizes)

    def decided(facts: Facts, whole_groups: bool) -> Analysis:
        solution = resolve(facts, heads, ratio)
        return Analysis(source, facts, solution, tuple(groups(solution)), whole_groups)

    found = decided(facts, False)
    if any(_is_grouped(n, analysed) for n in analysed.walk()):
        other = decided(analyse(analysed, facts.trace, facts.other, whole_groups=True), True)
        one = trace_at_one(facts)
        if _left_over(other, ratio, one) < _left_over(found, ratio, one) * 0.999:
            return other
    return found


def _is_grouped(n: Node, model: Model) -> bool:
    """A convolution in groups of more than one channel (depthwise ones have nothing to choose)."""
    if n.attrs.get("group", 1) < 2:
        return False
    weight = model.constants.get(n.inputs[3 if n.op == "QLinearConv" else 1])
    return weight is None or weight.dims[1:2] != (1,) or weight.dims[0] != n.attrs["group"]


def found_facts(model: Model, sizes: Sizes) -> Facts:
    """The facts; where shapes stay unknown (scripted sequences), those of a run of the model."""
    facts = facts_of(model, fixed=sizes.dims, shapes=sizes.shapes)
    known = facts.trace.shapes
    if all(o in known for n in model.graph.nodes for o in n.outputs if o):
        return facts
    from onnxprune.check.measure import measured

    runs = measured(facts)
    return facts_of(model, measured=runs) if runs else facts


def _left_over(a: Analysis, ratio: float, one: Trace) -> float:
    """Share of the parameters that a uniform cut would leave."""
    model = cost_model(a.solution, a.groups, sizes_at_one(a.facts, one))
    full = np.array([g.size for g in a.groups], float)
    left = np.array([g.size - share(g.size, ratio) for g in a.groups], float)
    return float(model.total("params", left)) / max(1.0, float(model.total("params", full)))
