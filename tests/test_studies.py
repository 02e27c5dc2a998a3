"""`criteria` and `sensitivity`: the numbers against plain runs, the files, the command lines."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from importlib.util import find_spec
from io import StringIO
from pathlib import Path

import numpy as np
import onnx
import pytest
import yaml
from rich.console import Console

from models.zoo import ZOO, feeds
from onnxprune import pipeline
from onnxprune.choose.allocate import Request, allocate, lowest_gone
from onnxprune.choose.scores import group_scores
from onnxprune.choose.similarity import Similarity
from onnxprune.cut.mask import masked
from onnxprune.errors import NothingToPrune, UsageError
from onnxprune.pipeline import Analysis
from onnxprune.study.criteria import CriteriaStudy, SpreadRow, advice, study_criteria
from onnxprune.study.curves import Curve, Point, measure
from onnxprune.study.even import NEGLIGIBLE, even, per_layer, selectors
from onnxprune.study.sensitivity import Sensitivity, study_sensitivity
from onnxprune.study.text import print_criteria, print_sensitivity
from tests.choosing import analysed, model_of, shared, two_layers
from tests.commands import Ended, files, onnxprune
from tests.judge import run
from tests.test_criteria import stft

DIGITS = Path(__file__).parents[1] / "models"
NET = DIGITS / "digits_resnet.onnx"
CALIB = DIGITS / "digits_calib.npz"
RATIOS = (0.25, 0.5, 0.75)
NO_DATA = ("l1", "l2", "linf", "geometric-median", "bn-energy", "bn-wanda", "bn-scale")
Arrays = dict[str, np.ndarray]


# ---- criteria -----------------------------------------------------------------------------------


def test_criteria_as_a_table() -> None:
    ended = onnxprune("criteria", NET)
    assert ended.code == 0, ended.err
    assert "Do the criteria agree?" in ended.out
    assert all(name in ended.out for name in NO_DATA)
    assert "obs" not in ended.out
    assert "0 of 6" in ended.out
    sentence = "l1, l2 and geometric-median choose nearly the same channels here: "
    assert sentence in ended.out
    assert "whether by what matters, only --calib can tell" in ended.out


def test_criteria_as_json(tmp_path: Path) -> None:
    """A small network with batch norms: every criterion has its say."""
    net, proto = tmp_path / "net.onnx", ZOO["conv_bn"](0)
    onnx.save(proto, net)
    batch = {k: np.concatenate([feeds(proto, seed)[k] for seed in range(4)]) for k in feeds(proto)}
    np.savez(net.parent / "calib.npz", **batch)
    ended = onnxprune("criteria", net, "--json", "--calib", net.parent / "calib.npz")
    assert ended.code == 0, ended.err
    data = json.loads(ended.out)
    assert data["schema"] == "onnxprune/criteria/1"
    assert data["samples"] == len(next(iter(batch.values())))
    names = data["criteria"]
    assert set(names) == {*NO_DATA, "energy", "wanda", "obs"}
    for key in ("layer", "network", "common"):
        table = np.array(data[key], float)
        assert table.shape == (len(names),) * 2
        assert np.allclose(table, table.T)
        assert np.allclose(table.diagonal(), 1)
        assert (np.abs(table) <= 1 + 1e-9).all()
    assert len(data["groups"]) == 3
    for g in data["groups"]:
        assert set(g["spread"]) == set(g["scores"]) == set(names)
        assert all(sum(h["counts"]) == g["channels"] for h in g["scores"].values())
    assert any("ranks most like obs" in line for line in data["advice"])


def test_the_tables_hold_what_slim_ranks_by() -> None:
    """Spearman's correlation of the scores that `slim` uses, group by group."""
    from scipy.stats import spearmanr

    a = pipeline.analyze(NET)
    study = study_criteria(a.solution, a.groups)
    one, two = (group_scores(a.facts, a.groups, n).by_group for n in ("l1", "l2"))
    i, j = (study.criteria.index(n) for n in ("l1", "l2"))
    wanted = {g.id: spearmanr(one[g.id], two[g.id]).statistic for g in a.groups}
    for row in study.groups:
        assert row.correlation[i][j] == pytest.approx(wanted[row.id], abs=1e-3)
    assert study.layer[i][j] == pytest.approx(np.mean(list(wanted.values())), abs=1e-3)
    every = spearmanr(*(np.concatenate([s[g.id] for g in a.groups]) for s in (one, two))).statistic
    assert study.network[i][j] == pytest.approx(every, abs=1e-3)


