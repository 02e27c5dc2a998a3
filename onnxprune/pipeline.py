"""The verbs: load, analyze, slim, apply, verify. The only place where the rooms meet."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from onnx import ModelProto

import onnxprune
from onnxprune.axes.analyse import facts_of
from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Solution, groups
from onnxprune.axes.view import View
from onnxprune.axes.walk import analyse
from onnxprune.check.signature import signature_problems
from onnxprune.check.verdict import Verdict
from onnxprune.choose.allocate import Allocation, Request, allocate, check
from onnxprune.choose.dead import Dead, dead_channels
from onnxprune.choose.heads import resolve
from onnxprune.choose.limits import Limits, share
from onnxprune.choose.plan import Plan, check_plan, check_tensors, plan_of
from onnxprune.choose.scores import Scores, group_scores
from onnxprune.cost.budget import cost_model
from onnxprune.cost.work import sizes_at_one
from onnxprune.cut.cut import cut
from onnxprune.errors import CheckFailed, NothingToPrune, UsageError
from onnxprune.graph.binding import check_sizes
from onnxprune.graph.files import Source, fingerprint, load, save
from onnxprune.graph.model import Model, Node, normalise
from onnxprune.report.data import Report
from onnxprune.summary import (
    group_rows,
    layer_rows,
    proof_sentence,
    repair_row,
    sizes_before_after,
    sizes_text,
    verdict_row,
)

if TYPE_CHECKING:
    from onnxprune.runtime.feeds import Feeds

AnyModel = str | PathLike[str] | ModelProto | Source
Stage = Callable[[str], None]


def _quiet(stage: str) -> None:
    """Nobody is watching."""


@dataclass(frozen=True)
class Sizes:
    """Sizes for dynamic axes: by symbol (`dims`) and whole shapes by input name."""

    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Analysis:
    """What can be pruned in a model, decided up to which channels."""

    source: Source
    facts: Facts
    solution: Solution
    groups: tuple[Group, ...]
    whole_groups: bool
    """Grouped convolutions lose whole groups (else the same channels of every group)."""

    def view(self, kept: Mapping[int, Any] | None = None) -> View:
        """What is kept, by group id; everything without an argument."""
        return View.of(self.solution, self.groups, kept or {})


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
            fingerprint(self.source),
            whole_groups=self.analysis.whole_groups, options=self.report.options,
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


class Clock:
    """Seconds by stage."""

    def __init__(self, stage: Stage) -> None:
        self.seconds: dict[str, float] = {}
        self.tell = stage

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[None]:
        self.tell(text)
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(time.perf_counter() - start, 4)


def source_of(model: AnyModel) -> Source:
    """A loaded model, from whatever stands for it."""
    return model if isinstance(model, Source) else load(model)


def analyze(
    model: AnyModel,
    *,
    heads: str = "auto",
    ratio: float = 0.5,
    sizes: Sizes = Sizes(),
) -> Analysis:
    """Find what can be pruned: labels, groups, and what is fixed and why.

    Args:
        heads: where channels split in two ways, keep whole heads ('whole'), the same dims of every
            head ('dims'), or whichever loses the larger share at `ratio` ('auto').

    Raises:
        Unreadable: the model can't be read.
        UsageError: `sizes` names what the model has not, or has otherwise.
    """
    source = source_of(model)
    check_sizes(source.proto.graph, sizes.dims, sizes.shapes)
    analysed = normalise(source)

    facts = _facts(analysed, sizes)

    def decided(facts: Facts, whole_groups: bool) -> Analysis:
        solution = resolve(facts, heads, ratio)
        return Analysis(source, facts, solution, tuple(groups(solution)), whole_groups)

    found = decided(facts, False)
    if any(_is_grouped(n, analysed) for n in analysed.walk()):
        other = decided(analyse(analysed, facts.trace, facts.other, whole_groups=True), True)
        if _left_over(other, ratio) < _left_over(found, ratio) * 0.999:
            return other
    return found


def _is_grouped(n: Node, model: Model) -> bool:
    """A convolution in groups of more than one channel (depthwise ones have nothing to choose)."""
    if n.attrs.get("group", 1) < 2:
        return False
    weight = model.constants.get(n.inputs[3 if n.op == "QLinearConv" else 1])
    return weight is None or weight.dims[1:2] != (1,) or weight.dims[0] != n.attrs["group"]


def _facts(model: Model, sizes: Sizes) -> Facts:
    """The facts; where shapes stay unknown (scripted sequences), those of a run of the model."""
    facts = facts_of(model, fixed=sizes.dims, shapes=sizes.shapes)
    known = facts.trace.shapes
    if all(o in known for n in model.graph.nodes for o in n.outputs if o):
        return facts
    from onnxprune.check.measure import measured

    runs = measured(facts)
    return facts_of(model, measured=runs) if runs else facts


def _left_over(a: Analysis, ratio: float) -> float:
    """Share of the parameters that a uniform cut would leave."""
    model = cost_model(a.solution, a.groups, sizes_at_one(a.facts))
    full = np.array([g.size for g in a.groups], float)
    left = np.array([g.size - share(g.size, ratio) for g in a.groups], float)
    return float(model.total("params", left)) / max(1.0, float(model.total("params", full)))


def slim(
    model: AnyModel,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    per_layer: Mapping[str, float] | None = None,
    scope: Literal["layer", "global"] = "layer",
    criterion: str | None = None,
    scores: Mapping[str, np.ndarray] | None = None,
    heads: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_channels: int = 1,
    max_ratio: float | None = None,
    align: int = 1,
    calib: Sequence[Feeds] | None = None,
    repair: Literal["auto", "none", "linear"] = "auto",
    seed: int = 0,
    verify: bool = True,
    provider: str = "cpu",
    sizes: Sizes = Sizes(),
    stage: Stage = _quiet,
) -> Result:
    """Remove channels from a model and prove the result. Nothing is written.

    Args:
        ratio: share of channels to remove, of each group or (`scope` "global") of all together.
        threshold: remove what scores under it; 1 is the average of a group.
        per_layer: regular expression -> ratio, for the groups whose names it finds.
        criterion: how channels are ranked (see `onnxprune.choose.criteria`); by default obs (see
            `onnxprune.repair.obs`) with calibration batches, l2 without.
        scores: scores by weight name that win over the criterion, a value per output channel.
        heads: auto, whole or dims (see `onnxprune.choose.heads`).
        include, exclude: regular expressions on node and tensor names; exclude wins.
        min_channels, max_ratio, align: what every group must obey (see `onnxprune.choose.limits`).
        calib: unlabelled batches of inputs by name (see `onnxprune.repair.calibration`).
        repair: 'linear' refits the consumers of what went (see `onnxprune.repair.linear`); 'auto'
            does that where there is `calib`.
        verify: hold the slim model against the masked original in ONNX Runtime.
        stage: is told what is being done.

    Raises:
        Unreadable: the model can't be read. UsageError: the request makes no sense.
        NothingToPrune: every group stays as it is; `report` on the error tells why.
        CheckFailed: the proof failed, or the original can't be run.
    """
    request = Request(
        ratio, threshold, scope, per_layer or {}, tuple(include), tuple(exclude),
        Limits(min_channels, max_ratio, align),
    )  # fmt: skip
    check(request)
    if ratio is None and threshold is None and not per_layer:
        raise UsageError("how much should go?", hint="ratio=0.5, a threshold, or ratios per layer")
    criterion = criterion or ("obs" if calib and scores is None else "l2")
    if criterion == "obs" and scores is not None:
        raise UsageError("--scores and --criterion obs exclude each other")
    if not calib and (criterion == "obs" or repair == "linear"):
        what = "--criterion obs" if criterion == "obs" else "--repair linear"
        raise UsageError(f"{what} needs calibration data", hint="--calib samples.npz")
    refits = bool(calib) and repair != "none"
    clock = Clock(stage)
    with clock("load", "reading the model"):
        source = source_of(model)
    with clock("analyse", "finding what is tied to what"):
        analysis = analyze(source, heads=heads, ratio=0.5 if ratio is None else ratio, sizes=sizes)
    options = _options(request, criterion, heads, seed, scores is not None)
    if refits:
        options["repair"] = "linear"
    with clock("choose", "ranking channels"):
        if criterion == "obs" and calib:
            ranked = _obs(analysis, calib, request, seed, stage)
        else:
            ranked = group_scores(analysis.facts, analysis.groups, criterion, seed, scores)
        try:
            chosen = allocate(analysis.facts, analysis.groups, ranked, request)
        except NothingToPrune as e:
            e.report = report_of(analysis, None, None, ranked, None, clock, options)
            raise
    batches = calib if refits else None
    return finish(
        analysis, chosen, ranked, options, clock, verify=verify, provider=provider, calib=batches
    )


def _obs(
    analysis: Analysis,
    calib: Sequence[Feeds],
    request: Request,
    seed: int,
    stage: Stage,
) -> Scores:
    """Scores by block OBS; l2 for groups whose consumers can't be followed."""
    from onnxprune.repair.obs import obs_scores

    wanted = [r for r in (request.ratio, *request.per_layer.values()) if r is not None]
    most = max(wanted) if wanted and request.scope == "layer" else 0.95
    rest = group_scores(analysis.facts, analysis.groups, "l2", seed)
    found = obs_scores(analysis.solution, analysis.groups, calib, most, seed, stage)
    missing = len(analysis.groups) - len(found)
    note = (f"obs: {missing} groups were ranked by l2: nothing that reads them can be refitted",)
    return Scores({**rest.by_group, **found}, (*rest.notes, *(note if missing else ())))


