"""Inputs that the original runs on: sizes and values that its graph accepts, found by trying."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from math import prod

import numpy as np
from onnx import GraphProto

from onnxprune.axes.facts import Facts
from onnxprune.check.room import ensure_room, growth, least_bytes
from onnxprune.errors import CheckFailed, OutOfMemory, PruneError
from onnxprune.graph.binding import Binding, candidates, free_inputs, is_dynamic
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import Port, Session

Shapes = dict[str, tuple[int, ...]]

_LARGEST = 1 << 24
"""Elements of all inputs together that are still tried."""
_PATIENCE = 30.0
"""Seconds of trying."""
_IDS = 40
"""Integers are drawn below this, or below the smallest table that they look up."""

_PASSING = frozenset((
    "Cast", "Unsqueeze", "Squeeze", "Reshape", "Flatten", "Identity", "Transpose", "Slice",
    "Expand", "Concat", "Split", "Clip", "Where", "Add", "Sub", "Max", "Min", "Tile", "Gather",
))  # fmt: skip
_COMPARING = frozenset(("Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"))


@dataclass(frozen=True, slots=True)
class Hint:
    """What the graph does with an integer input."""

    bound: int
    """It looks up a table of this many rows."""
    known: tuple[int, ...]
    """It is compared with these (a sampling rate that must be 8000 or 16000)."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Input shapes, and a way of drawing values, that the original runs on."""

    shapes: Shapes
    style: str
    size: int


STYLES = ("usual", "positive", "known", "ones", "zeros", "lengths")
"""How values are drawn, likeliest first. All but the first two differ for integers alone."""


def hints(facts: Facts) -> dict[str, Hint]:
    """What can be seen in the graph about the values of its integer inputs, by name."""
    model, found = facts.model, {}
    for value in model.graph.inputs:
        bound, known = _IDS, []
        todo, seen = [value], {value}
        while todo:
            v = todo.pop()
            for node, k in model.uses.get(v, ()):
                others = [model.constants[i] for i in node.inputs if i in model.constants]
                if node.op in ("Gather", "GatherElements") and k == 1:
                    shape = facts.shape(node.inputs[0])
                    if shape:
                        bound = min(bound, shape[node.attrs.get("axis", 0) % len(shape)])
                elif node.op in _COMPARING:
                    known += [int(x) for c in others if c.size == 1
                              for x in model.array(c).ravel()]  # fmt: skip
                elif node.op in _PASSING:
                    fresh = [o for o in node.outputs if o and o not in seen]
                    seen.update(fresh)
                    todo += fresh
        found[model.in_file(value)] = Hint(bound, tuple(dict.fromkeys(known)))
    return found


def draw(ports: Sequence[Port], setting: Setting, seed: int, clues: dict[str, Hint]) -> Feeds:
    """Values for every input, the same for the same arguments."""
    feeds = {}
    for k, port in enumerate(ports):
        rng = np.random.default_rng([seed, k])
        shape = setting.shapes.get(port.name)
        if shape is None or port.dtype is None:
            raise CheckFailed("unproven: the original can't be run",
                              why=f"input {port.name!r} has no known shape",
                              hint=f"--shape {port.name}:1x... or --no-verify")  # fmt: skip
        clue = clues.get(port.name, Hint(_IDS, ()))
        feeds[port.name] = _values(rng, port, shape, setting, clue)
    return feeds


def _values(
    rng: np.random.Generator, port: Port, shape: tuple[int, ...], setting: Setting, clue: Hint
) -> np.ndarray:
    dtype, style, low = port.dtype, setting.style, port.name.lower()
    assert dtype is not None
    if "mask" in low or dtype.kind == "b":  # everything may be looked at
        return np.full(shape, style != "zeros").astype(dtype)
    if dtype.kind in "fV":
        array = rng.random(shape) if style == "positive" else rng.standard_normal(shape)
        return array.astype(np.float32).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    if dtype.kind not in "iu":
        return rng.integers(0, 10, shape).astype(str).astype(object)
    single = int(np.prod(shape)) == 1
    if single and clue.known and style in ("usual", "positive", "known"):
        # A sampling rate: the largest is the usual one, any other takes another branch.
        most, least = max(clue.known), min(clue.known)
        other = least if least < most else most // 2
        return np.full(shape, other if style == "known" else most, dtype)
    if style in ("ones", "zeros"):
        return np.full(shape, style == "ones").astype(dtype)
    if style == "lengths" or (len(shape) == 1 and "len" in low):
        return np.full(shape, setting.size, dtype)
    if dtype.itemsize == 1:
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
    return rng.integers(0, max(clue.bound, 1), shape).astype(dtype)


