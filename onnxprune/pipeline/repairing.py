"""Ranking, and weights refitted after a cut: the only place that calls repair/."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxprune.axes.view import View
from onnxprune.choose.allocate import Request
from onnxprune.choose.criteria import inputs_for
from onnxprune.choose.scores import Scores, group_scores
from onnxprune.cut.cut import Cut
from onnxprune.errors import UsageError
from onnxprune.pipeline.analysis import Analysis
from onnxprune.pipeline.clock import Stage, quiet
from onnxprune.summary import repair_row

if TYPE_CHECKING:
    from onnxprune.cut.weights import Stored
    from onnxprune.pipeline.floating import Floating
    from onnxprune.repair.batchnorm import StandIn
    from onnxprune.repair.images import Images
    from onnxprune.repair.linear import Fitted
    from onnxprune.repair.requantise import Rounding
    from onnxprune.runtime.feeds import Feeds

MEMORY = 2_000_000_000
"""Bytes that a repair's activations may take before they go to disk."""
DATA_FREE = ("means", "closed")
"""Kinds of repair that look at no samples."""
_MOST = 0.95
"""Share of a group that is ranked where nobody knows yet how much of it goes."""


@dataclass(frozen=True, eq=False)
class Repaired:
    """A slim model whose weights were refitted, and what that did."""

    model: ModelProto
    row: Mapping[str, Any]
    """As the report tells it."""


def ranked_by(
    analysis: Analysis,
    criterion: str,
    seed: int,
    given: Mapping[str, NDArray[np.floating]] | None,
    calib: Sequence[Feeds] | None,
) -> Scores:
    """Scores by a criterion, from weights, norms or data as it needs; `given` ones win over it."""
    inputs = inputs_for(criterion, analysis.solution, analysis.groups, calib)
    return group_scores(analysis.facts, analysis.groups, criterion, seed, given, inputs)


def ranked_share(request: Request) -> float:
    """How much of a group must be ranked at most."""
    wanted = [r for r in (request.ratio, *request.per_layer.values()) if r is not None]
    by_share = wanted and request.scope == "layer" and request.threshold is None
    searched = request.target is not None or request.max_drop is not None
    return max(wanted) if by_share and not searched else _MOST


def calibration_notes(analysis: Analysis, calib: Sequence[Feeds]) -> tuple[str, ...]:
    """What to know about samples that may be too few, or say too little."""
    from onnxprune.repair.calibration import notes_on

    return notes_on(calib, analysis.facts)


def ranked_by_moments(analysis: Analysis, most: float, twin: Floating | None) -> Scores:
    """Scores by block OBS on moments that the weights and batch norms tell; l2 elsewhere."""
    from onnxprune.repair.closed import closed_scores

    solution = analysis.solution if twin is None else twin.solution
    found = closed_scores(solution, analysis.groups, most)
    return _with_l2(analysis, found, "moments", "what they hold is not known")


def _with_l2(
    analysis: Analysis, found: Mapping[int, NDArray[np.float64]], criterion: str, why: str
) -> Scores:
    """Losses by group id; groups without are ranked by l2, and a note says why."""
    rest = group_scores(analysis.facts, analysis.groups, "l2", 0)  # which draws nothing
    missing = len(analysis.groups) - len(found)
    note = (f"{criterion}: {missing} groups were ranked by l2: {why}",) if missing else ()
    return Scores({**rest.by_group, **found}, (*rest.notes, *note), frozenset(found))


@dataclass(frozen=True, eq=False)
class Repairer:
    """How slim models of a run are repaired."""

    kind: str
    """bias, linear, full (with samples); means, closed (without); synthetic."""
    batches: Sequence[Feeds] = ()
    stand_in: StandIn | None = None
    """What the original is on synthetic images."""
    seed: int = 0
    memory: int = MEMORY
    twin: Floating | None = None
    """What stands for a quantised original."""

    def ranked(self, analysis: Analysis, most: float, stage: Stage) -> Scores:
        """Scores by block OBS on its batches; l2 for groups whose readers can't be followed."""
        from onnxprune.repair.obs import obs_scores

        solution = analysis.solution if self.twin is None else self.twin.solution
        if self.stand_in is not None:
            solution = self.stand_in.solution(solution)
        found = obs_scores(
            solution, analysis.groups, self.batches, most, self.seed, stage, self.memory
        )
        why = "nothing that reads them can be refitted"
        return replace(_with_l2(analysis, found.by_group, "obs", why), unseen=found.unseen)

    def repaired(self, view: View, done: Cut, stage: Stage = quiet) -> Repaired:
        """Correct the layers that removal touched.

        Raises:
            Unreadable: ONNX Runtime can't run one of the models.
        """
        if self.twin is None:
            model, fitted = self._refitted(view, done.model, done.weights, stage)
        else:
            twin = self.twin.slim(view, done.model)
            if twin is None:
                return Repaired(done.model, repair_row((), self.kind, 0))
            rounded = self.twin.rounding(done.model, twin)
            mine = self.twin.view(view)
            model, fitted = self._refitted(mine, twin.model, (), stage, rounded)
            model = self.twin.returned(done.model, twin, model)
        batches = 0 if self.kind in DATA_FREE else len(self.batches)
        return Repaired(model, repair_row(fitted, self.kind, batches))

    def _refitted(
        self,
        view: View,
        slim: ModelProto,
        weights: Sequence[Stored],
        stage: Stage,
        rounded: Rounding | None = None,
    ) -> tuple[ModelProto, Sequence[Fitted]]:
        if self.kind in DATA_FREE:
            from onnxprune.repair.closed import closed_form

            return closed_form(view, slim, weights, weights_too=self.kind == "closed", tell=stage)
        from onnxprune.repair.linear import RECIPES, refit

        how = partial(
            refit, seed=self.seed, memory=self.memory, tell=stage,
            recipe=RECIPES["full" if self.kind == "synthetic" else self.kind], rounded=rounded,
        )  # fmt: skip
        if self.stand_in is not None:
            return self.stand_in.repaired(view, slim, weights, self.batches, how)
        return how(view, slim, weights, self.batches)


def kind_of(repair: str, has_samples: bool) -> str:
    """What a run's choice of --repair stands for; '' for none.

    Raises:
        UsageError: it needs samples.
    """
    if repair == "full" and not has_samples:
        raise UsageError("--repair full needs calibration data", hint="--calib samples.npz")
    if repair in ("none", "synthetic"):
        return repair.replace("none", "")
    if has_samples:
        return "full" if repair == "auto" else repair
    return {"bias": "means"}.get(repair, "closed")


def repairer(
    kind: str, analysis: Analysis, calib: Sequence[Feeds], seed: int, memory: int,
    images: Images | None, stage: Stage, twin: Floating | None,
) -> Repairer | None:  # fmt: skip
    """What repairs a run's slim models by a kind; None for the kind ''. Where the original is
    quantised, `twin` stands for it.

    Raises:
        UsageError: synthetic images, and the model takes none. Unreadable: it can't be run.
    """
    if not kind:
        return None
    if kind != "synthetic":
        batches = () if kind in DATA_FREE else calib
        return Repairer(kind, batches, None, seed, memory, twin)
    from onnxprune.repair.batchnorm import stand_in
    from onnxprune.repair.synthetic import synthetic_batches

    stage("drawing synthetic images")
    facts = analysis.facts if twin is None else twin.solution.facts
    drawn = synthetic_batches(facts, None, seed, images)
    found = stand_in(facts, drawn, memory=memory, tell=stage)
    return Repairer(kind, drawn, found, seed, memory, twin)
