"""What a run ends with: the slim model, its report, its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

from onnx import ModelProto

import onnxprune
from onnxprune.check.verdict import Verdict
from onnxprune.choose.plan import Plan, plan_of
from onnxprune.graph.files import Source, fingerprint, load, save
from onnxprune.pipeline.analysis import Analysis
from onnxprune.pipeline.clock import Clock
from onnxprune.pipeline.run import Candidate, Run
from onnxprune.report.data import Report
from onnxprune.summary import (
    group_rows,
    layer_rows,
    proof_sentence,
    sizes_before_after,
    sizes_text,
    verdict_row,
)


@dataclass(frozen=True, eq=False)
class Result:
    """A slim model and all that is known about it."""

    model: ModelProto
    report: Report
    verdict: Verdict | None
    analysis: Analysis
    kept: Mapping[int, Any]
    """Kept channels by group id."""

    @property
    def source(self) -> Source:
        """The original."""
        return self.analysis.source

    @cached_property
    def plan(self) -> Plan:
        """What `apply` replays; made when it is asked for, as it reads the whole file."""
        return plan_of(
            self.analysis.view(self.kept), self.analysis.groups, self.kept,
            fingerprint(self.source), whole_groups=self.analysis.whole_groups,
            options=self.report.options, search=self.report.search, slim=self.model,
        )  # fmt: skip

    def save(self, out: str | PathLike[str]) -> None:
        """Write the slim model: it appears whole or not at all."""
        save(self.model, Path(out), self.source.folder)

    @property
    def sentence(self) -> str:
        """The closing line."""
        removed = self.report.removed
        return (
            f"{removed['params']:.1%} of the parameters and {removed['macs']:.1%} of the MACs "
            f"are gone; {proof_sentence(self.verdict) if self.verdict else 'not verified'}"
        )


def report_of(
    run: Run,
    made: Candidate | None = None,
    *,
    verdict: Verdict | None = None,
    fidelity: Mapping[str, Any] | None = None,
    search: Mapping[str, Any] | None = None,
) -> Report:
    """Everything about a run, as data; without a slim model, what could be pruned and is not."""
    analysis, ranked = run.analysis, run.ranked
    kept = {} if made is None else made.chosen.kept
    view = analysis.view() if made is None else made.view
    model = None if made is None else made.model
    before, after = sizes_before_after(view, analysis.groups, model, run.sizes)
    source, facts = analysis.source, analysis.facts
    guesses = tuple(f"shape unknown at {where}: {why}" for where, why in facts.trace.failures)
    notes = () if made is None else made.cut.notes
    return Report(
        tool=f"onnxprune {onnxprune.__version__}",
        model=str(source.path or "(in memory)"),
        out=None,
        before=before,
        after=after,
        groups=group_rows(
            view, analysis.groups, {} if made is None else made.chosen.left, ranked, kept
        ),
        layers=layer_rows(view, run.sizes),
        options=run.options,
        sizes=sizes_text(run.sizes),
        timings=run.clock.seconds,
        verify=None if verdict is None else verdict_row(verdict),
        repair=made.repaired.row if made is not None and made.repaired is not None else None,
        fidelity=fidelity,
        search=search,
        unknown=dict(facts.unknown),
        notes=(*run.notes, *notes, *(ranked.notes if ranked else ()), *facts.notes, *guesses),
    )


def describe(analysis: Analysis) -> Report:
    """A report of what could be pruned, with nothing pruned."""
    return report_of(Run(analysis, Clock(), {}))


def with_out(report: Report, out: Path) -> Report:
    """The report of a model that has been written: its path, and what it takes on disk."""
    after = report.after
    if after is not None and out.with_name(out.name + ".data").exists():  # aligned, and renamed
        after = replace(after, bytes=load(out).size)
    return replace(report, out=str(out), after=after)


def with_pictures(report: Report, result: Result) -> Report:
    """The report with small images of what stayed and what went; reads some weights again."""
    from onnxprune.pictures import pictures

    found = pictures(result.analysis.view(result.kept), result.analysis.groups)
    return replace(report, pictures=found)
