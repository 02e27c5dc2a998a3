"""What a channel is worth: one short function a criterion, in one registry.

A criterion sees a weight as (channels, rest) and gives a number per channel; or a weight and the
statistics of what it is multiplied with, from calibration data or from batch norms; or a whole
group (where other things than single weights decide: norm scales, chance).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.facts import Facts
from onnxprune.axes.solve import Group, Member, Solution
from onnxprune.choose.reads import Inputs, Moments
from onnxprune.choose.rows import Rows, holds_weights, rows, rows_along
from onnxprune.cost.parameters import MOVERS
from onnxprune.errors import UsageError
from onnxprune.graph.model import Node
from onnxprune.runtime.feeds import Feeds

Values = NDArray[np.float64]
"""(channels,) the lower, the sooner it goes; 1 is a group's average."""


@dataclass(frozen=True, eq=False)
class Context:
    """What a criterion may ask for beside the group itself."""

    facts: Facts
    seed: int = 0
    inputs: Inputs | None = None
    """What consumers read (see `inputs_for`), for the criteria that need it."""


@dataclass(frozen=True, slots=True)
class Missing:
    """A criterion has nothing to say about a group, and why."""

    why: str


GroupCriterion = Callable[[Group, Context], Values | Missing]
MemberCriterion = Callable[[Rows], NDArray[np.floating]]
InputCriterion = Callable[[Rows, Moments], NDArray[np.floating]]
Needs = Literal["weights", "norms", "data"]


@dataclass(frozen=True, eq=False)
class Criterion:
    """A way of ranking, and what it must be given: nothing but the file's weights, statistics
    that follow from its norms, or calibration data.
    """

    score: GroupCriterion
    needs: Needs = "weights"


CRITERIA: dict[str, Criterion] = {}
"""Every criterion by the name that the command line knows."""


def group_criterion(name: str) -> Callable[[GroupCriterion], GroupCriterion]:
    """Register a criterion that sees a whole group."""

    def register(function: GroupCriterion) -> GroupCriterion:
        CRITERIA[name] = Criterion(function)
        return function

    return register


def criterion(name: str) -> Callable[[MemberCriterion], MemberCriterion]:
    """Register a criterion that sees one weight; a group's score is the mean over its members."""

    def register(function: MemberCriterion) -> MemberCriterion:
        CRITERIA[name] = Criterion(lambda g, context: over_members(function, g, context.facts))
        return function

    return register


def input_criterion(name: str) -> Callable[[InputCriterion], InputCriterion]:
    """Register a criterion that sees a consumer's weight and what it reads: as `name` with
    statistics of calibration data, and as `bn-name` with those that batch norms promise.

    It gives a number per index of the contracted axis. A channel has the sum over its indices, and
    a group's score is the mean over its consumers, each divided by its own mean.
    """

    def register(function: InputCriterion) -> InputCriterion:
        def score(group: Group, context: Context) -> Values | Missing:
            return over_inputs(function, group, context)

        CRITERIA[name] = Criterion(score, "data")
        CRITERIA[f"bn-{name}"] = Criterion(score, "norms")
        return function

    return register


def inputs_for(
    name: str,
    solution: Solution,
    groups: Sequence[Group],
    calib: Sequence[Feeds] | None,
    provider: str = "cpu",
) -> Inputs | None:
    """What `Context.inputs` must be for a criterion; None where it needs nothing.

    `provider` is where calibration batches are run.

    Raises:
        UsageError: it needs calibration data and there is none.
        Unreadable: ONNX Runtime can't run the model on a batch.
    """
    needs = CRITERIA[name].needs if name in CRITERIA else "weights"
    if needs == "norms":
        from onnxprune.choose.gaussian import expected

        return expected(solution, groups)
    if needs == "data":
        from onnxprune.choose.activity import measured

        if not calib:
            raise no_data(name)
        return measured(solution, groups, calib, provider=provider)
    return None


def no_data(name: str) -> UsageError:
    """The error for a criterion that can't do without calibration data."""
    return UsageError(
        f"--criterion {name} needs calibration data",
        hint=f"--calib samples.npz, or --criterion bn-{name}, which asks the batch norms",
    )


def over_members(function: MemberCriterion, group: Group, facts: Facts) -> Values:
    """Mean over the members that create or contract the channels, each divided by its own mean.

    So one big member does not drown the rest, and 1 is the average. Biases and norms count only
    where there is nothing else. Members that are zero throughout tell nothing.
    """
    total, count = np.zeros(group.size), 0
    for member in scored_members(group, facts):
        value = np.asarray(function(rows(member, group.size, facts)), np.float64)
        mean = value.mean()
        if np.isfinite(mean) and mean > 0:
            total += value / mean
            count += 1
    return total / count if count else np.ones(group.size)


