"""The proof from two files and a plan, for `onnxprune verify`: anyone can check a slim model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import ValueInfoProto

from onnxprune.axes.view import View
from onnxprune.check.verdict import Verdict
from onnxprune.check.verify import verify
from onnxprune.graph.binding import free_inputs
from onnxprune.graph.files import INLINE_LIMIT, Source


def verify_files(
    original: Source,
    slim: Source,
    view: View,
    *,
    repaired: bool = False,
    feeds: Sequence[Mapping[str, np.ndarray]] | None = None,
    seeds: Sequence[int] = (0, 1),
    provider: str = "cpu",
) -> Verdict:
    """Prove a slim file: sound, of the same signature, and what the plan makes of the original.

    `repaired` says that weights were corrected after the cut: then SLIM's own weights, scattered
    back to full size, must reproduce SLIM, and `Verdict.moved` is how far it is from the original.
    The other arguments, and what is raised, are those of `check.verify.verify`.
    """
    problems = [*signature_problems(original.proto, slim.proto)]
    unsound, notes = soundness(original, slim)
    problems += [unsound] if unsound else []
    if problems:
        return Verdict(False, np.inf, 0.0, first_bad="; ".join(problems), notes=notes)
    verdict = verify(
        view, slim.proto, feeds=feeds, seeds=seeds, provider=provider, folder=original.folder,
        slim_folder=slim.folder, own_weights=repaired,
    )  # fmt: skip
    return replace(verdict, notes=(*notes, *verdict.notes))


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


def soundness(original: Source, slim: Source) -> tuple[str, tuple[str, ...]]:
    """What onnx's checker finds in SLIM ("" if nothing), and notes.

    A file is not blamed for what its original fails as well (operators that onnx does not know).
    """
    found = _checked(slim)
    if found and _checked(original):
        return "", (f"onnx's checker accepts neither file: {found}",)
    return (f"onnx's checker: {found}" if found else ""), ()


def _checked(source: Source) -> str:
    """The checker's complaint; shapes are checked too where the model is small enough for it."""
    small = source.size < INLINE_LIMIT
    subject = str(source.path) if source.path is not None else source.proto
    if source.path is None and not small:
        return ""  # the checker can't take it from memory
    try:
        onnx.checker.check_model(subject, full_check=small)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return " ".join(str(error).split())[:200]
    return ""
