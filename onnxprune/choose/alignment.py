"""The multiple of channels at which a model's layers, each for itself, waste the least time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Solution
from onnxprune.cost.work import Sizes
from onnxprune.graph.model import Node
from onnxprune.runtime.widths import MULTIPLES, Layer, Width, measure

_LAYERS = 8
"""Different layers that are timed, those with most work."""
_WORTH = 0.04
"""A larger multiple must do this much more: coarser steps fit the scores less well."""
_FLOATS = (1, 10, 11)


@dataclass(frozen=True, eq=False)
class Alignment:
    """The multiple that kept counts should have, and what says so."""

    multiple: int
    layers: tuple[tuple[Layer, int, tuple[Width, ...]], ...]
    """Layers, how often each occurs, and its times."""

    def record(self) -> dict[str, Any]:
        """As reports and plans carry it."""
        rows = [
            {
                "op": layer.op, "inputs": layer.inputs, "outputs": layer.outputs,
                "space": list(layer.space), "kernel": list(layer.kernel), "count": count,
                "times": [{"multiple": w.multiple, "inputs": w.inputs, "outputs": w.outputs,
                           "ms": w.ms} for w in widths],
            }
            for layer, count, widths in self.layers
        ]  # fmt: skip
        return {"align": self.multiple, "layers": rows}


def align_by_time(
    solution: Solution, sizes: Sizes, provider: str, tell: Callable[[str], None]
) -> Alignment:
    """Time the layers that shrink with some of the groups, and choose; 1 where none can be timed.

    Raises:
        UsageError: the provider does not work here. MissingRuntime.
    """
    count = layers_of(solution, sizes)
    heavy = sorted(
        count, key=lambda layer: -layer.macs(layer.inputs, layer.outputs) * count[layer]
    )[:_LAYERS]
    times = measure(heavy, provider, tell)
    return Alignment(
        best_multiple(times, count), tuple((x, count[x], times[x]) for x in heavy if x in times)
    )


def best_multiple(times: Mapping[Layer, Sequence[Width]], count: Mapping[Layer, int]) -> int:
    """The smallest multiple that wastes hardly more time than the best.

    Waste is what a width takes beyond the straight line, over its work, between neighbours that
    fill whole blocks. Of the multiples of 4 half are no multiples of 8, and so on.
    """
    spent, line = dict.fromkeys(MULTIPLES, 0.0), dict.fromkeys(MULTIPLES, 0.0)
    for layer, widths in times.items():
        (low, fast), *_, (high, slow) = ((layer.macs(w.inputs, w.outputs), w.ms) for w in widths)
        for w in widths[1:]:
            part = (layer.macs(w.inputs, w.outputs) - low) / (high - low) if high > low else 1.0
            spent[w.multiple] += count[layer] * w.ms
            line[w.multiple] += count[layer] * (fast + part * max(0.0, slow - fast))
    if not times:
        return 1
    waste = {}
    for m in MULTIPLES:
        finer = [*(k for k in MULTIPLES if k > m), float("inf")]
        share = {k: 1 / k - 1 / n for k, n in zip([m, *finer], finer, strict=False)}
        waste[m] = m * sum(part * spent[int(k)] / line[int(k)] for k, part in share.items())
    best = min(waste.values())
    return next(m for m in MULTIPLES if waste[m] <= best * (1 + _WORTH))


def near_multiples(multiple: int) -> tuple[int, ...]:
    """The multiples to try on whole models: none, this one, and those beside it."""
    at = MULTIPLES.index(multiple)
    return tuple(sorted({1, *MULTIPLES[max(0, at - 1) : at + 2]}))


def layers_of(solution: Solution, sizes: Sizes) -> Counter[Layer]:
    """The convolutions and matrix products that may shrink, with how often each occurs."""
    facts, found = solution.facts, Counter[Layer]()
    for work in facts.work:
        node = work.node
        if node.domain or len(node.inputs) < 2 or node.inputs[1] not in facts.model.constants:
            continue
        layer = _conv(node, solution, sizes) if node.op == "Conv" else None
        if node.op in ("Gemm", "MatMul"):
            layer = _product(node, solution, sizes)
        if layer is not None and any(layer.narrows) and layer.dtype in _FLOATS:
            found[layer] += 1
    return found


def _size(value: str, facts: Facts, sizes: Sizes) -> tuple[int, ...]:
    """The shape of a value at the sizes that are measured."""
    return tuple(sizes.of(v) for v in facts.axes.get(value, ()))


def _narrows(solution: Solution, value: str, axis: int) -> bool:
    return bool((solution.roots(value, axis) != solution.zero).any())


def _conv(node: Node, solution: Solution, sizes: Sizes) -> Layer | None:
    facts, attrs, weight = solution.facts, node.attrs, node.inputs[1]
    shape, x = _size(weight, facts, sizes), _size(node.inputs[0], facts, sizes)
    group, rank = attrs.get("group", 1), len(shape) - 2
    depthwise = group == shape[0] and shape[1] == 1 if shape else False
    if rank < 1 or len(x) != rank + 2 or (group != 1 and not depthwise):
        return None
    padded = attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    pads = attrs.get("pads") or [0] * (2 * rank)
    if padded:  # near enough for timing
        pads = [k // 2 for k in shape[2:]] * 2
    narrows = _narrows(solution, weight, 0)
    return Layer(
        "Conv", facts.trace.types.get(weight, 0), x[1], shape[0],
        (narrows if depthwise else _narrows(solution, weight, 1), narrows),
        x[2:], shape[2:], tuple(attrs.get("strides") or [1] * rank), tuple(pads),
        tuple(attrs.get("dilations") or [1] * rank), depthwise,
    )  # fmt: skip


def _product(node: Node, solution: Solution, sizes: Sizes) -> Layer | None:
    facts, weight = solution.facts, node.inputs[1]
    shape, x = _size(weight, facts, sizes), _size(node.inputs[0], facts, sizes)
    if len(shape) != 2 or len(x) < 2 or node.attrs.get("transA"):
        return None
    inner, outer = (1, 0) if node.attrs.get("transB") else (0, 1)
    rows = 1
    for size in x[:-1]:
        rows *= size
    return Layer(
        "MatMul", facts.trace.types.get(weight, 0), shape[inner], shape[outer],
        (_narrows(solution, weight, inner), _narrows(solution, weight, outer)), (rows,),
    )  # fmt: skip
