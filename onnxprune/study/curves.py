"""What each group is worth: the output error as that group alone is slimmed, at several ratios.

The removed slices of the weights are zeroed in the original (the mask, which the slim model
equals), and only what lies behind them is run again (see `study.behind`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.axes.solve import Group, Solution
from onnxprune.axes.view import View
from onnxprune.check.probes import FLOATS, jumping, probes
from onnxprune.choose.allocate import lowest_gone
from onnxprune.choose.criteria import Values
from onnxprune.choose.limits import share
from onnxprune.cut.mask import masked
from onnxprune.graph.model import Model
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import Session, open_session
from onnxprune.study.behind import Behind, behind, part_of
from onnxprune.study.groups import studied

_BUDGET = 1 << 30
"""Bytes of intermediate results that are kept at a time."""

Outputs = Mapping[str, np.ndarray]
Metric = Callable[[Outputs], float]
"""All outputs of all samples, by name -> how good they are; larger is better."""
Progress = Callable[[int, int], None]
"""Is told how many groups are done, and of how many."""


@dataclass(frozen=True)
class Point:
    """One group slimmed alone."""

    ratio: float
    """Share of its channels that is gone."""
    kept: int
    error: float
    """Squared error of the outputs over their power; the mean over several outputs."""
    agreement: float | None
    """Share of samples whose largest output is the same, where an output looks like classes."""
    metric: float | None


@dataclass(frozen=True)
class Curve:
    """One group at rising ratios, and the ratio at which all groups cost about the same."""

    id: int
    name: str
    channels: int
    points: tuple[Point, ...]
    even: float | None = None
    """See `study.even`; None where it was not asked for."""

    def at(self, ratio: float) -> Point | None:
        """The point that this ratio leads to; None where it removes no channel."""
        kept = self.channels - share(self.channels, ratio)
        return next((p for p in self.points if p.kept == kept), None)

    @property
    def worst(self) -> float:
        """Mean error over its points: what the tables are sorted by."""
        return float(np.mean([p.error for p in self.points])) if self.points else 0.0


@dataclass(frozen=True)
class Curves:
    """The curves of a model in the order of the network."""

    groups: tuple[Curve, ...]
    outputs: tuple[str, ...]
    """What errors were taken of: the outputs, or what lies before outputs that jump."""
    baseline: float | None
    """The original's metric."""
    notes: tuple[str, ...]


def measure(
    solution: Solution,
    groups: Sequence[Group],
    scores: Mapping[int, Values],
    batches: Sequence[Feeds],
    ratios: Sequence[float],
    *,
    metric: Metric | None = None,
    progress: Progress = lambda done, of: None,
) -> Curves:
    """Slim the groups that `slim` would touch, one by one, and see how far the outputs move.

    Args:
        scores: (channels,) by group id; the lowest go first.
        batches: inputs by name.
        ratios: shares of its channels that a group loses; those that round to the same number of
            channels are one point.

    Raises:
        NothingToPrune: no group may shrink.
        Unreadable: ONNX Runtime can't run the model on a batch.
    """
    mine, notes = studied(solution.facts, groups)
    run = _Run.of(solution, groups, scores, batches, metric is not None)
    curves: list[Curve] = []
    baseline = None
    progress(0, len(mine))
    for some in run.chunks(mine, ratios):
        between = run.between({name for _, reads in some for name in reads})
        if metric is not None and baseline is None:
            baseline = metric(_joined(between, run.outputs))
        for g, reads in some:
            whole = any(name not in b for b in between for name in reads)
            points = tuple(
                run.point(g, kept, between, after, metric)
                for kept, after in run.slimmed(g, ratios, between, whole)
            )
            curves.append(Curve(g.id, g.name, g.size, points))
            progress(len(curves), len(mine))
    return Curves(tuple(curves), tuple(run.compared), baseline, notes)


