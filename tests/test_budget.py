"""Budgets: met from below by the model that was really cut, within limits, the same every time."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import numpy as np
import pytest
from onnx import ModelProto

from models.zoo import ZOO
from onnxprune import pipeline
from onnxprune.choose.allocate import Allocation, Pool, Request, pool_of
from onnxprune.choose.budget import smallest, within
from onnxprune.choose.limits import Limits, ladder, legal
from onnxprune.choose.scores import Scores
from onnxprune.choose.target import Target, parse_target
from onnxprune.cost.budget import CostModel, cost_model
from onnxprune.cost.work import sizes_at_one
from onnxprune.errors import CheckFailed, NothingToPrune, UsageError
from onnxprune.pipeline.clock import Clock
from onnxprune.pipeline.run import Run
from onnxprune.pipeline.searching import meet
from tests.choosing import Analysed, analysed, model_of, shared

COUNTED = ("macs", "params", "bytes")
NEAR = 0.01


def losses(a: Analysed | pipeline.Analysis, seed: int = 0) -> Scores:
    """Scores that are losses, of very different sizes from group to group."""
    rng = np.random.default_rng(seed)
    table = {g.id: rng.exponential(size=g.size) * rng.exponential() for g in a.groups}
    return Scores(table, losses=frozenset(table))


def ranks(a: Analysed | pipeline.Analysis, seed: int = 0) -> Scores:
    """Scores that only rank the channels of a group."""
    rng = np.random.default_rng(seed)
    return Scores({g.id: rng.uniform(0, 2, g.size) for g in a.groups})


def chain(*widths: int) -> ModelProto:
    """Gemms in a row: weights w0, w1, ... and hidden layers of these widths."""
    rng = np.random.default_rng(0)
    sizes = [4, *widths, 3]
    nodes, weights, x = [], {}, "x"
    for k, (i, o) in enumerate(pairwise(sizes)):
        weights[f"w{k}"] = rng.standard_normal((o, i)).astype(np.float32)
        last = k == len(widths)
        nodes.append(("Gemm", [x, f"w{k}"], ["y" if last else f"h{k}"], {"transB": 1}))
        if not last:
            nodes.append(("Relu", [f"h{k}"], [f"r{k}"], {}))
        x = f"r{k}"
    return model_of(nodes, weights, ["n", 4], ["n", 3])


def prepared(a: Analysed, scores: Scores, **request: object) -> tuple[Pool, CostModel]:
    pool = pool_of(a.facts, a.groups, scores, Request(**request))  # type: ignore[arg-type]
    return pool, cost_model(a.solution, a.groups, sizes_at_one(a.facts))


def kept(pool: Pool, found: Allocation) -> list[int]:
    return [len(found.kept[g.id]) for g in pool.groups]


# ---- every network of the zoo, counted on the model that was cut --------------------------------


@pytest.mark.parametrize("name", sorted(ZOO))
def test_zoo(name: str) -> None:
    a = pipeline.analyze(ZOO[name](0))
    if not a.groups:
        pytest.skip("nothing to prune")
    for scores, shares in ((losses(a), (0.8, 0.5, 0.6)), (ranks(a), (0.5, 0.7, 0.8))):
        run = Run(a, Clock(), {}, ranked=scores)
        for what, share in zip(COUNTED, shares, strict=True):
            check_met(run, Target(what, share, is_share=True))  # type: ignore[arg-type]


def check_met(run: Run, target: Target) -> None:
    """Met and not missed by a step; or out of reach even with everything gone that may."""
    what, request = target.quantity, Request(target=target)
    pool = pool_of(run.analysis.facts, run.analysis.groups, run.ranked, request)  # type: ignore[arg-type]
    original = getattr(run.before, what)
    limit = target.amount(original)
    try:
        made, record = meet(run, request, target)
    except CheckFailed:
        assert getattr(run.cost(run.cut(smallest(pool))), what) > limit
        return
    except NothingToPrune:
        assert not set(pool.groups) - set(pool.left)
        return
    cost = getattr(run.cost(made), what)
    assert cost == record["reached"] <= limit
    if cost < limit - NEAR * original:  # then no single step more would fit
        for g in pool.groups:
            counts = {i.id: len(made.chosen.kept[i.id]) for i in pool.groups}
            if counts[g.id] < g.size:
                counts[g.id] += 1
                more = getattr(run.cost(run.cut(pool.allocation(counts))), what)
                assert not cost < more <= limit, g.name


# ---- what goes first ----------------------------------------------------------------------------


def test_what_loses_least_for_its_cost_goes_first() -> None:
    a = analysed(chain(32, 32))
    first, second = a.by_name("w0"), a.by_name("w1")
    cheap, dear = np.linspace(1, 2, 32), np.linspace(50, 100, 32)
    table = {first.id: cheap, second.id: dear}
    pool, model = prepared(a, Scores(table, losses=frozenset(table)))
    full = float(model.total("macs", model.full))
    found = within(pool, model, "macs", 0.6 * full)
    assert len(found.kept[second.id]) > 28
    assert len(found.kept[first.id]) < 20
    # those that score higher stay
    assert found.kept[first.id].tolist() == list(range(32 - len(found.kept[first.id]), 32))


def test_the_last_eighth_of_a_group_goes_last() -> None:
    """One layer that is worthless by its scores is not emptied while others can give."""
    a = analysed(chain(64, 64))
    first, second = a.by_name("w0"), a.by_name("w1")
    table = {first.id: np.full(64, 1e-9), second.id: np.linspace(1, 2, 64)}
    pool, model = prepared(a, Scores(table, losses=frozenset(table)))
    full = float(model.total("macs", model.full))
    for share in (0.5, 0.2):
        assert len(within(pool, model, "macs", share * full).kept[first.id]) >= 8
    assert len(within(pool, model, "macs", 0.02 * full).kept[first.id]) < 8


def test_groups_without_losses_go_along_with_the_others() -> None:
    a = analysed(chain(40, 40, 40))
    names = [a.by_name(f"w{k}") for k in range(3)]
    table = {g.id: np.linspace(1, 3, 40) for g in names}
    table[names[1].id] = np.linspace(0, 1e-6, 40)  # norms on another scale: only their order counts
    known = frozenset({names[0].id, names[2].id})
    pool, model = prepared(a, Scores(table, losses=known))
    found = within(pool, model, "params", 0.5 * float(model.total("params", model.full)))
    counts = kept(pool, found)
    assert 10 <= counts[a.groups.index(names[1])] <= 35


def test_without_losses_all_groups_lose_the_same_share() -> None:
    a = analysed(chain(20, 40, 80))
    pool, model = prepared(a, ranks(a))
    found = within(pool, model, "macs", 0.5 * float(model.total("macs", model.full)))
    shares = [n / g.size for n, g in zip(kept(pool, found), a.groups, strict=True)]
    assert max(shares) - min(shares) <= 1 / 20
    together = within(pool, model, "macs", 0.5 * float(model.total("macs", model.full)), "global")
    assert kept(pool, together) != kept(pool, found)


@pytest.mark.parametrize("what", COUNTED)
@pytest.mark.parametrize("scores", [losses, ranks])
def test_less_budget_never_keeps_more_work(what: str, scores: object) -> None:
    a = analysed(ZOO["mobilenet_v2"](0))
    pool, model = prepared(a, scores(a))  # type: ignore[operator]
    full = float(model.total(what, model.full))  # type: ignore[arg-type]
    costs = []
    for share in np.linspace(0.95, 0.2, 16):
        counts = kept(pool, within(pool, model, what, share * full))  # type: ignore[arg-type]
        costs.append(float(model.total(what, counts)))  # type: ignore[arg-type]
        assert costs[-1] <= share * full
    assert costs == sorted(costs, reverse=True)


# ---- limits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limits", [
    Limits(align=8), Limits(align=3), Limits(min_channels=10), Limits(max_ratio=0.4),
    Limits(align=4, min_channels=6, max_ratio=0.9), Limits(align=32, yields=True),
])  # fmt: skip
@pytest.mark.parametrize("scores", [losses, ranks])
def test_limits_hold(limits: Limits, scores: object) -> None:
    a = analysed(ZOO["resnet"](0))
    pool, model = prepared(a, scores(a), limits=limits)  # type: ignore[operator]
    full = float(model.total("macs", model.full))
    least = float(model.total("macs", kept(pool, smallest(pool))))
    for share in (0.9, 0.7, 0.5, 0.2):
        counts = kept(pool, within(pool, model, "macs", share * full))
        for n, g in zip(counts, a.groups, strict=True):
            assert n in ladder(g.size, limits)
        cost = float(model.total("macs", counts))
        assert cost <= share * full or cost == least


def test_ladders_have_what_is_legal() -> None:
    for limits in (Limits(), Limits(8), Limits(1, 0.3), Limits(5, 0.9, 8), Limits(align=32),
                   Limits(align=32, yields=True)):  # fmt: skip
        for n in range(1, 80):
            assert ladder(n, limits).tolist() == sorted({legal(w, n, limits) for w in range(n + 1)})


def test_an_alignment_that_yields_lets_every_group_be_halved() -> None:
    limits = Limits(align=32, yields=True)
    assert [limits.align_of(n) for n in (64, 63, 32, 31, 16, 3, 1)] == [32, 16, 16, 8, 8, 1, 1]
    assert Limits(align=32).align_of(3) == 32


def test_what_is_named_or_excluded_is_settled_before() -> None:
    a = analysed(chain(40, 40, 40))
    pool, model = prepared(a, losses(a), exclude=("w0$",), per_layer={"^w1$": 0.25})
    # w1 creates one group and contracts the other: excluded wins over named
    full = float(model.total("macs", model.full))
    for share in (0.7, 0.6):
        found = within(pool, model, "macs", share * full)
        assert len(found.kept[a.by_name("w0").id]) == 40
        assert len(found.kept[a.by_name("w1").id]) == 30
        assert len(found.kept[a.by_name("w2").id]) < 40


def test_limits_reach_the_model_that_is_cut() -> None:
    result = pipeline.slim(ZOO["resnet"](0), target="params=60%", align=4, exclude=["conv_0"],
                           max_ratio=0.8)  # fmt: skip
    for g in result.report.groups:
        if g.fixed_by:
            assert g.kept == g.channels
        else:
            assert g.kept % 4 == 0 or g.kept == g.channels
            assert g.kept >= 0.2 * g.channels
    assert result.report.removed["params"] >= 0.4


# ---- the whole run ------------------------------------------------------------------------------


@pytest.mark.parametrize("what", COUNTED)
def test_absolute_and_relative_targets_are_the_same(what: str) -> None:
    model = ZOO["mobilenet_v2"](0)
    share = pipeline.slim(model, target=f"{what}=60%", verify=False)
    amount = 0.6 * getattr(share.report.before, what)
    absolute = pipeline.slim(model, target=f"{what}={amount:.3f}", verify=False)
    assert absolute.model == share.model
    after = getattr(share.report.after, what)
    assert amount - NEAR * getattr(share.report.before, what) <= after <= amount
    assert share.report.options["target"] == f"{what}=60%"
    assert share.report.search is not None
    assert share.report.search["reached"] == after


@pytest.mark.parametrize("what", COUNTED)
def test_the_same_twice_and_replayed(what: str) -> None:
    results = [pipeline.slim(ZOO["resnet"](0), target=f"{what}=0.4", verify=False)
               for _ in range(2)]  # fmt: skip
    bytes_ = results[0].model.SerializeToString()
    assert results[1].model.SerializeToString() == bytes_
    assert pipeline.apply(results[0].plan, ZOO["resnet"](0)).SerializeToString() == bytes_


def test_the_result_is_proven_as_any_other() -> None:
    result = pipeline.slim(ZOO["resnet"](0), target="macs=0.5")
    assert result.verdict is not None
    assert result.verdict.passed


def test_out_of_reach_names_the_smallest() -> None:
    with pytest.raises(CheckFailed, match="can't be reached") as e:
        pipeline.slim(ZOO["resnet"](0), target="params=0.001")
    least = pipeline.slim(ZOO["resnet"](0), ratio=0.999, verify=False).report.after
    assert least is not None
    assert f"params={least.params:,}" in str(e.value.why)
    assert e.value.report.search["smallest"] == least.params  # type: ignore[union-attr]
    assert e.value.report.after is None  # type: ignore[union-attr]


@pytest.mark.parametrize("target", ["macs=1", "macs=100%", "params=1G", "bytes=1GB"])
def test_what_is_within_its_target_stays(target: str) -> None:
    with pytest.raises(NothingToPrune, match="within the target as it is"):
        pipeline.slim(ZOO["mlp"](0), target=target)


def test_bytes_count_the_data_file(tmp_path) -> None:  # type: ignore[no-untyped-def]
    import onnx

    model = ZOO["resnet"](0)
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w",
              size_threshold=0)  # fmt: skip
    before = sum(f.stat().st_size for f in tmp_path.iterdir())
    result = pipeline.slim(tmp_path / "m.onnx", target="bytes=60%")
    out = tmp_path / "a_slim_model_with_a_long_name.onnx"
    result.save(out)
    files = [out, out.with_name(out.name + ".data")]
    after = sum(f.stat().st_size for f in files)
    assert after <= 0.6 * before
    assert after > 0.4 * before
    written = pipeline.with_out(result.report, out)
    assert written.after is not None
    assert written.after.bytes == after


def test_a_bias_that_the_repair_adds_is_counted() -> None:
    """Gemms without biases: the repair may give them some, and the target holds nevertheless."""
    model = chain(48, 48)
    calib = [{"x": np.random.default_rng(k).standard_normal((32, 4)).astype(np.float32)}
             for k in range(8)]  # fmt: skip
    result = pipeline.slim(model, target="params=50%", calib=calib)
    after, before = result.report.after, result.report.before
    assert result.report.repair is not None
    assert after is not None
    assert 0.45 * before.params < after.params <= 0.5 * before.params


@pytest.mark.parametrize("name", ["cifar10_resnet20", "nanodet_m_320", "vittrack_vitTracker"])
def test_real_models(name: str) -> None:
    path = shared(name)
    for target in ("macs=50%", "params=70%", "bytes=60%"):
        result = pipeline.slim(path, target=target, repair="none", verify=False)
        what, share = target.split("=")
        limit = float(share.rstrip("%")) / 100
        left = 1 - result.report.removed[what]
        assert limit - NEAR <= left <= limit
        again = pipeline.describe(pipeline.analyze(result.model)).before
        assert getattr(again, what) == getattr(result.report.after, what)


# ---- what is asked for --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("macs=50%", Target("macs", 0.5, True)),
        ("macs=.5", Target("macs", 0.5, True)),
        ("macs=1", Target("macs", 1.0, True)),
        ("MACs = 300M", Target("macs", 3e8, False)),
        ("params=1.2M", Target("params", 1.2e6, False)),
        ("params=1e6", Target("params", 1e6, False)),
        ("params=250k", Target("params", 2.5e5, False)),
        ("bytes=4MB", Target("bytes", 4e6, False)),
        ("bytes=1.5G", Target("bytes", 1.5e9, False)),
        ("latency=8ms", Target("latency", 8.0, False)),
        ("latency=0.5ms", Target("latency", 0.5, False)),
        ("latency=250us", Target("latency", 0.25, False)),
        ("latency=1s", Target("latency", 1000.0, False)),
        ("latency=8", Target("latency", 8.0, False)),
        ("latency=0.6", Target("latency", 0.6, True)),
    ],
)
def test_targets(text: str, target: Target) -> None:
    found = parse_target(text)
    assert found.quantity == target.quantity
    assert found.is_share == target.is_share
    assert found.value == pytest.approx(target.value)
    assert parse_target(str(found)) == found


@pytest.mark.parametrize(
    "text",
    ["", "macs", "macs=", "=0.5", "flops=0.5", "macs=half", "macs=-1", "macs=0", "macs=0%",
     "macs=nan", "macs=inf", "macs=120%", "macs=5ms", "latency=4MB", "params=1.2MB", "macs=1,5M",
     "macs=50%%"],
)  # fmt: skip
def test_targets_that_make_no_sense(text: str) -> None:
    with pytest.raises(UsageError) as e:
        parse_target(text)
    assert e.value.hint


def test_one_amount_only() -> None:
    amounts: Mapping[str, object] = {"ratio": 0.5, "threshold": 1.0, "target": "macs=0.5",
                                     "max_drop": 0.1}  # fmt: skip
    for a in amounts:
        for b in amounts:
            if a < b:
                with pytest.raises(UsageError, match="exclude each other"):
                    pipeline.slim(ZOO["mlp"](0), **{a: amounts[a], b: amounts[b]})  # type: ignore[arg-type]