def over_inputs(function: InputCriterion, group: Group, context: Context) -> Values | Missing:
    """Mean over the consumers of a group, each divided by its own mean."""
    total, count = np.zeros(group.size), 0
    for read, moments in (context.inputs or {}).get(group.id, ()):
        weight = rows_along(read.weight, read.weight_axis, context.facts)
        mine = read.channel >= 0
        each = np.asarray(function(weight, moments), np.float64)[mine]
        value = np.bincount(read.channel[mine], each, group.size)
        mean = value.mean()
        if np.isfinite(mean) and mean > 0:
            total += value / mean
            count += 1
    if not count:
        return Missing("what its consumers read is not known")
    return total / count


def scored_members(group: Group, facts: Facts) -> list[Member]:
    """The members that a norm is taken of: those that create or contract, else all that follow."""
    found = [m for m in group.members if holds_weights(m.value, facts)]
    return [m for m in found if m.role != "follows"] or found


@criterion("l1")
def l1(w: Rows) -> NDArray[np.floating]:
    """Sum of absolute values (Li et al. 2017, arXiv 1608.08710)."""
    return np.asarray(np.abs(w).sum(axis=1))


@criterion("l2")
def l2(w: Rows) -> NDArray[np.floating]:
    """Euclidean norm (He et al. 2018, arXiv 1808.06866)."""
    return np.asarray(np.sqrt(np.einsum("cr,cr->c", w, w)))


@criterion("linf")
def linf(w: Rows) -> NDArray[np.floating]:
    """Largest absolute value."""
    return np.asarray(np.abs(w).max(axis=1, initial=0))


@criterion("geometric-median")
def geometric_median(w: Rows) -> NDArray[np.floating]:
    """Sum of distances to the other channels: what the others can stand for goes first.

    FPGM (He et al. 2019, arXiv 1811.00250), in the form its authors compute.
    """
    centred = w.astype(np.float64) - w.mean(axis=0, dtype=np.float64)
    gram = centred @ centred.T
    square = gram.diagonal()
    distance = square[:, None] + square[None, :] - 2 * gram
    np.fill_diagonal(distance, 0)
    return np.asarray(np.sqrt(np.maximum(distance, 0)).sum(axis=1))


@input_criterion("energy")
def energy(w: Rows, x: Moments) -> NDArray[np.floating]:
    """What the channel adds to the variance of its consumers: Var(x) ||w||^2.

    A channel that hardly varies can be replaced by its mean, however large its weights are
    (Polyak & Wolf 2015; with the consumer's norm, FLAP: An et al. 2024, arXiv 2312.11983).
    """
    return np.asarray(x.variance * np.einsum("cr,cr->c", w, w))


@input_criterion("wanda")
def wanda(w: Rows, x: Moments) -> NDArray[np.floating]:
    """Sum over the channel's weights of |w| times the root mean square of what each meets.

    Wanda (Sun et al. 2024, arXiv 2306.11695), its scores of single weights summed over a channel.
    """
    return np.asarray(np.abs(w).sum(axis=1) * np.sqrt(x.square))


@group_criterion("random")
def random(group: Group, context: Context) -> Values:
    """Chance: the baseline that every other criterion must beat."""
    return np.random.default_rng([context.seed, group.id]).uniform(0, 2, group.size)


@group_criterion("bn-scale")
def bn_scale(group: Group, context: Context) -> Values | Missing:
    """|gamma| of the channels' normalisation (Liu et al. 2017, arXiv 1708.06519).

    Read from normalisation nodes, else from products with a per-channel constant, as which a
    decomposed batch norm leaves it (there divided by the standard deviation, if that was folded).
    """
    facts = context.facts
    for is_scale in (_scales_a_norm, _scales_a_product):
        found = [m for m in group.members if any(is_scale(n, k, facts) for n, k in _read(m, facts))]
        total, count = np.zeros(group.size), 0
        for member in found:
            gamma = np.abs(rows(member, group.size, facts)).mean(axis=1, dtype=np.float64)
            if gamma.mean() > 0:
                total += gamma / gamma.mean()
                count += 1
        if count:
            return total / count
    return Missing("no batch norm scale can be had (folded into the weights, or none there)")


def _read(member: Member, facts: Facts) -> list[tuple[Node, int]]:
    """The nodes that read a constant and as which operand, past moves and products of constants."""
    out, todo = [], [member.value]
    while todo:
        for node, k in facts.model.uses.get(todo.pop(), ()):
            folded = node.op == "Mul" and node.outputs[0] in facts.constant  # gamma / sigma
            if folded or (k == 0 and node.op in MOVERS):
                todo.append(node.outputs[0])
            else:
                out.append((node, k))
    return out


_NORMS = ("BatchNormalization", "InstanceNormalization", "GroupNormalization")


def _scales_a_norm(node: Node, k: int, facts: Facts) -> bool:
    return node.op in _NORMS and k == 1


def _scales_a_product(node: Node, k: int, facts: Facts) -> bool:
    """Is a channel's activation multiplied by this constant, and shifted right after?"""
    if node.op != "Mul" or node.inputs[1 - k] in facts.constant:
        return False
    users = [u for u, _ in facts.model.uses.get(node.outputs[0], ())]
    shifted = len(users) == 1 and users[0].op in ("Add", "Sub")
    return shifted and any(i in facts.constant for i in users[0].inputs)
