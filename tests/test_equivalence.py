"""Every network of the zoo, every way of choosing: the slim model is the masked original."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from onnx import numpy_helper

from models.zoo import ZOO, ZOO_NO_RUNTIME
from onnxprune import pipeline
from onnxprune.choose.criteria import CRITERIA
from onnxprune.choose.heads import POLICIES
from onnxprune.errors import NothingToPrune
from onnxprune.graph.files import Source, load
from tests.judge import judge

RATIOS = (0.5, 0.3, 0.7, 0.1, 0.9)
SCOPES = ("layer", "global")
ROUNDS = 2
WEIGHTS_ONLY = sorted(name for name, c in CRITERIA.items() if c.needs == "weights")
"""The criteria that every network can be ranked by; what ranks does not matter to the cut."""

FIXED = {"int4_ragged": "one scale per block"}
"""Networks that can't shrink, and what says so."""

SHARES = dict(
    line.split() for line in Path(__file__).with_name("zoo_removed.txt").read_text().splitlines()
)
"""Share of the parameters that half of the channels take with them, by network. What is removed
may only grow: `python -m tests.test_equivalence` writes the table anew."""


@cache
def source(name: str) -> Source:
    return load((ZOO | ZOO_NO_RUNTIME)[name](0))


def ways(k: int) -> list[dict[str, Any]]:
    """Requests to the k-th network: every criterion, scope, policy and ratio occurs among them,
    and from network to network they meet in other combinations.
    """
    return [
        {
            "criterion": criterion,
            "scope": SCOPES[(i + i // 3 + j + k) % 2],
            "heads": POLICIES[(i + 2 * j + k) % 3],
            "ratio": RATIOS[(2 * i + j + k) % 5],
            "seed": i,
        }
        for j in range(ROUNDS)
        for i, criterion in enumerate(WEIGHTS_ONLY)
    ]


def test_the_sample_is_complete() -> None:
    for k in range(len(ZOO)):
        asked = ways(k)
        for key, all_ in (("criterion", WEIGHTS_ONLY), ("scope", SCOPES), ("heads", POLICIES),
                          ("ratio", RATIOS)):  # fmt: skip
            assert {way[key] for way in asked} == set(all_)
    assert len({(w["criterion"], w["scope"], w["heads"], w["ratio"])
                for k in range(len(ZOO)) for w in ways(k)}) == 6 * 2 * 3 * 5  # fmt: skip


@pytest.mark.parametrize("name", [n for n in ZOO if n not in FIXED])
def test_slim_is_the_masked_original(name: str) -> None:
    shrunk = 0
    for way in ways(list(ZOO).index(name)):
        try:
            result = pipeline.slim(source(name), verify=False, repair="none", **way)
        except NothingToPrune as error:
            if "rounds to none" not in str(error):
                raise
            continue
        shrunk += 1
        _, view = pipeline.replay(result.plan, source(name))
        found = judge(source(name), view, result.model, way["seed"])
        assert not found.wrong, way
        assert found.moved, f"masking changes nothing: {way}"
    assert shrunk >= 4


def test_the_judge_can_say_no() -> None:
    result = pipeline.slim(source("resnet"), ratio=0.5, repair="none", verify=False)
    _, view = pipeline.replay(result.plan, source("resnet"))
    weight = next(t for t in result.model.graph.initializer if t.name == "conv_3.weight")
    swapped = numpy_helper.to_array(weight)[::-1]
    weight.CopyFrom(numpy_helper.from_array(swapped, weight.name))
    wrong = judge(source("resnet"), view, result.model).wrong
    assert len(wrong) == 2
    assert "relative error" in wrong[0]


@pytest.mark.parametrize("name", [n for n in (*ZOO, *ZOO_NO_RUNTIME) if n not in FIXED])
def test_half_of_the_channels_go_and_the_proof_holds(name: str) -> None:
    result = pipeline.slim(source(name), ratio=0.5)
    assert result.verdict is not None
    assert result.verdict.passed
    assert not result.verdict.vacuous
    sliced = pipeline.slim(source(name), ratio=0.5, repair="none", verify=False)
    assert sliced.report.removed["params"] > float(SHARES[name]) - 0.002


@pytest.mark.parametrize("name", FIXED)
def test_what_stays_says_why(name: str) -> None:
    with pytest.raises(NothingToPrune) as error:
        pipeline.slim(source(name), ratio=0.5)
    assert FIXED[name] in " ".join(g.fixed_by for g in error.value.report.groups)


if __name__ == "__main__":
    table = Path(__file__).with_name("zoo_removed.txt")
    lines = []
    for network in (*ZOO, *ZOO_NO_RUNTIME):
        if network not in FIXED:
            slim = pipeline.slim(source(network), ratio=0.5, repair="none", verify=False)
            share = slim.report.removed
            lines.append(f"{network} {share['params']:.3f}\n")
    table.write_text("".join(lines))