def slim_dead(
    model: AnyModel,
    *,
    verify: bool = True,
    provider: str = "cpu",
    sizes: Sizes = Sizes(),
    stage: Stage = _quiet,
) -> Result:
    """Remove only what changes no output: channels that are constant, or that nothing reads.

    The constant that a channel added to its consumers goes into their biases.

    Raises:
        As `slim`; the proof holds the slim model against the original itself.
    """
    clock = Clock(stage)
    with clock("load", "reading the model"):
        source = source_of(model)
    with clock("analyse", "finding what is tied to what"):
        analysis = analyze(source, heads="whole", sizes=sizes)
    with clock("choose", "finding what is constant or unread"):
        dead = dead_channels(analysis.solution, analysis.groups)
        chosen = Allocation(dead.kept, {})
        if all(len(dead.kept[g.id]) == g.size for g in analysis.groups):
            error = NothingToPrune("no channel is dead", why="every channel moves some output")
            error.report = report_of(analysis, chosen, None, None, None, clock, {"dead": True})
            raise error
    options = {"dead": True}
    return finish(
        analysis, chosen, None, options, clock, verify=verify, provider=provider, dead=dead
    )


def finish(
    analysis: Analysis,
    chosen: Allocation,
    ranked: Scores | None,
    options: Mapping[str, Any],
    clock: Clock,
    *,
    verify: bool,
    provider: str,
    dead: Dead | None = None,
    calib: Sequence[Feeds] | None = None,
) -> Result:
    """Cut what was chosen, prove it, repair it, and tell."""
    with clock("cut", "cutting"):
        view = analysis.view(chosen.kept)
        done = cut(view, dead.shifts if dead else ())
    problems = list(signature_problems(analysis.source.proto, done.model))
    if problems:
        raise CheckFailed(
            "the slim model has other inputs or outputs", why="; ".join(problems[:3]),
            hint="nothing was written; please report this with the model",
        )  # fmt: skip
    verdict = None
    if verify:
        from onnxprune.check.lossless import verify_lossless
        from onnxprune.check.verify import verify as prove

        with clock("verify", "proving the result in ONNX Runtime"):
            proof = prove if dead is None else verify_lossless
            verdict = proof(view, done.model, provider=provider)
    model, repaired = done.model, None
    if calib and (verdict is None or verdict.passed):
        from onnxprune.repair.linear import refit

        with clock("repair", "refitting what reads the removed channels"):
            seed = int(options.get("seed", 0))
            model, fitted = refit(view, done.model, done.weights, calib, seed=seed, tell=clock.tell)
            repaired = repair_row(fitted, calib)
        if verify:
            with clock("verify repair", "proving the repaired model"):
                verdict = prove(view, model, provider=provider, own_weights=True)
    report = report_of(
        analysis, chosen, model, ranked, verdict, clock, options, done.notes, repaired
    )
    if verdict is not None and not verdict.passed:
        error = CheckFailed(
            "the slim model is not the original without the removed channels",
            where=verdict.first_bad or verdict.worst,
            why=f"relative error {verdict.max_rel_err:.1e}, allowed {verdict.tolerance:.0e}",
            hint="nothing was written; please report this with the model",
        )
        error.report = report
        raise error
    return Result(model, report, verdict, analysis, chosen.kept)


