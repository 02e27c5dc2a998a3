"""What others do with a plan: apply it again, or prove a file with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from onnx import ModelProto

from onnxprune.axes.solve import groups
from onnxprune.axes.view import View
from onnxprune.axes.walk import analyse
from onnxprune.check.verdict import Verdict
from onnxprune.choose.dead import dead_channels
from onnxprune.choose.heads import resolve
from onnxprune.choose.plan import Plan, check_plan, check_tensors
from onnxprune.cut.cut import cut
from onnxprune.errors import UsageError
from onnxprune.graph.files import fingerprint
from onnxprune.graph.model import normalise
from onnxprune.pipeline.analysis import Analysis, AnyModel, Sizes, found_facts, source_of
from onnxprune.pipeline.clock import quiet
from onnxprune.pipeline.floating import floating
from onnxprune.pipeline.repairing import MEMORY, repairer

if TYPE_CHECKING:
    from onnxprune.repair.images import Images
    from onnxprune.runtime.feeds import Feeds


def replay(plan: Plan, model: AnyModel) -> tuple[Analysis, View]:
    """The analysis and the view that a plan was made of, found again on the same model.

    Raises:
        Unreadable: it is another model, or the plan does not fit it.
    """
    source = source_of(model)
    sizes = Sizes(plan.analysis.dims, plan.analysis.shapes)
    facts = found_facts(normalise(source), sizes)
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


def apply(
    plan: Plan, model: AnyModel, calib: Sequence[Feeds] | None = None, *, memory: int = MEMORY,
    images: Images | None = None,
) -> ModelProto:  # fmt: skip
    """Replay a plan: the identical slim model. A repair needs the same calibration batches.

    Raises:
        Unreadable: the plan is for another model, or does not fit it.
        UsageError: the plan was repaired, and there are no calibration batches.
    """
    analysis, view = replay(plan, model)
    if kind := plan.options.get("repair"):
        if kind in ("bias", "linear", "full") and not calib:
            raise UsageError("the plan was repaired", hint="--calib with the same samples")
        seed = plan.options.get("seed", 0)
        twin = floating(analysis, Sizes(plan.analysis.dims, plan.analysis.shapes))
        how = repairer(kind, analysis, calib or (), seed, memory, images, quiet, twin)
        assert how is not None
        return how.repaired(view, cut(view)).model
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
