"""Slim models that meet a budget: cut, counted or measured on what was cut, and cut again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from onnx import ModelProto

from onnxprune.choose.allocate import (
    Allocation,
    Pool,
    Request,
    allocate,
    nothing_open,
    pool_of,
)
from onnxprune.choose.budget import smallest, within
from onnxprune.choose.target import Target
from onnxprune.cost.budget import CostModel, cost_model
from onnxprune.cost.budget import Quantity as Counted
from onnxprune.errors import CheckFailed, NothingToPrune
from onnxprune.pipeline.inputs import timing_feeds
from onnxprune.pipeline.outcome import report_of
from onnxprune.pipeline.run import Candidate, Run

if TYPE_CHECKING:
    from onnxprune.runtime.latency import Latency
    from onnxprune.runtime.session import Session

_NEAR = 0.01
"""How far below a target a model may lie, as a share of the original."""
_NEAR_TIME = 0.05
"""The same of a latency, as a share of the target."""
_CORRECTIONS = 10
"""Cuts at most, until the file itself costs what it may."""
_TRIALS = 12
"""Models at most that are timed."""
_PATIENCE = 5.0
"""Seconds for each."""
_HALF = 0.5
"""Work that is likely to be left where only a search can tell."""
_FINEST = 0.01
"""Share of the original's work to which the slimmest model is told."""


@dataclass(frozen=True, eq=False)
class Space:
    """The slim models that a request allows, by what they may cost."""

    run: Run
    request: Request
    pool: Pool
    model: CostModel

    def within(self, what: Counted, budget: float) -> Allocation:
        with self.run.clock("choose", "choosing channels"):
            return within(self.pool, self.model, what, budget, self.request.scope)

    @property
    def lever(self) -> Counted:
        """What a search varies: the work, or the parameters of a model that does not multiply."""
        return "macs" if self.total("macs", self.smallest) < self.full("macs") else "params"

    @property
    def smallest(self) -> Allocation:
        return smallest(self.pool)

    def full(self, what: Counted) -> float:
        return float(self.model.total(what, self.model.full))

    def total(self, what: Counted, chosen: Allocation) -> float:
        """What a choice costs by the model of it."""
        kept = [len(chosen.kept[g.id]) for g in self.pool.groups]
        return float(self.model.total(what, kept))

    def work(self, made: Candidate) -> float:
        """Share of the original's multiply-accumulates that is left."""
        return self.run.work(made)


def space_of(run: Run, request: Request) -> Space:
    """What there is to search; raises NothingToPrune where nothing may go."""
    analysis = run.analysis
    assert run.ranked is not None
    pool = pool_of(analysis.facts, analysis.groups, run.ranked, request)
    if (nothing := nothing_open(pool.groups, pool.left)) is not None:
        raise nothing
    return Space(run, request, pool, cost_model(analysis.solution, analysis.groups, run.sizes))


def likely(run: Run, request: Request) -> Allocation:
    """What a request leaves, or something like it where it takes a search to tell."""
    if request.target is None and request.max_drop is None:
        assert run.ranked is not None
        return allocate(run.analysis.facts, run.analysis.groups, run.ranked, request)
    space = space_of(run, request)
    target = request.target
    if target is None or target.quantity == "latency":
        return space.within(space.lever, _HALF * space.full(space.lever))
    what = target.quantity
    return space.within(what, target.amount(int(getattr(run.before, what))))


def _counts(chosen: Allocation) -> tuple[int, ...]:
    return tuple(len(k) for k in chosen.kept.values())


# ---- what is counted ----------------------------------------------------------------------------


