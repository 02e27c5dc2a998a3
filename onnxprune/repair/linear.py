"""Sequential least squares: every layer that removal touched is refitted, in graph order.

Inputs are as the already repaired slim network gives them, targets as in the original, so errors
do not add up from layer to layer. No labels and no gradients: forward runs in ONNX Runtime and a
linear solve a layer. The pull towards the sliced weights is chosen on samples that the solve has
not seen, and a layer whose error there does not fall keeps the weights it has.
(He et al. 2017, "Channel pruning"; the OBS update is the same solve: Frantar & Alistarh 2022.)

With rounds, the layer that makes the channels is then moved too, see `gauss_newton`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx

from onnxprune.axes.view import View
from onnxprune.cut.weights import Stored
from onnxprune.repair.fits import Fit, best_fit, folded, gather
from onnxprune.repair.gauss_newton import Pair, improve, pairs_of
from onnxprune.repair.jobs import Job, free_bias, jobs_of, start, touched, write
from onnxprune.repair.recurrent import (
    RecurrentJob,
    parts_of,
    put,
    recurrent_jobs,
    rows_of,
    start_of,
    store_weights,
    weights_of,
)
from onnxprune.repair.rewrite import Rounded, settle
from onnxprune.repair.stream import Feeds, Store, Stream
from onnxprune.repair.taps import places_per_map

EXACT = 1e-9
"""Share of its target's power below which a layer's error is rounding: nothing is made up for."""
ENOUGH = 16
"""Rows for each column that a layer must have to be fitted though all that it reads is there, and
for rounds on what makes its input.
"""


@dataclass(frozen=True)
class Recipe:
    """How far a repair goes."""

    weights: bool = True
    """Refit weights and biases; else biases alone."""
    rounds: int = 4
    """Gauss-Newton rounds on what makes the channels."""
    shares: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """Pulls towards the sliced weights that are tried, as shares of the taps' mean power."""


RECIPES = {"bias": Recipe(weights=False, rounds=0), "linear": Recipe(rounds=0), "full": Recipe()}


@dataclass(frozen=True)
class Fitted:
    """What the repair of one layer did: held-out error before and after, over the target's
    power.
    """

    node: str
    before: float
    after: float


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
    rounded: Rounded | None = None,
) -> tuple[onnx.ModelProto, tuple[Fitted, ...]]:
    """A copy of a slim model with its layers refitted on calibration batches.

    Args:
        rounded: a weight, by name, as it will be stored: what rounding does to a layer, those
            behind it make up for.
        memory: bytes that activations may take before they go to disk.

    Raises:
        Unreadable: ONNX Runtime can't run one of the models.
    """
    model = onnx.ModelProto()
    model.CopyFrom(slim)
    folder, original = view.facts.model.source.folder, view.facts.model.source.proto
    layers = jobs_of(view, model, weights, places_per_map(batches), seed)
    pairs = pairs_of(view, model, layers) if recipe.rounds else {}
    recurrent = recurrent_jobs(view, model, weights, touched(view)) if recipe.weights else ()
    fitted = [j for j in layers if j.touched]
    jobs = sorted([*fitted, *recurrent], key=lambda j: j.order)
    done: list[Fitted] = []
    if not jobs:
        return model, ()
    reads = [_reads(j, pairs) for j in jobs]
    with Store(memory) as store:
        was = Stream(original, batches, [v for j in jobs for v in j.original_values], store, folder)
        now = Stream(model, batches, [v for values in reads for v in values], store, folder)
        for k, (job, values) in enumerate(zip(jobs, reads, strict=True)):
            tell(f"repairing {k + 1} of {len(jobs)} layers")
            was.take(job.original_values)
            now.take(values)
            if isinstance(job, RecurrentJob):
                done += _fit_recurrent(job, model, was, now, recipe)
            else:
                done += _fit_layer(job, pairs.get(job, ()), model, was, now, recipe, rounded)
            was.release(job.original_values)
            now.release(values)
    return model, tuple(done)


def _reads(job: Job | RecurrentJob, pairs: Mapping[Job, Sequence[Pair]]) -> list[str]:
    """What a job needs from the slim model, its rounds included."""
    more = () if isinstance(job, RecurrentJob) else pairs.get(job, ())
    return [*job.slim_values, *(v for p in more for v in p.values)]


def _fit_layer(
    job: Job, pairs: Sequence[Pair], model: onnx.ModelProto, was: Stream, now: Stream,
    recipe: Recipe, rounded: Rounded | None,
) -> list[Fitted]:  # fmt: skip
    """Refit one layer, with rounds on what makes its input; what was done, if that is known."""
    power, before, fit = _fit(job, model, was, now, recipe)
    if fit is not None and fit.density >= ENOUGH:
        fit = improve(job, pairs, model, was, now, recipe.rounds, fit, rounded)
    if rounded is not None:
        settle(model, job.weight, rounded, now.folder)
    after = before if fit is None else fit.error
    return (
        [Fitted(job.layer.node.label, before / power, after / power)] if np.isfinite(before) else []
    )


def _fit_recurrent(
    job: RecurrentJob, model: onnx.ModelProto, was: Stream, now: Stream, recipe: Recipe
) -> list[Fitted]:
    """Refit the gates of a recurrent layer; what was done, a line for all of them."""
    have = weights_of(job, model, now.folder)
    power, before, after = 1e-30, 0.0, 0.0
    for d in range(len(job.reversed)):
        for part in parts_of(job):
            rows = partial(rows_of, job, part, d, was, now)
            folds = folded(len(now.batches), rows)
            if not folds.all.finite:
                continue
            w0 = start_of(job, part, d, have)
            old = folds.all.error(w0)
            fit = best_fit(folds, w0, recipe.shares, free=bool(job.names[2]))
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
    if before <= EXACT * folds.power:
        return folds.power, before, None
    if recipe.weights and (job.cut or folds.density >= ENOUGH):
        fit = best_fit(folds, w0, recipe.shares, free=free)
    elif free and not recipe.weights:
        errors = folds.errors(lambda m: m.bias_only(w0))
        fit = Fit(1.0, errors, folds.all.bias_only(w0), folds.density)
    else:
        return folds.power, before, None
    if not fit.is_finite or not fit.error < before:
        return folds.power, before, None
    write(job, model, fit.weights)
    return folds.power, before, fit
