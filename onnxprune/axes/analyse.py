"""From a model to its facts: find bindings that its shapes accept, then walk once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from onnx import GraphProto

from onnxprune.axes.facts import Facts
from onnxprune.axes.trace import Shape, Trace, trace
from onnxprune.axes.walk import analyse
from onnxprune.graph.binding import Binding, candidates, free_inputs, is_dynamic
from onnxprune.graph.model import Model

Known = Mapping[str, tuple[int, Shape]]
"""Value name -> element type and shape."""


def _hints(graph: GraphProto) -> dict[str, tuple[int, Shape]]:
    """Shapes that the file itself states, for values that inference can't do."""
    out: dict[str, tuple[int, Shape]] = {}
    for info in (*graph.value_info, *graph.output):
        t = info.type.tensor_type
        if t.HasField("shape") and t.elem_type:
            dims = tuple(d.dim_value if d.dim_value > 0 else -1 for d in t.shape.dim)
            if -1 not in dims:
                out[info.name] = (t.elem_type, dims)
    return out


def trace_pair(
    model: Model, fixed: Mapping[str, int] | None = None, shapes: Mapping[str, Shape] | None = None
) -> tuple[Trace, Trace]:
    """Traces under two bindings: the first pair of sizes that the graph accepts without failure."""
    hints = _hints(model.proto.graph)
    best: tuple[int, Trace, Binding] | None = None
    for first, second in candidates(model.proto.graph, fixed or {}, shapes or {}):
        t = trace(model, first, hints)
        if best is None or len(t.failures) < best[0]:
            best = (len(t.failures), t, second)
        if not t.failures:
            break
        if best[0] and not is_dynamic(model.proto.graph):
            break
    assert best is not None
    count, t, second = best
    if not is_dynamic(model.proto.graph) and not t.guessed:
        return t, t
    other = trace(model, second, hints)
    if len(other.failures) > count:  # too large for a table of positions? then the batch alone
        size = t.binding.size
        smaller = [s for s in (size * 3 // 4, size // 2, size) if s]
        again = [trace(model, replace(second, size=s), hints) for s in dict.fromkeys(smaller)]
        other = min(other, *again, t, key=lambda o: len(o.failures))
    return t, other


def facts_of(
    model: Model,
    *,
    fixed: Mapping[str, int] | None = None,
    shapes: Mapping[str, Shape] | None = None,
    whole_groups: bool = False,
    measured: Sequence[tuple[Binding, Known]] = (),
) -> Facts:
    """All facts about a model (see `axes/facts.py`).

    `measured` are bindings and shapes read off a run of the model, for what inference can't tell.
    """
    if measured:
        hints = _hints(model.proto.graph)
        runs = [trace(model, b, {**hints, **known}) for b, known in measured]
        first, other = runs[0], runs[-1]
        if first is other and first.guessed:
            binding, known = measured[0]
            other = trace(model, replace(binding, unknown=binding.unknown + 2), {**hints, **known})
    else:
        first, other = trace_pair(model, fixed, shapes)
    facts = analyse(model, first, other, whole_groups=whole_groups)
    facts.notes = tuple(_one_size(facts, fixed or {}, shapes or {}))
    return facts


def _one_size(facts: Facts, fixed: Mapping[str, int], shapes: Mapping[str, Shape]) -> Iterator[str]:
    """Symbolic axes that could be given one size only, though the user asked for none."""
    sizes: dict[str, int] = {}
    for info in free_inputs(facts.model.proto.graph):
        a, b = (t.shapes.get(info.name, ()) for t in (facts.trace, facts.other))
        for k, d in enumerate(info.type.tensor_type.shape.dim[: len(a)]):
            given = d.dim_value > 0 or d.dim_param in fixed or info.name in shapes
            if not given and a[k] == b[k]:
                sizes[f"'{d.dim_param}'" if d.dim_param else f"axis {k} of '{info.name}'"] = a[k]
    for name, size in sizes.items():
        yield f"{name} was analysed at {size} alone: no second size that was tried fits the model"
