"""What the models are fed: sizes that they accept, and values, drawn or from a file."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from onnx import GraphProto

from onnxprune.bench.models import Contestant
from onnxprune.check.inputs import STYLES, Setting, draw, hints
from onnxprune.errors import PruneError, Unreadable, UsageError
from onnxprune.graph.binding import Binding, candidates, check_sizes, free_inputs
from onnxprune.runtime.feeds import Feeds, load_feeds
from onnxprune.runtime.session import Port, open_session

SEED = 0

_PATIENCE = 30.0
"""Seconds of trying sizes."""
_LARGEST = 1 << 24
"""Elements of all inputs together that sizes are tried with, where the model leaves them open."""


@dataclass(frozen=True)
class Wanted:
    """What was asked for about the inputs."""

    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    calib: Path | None = None
    """Samples, as `runtime.feeds.load_feeds` reads them; else values are drawn."""


@dataclass(frozen=True, eq=False)
class Settled:
    """Sizes and a way of drawing values that all models have been run with."""

    bindings: tuple[Binding, ...]
    """One a model: the same sizes by symbol, shapes by its own inputs."""
    ports: tuple[tuple[Port, ...], ...]
    style: str
    wanted: Wanted
    batches: bool
    """Whether the inputs have a batch axis that takes any size."""


def settle(models: Sequence[Contestant], wanted: Wanted) -> Settled:
    """Find sizes that every model runs with on the CPU, trying the likeliest first.

    Raises UsageError for sizes that a model has not, Unreadable where nothing that was tried runs,
    with ONNX Runtime's reason.
    """
    graphs = [m.source.proto.graph for m in models]
    for graph in graphs:
        check_sizes(graph, wanted.dims, wanted.shapes)
    opened = [open_session(m.source) for m in models]
    try:
        ports = tuple(session.inputs for session in opened)
        why, end = "", time.monotonic() + _PATIENCE
        styles = STYLES if wanted.calib is None and _has_integers(ports) else STYLES[:1]
        for binding in _bindings(models[0], wanted):
            settled = Settled((binding,) * len(models), ports, STYLES[0], wanted, False)
            for style in styles:
                found = replace(settled, style=style)
                try:
                    for session, feeds in zip(opened, feeds_of(found, models, 1), strict=True):
                        session.run(feeds)
                except PruneError as error:
                    why = why or error.why or error.what
                    continue
                return replace(
                    found, batches=any(_takes_batches(g, binding, wanted) for g in graphs)
                )
            if time.monotonic() > end:
                break
    finally:
        for session in opened:
            session.close()
    raise Unreadable(
        "no input was found that all models run on", why=why,
        hint="--shape NAME:1x3x224x224, --dim NAME=N or --calib samples.npz",
    )  # fmt: skip


def _has_integers(ports: Sequence[Sequence[Port]]) -> bool:
    """Ways of drawing values differ for integers."""
    return any(p.dtype is not None and p.dtype.kind in "iub" for mine in ports for p in mine)


def _bindings(model: Contestant, wanted: Wanted) -> Iterator[Binding]:
    """Sizes to try, those that the analysis found first."""
    graph = model.source.proto.graph
    fixed, shapes = dict(wanted.dims), dict(wanted.shapes)
    found = [first for first, _ in candidates(graph, fixed, shapes)]
    if model.facts is not None:
        found.insert(0, replace(model.facts.trace.binding, fixed=fixed, shapes=shapes))
    for k, binding in enumerate(found):
        sizes = [binding.shape(info) or () for info in free_inputs(graph)]
        if k == 0 or sum(math.prod(size) for size in sizes) <= _LARGEST:
            yield binding


def feeds_of(settled: Settled, models: Sequence[Contestant], batch: int) -> list[Feeds]:
    """The inputs of each model at a batch: the same values where names and shapes are the same."""
    found = []
    for model, binding, ports in zip(models, settled.bindings, settled.ports, strict=True):
        graph = model.source.proto.graph
        if settled.wanted.calib is not None:
            found.append(_from_file(settled.wanted.calib, ports, batch))
            continue
        here = _at_batch(binding, graph, batch, settled.wanted)
        shapes = {i.name: here.shape(i) for i in free_inputs(graph)}
        known = {name: shape for name, shape in shapes.items() if shape is not None}
        clues = hints(model.facts) if model.facts is not None else {}
        found.append(draw(ports, Setting(known, settled.style, here.size), SEED, clues))
    return found


def own_batch(model: Contestant) -> int | None:
    """The batch that a model fixes; None where it is open, or there is none.

    It is that of the first input with more axes than one: a state behind it may begin otherwise.
    """
    shapes = (i.type.tensor_type.shape.dim for i in free_inputs(model.source.proto.graph))
    first = next((dims[0] for dims in shapes if len(dims) > 1), None)
    return int(first.dim_value) or None if first is not None else None


def check_batches(
    settled: Settled, batches: Sequence[int], wanted: Wanted, models: Sequence[Contestant]
) -> None:
    """Raise UsageError where batches are asked for that the inputs can't have."""
    own = own_batch(models[0])
    if settled.batches or not batches or (own is not None and set(batches) == {own}):
        return
    if wanted.shapes or wanted.dims:
        raise UsageError("--batch excludes a --shape or --dim that says the batch")
    says = f"its inputs fix a batch of {own}" if own else "no input has a batch axis"
    raise UsageError(
        "the model takes no other batch", where=f"--batch {','.join(map(str, batches))}", why=says,
        hint="export it with a dynamic batch axis",
    )  # fmt: skip


def _from_file(path: Path, ports: Sequence[Port], batch: int) -> Feeds:
    """The first batch of a file of samples; too few are repeated."""
    for feeds in load_feeds(path, ports, batch=batch):
        sizes = {array.shape[0] for array in feeds.values() if array.ndim}
        if len(sizes) != 1 or (have := sizes.pop()) >= batch:
            return feeds
        again = np.arange(batch) % have
        # A batch that the model fixes has come in full.
        return {k: a[again] if a.ndim and _is_open(ports, k) else a for k, a in feeds.items()}
    raise Unreadable("no samples to measure with", where=str(path))


def _is_open(ports: Sequence[Port], name: str) -> bool:
    return any(p.name == name and p.shape and not isinstance(p.shape[0], int) for p in ports)


def _at_batch(binding: Binding, graph: GraphProto, batch: int, wanted: Wanted) -> Binding:
    """The same sizes at another batch; sizes that were asked for win."""
    mine = dict.fromkeys(_batch_symbols(graph), batch)
    return replace(binding, batch=batch, fixed={**mine, **wanted.dims})


def _batch_symbols(graph: GraphProto) -> set[str]:
    """Symbols that only ever stand first in a shape: a batch, whatever its name."""
    shapes = [i.type.tensor_type.shape.dim for i in free_inputs(graph)]
    first = {dims[0].dim_param for dims in shapes if len(dims) > 1}
    return first - {d.dim_param for dims in shapes for d in dims[1:]} - {""}


def _takes_batches(graph: GraphProto, binding: Binding, wanted: Wanted) -> bool:
    """Does another batch change any input's shape?"""
    one, two = (_at_batch(binding, graph, batch, wanted) for batch in (1, 2))
    return any(one.shape(info) != two.shape(info) for info in free_inputs(graph))
