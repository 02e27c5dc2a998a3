"""Sizes for symbolic dimensions, so that a graph with dynamic axes can be walked with numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

from onnx import GraphProto, TensorProto, ValueInfoProto, numpy_helper

from onnxprune.errors import UsageError

Shape = tuple[int, ...]

SIZES = ((64, 96), (32, 64), (16, 24), (8, 12), (96, 128), (224, 256), (512, 1024), (576, 1152),
         (1536, 2560), (16000, 32000), (1, 1))  # fmt: skip
"""Sizes that are tried for the dynamic axes other than the batch, two at a time."""

BATCHES = ((2, 3), (1, 1))
_STATES = ("state", "h", "c", "h0", "c0", "hidden", "cell")


@dataclass(frozen=True)
class Binding:
    """A size for every symbolic dimension.

    `fixed` holds sizes by symbol and `shapes` whole shapes by input name, as the user gave them;
    they win. `unknown` stands for sizes that only the data decides (NonZero, NMS).
    """

    batch: int = 1
    size: int = 1
    unknown: int = 5
    fixed: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, Shape] = field(default_factory=dict)

    def shape(self, info: ValueInfoProto) -> Shape | None:
        """The shape of an input; None where not even its rank is known."""
        if info.name in self.shapes:
            return tuple(self.shapes[info.name])
        kind = info.type.tensor_type
        if not info.type.HasField("tensor_type") or not kind.HasField("shape"):
            return None
        dims = kind.shape.dim
        return tuple(
            d.dim_value
            if d.HasField("dim_value") and d.dim_value > 0
            else self.symbol(d.dim_param, info.name, k, len(dims))
            for k, d in enumerate(dims)
        )

    def symbol(self, param: str, name: str, axis: int, rank: int) -> int:
        """The size of one symbolic dimension."""
        if param in self.fixed:
            return self.fixed[param]
        parts = re.fullmatch(r"\s*(\w+)\s*([+*-])\s*(\w+)\s*", param)
        if parts:  # "past_sequence_length + 1"
            a, b = (
                int(p) if p.isdigit() else self.symbol(p, name, axis, rank)
                for p in (parts[1], parts[3])
            )
            return max(1, {"+": a + b, "-": a - b, "*": a * b}[parts[2]])
        low = param.lower()
        named = low in ("n", "b") or "batch" in low
        state = rank == 3 and axis == 1 and name.lower() in _STATES
        unnamed = not low.strip("?") or low.startswith(("unk", "s7", "s0", "dim"))
        first = axis == 0 and rank > 1 and not (state or "seq" in low or "len" in low)
        return self.batch if named or state or (first and (unnamed or named)) else self.size


def free_inputs(graph: GraphProto) -> list[ValueInfoProto]:
    """The inputs that a caller must feed: those without an initializer."""
    inits = {t.name for t in graph.initializer}
    return [i for i in graph.input if i.name not in inits]


def check_sizes(graph: GraphProto, dims: Mapping[str, int], shapes: Mapping[str, Shape]) -> None:
    """Raise UsageError where sizes are given for what the model has not, or has otherwise."""
    inputs = {i.name: i.type.tensor_type for i in free_inputs(graph)}
    symbols = {d.dim_param for kind in inputs.values() for d in kind.shape.dim} - {""}
    known = set(re.findall(r"[^\W\d]\w*", " ".join(symbols))) | symbols
    for symbol in dims:
        if symbol not in known:
            hint = f"it has {', '.join(sorted(symbols))}" if symbols else "all its sizes are fixed"
            raise UsageError(f"the model has no symbolic axis '{symbol}'", where="--dim", hint=hint)
    for name, shape in shapes.items():
        if name not in inputs:
            hint = f"it has {', '.join(inputs)}"
            raise UsageError(f"the model has no input '{name}'", where="--shape", hint=hint)
        stated = inputs[name].shape.dim
        fixed = [d.dim_value if d.dim_value > 0 else None for d in stated]
        fits = len(shape) == len(fixed) and all(
            a in (None, b) for a, b in zip(fixed, shape, strict=True)
        )
        if inputs[name].HasField("shape") and not fits:
            says = "x".join(str(d.dim_value or d.dim_param or "?") for d in stated) or "a scalar"
            given = "x".join(map(str, shape))
            raise UsageError(
                f"input '{name}' can't have this shape", where=f"--shape {name}:{given}",
                why=f"the model says {says}",
            )  # fmt: skip


def is_dynamic(graph: GraphProto) -> bool:
    """Does any input that a caller feeds have a symbolic dimension?"""
    return any(
        not (d.HasField("dim_value") and d.dim_value > 0)
        for i in free_inputs(graph)
        for d in i.type.tensor_type.shape.dim
    )


def baked_sizes(graph: GraphProto, limit: int = 12) -> list[int]:
    """Small integers that the constants mention most: sizes that an export may have fixed."""
    seen: Counter[int] = Counter()
    small = [t for t in graph.initializer if t.data_type == TensorProto.INT64]
    small += [
        a.t for n in graph.node if n.op_type == "Constant" for a in n.attribute if a.t.data_type
    ]
    for t in small:
        few = t.data_type == TensorProto.INT64 and len(t.dims) <= 1 and sum(t.dims) <= 8
        if few and t.data_location != TensorProto.EXTERNAL:
            seen.update(v for v in numpy_helper.to_array(t).ravel().tolist() if 4 < v <= 4096)
    return [v for v, _ in seen.most_common(limit)]


def candidates(
    graph: GraphProto, fixed: Mapping[str, int], shapes: Mapping[str, Shape]
) -> Iterator[tuple[Binding, Binding]]:
    """Pairs of bindings to try, likeliest first; the two of a pair differ in every dynamic axis.

    A net may refuse a batch of 2 (a baked Concat) or sizes that don't divide well, hence the
    ladder; last come sizes that the graph's own constants mention, for axes that are dynamic in
    name only.
    """
    if not is_dynamic(graph):
        yield Binding(fixed=fixed, shapes=shapes), Binding(unknown=7, fixed=fixed, shapes=shapes)
        return
    for b1, b2 in BATCHES:
        for s1, s2 in SIZES:
            yield Binding(b1, s1, 5, fixed, shapes), Binding(b2, s2, 7, fixed, shapes)
    baked = baked_sizes(graph)
    for size in baked:
        for b1, b2 in BATCHES:
            yield Binding(b1, size, 5, fixed, shapes), Binding(b2, size, 7, fixed, shapes)
    symbols = _symbols(graph)
    if 2 <= len(symbols) <= 3:  # two sequences, each of its own fixed length
        for sizes in product(baked[:4], repeat=len(symbols)):
            mine = {**dict(zip(symbols, sizes, strict=True)), **fixed}
            for b1, b2 in BATCHES:
                yield Binding(b1, 1, 5, mine, shapes), Binding(b2, 1, 7, mine, shapes)


def _symbols(graph: GraphProto) -> list[str]:
    """The named symbols of the inputs, but for the batch."""
    probe = Binding(batch=2, size=1)
    found: dict[str, None] = {}
    for info in free_inputs(graph):
        dims = info.type.tensor_type.shape.dim
        for k, d in enumerate(dims):
            if (
                d.dim_param.isidentifier()
                and probe.symbol(d.dim_param, info.name, k, len(dims)) == 1
            ):
                found[d.dim_param] = None
    return list(found)
