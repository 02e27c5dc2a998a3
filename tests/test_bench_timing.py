"""How rounds become a speed-up with an interval; nothing here measures time."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pytest

from onnxprune.bench.measure import BLOCKS, Budget, measure
from onnxprune.runtime import timing
from onnxprune.runtime.timing import Timing, interleave, pool, speedup, steadiness
from onnxprune.runtime.waiting import waiting

RNG = np.random.default_rng


def made(
    samples: np.ndarray, waited: np.ndarray | None = None, blocks: tuple[int, ...] = ()
) -> Timing:
    return timing._timing(samples.tolist(), () if waited is None else waited.tolist(), blocks)


def busy(rng: np.random.Generator, ms: float, rounds: int, least: float) -> Timing:
    """Runs of `ms` on a busy machine: what they wait comes on top."""
    waited = rng.uniform(least, 0.8, rounds)
    noise = np.exp(rng.normal(0, 0.02, rounds))
    return made(ms * noise / (1 - waited), waited)


# ---- the speed-up -----------------------------------------------------------------------------


def test_what_others_took_is_taken_out() -> None:
    rng = RNG(0)
    a, b = busy(rng, 20, 200, 0.0), busy(rng, 20, 200, 0.0)
    blind_a, blind_b = made(np.array(a.samples)), made(np.array(b.samples))
    seen, blind = speedup(a, b), speedup(blind_a, blind_b)
    assert seen.spread < blind.spread / 4
    assert seen.low <= 1.003
    assert seen.high >= 0.997
    assert not seen.measurable
    twice = speedup(busy(rng, 20, 200, 0.0), busy(rng, 10, 200, 0.0))
    assert abs(twice.ratio - 2) < 0.03
    assert twice.measurable


def test_waiting_that_belongs_to_a_model_stays() -> None:
    """A model whose runs wait more whatever happens is slower by that."""
    rng = RNG(1)
    a, b = busy(rng, 20, 200, 0.6), busy(rng, 20, 200, 0.0)
    plain = speedup(made(np.array(a.samples)), made(np.array(b.samples)))
    assert speedup(a, b) == plain
    assert plain.ratio > 1.5


def test_short_runs_are_left_to_the_median() -> None:
    rng = RNG(2)
    a, b = busy(rng, 0.1, 200, 0.0), busy(rng, 0.1, 200, 0.0)
    assert speedup(a, b) == speedup(made(np.array(a.samples)), made(np.array(b.samples)))


def test_no_waiting_leaves_the_plain_median() -> None:
    samples = np.exp(RNG(3).normal(3, 0.1, (2, 99)))
    none = np.zeros(99)
    a, b = (made(s, none) for s in samples)
    assert speedup(a, b).ratio == pytest.approx(np.median(samples[0] / samples[1]))


def test_what_new_sessions_change_is_in_the_interval() -> None:
    """Within a block all rounds agree; only blocks show how much luck there is."""
    luck = np.repeat(RNG(4).normal(0, 0.03, 8), 50)
    a, b = np.full(400, 10.0) * np.exp(luck), np.full(400, 10.0)
    counts = (50,) * 8
    blocked = speedup(made(a, blocks=counts), made(b, blocks=counts))
    assert blocked.spread > 0.02
    assert blocked.low <= 1 <= blocked.high
    assert speedup(made(a), made(b)).spread < blocked.spread
    with pytest.raises(ValueError, match="rounds"):
        speedup(made(a, blocks=counts), made(b))


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    rng, held = RNG(5), 0
    for _ in range(200):
        luck = np.repeat(rng.normal(0, 0.01, 6), 30)
        a = np.exp(rng.normal(0, 0.05, 180) + luck)
        b = np.exp(rng.normal(0, 0.05, 180))
        found = speedup(made(a, blocks=(30,) * 6), made(b, blocks=(30,) * 6))
        held += found.low <= 1 <= found.high
    assert held >= 184  # 95 % of 200, less three standard deviations


def test_steadiness_needs_blocks() -> None:
    samples = np.exp(RNG(6).normal(0, 0.01, 60))
    assert steadiness(made(samples)) == np.inf
    assert steadiness(made(samples, blocks=(10,) * 6)) < 0.05
    assert steadiness(made(np.repeat([1.0, 2.0, 4.0], 20), blocks=(20,) * 3)) > 0.5


def test_blocks_are_pooled_in_order() -> None:
    first = interleave({"a": lambda: None, "b": lambda: None}, rounds=3, warmup=0)
    second = interleave({"a": lambda: None, "b": lambda: None}, rounds=5, warmup=0)
    both = pool([first, second])
    assert both["a"].blocks == both["b"].blocks == (3, 5)
    assert both["b"].samples == first["b"].samples + second["b"].samples
    assert len(both["a"].waited) == both["a"].rounds == 8


# ---- waiting ----------------------------------------------------------------------------------


def test_the_clock_of_waiting_never_runs_back() -> None:
    with waiting() as waited:
        readings = [waited() for _ in range(50)]
    assert readings == sorted(readings)
    assert readings[0] >= 0


def test_there_is_none_where_the_kernel_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> int:
        raise FileNotFoundError

    monkeypatch.setattr("os.open", absent)
    with waiting() as waited:
        assert waited() == 0


# ---- the rounds -------------------------------------------------------------------------------


class Bench:
    """Sessions that take as long as they are told, on a clock of their own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[str, float]) -> None:
        self.now = 0.0
        self.seconds = seconds
        self.orders: list[tuple[str, ...]] = []
        self.ran: list[str] = []
        self.open = 0
        monkeypatch.setattr("time.perf_counter", lambda: self.now)
        monkeypatch.setattr("time.perf_counter_ns", lambda: int(self.now * 1e9))

    @contextlib.contextmanager
    def opened(self, order: Sequence[str]) -> Iterator[dict[str, Callable[[], None]]]:
        self.orders.append(tuple(order))
        self.now += 0.01
        self.open += 1
        yield {name: lambda name=name: self.run(name) for name in order}  # type: ignore[misc]
        self.open -= 1

    def run(self, name: str) -> None:
        assert self.open == 1
        self.ran.append(name)
        self.now += self.seconds[name]

    def measured(self, budget: Budget) -> dict[str, Timing]:
        self.told: list[float] = []
        return measure(list(self.seconds), self.opened, budget, self.told.append)


