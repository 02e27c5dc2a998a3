"""Channel statistics of calibration data: one streamed pass through ONNX Runtime.

The sums are taken inside the graph, by nodes that are added behind what is asked for. So nothing
of the size of an activation ever leaves ONNX Runtime, and what is kept are two numbers a channel,
however many samples there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Solution
from onnxprune.choose.reads import Axis, Inputs, Moments, inputs, reads
from onnxprune.graph.model import Model
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import open_session

_ZERO_POINTS = {
    ("QLinearConv", 0): 2, ("QLinearMatMul", 0): 2, ("QLinearMatMul", 3): 5, ("QGemm", 0): 2,
    ("ConvInteger", 0): 2, ("MatMulInteger", 0): 2, ("MatMulInteger", 1): 3,
    ("MatMulIntegerToFloat", 0): 4, ("MatMulIntegerToFloat", 1): 5,
}  # fmt: skip
"""(operator, operand) -> the operand that says what stands for 0 in it."""


def measured(
    solution: Solution,
    groups: Sequence[Group],
    batches: Sequence[Feeds],
    *,
    provider: str = "cpu",
    tell: Callable[[str], None] = lambda text: None,
) -> Inputs:
    """What the consumers of every group read on these batches.

    Moments go over samples and positions. Quantised activations are measured in their steps: a
    criterion compares channels of one tensor, so a tensor's scale cancels. What is read inside
    the body of an If or Loop can't be seen from outside and is left out.

    Raises:
        Unreadable: ONNX Runtime can't run the model on a batch.
    """
    found = reads(solution, groups)
    zeros: dict[Axis, str] = {}
    for r in (r for each in found.values() for r in each if _is_outside(r.value, solution.facts)):
        k = _ZERO_POINTS.get((r.node.op, r.operand), len(r.node.inputs))
        zeros[r.value, r.axis] = r.node.inputs[k] if k < len(r.node.inputs) else ""
    return inputs(found, _moments(solution.facts, zeros, batches, provider, tell))


def _is_outside(value: str, facts: Facts) -> bool:
    """Is a value one of the main graph?"""
    made = facts.model.producer.get(value)
    return not made.site.path if made is not None else value in facts.model.graph.inputs


def _moments(
    facts: Facts,
    zeros: Mapping[Axis, str],
    batches: Sequence[Feeds],
    provider: str,
    tell: Callable[[str], None],
) -> dict[Axis, Moments]:
    """(n,) moments of every axis that is a key of `zeros`."""
    if not zeros:
        return {}
    model, axes = facts.model, list(zeros)
    size = {a: len(facts.axes[a[0]][a[1]]) for a in axes}
    total = {a: np.zeros((2, size[a])) for a in axes}
    count = dict.fromkeys(axes, 0)
    probe = _probe(model, facts, zeros)
    with open_session(
        probe, provider=provider, optimise=True, folder=model.source.folder
    ) as session:
        for k, feeds in enumerate(batches):
            tell(f"measuring channels: batch {k + 1} of {len(batches)}")
            got = session.run(feeds)
            for j, axis in enumerate(axes):
                total[axis] += [got[_name(j, "sum")], got[_name(j, "square")]]
                count[axis] += int(got[_name(j, "size")]) // size[axis]
    return {a: Moments(*(total[a] / count[a])) for a in axes if count[a]}


def _name(k: int, what: str) -> str:
    return f"onnxprune/{k}/{what}"


def _probe(model: Model, facts: Facts, zeros: Mapping[Axis, str]) -> onnx.ModelProto:
    """A copy of the model whose outputs are the sums, the sums of squares, and the sizes."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    nodes: list[onnx.NodeProto] = []

    def add(op: str, ins: Sequence[str], out: str) -> str:
        nodes.append(helper.make_node(op, ins, [out]))
        return out

    def wide(name: str, out: str) -> str:
        nodes.append(helper.make_node("Cast", [name], [out], to=TensorProto.DOUBLE))
        return out

    def total(x: str, out: str, others: list[int]) -> None:
        if not others:
            add("Identity", [x], out)
        elif model.opsets[""] < 13:
            nodes.append(helper.make_node("ReduceSum", [x], [out], axes=others, keepdims=0))
        else:
            axes = numpy_helper.from_array(np.array(others), "axes")
            nodes.append(helper.make_node("Constant", [], [f"{out}/axes"], value=axes))
            ins = [x, f"{out}/axes"]
            nodes.append(helper.make_node("ReduceSum", ins, [out], keepdims=0))

    outputs = []
    for j, ((value, axis), zero) in enumerate(zeros.items()):
        name, others = model.in_file(value), [k for k in range(len(facts.axes[value])) if k != axis]
        x = wide(name, _name(j, "wide"))  # long sums stay exact
        if zero:
            point = wide(model.in_file(zero), _name(j, "zero"))
            x = add("Sub", [x, point], _name(j, "real"))
        total(x, _name(j, "sum"), others)
        total(add("Mul", [x, x], _name(j, "squares")), _name(j, "square"), others)
        add("Size", [name], _name(j, "size"))
        for what, kind in (("sum", TensorProto.DOUBLE), ("square", TensorProto.DOUBLE),
                           ("size", TensorProto.INT64)):  # fmt: skip
            outputs.append(helper.make_tensor_value_info(_name(j, what), kind, None))
    proto.graph.node.extend(nodes)
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)
    return proto
