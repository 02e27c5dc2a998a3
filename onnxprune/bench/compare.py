"""The benchmark: what works here, what it ran on, how long it took, how sure that is."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx import ModelProto

import onnxprune
from onnxprune.bench.case import Entry, Tell, run_case
from onnxprune.bench.data import BenchReport, Case, Missing
from onnxprune.bench.inputs import check_batches, feeds_of, own_batch, settle
from onnxprune.bench.models import Contestant, contestants
from onnxprune.bench.settings import Settings
from onnxprune.errors import CheckFailed, PruneError
from onnxprune.graph.files import Source
from onnxprune.runtime.machine import describe
from onnxprune.runtime.placement import tried_providers
from onnxprune.runtime.providers import not_working


def compare(
    models: Mapping[str, Path | ModelProto | Source], settings: Settings, tell: Tell
) -> BenchReport:
    """Time models, by the names that the report gives them; the first is the baseline.

    A case that can't be had is in the report's `missing`, and the others are measured.

    Raises:
        MissingRuntime: ONNX Runtime is not installed.
        Unreadable: a model can't be read or run at all.
        UsageError: the sizes, the batch or the provider that were asked for are not to be had.
        CheckFailed: on all that was asked for, another provider ran what multiplies. This and what
            else ends all cases has the `report` with it.
    """
    runners = contestants(models)
    tell("finding inputs that the models run on", 0.0)
    settled = settle(runners, settings.inputs)
    check_batches(settled, settings.batches, settings.inputs, runners)
    working, missing = _providers(settings.providers)
    batches = settings.batches or (own_batch(runners[0]) or 1,)
    todo = [(provider, batch) for provider in working for batch in batches]
    cases: list[Case] = []
    errors: list[PruneError] = []
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        files = [r.written(Path(folder) / f"{k}.onnx") for k, r in enumerate(runners)]
        for k, (provider, batch) in enumerate(todo):

            def part(what: str, share: float, k: int = k) -> None:
                tell(what, (k + share) / len(todo))

            try:
                entries = [
                    Entry(model, feeds, model.work({n: a.shape for n, a in feeds.items()}))
                    for model, feeds in zip(files, feeds_of(settled, files, batch), strict=True)
                ]
                where = f"{provider}, batch {batch}"
                cases.append(run_case(entries, provider, where, settings, part))
            except PruneError as error:
                errors.append(error)
                why = "; ".join(filter(None, (error.what, error.why)))
                missing.append(Missing(provider, batch, error.where, why, failed=True))
    report = BenchReport(
        tool=f"onnxprune {onnxprune.__version__}",
        machine=describe(),
        models=tuple(runner.row for runner in runners),
        cases=tuple(cases),
        missing=tuple(missing),
        notes=_notes(runners),
    )
    if not cases:
        first = errors[0] if errors else CheckFailed("no provider works here")
        first.report = report
        raise first
    return report


def _providers(asked: Sequence[str]) -> tuple[list[str], list[Missing]]:
    """Those to measure on, and why not on others; one that was asked for must work."""
    tried = tried_providers(asked) if asked else tried_providers()
    for name in asked:
        if tried[name]:
            raise not_working(name, tried[name])
    missing = [Missing(name, None, None, why, failed=False) for name, why in tried.items() if why]
    return [name for name, why in tried.items() if not why], missing


def _notes(runners: Sequence[Contestant]) -> tuple[str, ...]:
    return tuple(
        f"{r.name} can't be analysed: its multiply-accumulates are not known"
        for r in runners
        if r.facts is None
    )
