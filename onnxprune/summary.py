"""From a finished run to its report: what was where, what stayed and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike
from onnx import ModelProto

from onnxprune.axes.facts import Facts, Work
from onnxprune.axes.reasons import fixed_groups
from onnxprune.axes.solve import Group
from onnxprune.axes.view import View
from onnxprune.check.verdict import Verdict
from onnxprune.choose.scores import Scores
from onnxprune.cost.cost import Cost, cost_after, cost_before
from onnxprune.cost.work import Sizes, macs_of_work
from onnxprune.graph.model import Node
from onnxprune.report.data import GroupRow, LayerRow, MemberRow, Size

if TYPE_CHECKING:  # a run without repair does not need it
    from onnxprune.repair.linear import Fitted

BINS = 20


def sizes_before_after(
    view: View, groups: Sequence[Group], slim: ModelProto | None, sizes: Sizes
) -> tuple[Size, Size | None]:
    """How large the model was, and is."""
    channels = sum(g.size for g in groups)
    before = _size(cost_before(view.facts, sizes), channels)
    if slim is None:
        return before, None
    kept = sum(int(view.keep[g.roots].sum()) for g in groups)
    return before, _size(cost_after(slim, view, sizes), kept)


def _size(cost: Cost, channels: int) -> Size:
    return Size(cost.params, cost.macs, cost.bytes, cost.nodes, channels)


def sizes_text(sizes: Sizes) -> str:
    """The input sizes at which work was counted."""
    return ", ".join(f"{n}:{'x'.join(map(str, s)) or 'scalar'}" for n, s in sizes.inputs.items())


def group_rows(
    view: View,
    groups: Sequence[Group],
    left: Mapping[int, str],
    scores: Scores | None,
    kept: Mapping[int, ArrayLike],
) -> tuple[GroupRow, ...]:
    """Groups that may shrink, those that were left alone, then channels that can't go."""
    name = view.facts.model.in_file
    rows = []
    for g in groups:
        members = tuple(dict.fromkeys(MemberRow(name(m.value), m.axis, m.role) for m in g.members))
        stay = np.asarray(kept.get(g.id, np.arange(g.size)), np.int64)
        found = None if scores is None else scores.by_group.get(g.id)
        rows.append(
            GroupRow(
                g.id, g.name, g.size, len(stay), left.get(g.id, ""), members,
                None if found is None else _histogram(found, stay),
            )
        )  # fmt: skip
    for f in fixed_groups(view.solution):
        members = tuple(MemberRow(v, -1, "fixed") for v in f.values)
        rows.append(
            GroupRow(len(rows), f.name, f.channels, f.channels, "; ".join(f.why[:3]), members)
        )
    return tuple(rows)


def _histogram(scores: np.ndarray, kept: np.ndarray) -> dict[str, Any]:
    finite = scores[np.isfinite(scores)]
    if not len(finite):
        return {}
    counts, edges = np.histogram(finite, BINS)
    gone = np.ones(len(scores), bool)
    gone[kept] = False
    out: dict[str, Any] = {"edges": edges.round(6).tolist(), "counts": counts.tolist()}
    if gone.any():
        out["cut"] = float(scores[gone].max())
    return out


def layer_rows(view: View, sizes: Sizes) -> tuple[LayerRow, ...]:
    """The nodes that multiply, in the order of the network."""
    facts = view.facts
    by_node: dict[Node, list[Work]] = {}
    for work in facts.work:
        by_node.setdefault(work.node, []).append(work)
    creates = {r.constant: r.labels for r in reversed(facts.roles) if r.role == "creates"}
    rows = []
    for node, mine in by_node.items():
        weight = next(
            (i for i in node.inputs[1:] if i in facts.constant and len(view.masks(i)) > 1), ""
        )
        made = creates.get(_origin(weight, facts))
        value = weight or node.outputs[0]
        rows.append(
            LayerRow(
                node.label, node.op, facts.model.in_file(weight),
                tuple(facts.trace.shapes.get(value, ())), tuple(view.shape(value)),
                sum(macs_of_work(w, sizes, None) for w in mine),
                sum(macs_of_work(w, sizes, view) for w in mine),
                int(bool(weight)) if made is None else len(made),
                int(bool(weight)) if made is None else int(view.mask(made).sum()),
            )
        )  # fmt: skip
    return tuple(rows)


def _origin(weight: str, facts: Facts) -> str:
    """The stored tensor that a weight is computed from."""
    model = facts.model
    while weight not in model.constants and (node := model.producer.get(weight)) and node.inputs:
        weight = node.inputs[0]
    return weight


def verdict_row(verdict: Verdict) -> dict[str, Any]:
    """A verdict as the report tells it."""
    return {
        "passed": verdict.passed,
        "max_rel_err": verdict.max_rel_err,
        "tolerance": verdict.tolerance,
        "by_node": verdict.by_node,
        "inputs": [{"shapes": dict(f.shapes), "seed": f.seed} for f in verdict.inputs],
        "outputs": list(verdict.compared),
        "vacuous": verdict.vacuous,
        "moved": verdict.moved,
        "worst": verdict.worst,
        "first_bad": verdict.first_bad,
        "notes": list(verdict.notes),
    }


def repair_row(fitted: Sequence[Fitted], kind: str, batches: int) -> dict[str, Any]:
    """A repair as the report tells it; errors are shares of the power of a layer's target."""
    rows = [{"node": f.node, "before": f.before, "after": f.after} for f in fitted]
    return {"kind": kind, "batches": batches, "layers": rows}


def proof_sentence(verdict: Verdict) -> str:
    """The proof in one line."""
    where = f"{_count(len(verdict.inputs), 'run')}, {_count(len(verdict.compared), 'output')}"
    if not verdict.passed:
        return f"NOT PROVEN: {verdict.first_bad}"
    if verdict.vacuous:
        return f"proof is vacuous: the removed channels do not move the outputs ({where})"
    if not verdict.inputs:
        return "nothing to prove: the model is the original"
    how = "node by node, " if verdict.by_node else ""
    return (
        f"proven: the original without the removed channels and the slim model agree "
        f"({how}{where}, relative error {verdict.max_rel_err:.1e} of {verdict.tolerance:.0e})"
    )


def _count(n: int, what: str) -> str:
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