@dataclass(frozen=True, eq=False)
class _Run:
    """What does not change from group to group."""

    solution: Solution
    groups: Sequence[Group]
    scores: Mapping[int, Values]
    batches: Sequence[Feeds]
    compared: Sequence[str]
    """Tensors that errors are taken of."""
    outputs: Sequence[str]
    """Outputs that the metric sees."""

    @classmethod
    def of(
        cls, solution: Solution, groups: Sequence[Group], scores: Mapping[int, Values],
        batches: Sequence[Feeds], scored: bool,
    ) -> _Run:  # fmt: skip
        model, chosen = solution.facts.model, jumping(solution.facts)
        types = solution.facts.trace.types
        smooth = [o for o in model.graph.outputs if o not in chosen and types.get(o) in FLOATS]
        extra = probes(View.of(solution, groups, {}), model.proto)
        outputs = [model.in_file(o) for o in model.graph.outputs] if scored else []
        compared = [*(model.in_file(o) for o in smooth), *extra]
        return cls(solution, groups, scores, batches, compared, outputs)

    @property
    def model(self) -> Model:
        return self.solution.facts.model

    @property
    def wanted(self) -> list[str]:
        return list(dict.fromkeys([*self.compared, *self.outputs]))

    def counts(self, g: Group, ratios: Sequence[float]) -> list[int]:
        """Kept counts at the ratios, without those that remove nothing or repeat another."""
        return sorted({g.size - share(g.size, r) for r in ratios} - {g.size}, reverse=True)

    def part(self, g: Group, kept: int, whole: bool) -> tuple[onnx.ModelProto, Behind]:
        """The masked model with so many channels of one group, and what lies behind the mask."""
        stay = lowest_gone(self.scores[g.id], kept).tolist()
        changed = masked(View.of(self.solution, self.groups, {g.id: stay}))
        touched = {self.model.in_file(m.value) for m in g.members}
        return changed, behind(self.model.proto, changed, touched, self.wanted, whole=whole)

    def chunks(
        self, groups: Sequence[Group], ratios: Sequence[float]
    ) -> Iterator[list[tuple[Group, tuple[str, ...]]]]:
        """Groups and what lies before them, as many at a time as can be kept."""
        trace, model = self.solution.facts.trace, self.model
        first = model.graph.inputs[0] if model.graph.inputs else ""
        have = sum(f[model.in_file(first)].size for f in self.batches if first)
        scale = 4 * have / max(1, int(np.prod(trace.shapes.get(first, ())))) if first else 4
        sizes = {
            model.in_file(v): scale * int(np.prod(shape)) for v, shape in trace.shapes.items()
            if v in model.producer and not model.producer[v].site.path
        }  # fmt: skip
        some: list[tuple[Group, tuple[str, ...]]] = []
        total: set[str] = set()
        for g in groups:
            kept = self.counts(g, ratios)
            # the names alone: with its nodes, a masked model would be held for every group
            reads = self.part(g, kept[0], False)[1].reads if kept else ()
            if some and sum(sizes.get(n, 0) for n in total | set(reads)) > _BUDGET:
                yield some
                some, total = [], set()
            some.append((g, reads))
            total.update(reads)
        yield some

    def between(self, names: Set[str]) -> list[Outputs]:
        """Per batch the inputs, these values, and what is wanted, as the original has them."""
        inputs = {i.name for i in self.model.proto.graph.input}
        asked = sorted({*names, *self.wanted} - inputs)
        with open_session(
            self.model.proto, optimise=True, extra_outputs=asked, folder=self.model.source.folder
        ) as session:
            return [{**feeds, **session.run(feeds, asked)} for feeds in self.batches]

    def slimmed(
        self, g: Group, ratios: Sequence[float], between: Sequence[Outputs], whole: bool
    ) -> Iterator[tuple[int, list[Outputs]]]:
        """Kept counts, and per batch what is wanted with so many channels of one group.

        One session does for all counts where only the content of weights differs.
        """
        folder = self.model.source.folder
        with ExitStack() as stack:
            ready: tuple[Behind, Session] | None = None
            for kept in self.counts(g, ratios):
                changed, now = self.part(g, kept, whole)
                given = [{n: b[n] for n in now.reads} for b in between]
                if now.outputs and (ready is None or not now.is_like(ready[0])):
                    stack.pop_all().close()
                    model = part_of(changed, now, given)
                    session = open_session(model, optimise=True, folder=folder)
                    ready = now, stack.enter_context(session)
                weights = now.arrays(folder)
                moved: list[Outputs] = [
                    ready[1].run({**reads, **weights}) if ready and now.outputs else {}
                    for reads in given
                ]
                wanted = [{n: b[n] for n in self.wanted if n in b} for b in between]
                yield kept, [{**a, **b} for a, b in zip(wanted, moved, strict=True)]

    def point(
        self, g: Group, kept: int, before: Sequence[Outputs], after: Sequence[Outputs],
        metric: Metric | None,
    ) -> Point:  # fmt: skip
        """How far the outputs have moved."""
        errors = [e for n in self.compared if (e := _error(n, before, after)) is not None]
        alike = [a for n in self.compared if (a := _agreement(n, before, after)) is not None]
        value = metric(_joined(after, self.outputs)) if metric is not None else None
        return Point(
            round(1 - kept / g.size, 6), kept, float(np.mean(errors)) if errors else 0.0,
            alike[0] if alike else None, value,
        )  # fmt: skip


def _error(name: str, before: Sequence[Outputs], after: Sequence[Outputs]) -> float | None:
    """Squared error of a tensor over its power; None where it is zero throughout, or its size
    depends on values.
    """
    error = power = 0.0
    for b, a in zip(before, after, strict=True):
        if name not in b or name not in a or b[name].shape != a[name].shape:
            return None
        x, y = b[name].astype(np.float64), a[name].astype(np.float64)
        finite = np.isfinite(x) & np.isfinite(y)
        error += float(np.square(x[finite] - y[finite]).sum())
        power += float(np.square(x[finite]).sum())
    return error / power if power else None


def _agreement(name: str, before: Sequence[Outputs], after: Sequence[Outputs]) -> float | None:
    """Share of samples whose largest entry is the same, for (samples, classes, 1 ...) alone."""
    same = rows = 0
    for b, a in zip(before, after, strict=True):
        x = b.get(name, np.zeros(0))
        if x.ndim < 2 or x.shape[1] < 2 or x.size != x.shape[0] * x.shape[1]:
            return None
        flat = (v.reshape(x.shape[:2]).argmax(axis=1) for v in (x, a[name]))
        same += int(np.equal(*flat).sum())
        rows += len(x)
    return same / rows if rows else None


def _joined(parts: Sequence[Outputs], names: Sequence[str]) -> Outputs:
    """All samples of all batches, by output."""
    return {n: np.concatenate([p[n] for p in parts]) for n in names if all(n in p for p in parts)}
