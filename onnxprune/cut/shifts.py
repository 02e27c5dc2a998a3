"""Bias shifts: the constant that removed channels added to their consumers, put into the biases."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxprune.axes.view import View
from onnxprune.choose.dead import BiasShift
from onnxprune.cut.edits import Edits


def shift_biases(shifts: Sequence[BiasShift], view: View, edits: Edits) -> None:
    """Add each shift, cut to the outputs that stay, to its node's bias; make one if there is none.

    The weights must have been cut already. A bias that other nodes read too stays for them.
    """
    model, facts = view.facts.model, view.facts
    for shift in shifts:
        node, k = shift.node, shift.operand
        axis = 1 if len(facts.axes[node.outputs[0]]) > 1 else 0
        if node.op in ("MatMul", "Gemm"):
            axis = len(facts.axes[node.outputs[0]]) - 1
        values = shift.values[view.kept(node.outputs[0], axis)]
        old = node.inputs[k] if k < len(node.inputs) else ""
        if old:
            name = edits.node(node).input[k]
            tensor = edits.stored(name)
            array = numpy_helper.to_array(tensor)
        else:
            name, dtype = f"{node.label}/bias", facts.trace.types[node.inputs[1]]
            array = np.zeros(1, helper.tensor_dtype_to_np_dtype(dtype))
        new = (array.astype(np.float64) + values.reshape(-1)).astype(array.dtype)
        made = TensorProto()
        made.CopyFrom(numpy_helper.from_array(new, edits.unique(name)))
        edits.initializer(made)
        edits.set_input(node, k, made.name)
        edits.notes.append(f"{node.label}: constant channels went into its bias {made.name}")
        if old and len(model.uses.get(old, ())) == 1 and not _shared(old, view):
            edits.drop(model.constants[old])


def _shared(value: str, view: View) -> bool:
    """Do other nodes read the same stored tensor?"""
    mine = view.facts.model.constants[value]
    return any(
        c.site == mine.site and c.is_node == mine.is_node and c.value != value
        for c in view.facts.model.constants.values()
    )
