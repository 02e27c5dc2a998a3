"""Profiles back on the layers of the file: what was fused, what moved, what got no faster."""

import onnx
import pytest
from onnx import helper

import onnxprune
from models.zoo import ZOO
from onnxprune.bench import reasons
from onnxprune.bench.fused import Names, Ran, misplaced, names_of, ran
from onnxprune.bench.inputs import Wanted, feeds_of, settle
from onnxprune.bench.layers import Profiled, layer_rows, profiled
from onnxprune.bench.models import Contestant, Work, contestants
from onnxprune.bench.reasons import Side, uneven
from onnxprune.runtime.placement import NodeTime, profile


def pair(name: str) -> tuple[Contestant, ...]:
    original = ZOO[name](0)
    slim = onnxprune.slim(original, ratio=0.5, verify=False).model
    return contestants({"original": original, "slim": slim})


def profiles(models: tuple[Contestant, ...], optimise: bool = True) -> list[Profiled]:
    feeds = feeds_of(settle(models, Wanted()), models, 1)
    found = []
    for model, mine in zip(models, feeds, strict=True):
        events = profile(model.source, "cpu", mine, runs=3, optimise=optimise)
        found.append(profiled(model, model.work({k: a.shape for k, a in mine.items()}), events))
    return found


def node(op: str, inputs: str, outputs: str, name: str = "") -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), outputs.split(), name)


CHAIN = [
    node("Conv", "x w", "c", "conv"),
    node("BatchNormalization", "c s b m v", "n", "/a/norm"),
    node("Relu", "n", "r", "relu"),
    node("MatMul", "r k", "p", "/a/MatMul"),
    node("Add", "p x", "q", "add"),
]


# ---- what ran is found in the file ------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "found"),
    [
        ("conv", "conv"),
        ("fused conv", "conv"),
        ("r_nchwc", "relu"),
        ("r", "relu"),
        ("/a/MatMul/MatMulAddFusion", "/a/MatMul"),
        ("/a/MatMul/MatMulScaleFusion//MatmulTransposeFusion/", "/a/MatMul"),
        ("ReorderOutput", None),
        ("/b/other", None),
    ],
)
def test_names_that_the_runtime_makes(event: str, found: str | None) -> None:
    seen = Names(CHAIN).node(event)
    assert (seen.name if seen is not None else None) == found


def test_what_is_fused_behind_a_product_counts_with_it() -> None:
    names = Names(CHAIN)
    work = {"c": Work(None, 10, (1, 1)), "p": Work(None, 20, (1, 1))}  # type: ignore[arg-type]
    events = [
        NodeTime("r_nchwc", "Conv", "cpu", 1.0, run=0, bytes=8),
        NodeTime("q", "FusedMatMul", "cpu", 5.0, run=0),
        NodeTime("ReorderOutput", "ReorderOutput", "cpu", 0.5, run=0),
        NodeTime("r_nchwc", "Conv", "cpu", 3.0, run=1, bytes=8),
        NodeTime("q", "FusedMatMul", "cpu", 7.0, run=1),
        NodeTime("ReorderOutput", "ReorderOutput", "cpu", 0.5, run=1),
    ]
    conv, product, added = ran(events, names, work)
    assert (set(conv.parts), conv.ms) == ({"r", "n", "c"}, 2.0)
    assert (set(product.parts), product.ms) == ({"q", "p"}, 6.0)
    assert (added.parts, added.ms) == ((), 0.5)


