"""How many channels go and which: ratios, thresholds, scopes, floors, filters."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from models.zoo import ZOO
from onnxprune.choose.allocate import Allocation, Request, allocate
from onnxprune.choose.filters import load_per_layer
from onnxprune.choose.limits import Limits, legal, share
from onnxprune.choose.scores import Scores, group_scores
from onnxprune.errors import NothingToPrune, Unreadable, UsageError
from tests.choosing import Analysed, analysed, model_of
from tests.test_criteria import mel, stft

RNG = np.random.default_rng(0)
SIZES = (10, 7, 20)


@pytest.fixture(scope="module")
def net() -> Analysed:
    """Three hidden layers of 10, 7 and 20 units: weights w0, w1, w2, w3."""
    widths = [5, *SIZES, 4]
    nodes, weights, x = [], {}, "x"
    for k, (i, o) in enumerate(pairwise(widths)):
        weights[f"w{k}"] = RNG.standard_normal((o, i)).astype(np.float32)
        out = "y" if o == 4 else f"h{k}"
        nodes.append(("Gemm", [x, f"w{k}"], [out], {"transB": 1}))
        if out != "y":
            nodes.append(("Relu", [out], [f"r{k}"], {}))
        x = f"r{k}"
    a = analysed(model_of(nodes, weights, ["n", 5], ["n", 4]))
    assert sorted(g.size for g in a.groups) == sorted(SIZES)
    return a


def run(a: Analysed, scores: dict[str, np.ndarray] | None = None, **request: object) -> Allocation:
    table = group_scores(a.facts, a.groups).by_group
    for name, values in (scores or {}).items():
        table[a.by_name(name).id] = np.asarray(values, float)  # type: ignore[index]
    return allocate(a.facts, a.groups, Scores(table), Request(**request))  # type: ignore[arg-type]


def widths(a: Analysed, found: Allocation) -> list[int]:
    return [len(found.kept[a.by_name(f"w{k}").id]) for k in range(3)]


# ---- counts -----------------------------------------------------------------------------------


def test_share_is_exact_where_floats_are_not() -> None:
    assert share(100, 0.29) == 29
    assert all(share(n, k / n) == k for n in range(1, 200) for k in range(n))
    assert share(7, 0.5) == 3


@pytest.mark.parametrize(
    ("wanted", "channels", "limits", "kept"),
    [
        (5, 10, Limits(), 5),
        (0, 10, Limits(), 1),
        (2, 10, Limits(min_channels=4), 4),
        (1, 3, Limits(min_channels=4), 3),
        (1, 10, Limits(max_ratio=0.5), 5),
        (5, 20, Limits(align=8), 8),
        (9, 20, Limits(align=8), 16),
        (17, 20, Limits(align=8), 20),
        (1, 20, Limits(align=8, min_channels=9), 16),
        (1, 20, Limits(align=4, max_ratio=0.3), 16),
    ],
)
def test_legal(wanted: int, channels: int, limits: Limits, kept: int) -> None:
    assert legal(wanted, channels, limits) == kept


@pytest.mark.parametrize("ratio", [0.1, 0.25, 0.5, 0.75, 0.99])
def test_each_group_loses_its_floor(net: Analysed, ratio: float) -> None:
    found = run(net, ratio=ratio)
    assert widths(net, found) == [max(1, n - int(np.floor(n * ratio))) for n in SIZES]


def test_the_lowest_go_and_ties_go_by_index(net: Analysed) -> None:
    found = run(net, {"w1": np.array([3, 1, 2, 1, 9, 1, 9])}, ratio=0.5)
    assert found.kept[net.by_name("w1").id].tolist() == [0, 2, 4, 6]
    found = run(net, {"w1": np.ones(7)}, ratio=0.5)
    assert found.kept[net.by_name("w1").id].tolist() == [3, 4, 5, 6]


def test_global_scope_ranks_all_channels_together(net: Analysed) -> None:
    low = {"w0": np.full(10, 5.0), "w1": np.full(7, 9.0), "w2": np.arange(20) / 100}
    found = run(net, low, ratio=0.5, scope="global")
    assert widths(net, found) == [10, 7, 2]  # 18 of 37 channels, all from the group that is low
    found = run(net, low, ratio=0.7, scope="global")
    assert widths(net, found) == [4, 7, 1]  # 25: the floor of one passes the rest on
    found = run(net, low, ratio=0.7, scope="global", limits=Limits(max_ratio=0.5))
    assert widths(net, found) == [5, 4, 10]


def test_global_ties_end_evenly(net: Analysed) -> None:
    flat = {f"w{k}": np.ones(n) for k, n in enumerate(SIZES)}
    found = run(net, flat, ratio=0.5, scope="global")
    assert sum(widths(net, found)) == 37 - 18
    assert all(abs(w / n - 0.5) <= 1 / n for w, n in zip(widths(net, found), SIZES, strict=True))


def test_threshold_ignores_ratios(net: Analysed) -> None:
    table = {"w0": [2.0] * 10, "w1": [0.1, 2, 0.79, 0.8, 2, 2, 0.1], "w2": [0.5] * 20}
    found = run(net, {k: np.array(v) for k, v in table.items()}, threshold=0.8)
    assert widths(net, found) == [10, 4, 1]
    assert found.kept[net.by_name("w1").id].tolist() == [1, 3, 4, 5]


@pytest.mark.parametrize("scope", ["layer", "global"])
@pytest.mark.parametrize("align", [1, 3, 8])
@pytest.mark.parametrize("ratio", [0.3, 0.6, 0.9])
def test_limits_hold_for_every_strategy(
    net: Analysed, scope: str, align: int, ratio: float
) -> None:
    limits = Limits(min_channels=2, max_ratio=0.8, align=align)
    for kept, n in zip(
        widths(net, run(net, ratio=ratio, scope=scope, limits=limits)), SIZES, strict=True
    ):
        assert kept == n or kept % align == 0
        assert kept >= min(n, 2)
        assert n - kept <= 0.8 * n


# ---- filters ----------------------------------------------------------------------------------


def test_include_and_exclude(net: Analysed) -> None:
    assert widths(net, run(net, ratio=0.5, include=("w0$",))) == [5, 7, 20]
    assert widths(net, run(net, ratio=0.5, exclude=("^w0$",))) == [10, 4, 10]
    # w1 creates one group and contracts another: a group is out if any member matches
    assert widths(net, run(net, ratio=0.5, exclude=("w1",))) == [10, 7, 10]
    assert widths(net, run(net, ratio=0.5, exclude=("node_h1",))) == [10, 7, 10]
    assert widths(net, run(net, ratio=0.5, include=("w",), exclude=("w0",))) == [10, 4, 10]
    left = run(net, ratio=0.5, exclude=("w0",)).left
    assert left == {net.by_name("w0").id: "--exclude matches it"}


def test_names_reach_through_dequantisers() -> None:
    a = analysed(ZOO["qdq"](0))
    names = {n.label for n in a.facts.model.walk() if n.op in ("Conv", "Gemm", "MatMul")}
    exclude = tuple(f"^{n}$" for n in names)
    with pytest.raises(NothingToPrune, match="nothing is left to prune"):
        run(a, ratio=0.5, exclude=exclude)


def test_ratios_per_layer(net: Analysed) -> None:
    assert widths(net, run(net, per_layer={"w0": 0.3})) == [7, 7, 20]
    assert widths(net, run(net, ratio=0.5, per_layer={"w0": 0})) == [10, 4, 10]
    # first match per member: w0 -> .3, w1 -> .8; the smallest of a group
    assert widths(net, run(net, per_layer={"w0": 0.3, "w[01]": 0.8})) == [7, 2, 20]
    assert widths(net, run(net, per_layer={"w1": 0.8, "w": 0.5})) == [5, 4, 10]
    found = run(net, ratio=0.5, scope="global", per_layer={"w0": 0})
    assert widths(net, found)[0] == 10
    assert sum(widths(net, found)) == 10 + 27 - 13


def test_ratios_from_a_file(tmp_path: Path) -> None:
    yaml, json = tmp_path / "r.yaml", tmp_path / "r.json"
    yaml.write_text("'layer1.*conv': 0.3\n'.*': 0\n")
    json.write_text('{"layer1.*conv": 0.3, ".*": 0}')
    assert load_per_layer(yaml) == load_per_layer(json) == {"layer1.*conv": 0.3, ".*": 0}
    assert list(load_per_layer(yaml)) == ["layer1.*conv", ".*"]


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("[1, 2]", UsageError, "must be a mapping"),
        ("", UsageError, "must be a mapping"),
        ("a: 1.0", UsageError, "from 0 to below 1"),
        ("a: -0.1", UsageError, "from 0 to below 1"),
        ("a: yes", UsageError, "from 0 to below 1"),
        ("a: half", UsageError, "from 0 to below 1"),
        ("a: .nan", UsageError, "from 0 to below 1"),
        ("1: 0.5", UsageError, "no regular expression"),
        ("'(': 0.5", UsageError, "no regular expression"),
        ("a: [", Unreadable, "can't be read"),
    ],
)
def test_files_that_hold_no_ratios(
    tmp_path: Path, text: str, error: type[Exception], says: str
) -> None:
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(error, match=says):
        load_per_layer(tmp_path / "r.yaml")


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(Unreadable):
        load_per_layer(tmp_path / "none.yaml")


# ---- what is left alone -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["stft", "mel"])
def test_fixed_front_ends_stay_unless_named(kind: str) -> None:
    bank = np.concatenate(stft(64, np.hanning(65)[:64])) if kind == "stft" else mel(20, 64)
    bank = bank.astype(np.float32)
    proto = model_of(
        [
            ("Gemm", ["x", "bank"], ["s"], {"transB": 1}),
            ("Abs", ["s"], ["a"], {}),
            ("Gemm", ["a", "w1"], ["h"], {"transB": 1}),
            ("Relu", ["h"], ["r"], {}),
            ("Gemm", ["r", "w2"], ["y"], {"transB": 1}),
        ],
        {
            "bank": bank,
            "w1": RNG.standard_normal((16, len(bank))).astype(np.float32),
            "w2": RNG.standard_normal((3, 16)).astype(np.float32),
        },
        ["n", 64],
        ["n", 3],
    )
    a = analysed(proto)
    front = a.by_name("bank")
    found = run(a, ratio=0.5)
    assert len(found.kept[front.id]) == front.size
    assert "'bank' is a fixed filter bank" in found.left[front.id]
    assert len(found.kept[a.by_name("w1").id]) == 8
    named = run(a, ratio=0.5, include=("bank",))
    assert len(named.kept[front.id]) == front.size - front.size // 2


# ---- requests that make no sense, and nothing to do ---------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        {"ratio": 1.0},
        {"ratio": -0.1},
        {"ratio": float("nan")},
        {"ratio": 0.5, "threshold": 1.0},
        {"ratio": 0.5, "limits": Limits(max_ratio=1.0)},
        {"ratio": 0.5, "limits": Limits(align=0)},
        {"ratio": 0.5, "limits": Limits(min_channels=0)},
        {"ratio": 0.5, "include": ("(",)},
        {"per_layer": {"a": 2.0}},
    ],
)
def test_requests_that_make_no_sense(net: Analysed, request_: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        run(net, **request_)


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"ratio": 0.0}, "rounds to none"),
        ({"ratio": 0.04}, "rounds to none"),
        ({"ratio": 0.5, "limits": Limits(align=32)}, "rounds to none"),
        ({"ratio": 0.5, "include": ("nobody",)}, "--include 'nobody' does not match"),
        ({"ratio": 0.5, "exclude": (".",)}, "--exclude matches"),
        ({"threshold": 0.0}, "none scores under"),
        ({"per_layer": {"nobody": 0.5}}, "no ratio of --per-layer"),
    ],
)
def test_nothing_to_prune(net: Analysed, request_: dict[str, object], says: str) -> None:
    with pytest.raises(NothingToPrune) as e:
        run(net, **request_)
    assert says in str(e.value)


def test_everything_fixed() -> None:
    a = analysed(model_of([("Relu", ["x"], ["y"], {})], {}, ["n", 4], ["n", 4]))
    with pytest.raises(NothingToPrune, match="nothing can be pruned"):
        run(a, ratio=0.5)
