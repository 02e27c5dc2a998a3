"""Losses that few samples tell: when a trial decides how much they count, and that it does."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune import pipeline
from onnxprune.choose.allocate import Request
from onnxprune.choose.scores import Scores
from onnxprune.choose.target import parse_target
from onnxprune.pipeline import caution
from onnxprune.pipeline.caution import settled
from onnxprune.pipeline.clock import Clock
from onnxprune.pipeline.repairing import Repairer
from onnxprune.pipeline.run import Run
from tests.choosing import model_of

NARROW, WIDE = 24, 96


def net() -> pipeline.AnyModel:
    rng = np.random.default_rng(0)
    weights = {"w0": rng.standard_normal((12, WIDE)), "w1": rng.standard_normal((WIDE, NARROW)),
               "w2": rng.standard_normal((NARROW, 6))}  # fmt: skip
    nodes = [("MatMul", ["x", "w0"], ["a"], {}), ("Relu", ["a"], ["b"], {}),
             ("MatMul", ["b", "w1"], ["c"], {}), ("Relu", ["c"], ["d"], {}),
             ("MatMul", ["d", "w2"], ["y"], {})]  # fmt: skip
    return model_of(nodes, {k: v.astype(np.float32) for k, v in weights.items()},
                    ["n", 12], ["n", 6])  # fmt: skip


def samples(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(1)
    return [{"x": rng.standard_normal((count // 8, 12)).astype(np.float32)} for _ in range(8)]


LOSSES = {0: np.linspace(1, 2, NARROW), 1: np.linspace(3, 4, WIDE)}
RANKED = Scores(LOSSES, losses=frozenset((0, 1)), unseen={0: 5.0, 1: 1.1})
HALF = Request(target=parse_target("macs=50%"))


def test_losses_weigh_more_where_less_is_known() -> None:
    wary = RANKED.wary(2)
    np.testing.assert_allclose(wary.by_group[0], 25 * LOSSES[0])
    np.testing.assert_allclose(wary.by_group[1], 1.21 * LOSSES[1])
    assert wary.losses == RANKED.losses
    np.testing.assert_allclose(RANKED.wary(0).by_group[0], LOSSES[0])


@pytest.mark.parametrize(("request_", "ranked", "kind"), [
    (Request(ratio=0.5), RANKED, "full"),
    (HALF, Scores(RANKED.by_group, unseen={0: 1.1}), "full"),
    (HALF, RANKED, ""),
])  # fmt: skip
def test_without_a_doubt_nothing_is_tried(
    monkeypatch: pytest.MonkeyPatch, request_: Request, ranked: Scores, kind: str
) -> None:
    monkeypatch.setattr(caution, "_error", lambda *_: pytest.fail("there was a trial"))
    repairer = Repairer(kind, samples(16)) if kind else None
    run = Run(pipeline.analyze(net()), Clock(), {}, repairer=repairer)
    found = settled(run, request_, ranked)
    np.testing.assert_allclose(found.by_group[0], ranked.wary(2).by_group[0])


@pytest.mark.parametrize(("errors", "wary"), [((0.2, 0.1), True), ((0.1, 0.2), False)])
def test_samples_that_were_left_out_decide(
    monkeypatch: pytest.MonkeyPatch, errors: tuple[float, float], wary: bool
) -> None:
    left = iter(errors)
    monkeypatch.setattr(caution, "_error", lambda *_: next(left))
    run = Run(pipeline.analyze(net()), Clock(), {}, repairer=Repairer("full", samples(16)))
    found = settled(run, HALF, RANKED)
    assert (found.by_group[0][0] == 25) == wary
    assert "trial: 0.1, 0.2" in found.notes[-1]


def test_the_same_choice_is_not_tried_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caution, "_error", lambda *_: pytest.fail("there was a trial"))
    run = Run(pipeline.analyze(net()), Clock(), {}, repairer=Repairer("full", samples(16)))
    alike = Scores(LOSSES, losses=RANKED.losses, unseen={0: 5.0, 1: 5.0})
    np.testing.assert_allclose(settled(run, HALF, alike).by_group[0], 25 * LOSSES[0])


def test_a_run_with_few_samples_and_with_many() -> None:
    few = pipeline.slim(net(), target="macs=50%", calib=samples(96), verify=False)
    assert any("trial" in note for note in few.report.notes)
    assert "trial" in few.report.timings
    many = pipeline.slim(net(), target="macs=50%", calib=samples(8000), verify=False)
    assert not any("trial" in note for note in many.report.notes)
    again = pipeline.slim(net(), target="macs=50%", calib=samples(96), verify=False)
    assert again.model.SerializeToString() == few.model.SerializeToString()