def test_it_stops_when_it_is_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"a": 0.02, "b": 0.01})
    got = bench.measured(Budget(60))
    assert len(got["a"].blocks) == BLOCKS
    assert speedup(got["a"], got["b"]).ratio == pytest.approx(2)
    assert len(set(bench.orders)) == 2, "sessions are made in either order"
    assert bench.told == sorted(bench.told)
    assert bench.told[-1] == 1
    assert bench.now < 10


def test_it_takes_the_time_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"a": 0.02, "b": 0.01})
    got = bench.measured(Budget(10, early=False))
    assert 10 <= sum(got["a"].samples + got["b"].samples) / 1e3 < 10.1
    assert bench.told[-1] == 1


def test_it_takes_the_rounds_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    for rounds, blocks in ((1, (1,)), (20, (8, 8, 4)), (600, (100,) * 6)):
        bench = Bench(monkeypatch, {"a": 0.02, "b": 0.01})
        got = bench.measured(Budget(float("inf"), rounds, early=False))
        assert got["b"].blocks == blocks
        assert got["b"].rounds == rounds


def test_slow_models_are_not_run_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"a": 20.0, "b": 10.0})
    got = bench.measured(Budget(60))
    assert got["a"].rounds == 2
    assert len(bench.ran) == 6, "one round to warm up"
    assert not speedup(got["a"], got["b"]).measurable, "two rounds say nothing"


def test_noise_goes_on_until_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"a": 0.02, "b": 0.02})
    rng = RNG(7)
    monkeypatch.setattr(
        bench, "run", lambda name: setattr(bench, "now", bench.now + rng.uniform(0.005, 0.3))
    )
    got = bench.measured(Budget(30))
    assert bench.told[-1] == 1
    assert bench.told == sorted(bench.told)
    assert len(got["a"].blocks) > BLOCKS
    assert bench.now > 90, "three times as long for an answer that is not sure to 2 % before"
    again = Bench(monkeypatch, {"a": 0.02})
    monkeypatch.setattr(
        again, "run", lambda name: setattr(again, "now", again.now + rng.uniform(0.005, 0.3))
    )
    again.measured(Budget(30))
    assert again.now < 60, "nothing cancels the noise of a model alone"


def test_an_answer_that_is_not_sure_to_one_percent_may_do(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"a": 0.02, "b": 0.02})
    rng = RNG(8)
    monkeypatch.setattr(
        bench, "run", lambda name: setattr(bench, "now", bench.now + 0.02 * rng.uniform(0.87, 1.13))
    )
    got = bench.measured(Budget(10))
    assert 10 < bench.now < 20
    assert 0.01 < speedup(got["a"], got["b"]).spread <= 0.02


def test_a_model_alone_stops_when_it_is_steady(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(monkeypatch, {"a": 0.02})
    got = bench.measured(Budget(60))
    assert len(got["a"].blocks) == BLOCKS