def gaussian_net(spread: float) -> onnx.ModelProto:
    """digits_resnet with filters drawn from one distribution, scaled by up to `spread`."""
    proto = onnx.load(NET)
    rng = np.random.default_rng(0)
    for t in proto.graph.initializer:
        if len(t.dims) == 4:
            w = rng.standard_normal(tuple(t.dims)) * np.linspace(
                1 - spread, 1 + spread, t.dims[0]
            ).reshape(-1, 1, 1, 1)
            t.CopyFrom(onnx.numpy_helper.from_array(w.astype(np.float32), t.name))
    return proto


def test_random_weights_are_too_close_to_call() -> None:
    a = pipeline.analyze(gaussian_net(0))
    study = study_criteria(a.solution, a.groups)
    l2 = next(s for s in study.spread if s.criterion == "l2")
    assert l2.close >= 5
    assert l2.groups == 6
    assert f"the l2 scores of {l2.close} of 6 groups are too close to call: use --calib" in (
        study.advice
    )
    assert study.normality.normal / study.normality.tested > 0.85
    a = pipeline.analyze(gaussian_net(0.5))
    found = study_criteria(a.solution, a.groups)
    assert next(s for s in found.spread if s.criterion == "l2").close == 0


def similar(names: Sequence[str], common: float, layer: float = 0.5) -> Similarity:
    def table(v: float) -> np.ndarray:
        return np.full((len(names), len(names)), v)

    return Similarity(table(layer), table(layer), table(common), 0.5)


def test_advice_is_true_for_the_numbers() -> None:
    names = ("l1", "l2", "obs")
    rows = [SpreadRow("l2", 0.1, 0.05, 0, 4)]
    apart = advice(names, similar(names, 0.7), rows)
    assert apart[0].startswith("no two criteria choose the same channels: ")
    assert "70% in common, 50% by chance" in apart[0]
    assert apart[1] == "the l2 scores tell channels apart in all 4 groups"
    assert apart[2].endswith("(rank correlation 0.50): none stands in for data")
    alike = advice(names, similar(names, 0.95, 0.8), rows)
    assert alike[0] == (
        "l1 and l2 choose nearly the same channels here: 95% or more in common, 50% by chance"
    )
    assert alike[2].endswith("(rank correlation 0.80): the one to use without data")
    unseen = advice(names[:2], similar(names[:2], 0.95), [SpreadRow("l2", 0.1, 0.05, 3, 4)])
    assert unseen[1] == "the l2 scores of 3 of 4 groups are too close to call: use --calib"
    assert len(unseen) == 2


def table_rows(text: str) -> list[str]:
    """Lines that begin with a group's name and its channels."""
    return [line for line in text.splitlines() if re.match(r"conv_\S+ +\d+ ", line)]


@pytest.fixture(scope="module")
def both() -> tuple[CriteriaStudy, Sensitivity]:
    """Both studies of one network with all criteria."""
    proto = ZOO["conv_bn"](0)
    a = pipeline.analyze(proto)
    batches = [feeds(proto, seed) for seed in range(3)]
    curves = study_sensitivity(a.solution, a.groups, batches, criterion="l2")
    return study_criteria(a.solution, a.groups, batches), curves


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_tables_fit_a_narrow_terminal(
    both: tuple[CriteriaStudy, Sensitivity], columns: int
) -> None:
    console = Console(width=columns, record=True, file=StringIO())
    print_criteria(both[0], console, True)
    print_sensitivity(both[1], console, True)
    lines = console.export_text().splitlines()
    assert len(table_rows("\n".join(lines))) == 2 * 3
    assert not [line for line in lines if "\N{HORIZONTAL ELLIPSIS}" in line]
    assert len([line for line in lines if line.startswith("10 obs ")]) == 1


