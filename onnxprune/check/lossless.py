"""Proof of a lossless cut: the original and the slim model give the same outputs."""

from __future__ import annotations

import time
from dataclasses import replace

import onnx

from onnxprune.axes.view import View
from onnxprune.check.case import within_memory
from onnxprune.check.inputs import draw, hints, settings
from onnxprune.check.verdict import Difference, Fed, Verdict, difference
from onnxprune.runtime.session import open_session


@within_memory()
def verify_lossless(view: View, slim: onnx.ModelProto, *, provider: str = "cpu") -> Verdict:
    """Hold the slim model against the original itself, on two draws of inputs at every size.

    Raises:
        CheckFailed: "unproven": the original runs on no inputs that could be found, or not in the
            memory that there is.
        MissingRuntime, UsageError: ONNX Runtime or the provider is not there.
    """
    start = time.perf_counter()
    facts = view.facts
    folder = facts.model.source.folder
    clues = hints(facts)
    runs = []
    with open_session(facts.model.proto, provider=provider, folder=folder) as session:
        for setting, first in settings(facts, session, 0):
            feeds = draw(session.inputs, setting, 0, clues)
            runs.append((Fed(setting.shapes, 0), feeds, first))
            feeds = draw(session.inputs, setting, 1, clues)
            runs.append((Fed(setting.shapes, 1), feeds, session.run(feeds)))
    found: list[Difference] = []
    with open_session(slim, provider=provider, folder=folder) as session:
        for _, feeds, before in runs:
            after = session.run(feeds)
            found += [difference(name, before[name], after[name]) for name in before]
    worst = max(found, key=lambda d: d.badness)
    verdict = Verdict(
        passed=not worst.bad, max_rel_err=float(worst.error), tolerance=float(worst.tolerance),
        inputs=tuple(fed for fed, _, _ in runs), compared=tuple(runs[0][2]), worst=worst.tensor,
        first_bad=str(worst) if worst.bad else "",
        notes=("held against the original itself: nothing that it computes was lost",),
    )  # fmt: skip
    return replace(verdict, seconds=time.perf_counter() - start)
