"""Shapes that inference can't tell, read off a run of the model in ONNX Runtime.

Scripted control flow over sequences hides shapes that are in truth fixed. Only sizes are taken out
of the run: a Shape node behind each value that is not known.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper

from onnxprune.axes.facts import Facts
from onnxprune.check.inputs import draw, hints, settings
from onnxprune.errors import PruneError
from onnxprune.graph.binding import Binding
from onnxprune.runtime.session import Port, open_session

Known = dict[str, tuple[int, tuple[int, ...]]]
"""Value name -> element type and shape."""


def measured(facts: Facts) -> list[tuple[Binding, Known]]:
    """Bindings that the model runs under, and the shapes that it then has where none was known.

    One for a static model, two where dims are dynamic; [] if it can't be run. A size that differs
    between two draws of the same inputs depends on the data and stays unknown.
    """
    model = facts.model
    failed = {where for where, _ in facts.trace.failures}  # what follows from them can be inferred
    names = [
        o for n in model.graph.nodes if n.label in failed for o in n.outputs
        if o and o not in facts.trace.shapes and model.in_file(o) == o
    ]  # fmt: skip
    if not names:
        return []
    try:
        with open_session(model.proto, extra_outputs=names, folder=model.source.folder) as session:
            ports = {p.name: p for p in session.outputs if p.name in names and p.dtype is not None}
        probe, outputs = _with_shapes(model.proto, ports)
        with open_session(probe, folder=model.source.folder) as session:
            found = settings(facts, session, 0)
            again = session.run(draw(session.inputs, found[0][0], 1, hints(facts)))
            steady = [n for n, o in outputs.items() if np.array_equal(found[0][1][o], again[o])]
            out = []
            for setting, sizes in found:
                known = {
                    n: (_type(ports[n]), tuple(int(d) for d in sizes[outputs[n]])) for n in steady
                }
                fixed = facts.trace.binding.fixed
                out.append((Binding(size=setting.size, fixed=fixed, shapes=setting.shapes), known))
            return out
    except (PruneError, MemoryError):
        return []  # no runtime, or a model that does not run: its unknown shapes stay pinned


def _type(port: Port) -> int:
    assert port.dtype is not None
    return helper.np_dtype_to_tensor_dtype(port.dtype)


def _with_shapes(
    proto: onnx.ModelProto, ports: dict[str, Port]
) -> tuple[onnx.ModelProto, dict[str, str]]:
    """A copy whose outputs are the shapes of these values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    outputs = {name: f"{name}/measured shape" for name in ports}
    copy.graph.node.extend(helper.make_node("Shape", [n], [o]) for n, o in outputs.items())
    del copy.graph.output[:]
    copy.graph.output.extend(
        helper.make_tensor_value_info(o, onnx.TensorProto.INT64, None) for o in outputs.values()
    )
    return copy, outputs