# ---- sensitivity --------------------------------------------------------------------------------


def errors(a: Analysis, kept: dict[int, np.ndarray], outputs: Sequence[str],
           batches: Sequence[Arrays]) -> float:  # fmt: skip
    """Squared error over power of a masked model that is run whole."""
    found = []
    protos = []
    for model in (a.facts.model.proto, masked(a.view(kept))):
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        there = {o.name for o in copy.graph.output}
        copy.graph.output.extend(onnx.ValueInfoProto(name=n) for n in outputs if n not in there)
        protos.append([run(copy, b) for b in batches])
    for n in outputs:
        pairs = [(x[n].astype(float), y[n].astype(float)) for x, y in zip(*protos, strict=True)]
        power = sum(float((x**2).sum()) for x, _ in pairs)
        if power:
            found.append(sum(float(((x - y) ** 2).sum()) for x, y in pairs) / power)
    return float(np.mean(found))


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"int4_ragged"}))
def test_a_curve_is_what_the_masked_model_shows(name: str) -> None:
    """Only what lies behind a group is run, with weights as inputs: the same numbers come out."""
    proto = ZOO[name](0)
    a = pipeline.analyze(proto)
    batches = [feeds(proto, seed) for seed in range(2)]
    scores = group_scores(a.facts, a.groups).by_group
    found = measure(a.solution, a.groups, scores, batches, (0.3, 0.6))
    assert found.groups
    for c in found.groups:
        for p in c.points[-1:]:
            kept = {c.id: lowest_gone(scores[c.id], p.kept)}
            wanted = errors(a, kept, found.outputs, batches)
            assert p.error == pytest.approx(wanted, rel=0.02, abs=1e-9)
    assert any(p.error > 0 for c in found.groups for p in c.points)


def test_the_metric_is_that_of_the_masked_model() -> None:
    a = pipeline.analyze(NET)
    data = np.load(DIGITS / "digits_test.npz")
    x, y = data["x"][:100], data["y"][:100]
    scores = group_scores(a.facts, a.groups).by_group
    found = measure(
        a.solution, a.groups, scores, [{"x": x[:64]}, {"x": x[64:]}], (0.75,),
        metric=lambda outputs: float((outputs["logits"].argmax(1) == y).mean()),
    )  # fmt: skip

    def accuracy(model: onnx.ModelProto) -> float:
        return float((run(model, {"x": x})["logits"].argmax(1) == y).mean())

    assert found.baseline == accuracy(a.source.proto)
    for c in found.groups:
        model = masked(a.view({c.id: lowest_gone(scores[c.id], c.points[0].kept)}))
        assert c.points[0].metric == pytest.approx(accuracy(model), abs=0.011)
        agree = run(model, {"x": x})["logits"].argmax(1) == run(a.source.proto, {"x": x})[
            "logits"
        ].argmax(1)
        assert c.points[0].agreement == pytest.approx(agree.mean(), abs=0.011)
    assert min(p.metric or 0 for c in found.groups for p in c.points) < 0.9


def test_points_are_the_counts_that_ratios_lead_to() -> None:
    a = pipeline.analyze(ZOO["mlp"](0))
    scores = group_scores(a.facts, a.groups).by_group
    found = measure(a.solution, a.groups, scores, [feeds(a.source.proto)], (0.01, 0.5, 0.51))
    for c in found.groups:
        kept = sorted({c.channels - int(c.channels * r) for r in (0.01, 0.5, 0.51)}, reverse=True)
        assert [p.kept for p in c.points] == [k for k in kept if k < c.channels]
        assert c.at(0.01) is None or c.channels >= 100
        point = c.at(0.5)
        assert point is not None
        assert point.ratio == pytest.approx(1 - point.kept / c.channels, abs=1e-6)


def test_outputs_that_jump_are_looked_at_before_they_do() -> None:
    proto = ZOO["argmax_head"](0)
    a = pipeline.analyze(proto)
    scores = group_scores(a.facts, a.groups).by_group
    found = measure(a.solution, a.groups, scores, [feeds(proto)], (0.5,))
    assert found.outputs
    assert not set(found.outputs) & {o.name for o in proto.graph.output}
    assert all(p.error > 0 for c in found.groups for p in c.points)


