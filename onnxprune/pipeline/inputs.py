"""Inputs to time models with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from onnxprune.check.inputs import STYLES, Setting, draw, hints
from onnxprune.errors import CheckFailed, PruneError
from onnxprune.pipeline.run import Run

if TYPE_CHECKING:
    from onnxprune.runtime.feeds import Feeds
    from onnxprune.runtime.session import Session


def timing_feeds(run: Run, session: Session) -> Feeds:
    """Inputs at the sizes that the costs are told for, with values that a model runs on.

    Raises:
        CheckFailed: it runs on none.
    """
    facts, why = run.analysis.facts, ""
    for style in STYLES:
        setting = Setting(dict(run.sizes.inputs), style, facts.trace.binding.size)
        try:
            feeds = draw(session.inputs, setting, run.seed, hints(facts))
            session.run(feeds)
        except PruneError as error:
            why = why or error.why or error.what
        else:
            return feeds
    raise CheckFailed(
        "the original can't be timed", why=why,
        hint="--shape NAME:1x3x224x224 or --dim NAME=N to run it",
    )  # fmt: skip