def report_of(
    analysis: Analysis,
    chosen: Allocation | None,
    model: ModelProto | None,
    ranked: Scores | None,
    verdict: Verdict | None,
    clock: Clock,
    options: Mapping[str, Any],
    notes: tuple[str, ...] = (),
    repaired: Mapping[str, Any] | None = None,
) -> Report:
    """Everything about a run, as data."""
    sizes = sizes_at_one(analysis.facts)
    kept = {} if chosen is None else chosen.kept
    view = analysis.view(kept)
    before, after = sizes_before_after(view, analysis.groups, model, sizes)
    source, facts = analysis.source, analysis.facts
    guesses = tuple(f"shape unknown at {where}: {why}" for where, why in facts.trace.failures)
    return Report(
        tool=f"onnxprune {onnxprune.__version__}",
        model=str(source.path or "(in memory)"),
        out=None,
        before=before,
        after=after,
        groups=group_rows(
            view, analysis.groups, {} if chosen is None else chosen.left, ranked, kept
        ),
        layers=layer_rows(view, sizes),
        options=options,
        sizes=sizes_text(sizes),
        timings=clock.seconds,
        verify=None if verdict is None else verdict_row(verdict),
        repair=repaired,
        unknown=dict(facts.unknown),
        notes=(*notes, *(ranked.notes if ranked else ()), *guesses),
    )