# ---- equal cost ---------------------------------------------------------------------------------


def curve(k: int, channels: int, *errors: tuple[float, float]) -> Curve:
    points = tuple(Point(r, channels - int(channels * r), error, None, None) for r, error in errors)
    return Curve(k, f"g{k}", channels, points)


def test_all_groups_cost_the_same() -> None:
    """Errors that are linear in the share that goes: shares are as the slopes are not."""
    curves = [curve(0, 100, (0.8, 0.8)), curve(1, 100, (0.8, 0.2)), curve(2, 50, (0.8, 0.4))]
    found = even(curves, 0.4)
    shares = {c.id: int(c.channels * found.ratios[c.id] + 1e-9) / c.channels for c in curves}
    assert found.share <= 0.4
    assert found.share == pytest.approx(0.4, abs=0.02)
    assert shares[0] == pytest.approx(found.error, abs=0.011)
    assert shares[1] == pytest.approx(4 * found.error, abs=0.011)
    assert shares[2] == pytest.approx(2 * found.error, abs=0.021)


def test_no_group_loses_more_than_was_measured() -> None:
    curves = [curve(0, 10, (0.5, 0.0)), curve(1, 10, (0.5, 0.9))]
    found = even(curves, 0.9)
    assert found.ratios == {0: 0.5, 1: 0.5}
    assert found.share == 0.5


def test_what_costs_nothing_goes_first() -> None:
    found = even([curve(0, 10, (0.5, 0.0)), curve(1, 10, (0.5, 0.9))], 0.25)
    assert found.ratios == {0: 0.5, 1: 0.0}
    assert found.error <= NEGLIGIBLE


def test_where_nothing_costs_anything_shares_are_the_same() -> None:
    """Errors of 1e-13 and 1e-7 are both none."""
    curves = [curve(0, 100, (0.8, 1e-13)), curve(1, 50, (0.8, 1e-7)), curve(2, 100, (0.8, 0.9))]
    found = even(curves, 0.3)
    assert found.ratios[0] == pytest.approx(found.ratios[1], abs=0.021)
    assert found.ratios[2] < 0.02


def test_an_error_that_falls_counts_as_its_highest() -> None:
    found = even([curve(0, 10, (0.2, 0.5), (0.4, 0.1)), curve(1, 10, (0.4, 0.4))], 0.25)
    assert found.ratios[1] == 0.4
    assert found.ratios[0] < 0.2


SHARED_AXES = {"gather_channels", "option_a", "option_a_pad_input", "shufflenet_v2",
               "slice_channels", "swin_windows", "yolo"}  # fmt: skip
"""Networks with a group all of whose members belong to other groups too."""


@pytest.mark.parametrize("name", sorted(set(ZOO) - {"int4_ragged"}))
def test_every_group_is_found_by_its_own_pattern(name: str) -> None:
    """Whatever ratios are asked for, `--per-layer` gives them; never more, where groups share."""
    a = analysed(ZOO[name](0))
    wanted = {g.id: round(0.1 + 0.8 * k / len(a.groups), 4) for k, g in enumerate(a.groups)}
    table, given = per_layer(a.facts, a.groups, wanted)
    assert all(given[k] <= ratio for k, ratio in wanted.items())
    assert (given == wanted) == (name not in SHARED_AXES)
    assert set(table) == set(selectors(a.facts, a.groups).values())