def meet(run: Run, request: Request, target: Target) -> tuple[Candidate, dict[str, Any]]:
    """The model that costs at most what a target allows, and as little less as can be.

    The costs of the model itself decide: where counts alone do not foretell them (tensors that are
    shared, stored anew or given a bias by the repair), the aim is corrected and it is cut again.

    Raises:
        NothingToPrune: it is within the target as it is. CheckFailed: the target is out of reach.
    """
    assert target.quantity != "latency"
    what: Counted = target.quantity
    space = space_of(run, request)
    original = int(getattr(run.before, what))
    limit = target.amount(original)
    record: dict[str, Any] = {"kind": "target", "quantity": what, "original": original,
                              "limit": limit}  # fmt: skip
    if original <= limit:
        raise _already(target, f"{what}={original:,}")

    def tried(chosen: Allocation) -> tuple[Candidate, int]:
        made = run.cut(chosen)
        if what != "macs":
            made = run.repair(made)
        return made, int(getattr(run.cost(made), what))

    best: tuple[Candidate, int] | None = None
    aim, seen = limit, set()
    for _ in range(_CORRECTIONS):
        chosen = space.within(what, aim)
        if _counts(chosen) in seen:
            break
        seen.add(_counts(chosen))
        made, cost = tried(chosen)
        if cost <= limit and (best is None or cost > best[1]):
            best = made, cost
        if limit - _NEAR * original <= cost <= limit:
            break
        aim = limit - (cost - space.total(what, chosen))
    if best is None:
        made, cost = tried(space.smallest)
        if cost > limit:
            least = f"{what}={cost:,} ({cost / original:.1%} of the original)"
            raise _unreachable(run, target, least, {**record, "smallest": cost})
        best = made, cost
    return best[0], {**record, "reached": best[1]}


def _already(target: Target, has: str) -> NothingToPrune:
    return NothingToPrune(
        "the model is within the target as it is", where=f"--target {target}", why=f"it has {has}"
    )


def _unreachable(run: Run, target: Target, least: str, record: Mapping[str, Any]) -> CheckFailed:
    error = CheckFailed(
        "the target can't be reached", where=f"--target {target}",
        why=f"the smallest reachable is {least}",
        hint="a higher target, or fewer limits (--min-channels, --max-ratio, --align, --exclude)",
    )  # fmt: skip
    error.report = report_of(run, search=record)
    return error


# ---- what is timed ------------------------------------------------------------------------------


Timed = Callable[["Candidate", float], "Latency"]
"""Time a slim model against the original, with so many seconds of patience."""


def latency_within(run: Run, request: Request, target: Target) -> tuple[Candidate, dict[str, Any]]:
    """The model that takes as long as a target allows, measured where the run's provider is.

    Raises:
        As `by_time`; and CheckFailed where the original can't be run at these sizes.
    """
    from onnxprune.runtime.iobinding import bound
    from onnxprune.runtime.latency import compare
    from onnxprune.runtime.session import open_session

    space, folder = space_of(run, request), run.analysis.source.folder

    def opened(model: ModelProto) -> Session:
        return open_session(model, provider=run.provider, optimise=True, folder=folder)

    with opened(run.analysis.source.proto) as session:
        feeds = timing_feeds(run, session)
        original = bound(session, feeds).run

        def timed(made: Candidate, patience: float) -> Latency:
            doing = f"timing a model with {space.work(made):.1%} of the MACs"
            with run.clock("latency", doing), opened(made.model) as other:
                return compare(original, bound(other, feeds).run, patience=patience)

        return by_time(space, target, timed)