def describe(analysis: Analysis) -> Report:
    """A report of what could be pruned, with nothing pruned."""
    return report_of(analysis, None, None, None, None, Clock(_quiet), {})


def _options(
    request: Request, criterion: str, heads: str, seed: int, given: bool
) -> dict[str, Any]:
    limits = request.limits
    found: dict[str, Any] = {
        "ratio": request.ratio,
        "threshold": request.threshold,
        "per_layer": dict(request.per_layer) or None,
        "criterion": criterion,
        "scores": given or None,
        "scope": request.scope,
        "heads": heads,
        "include": list(request.include) or None,
        "exclude": list(request.exclude) or None,
        "align": limits.align,
        "min_channels": limits.min_channels,
        "max_ratio": limits.max_ratio,
        "seed": seed,
    }
    return {k: v for k, v in found.items() if v is not None}


def replay(plan: Plan, model: AnyModel) -> tuple[Analysis, View]:
    """The analysis and the view that a plan was made of, found again on the same model.

    Raises:
        Unreadable: it is another model, or the plan does not fit it.
    """
    source = source_of(model)
    sizes = Sizes(plan.analysis.dims, plan.analysis.shapes)
    facts = _facts(normalise(source), sizes)
    if plan.analysis.whole_groups:
        facts = analyse(facts.model, facts.trace, facts.other, whole_groups=True)
    solution = resolve(facts, "auto", 0.5, plan.analysis.frozen)
    analysis = Analysis(
        source, facts, solution, tuple(groups(solution)), plan.analysis.whole_groups
    )
    check_plan(plan, fingerprint(source), analysis.groups)
    view = analysis.view(plan.kept)
    check_tensors(plan, view)
    return analysis, view


def apply(plan: Plan, model: AnyModel, calib: Sequence[Feeds] | None = None) -> ModelProto:
    """Replay a plan: the identical slim model. A repair needs the same calibration batches.

    Raises:
        Unreadable: the plan is for another model, or does not fit it.
        UsageError: the plan was repaired, and there are no calibration batches.
    """
    analysis, view = replay(plan, model)
    if plan.options.get("repair"):
        from onnxprune.repair.linear import refit

        if not calib:
            raise UsageError("the plan was repaired", hint="--calib with the same samples")
        done = cut(view)
        return refit(view, done.model, done.weights, calib, seed=plan.options.get("seed", 0))[0]
    if plan.options.get("dead"):
        return cut(view, dead_channels(analysis.solution, analysis.groups).shifts).model
    return cut(view).model


def verify(
    original: AnyModel, slim_model: AnyModel, plan: Plan, *, provider: str = "cpu"
) -> Verdict:
    """Prove that a slim model is its original without the channels that the plan removes.

    Raises:
        Unreadable: a file can't be read, or the plan is for another model.
        CheckFailed: the original can't be run.
    """
    from onnxprune.check.files import verify_files
    from onnxprune.check.lossless import verify_lossless

    _, view = replay(plan, original)
    if plan.options.get("dead"):
        return verify_lossless(view, source_of(slim_model).proto, provider=provider)
    return verify_files(
        source_of(original), source_of(slim_model), view, provider=provider,
        repaired=bool(plan.options.get("repair")),
    )  # fmt: skip


def with_out(report: Report, out: Path) -> Report:
    """The report of a model that has been written."""
    return replace(report, out=str(out))