def test_an_axis_of_a_weight_is_its_own_filters_alone() -> None:
    """w2 creates the second group and contracts the first; its name alone stands for both."""
    rng = np.random.default_rng(0)
    weights = {f"w{k}": rng.standard_normal((8, 8)).astype(np.float32) for k in (1, 2, 3)}
    layers = [("x", "w1", "a"), ("p", "w2", "b"), ("q", "w3", "y")]
    nodes = [("Gemm", [x, w], [y], {"transB": 1}) for x, w, y in layers]
    nodes += [("Relu", ["a"], ["p"], {}), ("Relu", ["b"], ["q"], {})]
    a = pipeline.analyze(model_of(nodes, weights, ["n", 8], ["n", 8]))
    scores = group_scores(a.facts, a.groups)

    def kept(**how: object) -> dict[str, int]:
        found = allocate(a.facts, a.groups, scores, Request(**how))  # type: ignore[arg-type]
        return {g.name: len(found.kept[g.id]) for g in a.groups}

    assert kept(per_layer={"^w2$": 0.5}) == {"w1": 4, "w2": 4}
    assert kept(per_layer={"^w2, axis 0$": 0.5}) == {"w1": 8, "w2": 4}
    assert kept(ratio=0.5, exclude=("w2, axis 1",)) == {"w1": 8, "w2": 4}


# ---- the command --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Ended, Path]:
    folder = tmp_path_factory.mktemp("sensitivity")
    how = ("--calib", CALIB, "--calib-samples", 32, "--criterion", "l2")
    out = folder / "ratios.yaml"
    ended = onnxprune("sensitivity", NET, *how, "--report", folder / "s.json",
                      "--per-layer-out", out)  # fmt: skip
    return ended, folder


def test_sensitivity_as_a_table(done: tuple[Ended, Path]) -> None:
    ended, _ = done
    assert ended.code == 0, ended.err
    assert "32 calibration samples" in ended.out
    rows = table_rows(ended.out)
    assert len(rows) == 6
    assert rows[0].startswith("conv_0.weight"), "the residual stream is the most sensitive"
    assert "6 of 6 groups can lose 50% of their channels" in ended.out
    assert "wrote" in ended.out.splitlines()[-1]


def test_sensitivity_as_data(done: tuple[Ended, Path]) -> None:
    data = json.loads((done[1] / "s.json").read_text())
    assert data["schema"] == "onnxprune/sensitivity/1"
    assert (data["samples"], data["inputs"], data["criterion"]) == (32, "calibration", "l2")
    assert data["outputs"] == ["logits"]
    assert "metric" not in data
    for g in data["groups"]:
        assert [p["ratio"] for p in g["points"]] == list(RATIOS)
        assert all(0 <= p["error"] < 10 and 0 <= p["agreement"] <= 1 for p in g["points"])


