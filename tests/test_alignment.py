"""--align auto: layers timed at neighbouring widths, a multiple chosen, and the cache of times."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto

from models.zoo import ZOO
from onnxprune import pipeline
from onnxprune.choose.alignment import align_by_time, best_multiple, layers_of, near_multiples
from onnxprune.cost.work import sizes_at_one
from onnxprune.errors import CheckFailed
from onnxprune.pipeline import aligning
from onnxprune.pipeline.aligning import Tried, Way, fastest
from onnxprune.pipeline.run import Candidate, Run
from onnxprune.runtime import widths
from onnxprune.runtime.widths import LOWER, MULTIPLES, Layer, Width, measure, widths_of
from tests.choosing import analysed, model_of

FLOAT = 1
STANDS = [LOWER, 1, 1, 4, 4, 8, 16, 32]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the developer's cache."""
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def conv(inputs: int, outputs: int, narrows: tuple[bool, bool] = (True, True)) -> Layer:
    return Layer("Conv", FLOAT, inputs, outputs, narrows, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1),
                 (1, 1))  # fmt: skip


def product(inputs: int, outputs: int) -> Layer:
    return Layer("MatMul", FLOAT, inputs, outputs, (True, True), (4,))


def net(width: int = 32) -> ModelProto:
    """Two convolutions, a depthwise one, a dense layer."""
    rng = np.random.default_rng(0)

    def weight(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    return model_of(
        [
            ("Conv", ["x", "w0"], ["a"], {"pads": [1, 1, 1, 1]}),
            ("Conv", ["a", "w1"], ["b"], {"group": width, "auto_pad": "SAME_UPPER"}),
            ("Conv", ["b", "w2"], ["c"], {"strides": [2, 2]}),
            ("GlobalAveragePool", ["c"], ["p"], {}),
            ("Flatten", ["p"], ["f"], {}),
            ("Gemm", ["f", "w3"], ["y"], {"transB": 1}),
        ],
        {"w0": weight(width, 3, 3, 3), "w1": weight(width, 1, 3, 3),
         "w2": weight(2 * width, width, 1, 1), "w3": weight(5, 2 * width)},
        ["n", 3, 8, 8],
        ["n", 5],
    )  # fmt: skip


# ---- what is timed ------------------------------------------------------------------------------


def test_the_layers_of_a_model() -> None:
    a = analysed(net())
    found = layers_of(a.solution, sizes_at_one(a.facts))
    rows = {(x.op, x.inputs, x.outputs, x.narrows, x.space, x.kernel, x.depthwise) for x in found}
    assert rows == {
        ("Conv", 3, 32, (False, True), (8, 8), (3, 3), False),
        ("Conv", 32, 32, (True, True), (8, 8), (3, 3), True),
        ("Conv", 32, 64, (True, True), (8, 8), (1, 1), False),
        ("MatMul", 64, 5, (True, False), (1,), (), False),
    }
    assert next(x for x in found if x.strides == (2, 2)).kernel == (1, 1)
    assert next(x for x in found if x.depthwise).pads == (1, 1, 1, 1)


@pytest.mark.parametrize("channels", [1, 3, 8, 10, 16, 24, 32, 48, 64, 100, 512, 2048])
def test_widths_stand_for_their_multiples(channels: int) -> None:
    found = widths_of(conv(channels, channels))
    assert [m for m, _, _ in found] == STANDS
    least, whole = found[0][1], found[-1][1]
    for multiple, inputs, outputs in found:
        assert inputs == outputs <= channels
        assert least <= inputs <= whole
        if channels >= 64 and multiple:
            assert inputs % multiple == 0
            assert all(inputs % m for m in MULTIPLES if m > multiple)
    if channels >= 64:
        assert whole - least == 32 or least == whole // 2


def test_a_side_that_stays_keeps_its_width() -> None:
    assert {i for _, i, _ in widths_of(conv(3, 64, (False, True)))} == {3}


# ---- what is chosen -----------------------------------------------------------------------------


def table(layer: Layer, ms: object) -> dict[Layer, tuple[Width, ...]]:
    """Times by a function of the widths."""
    return {layer: tuple(Width(m, i, o, ms(i, o)) for m, i, o in widths_of(layer))}  # type: ignore[operator]


def blocked(block: int) -> object:
    """A device that fills up to whole blocks."""

    def ms(inputs: int, outputs: int) -> float:
        return float(-(-inputs // block) * -(-outputs // block)) + 0.1

    return ms


@pytest.mark.parametrize("block", [1, 4, 8, 16])
def test_whole_blocks_are_found(block: int) -> None:
    layer = conv(64, 64)
    assert best_multiple(table(layer, blocked(block)), {layer: 3}) == block


def test_blocks_that_hardly_show_are_not_worth_coarser_steps() -> None:
    layer = conv(1024, 1024)
    assert best_multiple(table(layer, blocked(4)), {layer: 1}) == 1


def test_the_layers_with_most_time_decide() -> None:
    light, heavy = conv(64, 64), conv(512, 512)
    times = {**table(light, blocked(16)), **table(heavy, lambda i, o: 1.0 * i * o)}
    assert best_multiple(times, {light: 1, heavy: 1}) == 1
    times = {**table(light, lambda i, o: 1e-6 * i * o), **table(heavy, blocked(32))}
    assert best_multiple(times, {light: 1, heavy: 1}) == 32


def test_nothing_timed_is_no_alignment() -> None:
    assert best_multiple({}, {}) == 1


def test_noise_of_a_percent_chooses_nothing() -> None:
    rng = np.random.default_rng(0)
    layer = conv(512, 512)
    for _ in range(20):
        times = table(layer, lambda i, o: i * o * rng.uniform(0.99, 1.01))
        assert best_multiple(times, {layer: 1}) == 1


# ---- measured -----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer", [
    conv(16, 32), product(16, 32), conv(3, 16, (False, True)),
    Layer("Conv", FLOAT, 16, 16, (True, True), (8, 8), (3, 3), (2, 2), (0, 0, 0, 0), (1, 1), True),
    Layer("Conv", FLOAT, 16, 16, (True, True), (9,), (3,), (1,), (1, 1), (1,)),
    Layer("MatMul", 10, 16, 16, (True, True), (4,)),
])  # fmt: skip
def test_layers_run_at_all_widths(layer: Layer) -> None:
    found = measure([layer], "cpu", lambda text: None)
    assert [w.multiple for w in found[layer]] == STANDS
    assert all(w.ms > 0 for w in found[layer])


def test_times_are_kept(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [conv(16, 16), product(16, 16)]
    first = measure(layers, "cpu", lambda text: None)
    assert len(list(own_cache.iterdir())) == 1
    monkeypatch.setattr(widths, "_time", lambda *_: pytest.fail("it was timed again"))
    assert measure(layers, "cpu", lambda text: None) == first
    # another version of ONNX Runtime, or another machine, is another file
    monkeypatch.setattr(widths, "describe", lambda: {"onnxruntime": "0.1"})
    with pytest.raises(pytest.fail.Exception):
        measure(layers, "cpu", lambda text: None)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"times": 3}', '{"times": {"a": "b"}}'])
def test_a_damaged_cache_is_measured_anew(own_cache: Path, text: str) -> None:
    measure([product(16, 16)], "cpu", lambda text: None)
    (path,) = own_cache.iterdir()
    path.write_text(text)
    measure([product(16, 16)], "cpu", lambda text: None)
    assert json.loads(path.read_text())["times"]


def test_a_cache_that_cannot_be_written_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ONNXPRUNE_CACHE", str(tmp_path / "file" / "below"))
    assert measure([product(16, 16)], "cpu", lambda text: None)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert widths._cache_path("cpu").parent == tmp_path / "cache"
    assert widths._cache_path("cpu") != widths._cache_path("cuda")
    monkeypatch.delenv("ONNXPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert widths._cache_path("cpu").parent == tmp_path / "xdg" / "onnxprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert widths._cache_path("cpu").parent == Path.home() / ".cache" / "onnxprune"


def test_the_record_of_a_model() -> None:
    a = analysed(net())
    found = align_by_time(a.solution, sizes_at_one(a.facts), "cpu", lambda text: None)
    record = found.record()
    assert record["align"] in MULTIPLES
    assert len(record["layers"]) == 4
    assert json.loads(json.dumps(record)) == record


# ---- used ---------------------------------------------------------------------------------------


def faked(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    """A machine with blocks of this many channels."""

    def time(layer: Layer, pairs: list[tuple[int, int]], provider: str) -> list[float]:
        return [blocked(block)(*pair) for pair in pairs]  # type: ignore[operator]

    def timed(run: Run, made: Iterable[tuple[Way, Candidate]]) -> list[Tried]:
        def ms(one: Candidate) -> float:
            counts = [len(kept) for kept in one.chosen.kept.values()]
            return float(sum(n // block + 2 * (n % block > 0) for n in counts))

        return [Tried(*way, run.work(one), ms(one)) for way, one in made]

    monkeypatch.setattr(widths, "_time", time)
    monkeypatch.setattr(aligning, "_timed", timed)


@pytest.mark.parametrize(("times", "best"), [
    ({(1, True): 5.0, (8, True): 4.0, (16, True): 4.5}, (8, True)),
    ({(1, True): 5.0, (16, True): 4.5, (16, False): 4.0}, (16, False)),
    # as fast: the finest
    ({(8, True): 4.1, (16, True): 4.0}, (8, True)),
    ({(16, False): 4.0, (16, True): 4.1}, (16, True)),
    ({(1, True): 4.0}, (1, True)),
])  # fmt: skip
def test_the_fastest_model_decides(
    times: dict[tuple[int, bool], float], best: tuple[int, bool]
) -> None:
    found = fastest([Tried(*way, 0.3, ms) for way, ms in times.items()])
    assert (found.multiple, found.yields) == best


def test_multiples_beside_the_one_that_the_layers_speak_for() -> None:
    assert near_multiples(1) == (1, 4)
    assert near_multiples(8) == (1, 4, 8, 16)
    assert near_multiples(32) == (1, 16, 32)


@pytest.mark.parametrize("asked", [
    {"ratio": 0.4}, {"target": "macs=60%"}, {"target": "params=60%"}, {"per_layer": {".": 0.4}},
])  # fmt: skip
def test_whole_models_are_timed(asked: dict[str, Any]) -> None:
    search = pipeline.slim(net(64), **asked, align="auto", verify=False).report.search
    assert search is not None
    rows = search["widths"]["models"]
    assert len(rows) > 1
    assert all(0 < row["work"] < 1 and row["ms"] > 0 for row in rows)
    assert search["widths"]["align"] == fastest([Tried(**row) for row in rows]).multiple


def test_models_that_cannot_be_run_are_judged_by_their_layers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object) -> None:
        raise CheckFailed("the original can't be timed")

    monkeypatch.setattr(widths, "_time", lambda layer, pairs, provider: [
        blocked(16)(*pair) for pair in pairs  # type: ignore[operator]
    ])  # fmt: skip
    monkeypatch.setattr(aligning, "timing_feeds", fail)
    search = pipeline.slim(net(64), ratio=0.4, align="auto", verify=False).report.search
    assert search is not None
    assert (search["widths"]["align"], search["widths"]["models"]) == (16, [])


def test_auto_aligns_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    faked(monkeypatch, 16)
    result = pipeline.slim(net(64), ratio=0.4, align="auto", verify=False)
    assert result.report.search is not None
    assert result.report.search["widths"]["align"] == 16
    assert result.report.options["align"] == "auto"
    free = [g for g in result.report.groups if not g.fixed_by]
    assert sorted(g.kept for g in free) == [48, 80]
    # the plan holds the table, and needs no timing
    monkeypatch.setattr(widths, "_time", lambda *_: pytest.fail("it was timed"))
    again = pipeline.apply(result.plan, net(64))
    assert again.SerializeToString() == result.model.SerializeToString()
    assert result.plan.search["widths"]["align"] == 16


def test_narrow_groups_are_not_held_up_unless_that_is_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faked(monkeypatch, 16)
    monkeypatch.setattr(aligning, "near_multiples", lambda multiple: (16,))

    def kept(ms: Mapping[tuple[int, bool], float]) -> list[int]:
        monkeypatch.setattr(aligning, "_timed", lambda run, made: [
            Tried(*way, run.work(one), ms[way]) for way, one in made
        ])  # fmt: skip
        result = pipeline.slim(net(16), ratio=0.5, align="auto", verify=False)
        return sorted(g.kept for g in result.report.groups if not g.fixed_by)

    assert kept({(16, True): 1.0, (16, False): 1.0}) == [8, 16]
    assert kept({(16, True): 1.0, (16, False): 0.5}) == [16, 16]


def test_a_model_without_such_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(widths, "_time", lambda *_: pytest.fail("nothing is there to time"))
    result = pipeline.slim(ZOO["qdq"](0), ratio=0.5, align="auto", verify=False)
    assert result.report.search == {"widths": {"align": 1, "layers": [], "models": []}}
