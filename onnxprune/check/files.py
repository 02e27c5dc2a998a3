"""The proof from two files and a plan, for `onnxprune verify`: anyone can check a slim model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx

from onnxprune.axes.view import View
from onnxprune.check.signature import signature_problems
from onnxprune.check.verdict import Verdict
from onnxprune.check.verify import verify
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
