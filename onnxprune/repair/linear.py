"""Sequential least squares: every layer that removal touched is refitted, in graph order.

Inputs are as the already repaired slim network gives them, targets as in the original, so errors
do not add up from layer to layer. No labels and no gradients: forward runs in ONNX Runtime and a
linear solve a layer. The pull towards the sliced weights is chosen on samples that the solve has
not seen, and a layer whose error there does not fall keeps the weights it has.
(He et al. 2017, "Channel pruning"; the OBS update is the same solve: Frantar & Alistarh 2022.)

With rounds, the layer that makes the channels is then moved too, see `gauss_newton`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx

from onnxprune.axes.view import View
from onnxprune.cut.weights import Stored
from onnxprune.repair.jobs import (
    Job,
    free_bias,
    goal,
    goal_rows,
    jobs_of,
    rows_at,
    start,
    touched,
    write,
)
from onnxprune.repair.moments import Array, Moments, bias_only, ridge
from onnxprune.repair.recurrent import (
    RecurrentJob,
    moments_of,
    parts_of,
    put,
    recurrent_jobs,
    start_of,
    store_weights,
    weights_of,
)
from onnxprune.repair.stream import Feeds, Kept, Store, Stream
from onnxprune.repair.taps import places_per_map

SHARES = (1e-3, 1e-2, 1e-1)
"""Pulls towards the sliced weights that are tried, as shares of the taps' mean power."""
PLENTY = 32
"""Rows for each column that a layer must have to be fitted though all that it reads is there."""
ENOUGH = 16
"""Rows for each column that a layer must have for rounds on what makes its input."""
FOLDS = 4
"""Parts of the samples, for judging what the others solve for."""
AFFORDABLE = 1500
"""Columns up to which every part is judged; beyond, the last one stands for all."""


@dataclass(frozen=True)
class Recipe:
    """How far a repair goes."""

    weights: bool = True
    """Refit weights and biases; else biases alone."""
    rounds: int = 4
    """Gauss-Newton rounds on what makes the channels."""


RECIPES = {"bias": Recipe(weights=False, rounds=0), "linear": Recipe(rounds=0), "full": Recipe()}


@dataclass(frozen=True)
class Fitted:
    """What the repair of one layer did: held-out error before and after, over the target's
    power.
    """

    node: str
    before: float
    after: float


@dataclass(frozen=True, eq=False)
class Folds:
    """Moments of a layer by parts of the samples: each is judged by what the others solve for."""

    parts: tuple[Moments, ...]

    @cached_property
    def all(self) -> Moments:
        total = self.parts[0]
        for part in self.parts[1:]:
            total = total.plus(part)
        return total

    @property
    def power(self) -> float:
        """Of the targets, summed over outputs."""
        return max(self.all.t / max(1, self.all.rows), 1e-30)

    def errors(self, solve: Callable[[Moments], Array]) -> Array:
        """(parts,) squared error of each part, as its share of the mean over all rows."""
        whole = self.all
        if len(self.parts) == 1:
            return np.array([whole.error(solve(whole))])
        judged = self.parts[-1:] if whole.size > AFFORDABLE else self.parts
        found = [p.error(solve(whole.minus(p))) * p.rows for p in judged]
        return np.array(found) / max(1, sum(p.rows for p in judged))


def fold_of(k: int, batches: int) -> int:
    """Which part batch `k` belongs to."""
    return k % min(FOLDS, batches)


def refit(
    view: View,
    slim: onnx.ModelProto,
    weights: Sequence[Stored],
    batches: Sequence[Feeds],
    *,
    seed: int = 0,
    recipe: Recipe = RECIPES["full"],
    memory: int = 2_000_000_000,
    tell: Callable[[str], None] = lambda text: None,
) -> tuple[onnx.ModelProto, tuple[Fitted, ...]]:
    """A copy of a slim model with its layers refitted on calibration batches.

    Args:
        memory: bytes that activations may take before they go to disk.

    Raises:
        Unreadable: ONNX Runtime can't run one of the models.
    """
    from onnxprune.repair.gauss_newton import Pair, improve, pairs_of

    model = onnx.ModelProto()
    model.CopyFrom(slim)
    folder, original = view.facts.model.source.folder, view.facts.model.source.proto
    layers = jobs_of(view, model, weights, places_per_map(batches), seed)
    pairs: dict[Job, list[Pair]] = pairs_of(view, model, layers) if recipe.rounds else {}
    recurrent = recurrent_jobs(view, model, weights, touched(view)) if recipe.weights else ()
    fitted = [j for j in layers if j.touched]
    jobs = sorted([*fitted, *recurrent], key=lambda j: j.order)
    done: list[Fitted] = []
    if not jobs:
        return model, ()
    slim_wanted = [v for j in jobs for v in j.slim_values]
    slim_wanted += [v for found in pairs.values() for p in found for v in p.values]
    with Store(memory) as store:
        was = Stream(original, batches, [v for j in jobs for v in j.original_values], store, folder)
        now = Stream(model, batches, slim_wanted, store, folder)
        for k, job in enumerate(jobs):
            tell(f"repairing {k + 1} of {len(jobs)} layers")
            was.take(job.original_values)
            if isinstance(job, RecurrentJob):
                now.take(job.slim_values)
                done += _fit_recurrent(job, model, was, now)
                was.release(job.original_values)
                now.release(job.slim_values)
                continue
            now.take([*job.slim_values, *(v for p in pairs.get(job, ()) for v in p.values)])
            power, before, fit = _fit(job, model, was, now, recipe)
            if fit is not None and job in pairs and fit.rows >= ENOUGH:
                fit = improve(job, pairs[job], model, was, now, recipe.rounds, fit)
            if np.isfinite(before):
                after = before if fit is None else fit.error
                done.append(Fitted(job.layer.node.label, before / power, after / power))
            was.release(job.original_values)
            now.release([*job.slim_values, *(v for p in pairs.get(job, ()) for v in p.values)])
    return model, tuple(done)


