"""Networks put together at random, cut at random: each is its masked original."""

import numpy as np
import pytest

from onnxprune.axes.analyse import facts_of
from onnxprune.axes.solve import groups
from onnxprune.axes.view import View
from onnxprune.choose.heads import POLICIES, resolve
from onnxprune.cut.cut import cut
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise
from tests.judge import judge
from tests.random_graphs import random_model

SEEDS, CHUNK = 600, 25


def wrong(seed: int) -> list[str]:
    """Cut the network of this seed: each group in a share of its own, heads as it comes."""
    rng = np.random.default_rng(seed)
    source = load(random_model(seed))
    facts = facts_of(normalise(source), whole_groups=bool(rng.integers(2)))
    solution = resolve(facts, POLICIES[rng.integers(3)], rng.uniform(0.1, 0.9))
    found = groups(solution)
    assert found, f"seed {seed}: nothing can be pruned"
    kept = {
        g.id: np.sort(rng.permutation(g.size)[: rng.integers(1, g.size + 1)]).tolist()
        for g in found
    }
    view = View.of(solution, found, kept)
    return [f"seed {seed}: {line}" for line in judge(source, view, cut(view).model, seed).wrong]


@pytest.mark.parametrize("start", range(0, SEEDS, CHUNK))
def test_slim_is_the_masked_original(start: int) -> None:
    assert not [line for seed in range(start, start + CHUNK) for line in wrong(seed)]