def by_time(space: Space, target: Target, timed: Timed) -> tuple[Candidate, dict[str, Any]]:
    """The model with most work whose time is at most the target's and hardly less.

    The work that is left is varied by regula falsi, as time nearly goes along with it; what would
    do is timed again, twice as long, before it is taken.

    Raises:
        NothingToPrune: the original is within the target. CheckFailed: it is out of reach.
    """
    run, what = space.run, space.lever
    full = space.full(what)
    trials: list[dict[str, Any]] = []
    fitting: list[_Fit] = []
    originals: list[float] = []

    def limit() -> float:
        """The share of the original's time that the target allows."""
        return target.value if target.is_share else target.value / median(originals)

    def tried(made: Candidate, level: float, sure: bool = False) -> float:
        """Its share of the original's time; one that would do is timed twice as long."""
        found = timed(made, _PATIENCE * (2 if sure else 1))
        originals.append(found.original_ms)
        if not sure and (1 - 2 * _NEAR_TIME) * limit() <= found.share <= limit():
            return tried(made, level, sure=True)
        trials.append({"macs": space.work(made), "ms": found.share * median(originals),
                       "share": found.share, "low": found.low, "high": found.high,
                       "accepted": found.share <= limit()})  # fmt: skip
        if found.share <= limit():
            fitting.append(_Fit(level, found.share, made, sure))
        return found.share

    def record() -> dict[str, Any]:
        return {"kind": "latency", "quantity": "latency", "provider": run.provider,
                "original": median(originals), "limit": limit() * median(originals),
                "trials": trials}  # fmt: skip

    made = run.cut(space.smallest)
    tried(made, space.total(what, made.chosen) / full)
    if limit() >= 1:
        raise _already(target, f"{median(originals):.4g} ms")
    high, seen = (1.0, 1.0), {_counts(made.chosen)}
    while fitting:
        best = max(fitting, key=lambda f: f.level)
        near = best.share >= (1 - _NEAR_TIME) * limit()
        if not near and len(trials) < _TRIALS:
            aim = limit() * (1 - _NEAR_TIME / 2)
            part = (aim - best.share) / max(high[1] - best.share, 1e-9)
            level = best.level + (high[0] - best.level) * min(max(part, 0.1), 0.9)
            chosen = space.within(what, level * full)
            if _counts(chosen) not in seen:
                seen.add(_counts(chosen))
                time = tried(run.cut(chosen), level)
                high = high if time <= limit() else (level, time)
                continue
        if best.sure:
            return best.made, {**record(), "reached": best.share * median(originals)}
        fitting.remove(best)
        time = tried(best.made, best.level, sure=True)
        high = high if time <= limit() else (best.level, time)
    time = min(t["share"] for t in trials)
    ms = time * median(originals)
    raise _unreachable(run, target, f"latency={ms:.4g}ms ({time:.1%} of the original)",
                       {**record(), "smallest": ms})  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Fit:
    """A model that takes no longer than it may."""

    level: float
    """What it costs, as a share of the original."""
    share: float
    """Of the original's time."""
    made: Candidate
    sure: bool
    """It was timed twice."""


# ---- what is scored -----------------------------------------------------------------------------


def slimmest(run: Run, request: Request, max_drop: float) -> tuple[Candidate, dict[str, Any]]:
    """The model with least work whose score falls by at most `max_drop`, found by bisection.

    It takes for granted that less work does not score higher, up to what `_FINEST` resolves.

    Raises:
        CheckFailed: no model that was tried stays within the drop.
    """
    space = space_of(run, request)
    assert run.evaluation is not None
    what, trials = space.lever, []
    full = space.full(what)
    low, high = space.total(what, space.smallest) / full, 1.0
    best: Candidate | None = None
    seen: set[tuple[int, ...]] = set()
    while high - low > _FINEST:
        level = (low + high) / 2
        chosen = space.within(what, level * full)
        if _counts(chosen) in seen:
            break
        seen.add(_counts(chosen))
        made = run.scored(run.repair(run.cut(chosen)))
        assert made.score is not None
        drop = run.original_score - made.score
        accepted = drop <= max_drop + 1e-12
        trials.append({"macs": space.work(made), "score": made.score, "drop": drop,
                       "accepted": accepted})  # fmt: skip
        verdict = "within" if accepted else "beyond"
        run.clock.tell(f"{space.work(made):.1%} of the MACs: {verdict} the drop")
        if accepted:
            best, high = made, level
        else:
            low = level
    record = {"kind": "max_drop", "quantity": run.evaluation.name, "limit": max_drop,
              "original": run.original_score, "trials": trials}  # fmt: skip
    if best is None:
        raise _too_low(run, trials, record)
    return best, {**record, "reached": best.score}


def _too_low(
    run: Run, trials: list[dict[str, Any]], record: Mapping[str, Any]
) -> CheckFailed | NothingToPrune:
    if not trials:
        return NothingToPrune("no channel goes", why="the limits leave less than 1 % of the work")
    least = min(trials, key=lambda t: float(t["drop"]))
    error = CheckFailed(
        "nothing stays within the drop", where=f"--max-drop {record['limit']:g}",
        why=f"the smallest drop seen is {least['drop']:.4g}, at {least['macs']:.1%} of the MACs",
        hint="a larger drop" if run.samples.calib else "--calib with samples to repair with",
    )  # fmt: skip
    error.report = report_of(run, search=record)
    return error
