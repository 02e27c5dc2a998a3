"""The signature of a model, which a cut never changes: what a caller feeds and what comes back."""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import ValueInfoProto

from onnxprune.graph.binding import free_inputs


def signature_problems(original: onnx.ModelProto, slim: onnx.ModelProto) -> Iterator[str]:
    """How the inputs (those without initializer) and outputs of two models differ."""
    pairs = (
        ("inputs", free_inputs(original.graph), free_inputs(slim.graph)),
        ("outputs", original.graph.output, slim.graph.output),
    )
    for what, before, after in pairs:
        if [i.name for i in before] != [i.name for i in after]:
            yield f"the {what} are {[i.name for i in after]}, not {[i.name for i in before]}"
            continue
        for a, b in zip(before, after, strict=True):
            if _kind(a) != _kind(b):
                yield f"{a.name} is {_kind(b)}, not {_kind(a)}"


def _kind(info: ValueInfoProto) -> str:
    """Type and sizes, symbols included, as one can read them."""
    kind = info.type.tensor_type
    if not info.type.HasField("tensor_type"):
        return str(info.type.WhichOneof("value"))
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    if not kind.HasField("shape"):
        return name
    dims = (d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in kind.shape.dim)
    return f"{name}[{','.join(map(str, dims))}]"