def test_a_loop_body_counts_as_often_as_it_runs() -> None:
    events = [
        NodeTime("conv", "Conv", "cpu", float(ms), run=k // 3) for k, ms in enumerate([1] * 6)
    ]
    found = ran(events, Names(CHAIN), {"c": Work(None, 1, (1, 1))})  # type: ignore[arg-type]
    assert sum(r.ms for r in found) == 3


@pytest.mark.parametrize("name", ["resnet", "mobilenet_v2", "vit", "bert", "lstm", "unet_deconv"])
@pytest.mark.parametrize("optimise", [True, False])
def test_all_that_multiplies_is_joined(name: str, optimise: bool) -> None:
    models = profiles(pair(name), optimise)
    rows = layer_rows(models, "cpu")
    for model in models:
        whole = sum(w.macs for w in model.work.values())
        assert whole > 0
        assert sum(r.macs.get(model.name, 0) for r in rows if model.name in r.ms) == whole
        times = sum(r.ms.get(model.name, 0.0) for r in rows)
        assert times == pytest.approx(sum(r.ms for r in model.ran))
    multiplying = [r for r in rows if r.macs]
    assert all(set(r.ms) == {"original", "slim"} for r in multiplying), "each layer is in both"
    names = [r.name for r in rows]
    assert len(set(names)) == len(names)
    added = [n.startswith("(added") for n in names]
    assert added == sorted(added), "what was added comes last"


def test_a_layer_that_is_gone_has_one_side() -> None:
    first, second = (profiles(contestants({n: ZOO["resnet"](0)}))[0] for n in ("a", "b"))
    last = next(reversed(second.work))
    kept = [r for r in second.ran if last not in r.parts]
    assert len(kept) == len(second.ran) - 1
    less = Profiled(second.name, second.names, second.work, kept)
    alone = [r for r in layer_rows([first, less], "cpu") if set(r.ms) == {"a"}]
    assert [r.op for r in alone] == ["Gemm"]


# ---- what ran elsewhere -----------------------------------------------------------------------


def test_only_what_multiplies_is_misplaced() -> None:
    names = Names(CHAIN)
    work = {"c": Work(None, 10, (1, 1))}  # type: ignore[arg-type]
    events = [
        NodeTime("relu", "Relu", "cpu", 1.0),
        NodeTime("conv", "Conv", "cuda", 1.0),
        NodeTime("unheard", "FusedGemm", "cpu", 1.0),
        NodeTime("unheard", "FusedGemm", "cpu", 1.0),
        NodeTime("/a/MatMul", "MatMul", "cpu", 1.0),
    ]
    assert [e.node for e in misplaced(events, "cuda", names, work)] == ["unheard", "/a/MatMul"]
    assert [e.node for e in misplaced(events, "tensorrt", names, work)] == [
        "conv", "unheard", "/a/MatMul",
    ]  # fmt: skip
    by_name = [NodeTime("conv", "Unheard", "cpu", 1.0)]
    assert misplaced(by_name, "cuda", names, work) == by_name


# ---- why --------------------------------------------------------------------------------------


def side(
    ms: float,
    macs: int,
    widths: tuple[int, int],
    *,
    name: str = "n",
    moved: int = 1,
    on: str = "cpu",
) -> Side:
    event = NodeTime(name, "Conv", on, ms, bytes=moved)
    return Side(ms, macs, widths, [Ran(event, ("n",), ms)])


BEFORE = side(4.0, 4_000_000, (64, 64), name="n_nchwc")


@pytest.mark.parametrize(
    ("after", "why"),
    [
        (side(1.0, 1_000_000, (31, 37)), []),
        (side(4.0, 4_000_000, (64, 64)), []),
        (side(3.0, 1_000_000, (31, 32), name="n_nchwc"), ["channels 31 in: no multiple of 8"]),
        (
            side(3.0, 1_000_000, (31, 37), name="n_nchwc"),
            ["channels 31 in and 37 out: no multiple of 8"],
        ),
        (side(3.0, 1_000_000, (32, 32), name="n_nchwc", on="cuda"), ["ran on cuda"]),
        (side(3.0, 1_000_000, (32, 32)), ["left the blocked layout: 32 channels in"]),
        (
            side(3.0, 1_000_000, (32, 32), name="n_nchwc", moved=500_000),
            ["memory-bound: 2.0 MACs a byte"],
        ),
        (side(3.0, 1_000_000, (32, 24), name="n_nchwc"), ["channels 24 out: no multiple of 16"]),
    ],
)
def test_reasons(after: Side, why: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "channel_block", lambda: 16)
    assert reasons.reasons(BEFORE, after, "cpu") == why


def test_a_block_of_eight_does_not_ask_for_sixteen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reasons, "channel_block", lambda: 8)
    after = side(3.0, 1_000_000, (32, 24), name="n_nchwc")
    assert reasons.reasons(BEFORE, after, "cpu") == []


def test_a_short_call_is_mostly_the_call() -> None:
    before = side(0.02, 4_000, (64, 64), name="n_nchwc")
    (why,) = reasons.reasons(before, side(0.01, 1_000, (32, 32), name="n_nchwc"), "cpu")
    assert why == "the call itself: 10 us"


def test_awkward_widths_are_weighed_by_what_they_cost() -> None:
    def work(macs: int, widths: tuple[int, int]) -> Work:
        return Work(None, macs, widths)  # type: ignore[arg-type]

    before = {"a": work(90, (3, 64)), "b": work(900, (64, 10)), "c": work(10, (64, 64))}
    after = {"a": work(30, (3, 32)), "b": work(60, (30, 10)), "c": work(10, (32, 64))}
    assert uneven(after, before) == 0.6, "3 in and 10 out were nobody's choice"
    assert uneven(before, before) is None
    assert uneven({}, before) is None


def test_slim_models_have_them_where_nothing_aligns() -> None:
    models = contestants(
        {
            "original": ZOO["resnet"](0),
            "odd": onnxprune.slim(ZOO["resnet"](0), ratio=0.3, verify=False).model,
            "even": onnxprune.slim(ZOO["resnet"](0), ratio=0.3, align=8, verify=False).model,
        }
    )
    before, odd, even = (m.work({"x": (1, 3, 16, 16)}) for m in models)
    assert uneven(odd, before) > 0.5  # type: ignore[operator]
    assert uneven(even, before) == 0
    assert names_of(models[0]).by_output.keys() >= before.keys()
