"""What one run works with from the analysis to the report, and the slim models that it tries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from onnx import ModelProto

from onnxprune.axes.view import View
from onnxprune.choose.allocate import Allocation
from onnxprune.choose.dead import BiasShift
from onnxprune.choose.scores import Scores
from onnxprune.cost.cost import Cost, cost_after, cost_before
from onnxprune.cost.work import Sizes, macs, sizes_at_one
from onnxprune.cut.cut import Cut, cut
from onnxprune.pipeline.analysis import Analysis
from onnxprune.pipeline.clock import Clock
from onnxprune.pipeline.repairing import Repaired, Repairer

if TYPE_CHECKING:
    from onnxprune.check.evaluate import Evaluation
    from onnxprune.runtime.feeds import Feeds


@dataclass(frozen=True, eq=False)
class Samples:
    """Unlabelled inputs: those that decide and repair, and others to look at the result with."""

    calib: Sequence[Feeds] = ()
    held_out: Sequence[Feeds] = ()


def others(batches: Sequence[Feeds], calib: Sequence[Feeds]) -> list[Feeds]:
    """The samples of some batches that are not among those of calibration, in batches like its own.

    A rest that fills no batch is dropped: the model may take no other number at a time.
    """
    known = {_digest(sample) for feeds in calib for sample in _samples(feeds)}
    fresh = [s for feeds in batches for s in _samples(feeds) if _digest(s) not in known]
    size = len(_samples(calib[0])) if calib else 1
    if size == 1:
        return fresh
    return [
        {name: np.concatenate([s[name] for s in fresh[k : k + size]]) for name in fresh[0]}
        for k in range(0, len(fresh) - size + 1, size)
    ]


def _samples(feeds: Feeds) -> list[Feeds]:
    """A batch one by one; as it is where its arrays have no sample axis in common."""
    counts = {a.shape[:1] for a in feeds.values()}
    if len(counts) != 1 or counts == {()}:
        return [feeds]
    ((count,),) = counts
    return [{name: a[k : k + 1] for name, a in feeds.items()} for k in range(count)]


def _digest(sample: Feeds) -> bytes:
    found = hashlib.sha256()
    for name in sorted(sample):
        found.update(name.encode())
        found.update(np.ascontiguousarray(sample[name]).tobytes())
    return found.digest()


@dataclass(frozen=True, eq=False)
class Run:
    """What stays the same from the first slim model that is tried to the report."""

    analysis: Analysis
    clock: Clock
    options: Mapping[str, Any]
    provider: str = "cpu"
    seed: int = 0
    ranked: Scores | None = None
    samples: Samples = Samples()
    repairer: Repairer | None = None
    """What repairs slim models."""
    evaluation: Evaluation | None = None
    notes: tuple[str, ...] = ()

    @cached_property
    def sizes(self) -> Sizes:
        """The sizes at which work is counted, and time is measured."""
        return sizes_at_one(self.analysis.facts)

    @cached_property
    def before(self) -> Cost:
        """What the original costs."""
        return cost_before(self.analysis.facts, self.sizes)

    def cut(self, chosen: Allocation, shifts: Sequence[BiasShift] = ()) -> Candidate:
        """A slim model, only sliced."""
        with self.clock("cut", "cutting"):
            view = self.analysis.view(chosen.kept)
            return Candidate(chosen, view, cut(view, shifts))

    def repair(self, candidate: Candidate) -> Candidate:
        """The same with its weights refitted, if this run repairs; done once."""
        if self.repairer is None or candidate.repaired is not None:
            return candidate
        with self.clock("repair", "making up for the removed channels"):
            found = self.repairer.repaired(candidate.view, candidate.cut, self.clock.tell)
        return replace(candidate, repaired=found)

    @cached_property
    def original_score(self) -> float:
        """How good the original is, where the run has something to measure."""
        assert self.evaluation is not None
        source = self.analysis.source
        with self.clock("evaluate", f"measuring {self.evaluation.name} of the original"):
            return self.evaluation.score(source.proto, source.folder, self.provider)

    def scored(self, candidate: Candidate) -> Candidate:
        """The same with its score; measured once."""
        if self.evaluation is None or candidate.score is not None:
            return candidate
        folder = self.analysis.source.folder
        with self.clock("evaluate", f"measuring {self.evaluation.name}"):
            score = self.evaluation.score(candidate.model, folder, self.provider)
        return replace(candidate, score=score)

    def work(self, candidate: Candidate) -> float:
        """Share of the original's multiply-accumulates that is left."""
        left = macs(self.analysis.facts, self.sizes, candidate.view)
        return left / max(1, self.before.macs)

    def cost(self, candidate: Candidate) -> Cost:
        """What a slim model costs, counted on the model itself."""
        return cost_after(candidate.model, candidate.view, self.sizes)


@dataclass(frozen=True, eq=False)
class Candidate:
    """A slim model that is not proven yet."""

    chosen: Allocation
    view: View
    cut: Cut
    repaired: Repaired | None = None
    score: float | None = None
    """By the run's evaluation."""

    @property
    def model(self) -> ModelProto:
        return self.cut.model if self.repaired is None else self.repaired.model