def settings(facts: Facts, session: Session, seed: int) -> list[tuple[Setting, Feeds]]:
    """A setting that the open original runs on, or two of different sizes if it has dynamic dims.

    With each comes what the original gave, on values drawn with `seed`. The sizes under which it
    was analysed come first. What is not smaller than a size that took too much memory is not tried.
    Raises CheckFailed ("unproven") with ONNX Runtime's reason, OutOfMemory if it was that.
    """
    clues, why = hints(facts), ""
    too_large: OutOfMemory | None = None
    limit = _LARGEST + 1
    least = least_bytes(facts) if session.providers[0] == "cpu" else 0
    found: list[tuple[Setting, Feeds]] = []
    dynamic = is_dynamic(facts.model.proto.graph)
    styles: Sequence[str] = STYLES
    end = time.monotonic() + _PATIENCE
    for shapes, size in _sizes(facts):
        if (found and not _differ(shapes, found[0][0].shapes)) or _elements(shapes) >= limit:
            continue
        usable: tuple[Setting, Feeds] | None = None
        for style in styles:
            setting = Setting(shapes, style, size)
            try:
                ensure_room(least * growth(facts, shapes))
                results = session.run(draw(session.inputs, setting, seed, clues))
            except OutOfMemory as error:
                too_large, limit = error, _elements(shapes)
                break
            except PruneError as error:
                why = why or error.why or error.what
                continue
            finite = all(np.isfinite(r).all() for r in results.values() if r.dtype.kind == "f")
            if usable is None or finite:
                usable = setting, results
            if finite:
                break
        late = time.monotonic() > end
        if usable is not None:
            found.append(usable)
            styles = [usable[0].style]
        if late or (found and not dynamic) or len(found) == 2:
            break
    if not found and too_large is not None:
        raise too_large
    if not found:
        raise CheckFailed(
            "unproven: the original can't be run", why=why or "no size fits its inputs",
            hint="--shape NAME:1x3x224x224 or --dim NAME=N to run it, --no-verify to go without",
        )  # fmt: skip
    if any(clue.known for clue in clues.values()):
        # Another branch for another sampling rate: run it as well, where it does run.
        for first, _ in list(found):
            other = replace(first, style="known")
            with suppress(PruneError):
                found.append((other, session.run(draw(session.inputs, other, seed, clues))))
                break
    return found


def _elements(shapes: Shapes) -> int:
    return sum(prod(shape) for shape in shapes.values())


def _differ(a: Shapes, b: Shapes) -> bool:
    return any(a[name] != b[name] for name in a)


def _sizes(facts: Facts) -> Iterator[tuple[Shapes, int]]:
    """Shapes of all inputs to try, those of the analysis first."""
    graph, first = facts.model.proto.graph, facts.trace.binding
    pairs = [(first, facts.other.binding), *candidates(graph, first.fixed, first.shapes)]
    ladder = [b for pair in pairs for b in pair]
    lead = _leading(graph)

    def with_batch(b: Binding, batch: int) -> Binding:
        return replace(b, batch=batch, fixed={**dict.fromkeys(lead, batch), **b.fixed})

    # Two samples and one: three would only cost more.
    few = [with_batch(b, 2 - k % 2) for k, b in enumerate(ladder)]
    single = [with_batch(b, 1) for b in ladder]
    tried: list[Shapes] = []
    for binding in (*few[:2], *ladder[:2], *few[2:], *single, *ladder[2:]):
        shapes: Shapes = {}
        for info in free_inputs(graph):
            shape = binding.shape(info)
            if shape is not None:
                shapes[info.name] = shape
        if shapes in tried or _elements(shapes) > _LARGEST:
            continue
        tried.append(shapes)
        yield shapes, binding.size


def _leading(graph: GraphProto) -> set[str]:
    """Symbols that only ever stand first in a shape: a batch, whatever its name."""
    shapes = [i.type.tensor_type.shape.dim for i in free_inputs(graph)]
    first = {dims[0].dim_param for dims in shapes if len(dims) > 1}
    return first - {d.dim_param for dims in shapes for d in dims[1:]} - {""}