def gather(job: Job, was: Stream, now: Stream, inputs: Sequence[Kept] = ()) -> Folds:
    """Moments of what a layer reads and should give; `inputs` by batch win over what it reads."""
    parts: list[Moments] = []
    count = len(now.batches)
    for k in range(count):
        x, y = inputs[k].array if inputs else now.get(job.x, k), goal(job, was, now, k)
        taps, rows = rows_at(job, x, y, k), goal_rows(job, y, k)
        if not parts:
            size, outputs, lead = taps.shape[-1] + 1, rows.shape[-1], taps.shape[:-2]
            parts = [Moments(size, outputs, lead) for _ in range(min(FOLDS, count))]
        parts[fold_of(k, count)].add(taps, rows)
    return Folds(tuple(parts))


@dataclass(frozen=True, eq=False)
class Fit:
    """What a solve gave: the pull, the errors of parts that it had not seen, the weights."""

    share: float
    errors: Array
    weights: Array
    rows: float
    """Rows for each column."""

    @property
    def error(self) -> float:
        return float(self.errors.sum())

    @property
    def is_finite(self) -> bool:
        return bool(np.isfinite(self.errors).all() and np.isfinite(self.weights).all())


def best_fit(folds: Folds, w0: Array, *, free: bool, shares: Sequence[float] = SHARES) -> Fit:
    """The pull with the least error on samples not seen; its weights are of all samples."""
    errors = {
        s: folds.errors(lambda m, s=s: ridge(m, w0, s, free_bias=free))  # type: ignore[misc]
        for s in shares
    }
    share = min(shares, key=lambda s: errors[s].sum())
    weights = ridge(folds.all, w0, share, free_bias=free)
    return Fit(share, errors[share], weights, folds.all.rows / folds.all.size)


def _fit_recurrent(
    job: RecurrentJob, model: onnx.ModelProto, was: Stream, now: Stream
) -> list[Fitted]:
    """Refit the gates of a recurrent layer; what was done, a line for all of them."""
    have = weights_of(job, model, now.folder)
    count = len(now.batches)
    places = [fold_of(k, count) for k in range(count)]
    power, before, after = 1e-30, 0.0, 0.0
    for d in range(len(job.reversed)):
        for part in parts_of(job):
            folds = Folds(moments_of(job, part, d, was, now, places))
            if not folds.all.finite:
                continue
            w0 = start_of(job, part, d, have)
            old, fit = folds.all.error(w0), best_fit(folds, w0, free=bool(job.names[2]))
            if fit.is_finite and fit.error < old:
                put(job, part, d, fit.weights, have)
            power += folds.power
            before, after = before + old, after + min(old, fit.error)
    store_weights(job, model, have)
    return [Fitted(job.label, before / power, after / power)]


def _fit(
    job: Job, model: onnx.ModelProto, was: Stream, now: Stream, recipe: Recipe
) -> tuple[float, float, Fit | None]:
    """Refit one layer: its target's power, its error before, and what was fitted and kept."""
    folds, w0 = gather(job, was, now), start(job, model, now.folder)
    if not folds.all.finite:
        return folds.power, np.nan, None
    before, free = folds.all.error(w0), free_bias(job, model)
    plenty = folds.all.rows >= PLENTY * folds.all.size
    if recipe.weights and (job.cut or plenty):
        fit = best_fit(folds, w0, free=free)
    elif free and not recipe.weights:
        errors = folds.errors(lambda m: bias_only(m, w0))
        fit = Fit(1.0, errors, bias_only(folds.all, w0), folds.all.rows / folds.all.size)
    else:
        return folds.power, before, None
    if not fit.is_finite or not fit.error < before:
        return folds.power, before, None
    write(job, model, fit.weights)
    return folds.power, before, fit