def test_slim_takes_the_file(done: tuple[Ended, Path], tmp_path: Path) -> None:
    """Every group is slimmed as the study says, and to the wanted share in all."""
    path = done[1] / "ratios.yaml"
    data = json.loads((done[1] / "s.json").read_text())
    assert yaml.safe_load(path.read_text()) == data["per_layer"]
    assert path.read_text().startswith("# ")
    ended = onnxprune("slim", NET, "--per-layer", path, "-o", tmp_path / "o.onnx", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    kept = {g["id"]: g["kept"] for g in report["groups"]}
    for g in data["groups"]:
        assert kept[g["id"]] == g["channels"] - int(g["channels"] * g["even"] + 1e-9)
    assert report["removed"]["channels"] == pytest.approx(data["even"]["share"], abs=1e-6)
    assert report["removed"]["channels"] == pytest.approx(0.5, abs=0.03)


def test_labels_show_the_accuracy() -> None:
    how = ("--eval", DIGITS / "digits_test.npz", "--ratios", "0.75")
    ended = onnxprune("sensitivity", NET, *how)
    assert ended.code == 0, ended.err
    assert "450 labelled samples; top-1 of the original: 0.993" in ended.out
    assert "top-1" in ended.out.splitlines()[2]


def test_random_inputs_where_there_are_none(net: Path) -> None:
    ended = onnxprune("sensitivity", net, "--ratios", "0.5", "-v")
    assert ended.code == 0, ended.err
    assert "random samples" in ended.out
    assert "on random inputs: --calib shows what real ones depend on" in ended.out
    data = json.loads(onnxprune("sensitivity", net, "--ratios", "0.5", "--json").out)
    assert data["inputs"] == "random"
    again = json.loads(onnxprune("sensitivity", net, "--ratios", "0.5", "--json").out)
    assert again == data, "the same twice"


@pytest.mark.parametrize("command", ["criteria", "sensitivity"])
def test_html(command: str, net: Path) -> None:
    if find_spec("jinja2") is None or find_spec("PIL") is None:
        pytest.skip("no jinja2 or pillow")
    out = net.parent / "report.html"
    ended = onnxprune(command, net, "-q", "--report", out, "--report", out.with_suffix(".json"))
    assert ended.code == 0, ended.err
    assert ended.out == ""
    assert out.read_text().startswith("<!doctype html>")
    assert json.loads(out.with_suffix(".json").read_text())["schema"].startswith("onnxprune/")


@pytest.mark.parametrize("command", ["criteria", "sensitivity"])
def test_nothing_to_study(command: str, fixed: Path) -> None:
    ended = onnxprune(command, fixed)
    assert ended.code == 4
    assert "every channel of the model is fixed" in ended.err


def test_a_filter_bank_is_left_out_and_named() -> None:
    bank = np.concatenate(stft(64, np.hanning(65)[:64])).astype(np.float32)
    rng = np.random.default_rng(0)
    a = pipeline.analyze(two_layers(bank, rng.standard_normal((16, len(bank))).astype(np.float32)))
    with pytest.raises(NothingToPrune, match="fixed filter bank"):
        study_criteria(a.solution, a.groups)


@pytest.mark.parametrize(
    ("how", "code", "says"),
    [
        (("criteria", "--ratio", 0), 2, "--ratio"),
        (("criteria", "--ratio", 1), 2, "--ratio"),
        (("criteria", "--report", "r.pdf"), 2, "unknown kind of report"),
        (("criteria", "--report", "r.md"), 2, "no .md report"),
        (("criteria", "--report", "nowhere/r.json"), 2, "does not exist"),
        (("criteria", "--calib", "none.npz"), 3, "no such file"),
        (("sensitivity", "--ratios", "0.5,1"), 2, "'0.5,1' is not R,R,..."),
        (("sensitivity", "--ratios", "half"), 2, "'half' is not R,R,..."),
        (("sensitivity", "--criterion", "l3"), 2, "no criterion 'l3'"),
        (("sensitivity", "--criterion", "wanda"), 2, "needs calibration data"),
        (("sensitivity", "--criterion", "obs"), 2, "needs calibration data"),
        (("sensitivity", "--metric", "m.py:f"), 2, "--eval"),
        (("sensitivity", "--eval", CALIB), 2, "no labels"),
        (("sensitivity", "--per-layer-out", "nowhere/r.yaml"), 2, "does not exist"),
        (("sensitivity", "--shape", "y:1x1x8x8"), 2, "y"),
    ],
)
def test_refused(
    how: tuple[object, ...], code: int, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = onnxprune(how[0], NET, *how[1:])
    assert ended.code == code
    assert says in ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["criteria", "sensitivity"])
def test_the_model_is_not_replaced(command: str, tmp_path: Path) -> None:
    path = tmp_path / "net.json"
    path.write_bytes(NET.read_bytes())
    before = files(path)
    ended = onnxprune(command, path, "--report", path)
    assert ended.code == 2
    assert "can't replace the model" in ended.err
    assert files(path) == before


@pytest.mark.parametrize("command", ["criteria", "sensitivity"])
def test_an_unreadable_model(command: str, tmp_path: Path) -> None:
    assert onnxprune(command, tmp_path / "none.onnx").code == 3


def test_the_library_needs_data_too() -> None:
    a = pipeline.analyze(ZOO["mlp"](0))
    with pytest.raises(UsageError, match="calibration data"):
        study_sensitivity(a.solution, a.groups, criterion="obs")


@pytest.mark.parametrize("name", ["cifar10_resnet20", "cifar10_vit_pgd_2_3_16"])
def test_real_models(name: str) -> None:
    a = pipeline.analyze(shared(name))
    study = study_criteria(a.solution, a.groups)
    assert len(study.groups) == len(a.groups)
    curves = study_sensitivity(a.solution, a.groups, ratios=(0.5,))
    assert all(p.error > 0 for c in curves.groups for p in c.points)
    assert curves.even["share"] <= 0.5
