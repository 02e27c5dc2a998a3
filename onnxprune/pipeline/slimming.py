"""slim: analyse, rank, choose, cut, prove, repair, prove again, compare, tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from onnxprune.check.signature import signature_problems
from onnxprune.check.verdict import Verdict
from onnxprune.choose.allocate import Allocation, Request, allocate, check
from onnxprune.choose.dead import Dead, dead_channels
from onnxprune.choose.limits import Limits
from onnxprune.choose.target import Target, parse_target
from onnxprune.errors import CheckFailed, NothingToPrune, PruneError, UsageError
from onnxprune.pipeline.aligning import aligned
from onnxprune.pipeline.analysis import ANY_SIZES, AnyModel, Sizes, analyze, source_of
from onnxprune.pipeline.caution import settled
from onnxprune.pipeline.clock import Clock, Stage, quiet
from onnxprune.pipeline.floating import floating
from onnxprune.pipeline.outcome import Result, report_of
from onnxprune.pipeline.repairing import (
    MEMORY,
    calibration_notes,
    kind_of,
    ranked_by,
    ranked_by_moments,
    ranked_share,
    repairer,
)
from onnxprune.pipeline.run import Candidate, Run, Samples
from onnxprune.pipeline.searching import latency_within, meet, slimmest

if TYPE_CHECKING:
    from onnxprune.check.evaluate import Evaluation
    from onnxprune.repair.images import Images
    from onnxprune.runtime.feeds import Feeds


def slim(
    model: AnyModel,
    *,
    ratio: float | None = None,
    threshold: float | None = None,
    target: Target | str | None = None,
    max_drop: float | None = None,
    per_layer: Mapping[str, float] | None = None,
    scope: Literal["layer", "global"] = "layer",
    criterion: str | None = None,
    scores: Mapping[str, np.ndarray] | None = None,
    heads: str = "auto",
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    min_channels: int = 1,
    max_ratio: float | None = None,
    align: int | Literal["auto"] | None = None,
    calib: Sequence[Feeds] | None = None,
    held_out: Sequence[Feeds] = (),
    evaluation: Evaluation | None = None,
    repair: Literal["auto", "none", "bias", "linear", "full", "synthetic"] = "auto",
    memory: int = MEMORY,
    images: Images | None = None,
    seed: int = 0,
    verify: bool = True,
    provider: str = "cpu",
    sizes: Sizes = ANY_SIZES,
    stage: Stage = quiet,
) -> Result:
    """Remove channels from a model and prove the result. Nothing is written.

    How much goes is said by one of `ratio`, `threshold`, `target`, `max_drop` and `per_layer`;
    `per_layer` may also override the others.

    Args:
        ratio: share of channels to remove, of each group or (`scope` "global") of all together.
        threshold: remove what scores under it; 1 is the average of a group.
        target: what may remain, as 'macs=50%', 'params=1.2M', 'bytes=4MB' or 'latency=8ms'.
        max_drop: find the slimmest model whose score in `evaluation` falls by no more.
        per_layer: regular expression -> ratio, for the groups whose names it finds.
        criterion: how channels are ranked (see `onnxprune.choose.criteria`); by default obs (see
            `onnxprune.repair.obs`) with samples, calibration's or synthetic; without, l2, or where
            a target is to be met its kin that needs none, moments (`onnxprune.repair.closed`).
        scores: scores by weight name that win over the criterion, a value per output channel.
        heads: auto, whole or dims (see `onnxprune.choose.heads`).
        include, exclude: regular expressions on node and tensor names; exclude wins.
        min_channels, max_ratio, align: what every group must obey (see `onnxprune.choose.limits`);
            'auto' measures which multiple is fastest here, the default for a latency.
        calib: unlabelled batches of inputs by name (see `onnxprune.repair.calibration`).
        held_out: more of them, to compare the slim model with the original on.
        evaluation: how good a model is (see `onnxprune.check.evaluate`), told before and after.
        repair: how the layers make up for what went. With `calib`: 'bias' for biases alone,
            'linear' for least squares, 'full' (what 'auto' means) with Gauss-Newton rounds, see
            `onnxprune.repair.linear`. Without, 'auto' is the closed form of
            `onnxprune.repair.closed`, and 'synthetic' does the full repair on synthetic images.
        memory: bytes that activations may take before they go to disk.
        images: how synthetic images are scaled, as `repair.images` scales real ones.
        verify: hold the slim model against the masked original in ONNX Runtime.
        provider: where models are run for the proof, latencies and scores.
        stage: is told what is being done.

    Raises:
        Unreadable: the model can't be read. UsageError: the request makes no sense.
        NothingToPrune: every group stays as it is; `report` on the error tells why.
        CheckFailed: the proof failed, the original can't be run, a target can't be reached, or
            nothing stays within the drop.
    """
    target = parse_target(target) if isinstance(target, str) else target
    timed = target is not None and target.quantity == "latency"
    align = ("auto" if timed else 1) if align is None else align
    request = Request(
        ratio, threshold, scope, per_layer or {}, tuple(include), tuple(exclude),
        Limits(min_channels, max_ratio, 1 if align == "auto" else align),
        target=target, max_drop=max_drop,
    )  # fmt: skip
    check(request)
    if not request.asks and not per_layer:
        hint = "ratio=0.5, target='macs=50%', max_drop, a threshold, or ratios per layer"
        raise UsageError("how much should go?", hint=hint)
    if max_drop is not None and evaluation is None:
        hint = "--eval data.npz with labels, or --metric FILE.py:FUNCTION"
        raise UsageError("--max-drop needs something to measure", hint=hint)
    kind = kind_of(repair, bool(calib))
    sampled = bool(calib) or kind == "synthetic"
    if criterion is None:
        budget = target is not None or max_drop is not None
        losses = "obs" if sampled else "moments" if kind and budget else "l2"
        criterion = losses if scores is None else "l2"
    if criterion == "obs" and scores is not None:
        raise UsageError("--scores and --criterion obs exclude each other")
    if criterion == "obs" and not sampled:
        raise UsageError("--criterion obs needs calibration data", hint="--calib samples.npz")
    clock = Clock(stage)
    with clock("load", "reading the model"):
        source = source_of(model)
    with clock("analyse", "finding what is tied to what"):
        analysis = analyze(source, heads=heads, ratio=0.5 if ratio is None else ratio, sizes=sizes)
    options = _options(request, criterion, heads, seed, scores is not None, align)
    if kind:
        options["repair"] = kind
    if evaluation is not None:
        options["metric"] = evaluation.name
    with clock("prepare", "preparing the repair"):
        twin = floating(analysis, sizes) if kind or calib or criterion == "moments" else None
        # Without a repair there is still something to rank with.
        ranks = repairer(kind or ("linear" if calib else ""), analysis, calib or (), seed, memory,
                         images, stage, twin)  # fmt: skip
    run = Run(
        analysis, clock, options, provider=provider, seed=seed,
        samples=Samples(calib or (), held_out), repairer=ranks if kind else None,
        evaluation=evaluation,
        notes=calibration_notes(analysis, calib) if calib else (),
    )  # fmt: skip
    with clock("choose", "ranking channels"):
        if criterion == "obs" and ranks is not None:
            ranked = ranks.ranked(analysis, ranked_share(request), stage)
        elif criterion == "moments":
            ranked = ranked_by_moments(analysis, ranked_share(request), twin)
        else:
            ranked = ranked_by(analysis, criterion, seed, scores, calib)
    run = replace(run, ranked=ranked)
    search: dict[str, Any] = {}
    try:
        run = replace(run, ranked=settled(run, request, ranked))
        if align == "auto":
            request, search = aligned(run, request)
        made, found = _made(run, request)
    except PruneError as error:
        error.report = error.report or report_of(run)
        raise
    return finish(run, made, verify=verify, search={**found, **search} or None)


def _made(run: Run, request: Request) -> tuple[Candidate, dict[str, Any]]:
    """The slim model that a request asks for, and how it was found."""
    if request.max_drop is not None:
        return slimmest(run, request, request.max_drop)
    if request.target is None:
        assert run.ranked is not None
        return run.cut(allocate(run.analysis.facts, run.analysis.groups, run.ranked, request)), {}
    if request.target.quantity == "latency":
        return latency_within(run, request, request.target)
    return meet(run, request, request.target)


def slim_dead(
    model: AnyModel,
    *,
    verify: bool = True,
    provider: str = "cpu",
    sizes: Sizes = ANY_SIZES,
    stage: Stage = quiet,
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
    run = Run(analysis, clock, {"dead": True}, provider=provider)
    with clock("choose", "finding what is constant or unread"):
        dead = dead_channels(analysis.solution, analysis.groups)
    if all(len(dead.kept[g.id]) == g.size for g in analysis.groups):
        error = NothingToPrune("no channel is dead", why="every channel moves some output")
        error.report = report_of(run)
        raise error
    made = run.cut(Allocation(dead.kept, {}), dead.shifts)
    return finish(run, made, verify=verify, dead=dead)


def finish(
    run: Run,
    made: Candidate,
    *,
    verify: bool,
    dead: Dead | None = None,
    search: Mapping[str, Any] | None = None,
) -> Result:
    """Prove what was cut, repair it, prove that, compare, and tell."""
    problems = list(signature_problems(run.analysis.source.proto, made.cut.model))
    if problems:
        raise CheckFailed(
            "the slim model has other inputs or outputs", why="; ".join(problems[:3]),
            hint="nothing was written; please report this with the model",
        )  # fmt: skip
    verdict = None
    if verify:
        from onnxprune.check.lossless import verify_lossless
        from onnxprune.check.verify import verify as prove

        with run.clock("verify", "proving the result in ONNX Runtime"):
            proof = prove if dead is None else verify_lossless
            verdict = proof(made.view, made.cut.model, provider=run.provider)
    if verdict is None or verdict.passed:
        made = run.repair(made)
        if verify and made.repaired is not None and made.repaired.row["layers"]:
            with run.clock("verify repair", "proving the repaired model"):
                verdict = prove(made.view, made.model, provider=run.provider, own_weights=True)
    passed = verdict is None or verdict.passed
    report = report_of(
        run, made, verdict=verdict, search=search,
        fidelity=_fidelity(run, made) if passed else None,
    )  # fmt: skip
    if not passed:
        assert verdict is not None
        raise _unproven(verdict, report)
    return Result(made.model, report, verdict, run.analysis, made.chosen.kept)


def _unproven(verdict: Verdict, report: object) -> CheckFailed:
    error = CheckFailed(
        "the slim model is not the original without the removed channels",
        where=verdict.first_bad or verdict.worst,
        why=f"relative error {verdict.max_rel_err:.1e}, allowed {verdict.tolerance:.0e}",
        hint="nothing was written; please report this with the model",
    )
    error.report = report
    return error


def _fidelity(run: Run, made: Candidate) -> dict[str, Any] | None:
    """How close the slim model is to the original: on samples, and in the user's metric."""
    out: dict[str, Any] = {}
    source, samples = run.analysis.source, run.samples
    labelled = run.evaluation.batches if run.evaluation is not None else ()
    for what, batches in (("held-out", samples.held_out), ("evaluation", labelled),
                          ("calibration", samples.calib)):  # fmt: skip
        if batches:
            from onnxprune.check.fidelity import fidelity
            from onnxprune.runtime.feeds import samples_of

            with run.clock("fidelity", "comparing it with the original"):
                rows = fidelity(source.proto, made.model, source.folder, batches, run.provider)
            out = {"on": what, "samples": samples_of(batches), "outputs": [asdict(r) for r in rows]}
            break
    if run.evaluation is not None:
        out["metric"] = {"name": run.evaluation.name, "before": run.original_score,
                         "after": run.scored(made).score}  # fmt: skip
    return out or None


def _options(
    request: Request, criterion: str, heads: str, seed: int, given: bool, align: int | str
) -> dict[str, Any]:
    limits = request.limits
    found: dict[str, Any] = {
        "ratio": request.ratio,
        "threshold": request.threshold,
        "target": None if request.target is None else str(request.target),
        "max_drop": request.max_drop,
        "per_layer": dict(request.per_layer) or None,
        "criterion": criterion,
        "scores": given or None,
        "scope": request.scope,
        "heads": heads,
        "include": list(request.include) or None,
        "exclude": list(request.exclude) or None,
        "align": align,
        "min_channels": limits.min_channels,
        "max_ratio": limits.max_ratio,
        "seed": seed,
    }
    return {k: v for k, v in found.items() if v is not None}
