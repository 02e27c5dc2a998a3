"""The benchmark from end to end: what it says, and what it refuses to say. No test looks at times.

There is no GPU in a test: where one is needed, ONNX Runtime's CPU provider goes by its name.
"""

import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from rich.console import Console

import onnxprune
from models.zoo import ZOO, with_external_data
from onnxprune.bench import fresh, sweep
from onnxprune.bench.compare import compare
from onnxprune.bench.data import BenchReport, Missing, Speedup
from onnxprune.bench.fresh import Memory, memory
from onnxprune.bench.settings import Settings
from onnxprune.bench.text import milliseconds, print_bench, speedup_line
from onnxprune.errors import CheckFailed, Unreadable, UsageError
from onnxprune.runtime import iobinding, machine, placement, providers, session
from onnxprune.runtime.iobinding import bound
from onnxprune.runtime.session import Tuning, open_session
from tests.commands import onnxprune as command
from tests.test_runtime import chain

QUICK = Settings(providers=("cpu",), runs=8, early=False, memory=False)


def quiet(what: str, share: float) -> None:
    """Nobody is watching."""


@pytest.fixture
def slim(net: Path) -> Path:
    """The network with half of its channels."""
    out = net.parent / "slim.onnx"
    onnxprune.slim(net, ratio=0.5, verify=False).save(out)
    return out


@pytest.fixture(scope="module")
def compared() -> BenchReport:
    """A model against its slim version, at two batches, by layer."""
    original = ZOO["resnet"](0)
    small = onnxprune.slim(original, ratio=0.5, verify=False).model
    settings = Settings(("cpu",), (1, 3), 1, runs=8, early=False, per_layer=True)
    return compare({"original": original, "slim": small}, settings, quiet)


# ---- the data ---------------------------------------------------------------------------------


def test_a_case_a_batch(compared: BenchReport) -> None:
    assert [case.batch for case in compared.cases] == [1, 3]
    one, three = compared.cases
    assert one.shapes == {"x": (1, 3, 16, 16)}
    assert three.shapes == {"x": (3, 3, 16, 16)}
    assert one.threads == 1
    assert one.options["spinning"] == "off"
    assert one.options["graph_optimization_level"] == "all"
    assert one.options["io_binding"] == "cpu"
    assert [r.model for r in one.rows] == ["original", "slim"]
    assert [r.name for r in compared.models] == ["original", "slim"]
    assert compared.machine["onnxruntime"]
    assert not compared.failed


def test_a_row(compared: BenchReport) -> None:
    first, second = compared.cases[0].rows
    t = first.ms
    assert 0 < t.min <= t.p25 <= t.median <= t.p75 <= t.p95
    assert t.iqr == t.p75 - t.p25
    assert (t.rounds, t.blocks) == (8, 1)
    assert first.per_second == pytest.approx(1e3 / t.median)
    assert compared.cases[1].rows[0].per_second == pytest.approx(
        3e3 / compared.cases[1].rows[0].ms.median
    )
    assert first.opening_ms > 0
    assert first.nodes.keys() == {"cpu"}
    assert first.elsewhere == {}
    assert 0 <= first.waited <= 1
    if sys.platform == "linux":
        assert first.host_bytes is not None
        assert first.host_bytes > 0
    assert first.device_bytes is None
    assert first.macs is not None
    assert second.macs is not None
    assert compared.cases[1].rows[0].macs == 3 * first.macs


def test_a_speedup_and_what_was_promised(compared: BenchReport) -> None:
    case = compared.cases[0]
    (found,) = case.speedups
    first, second = case.rows
    assert found.model == "slim"
    assert found.low <= found.ratio <= found.high
    assert found.promised == pytest.approx(first.macs / second.macs)  # type: ignore[operator]
    assert found.promised > 3
    assert found.reached == pytest.approx(found.ratio / found.promised)


def test_layers(compared: BenchReport) -> None:
    for case in compared.cases:
        convs = [r for r in case.layers if r.op == "Conv"]
        assert convs[0].name == "Conv_0"
        assert convs[0].widths == {"original": (3, 16), "slim": (3, 8)}
        for row in case.rows:
            assert sum(r.macs.get(row.model, 0) for r in case.layers) == row.macs


def test_the_json_is_plain_and_whole(compared: BenchReport) -> None:
    data = json.loads(json.dumps(compared.to_json()))
    assert data["schema"] == "onnxprune/bench/1"
    assert data["cases"][0]["speedups"][0]["reached"] > 0
    assert data["cases"][0]["rows"][0]["ms"]["iqr"] >= 0
    assert "sweep" not in data
    assert "device_bytes" not in data["cases"][0]["rows"][0]
    assert data["failed"] is False


def test_a_model_alone() -> None:
    report = compare({"only": ZOO["mlp"](0)}, QUICK, quiet)
    (case,) = report.cases
    assert case.speedups == ()
    assert len(case.rows) == 1


def test_threads_that_spin_stop_between_runs() -> None:
    settings = Settings(("cpu",), threads=2, spin=True, runs=4, early=False, memory=False)
    (case,) = compare({"only": ZOO["mlp"](0)}, settings, quiet).cases
    assert case.options["spinning"] == "while running"
    assert settings.tuning("cpu").config == {"session.force_spinning_stop": "1"}
    assert QUICK.tuning("cpu").config == {"session.intra_op.allow_spinning": "0"}
    if sys.platform == "linux":
        assert case.threads == 2


def test_inputs_that_cannot_be_bound() -> None:
    report = compare({"words": chain(onnx.TensorProto.STRING, "Identity")}, QUICK, quiet)
    (case,) = report.cases
    assert case.options["io_binding"] == "none"
    assert "can't be bound" in case.notes[0]
    assert case.rows[0].macs is None


def test_types_that_numpy_has_not() -> None:
    kind = onnx.TensorProto.BFLOAT16
    report = compare({"half": chain(kind, "Identity")}, Settings(("cpu",), runs=2), quiet)
    assert report.cases[0].options["io_binding"] == "none"
    assert report.cases[0].rows[0].host_bytes is None


def test_progress_goes_forward() -> None:
    told: list[tuple[str, float]] = []
    compare({"only": ZOO["mlp"](0)}, QUICK, lambda what, share: told.append((what, share)))
    shares = [share for _, share in told]
    assert shares == sorted(shares)
    assert shares[0] == 0
    assert max(shares) <= 1
    assert any("timing only" in what for what, _ in told)


# ---- memory in a new process ------------------------------------------------------------------


def test_a_fresh_process_that_fails_says_nothing(tmp_path: Path) -> None:
    feeds = {"x": np.ones((1, 2), np.float32)}
    assert memory(tmp_path / "none.onnx", "cpu", Tuning(), feeds) == Memory(None, None)
    words = {"x": np.array([["a"]], object)}
    assert memory(tmp_path / "none.onnx", "cpu", Tuning(), words) == Memory(None, None)


def test_a_fresh_process_sees_the_gpu(
    net: Path, gpu: "Gpu", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    used = iter(["100\n", "350\n"])
    monkeypatch.setattr(machine, "_output", lambda *_: next(used))
    file = net.parent / "x.npy"
    np.save(file, np.ones((1, 3, 16, 16), np.float32))
    request = {"path": str(net), "provider": "cuda", "feeds": {"x": str(file)},
               "tuning": {"threads": 1, "config": {}, "provider": {}}}  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    fresh.main()
    assert json.loads(capsys.readouterr().out)["device"] == 250 * 2**20


def test_gpu_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, found in (("81\n90\n", 81 * 2**20), ("", None), ("[N/A]", None)):
        monkeypatch.setattr(machine, "_output", lambda *_, text=text: text)
        assert machine.gpu_bytes() == found


# ---- a GPU, as far as one can go without ------------------------------------------------------


class Gpu:
    """What was asked of a GPU that is not there."""

    def __init__(self) -> None:
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.runs = self.waits = 0
        self.options: list[Any] = []


class FakeBinding:
    """An io binding that keeps on the CPU what it is told to keep on the GPU."""

    def __init__(self, real: Any, gpu: Gpu) -> None:
        self.real, self.gpu = real, gpu

    def bind_output(self, name: str, device: str) -> None:
        self.gpu.outputs.append(device)
        self.real.bind_output(name, "cpu")

    def synchronize_outputs(self) -> None:
        self.gpu.waits += 1

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


class FakeSession:
    def __init__(self, real: Any, gpu: Gpu) -> None:
        self.real, self.gpu = real, gpu

    def io_binding(self) -> FakeBinding:
        return FakeBinding(self.real.io_binding(), self.gpu)

    def run_with_iobinding(self, binding: FakeBinding) -> None:
        self.gpu.runs += 1
        self.real.run_with_iobinding(binding.real)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """`--provider cuda` opens CPU sessions that pass for CUDA ones."""
    gpu, ort = Gpu(), providers.onnxruntime()

    class Module:
        class OrtValue:
            @staticmethod
            def ortvalue_from_numpy(array: np.ndarray, device: str, _: int) -> Any:
                gpu.inputs.append(device)
                return ort.OrtValue.ortvalue_from_numpy(array)

        @staticmethod
        def InferenceSession(content: Any, options: Any, names: Any, **more: Any) -> FakeSession:
            gpu.options.append(names)
            plain = [n if isinstance(n, str) else n[0] for n in names]
            return FakeSession(ort.InferenceSession(content, options, plain, **more), gpu)

        def __getattr__(self, name: str) -> Any:
            return getattr(ort, name)

    cpu = "CPUExecutionProvider"
    monkeypatch.setitem(providers.PROVIDERS, "cuda", (cpu,))
    monkeypatch.setitem(providers.SHORT, cpu, "cuda")
    monkeypatch.setattr(iobinding, "onnxruntime", Module)
    monkeypatch.setattr(session, "onnxruntime", Module)
    return gpu


def test_on_a_gpu_nothing_is_copied_and_all_is_waited_for(net: Path, gpu: Gpu) -> None:
    report = compare({"a": net}, Settings(("cuda",), runs=5, memory=False), quiet)
    (case,) = report.cases
    assert case.provider == "cuda"
    assert case.options["io_binding"] == "cuda"
    assert case.options["cudnn_conv_algo_search"] == "EXHAUSTIVE"
    assert set(gpu.inputs) == set(gpu.outputs) == {"cuda"}
    assert gpu.waits >= 5
    assert gpu.waits == gpu.runs - len(gpu.inputs), "every run but the first of a session"
    assert case.rows[0].nodes.keys() == {"cuda"}
    asked = [names[0] for names in gpu.options if not isinstance(names[0], str)]
    assert len(asked) >= 2, "to see the placement, and to be timed"
    assert all(name == "CPUExecutionProvider" for name, _ in asked)
    assert all(options["use_tf32"] == "1" for _, options in asked)


def test_layers_are_not_timed_on_a_gpu(net: Path, gpu: Gpu) -> None:
    settings = Settings(("cuda",), runs=5, memory=False, per_layer=True)
    (case,) = compare({"a": net}, settings, quiet).cases
    assert case.layers == ()
    assert "launches" in case.notes[0]


def elsewhere(*ops: str) -> Callable[..., list[placement.NodeTime]]:
    """A profile in which these operators ran on the CPU."""
    real = placement.profile

    def profile(*args: Any, **kwargs: Any) -> list[placement.NodeTime]:
        events = real(*args, **kwargs)
        return [
            placement.NodeTime(e.node, e.op, "cpu" if e.op in ops else "cuda", e.ms) for e in events
        ]

    return profile


def test_what_multiplies_elsewhere_is_an_error(
    net: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.bench.case.profile", elsewhere("Gemm"))
    before = len(gpu.inputs)
    with pytest.raises(CheckFailed, match="cuda did not run all that multiplies") as error:
        compare({"a": net}, Settings(("cuda",), runs=5, memory=False), quiet)
    assert "Gemm_0 on cpu" in str(error.value)
    report = error.value.report
    assert isinstance(report, BenchReport)
    assert report.failed
    assert report.cases == ()
    assert len(gpu.inputs) == before, "nothing was timed"
    ended = command("bench", net, "--provider", "cuda", "--runs", 3)
    assert ended.code == 1
    assert "error: cuda did not run all that multiplies" in ended.err
    assert ended.out == ""


def test_the_others_are_measured_all_the_same(
    net: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    wrong, real = elsewhere("Gemm"), elsewhere()

    def profile(*args: Any, **kwargs: Any) -> list[placement.NodeTime]:
        calls.append(args)
        return (wrong if len(calls) == 1 else real)(*args, **kwargs)

    monkeypatch.setattr("onnxprune.bench.case.profile", profile)
    ended = command("bench", net, "--provider", "cuda", "--batch", "1,2", "--runs", 3, "--json")
    data = json.loads(ended.out)
    assert ended.code == 1
    assert [case["batch"] for case in data["cases"]] == [2]
    assert data["missing"][0]["failed"]
    assert data["missing"][0]["model"] == "net.onnx"


def test_other_nodes_elsewhere_are_counted(
    net: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnxprune.bench.case.profile", elsewhere("Flatten"))
    (case,) = compare({"a": net}, Settings(("cuda",), runs=5, memory=False), quiet).cases
    assert case.rows[0].elsewhere == {"Flatten": 1}
    assert case.rows[0].nodes["cpu"] == 1
    ended = command("bench", net, "--provider", "cuda", "--runs", 3)
    assert "net.onnx: 1 node ran elsewhere: Flatten 1" in ended.out


def test_a_provider_that_is_missing_is_told(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = {"cpu": "", "cuda": "no device", "tensorrt": "not installed"}
    monkeypatch.setattr("onnxprune.bench.compare.tried_providers", lambda: tried)
    ended = command("bench", net, "--runs", 3)
    assert ended.code == 0
    assert "cuda: not measured: no device" in ended.out
    assert "tensorrt: not measured: not installed" in ended.out


def test_a_provider_that_was_asked_for_must_work(net: Path) -> None:
    for provider in {"cuda", "tensorrt"} - set(placement.available_providers()):
        ended = command("bench", net, "--provider", provider)
        assert ended.code == 2
        assert "does not work here" in ended.err


def test_a_run_that_fails_says_why(net: Path) -> None:
    with open_session(net) as opened, pytest.raises(Unreadable, match="cannot run"):
        bound(opened, {"x": np.ones((1, 2, 16, 16), np.float32)})


# ---- the command ------------------------------------------------------------------------------


def test_the_table(net: Path, slim: Path) -> None:
    ended = command("bench", net, slim, "--provider", "cpu", "--runs", 8, "--threads", 1)
    assert (ended.code, ended.err) == (0, "")
    lines = ended.out.splitlines()
    assert "cores; ONNX Runtime" in lines[0]
    assert lines[2] == "cpu, batch 1, 1 thread"
    assert lines[3].startswith("x:1x3x16x16; ")
    assert lines[4].split()[:5] == ["model", "median", "IQR", "p95", "min"]
    assert lines[5].split()[0] == "net.onnx"
    assert lines[6].split()[0] == "slim.onnx"
    assert lines[7].startswith("slim.onnx")
    assert "its MACs promise" in lines[7]


def test_the_same_model_twice_has_two_names(net: Path) -> None:
    ended = command("bench", net, net, "--provider", "cpu", "--runs", 8)
    assert ended.code == 0
    assert "net.onnx (2)" in ended.out


def test_json_and_report_are_the_same(net: Path, slim: Path) -> None:
    file = net.parent / "r.json"
    ended = command("bench", net, slim, "--runs", 3, "--json", "--per-layer", "--report", file)
    assert (ended.code, ended.err) == (0, "")
    data = json.loads(ended.out)
    assert data == json.loads(file.read_text())
    assert data["cases"][0]["layers"]
    quiet_run = command("bench", net, "--runs", 3, "-q", "--provider", "cpu")
    assert (quiet_run.out, quiet_run.err) == ("", "")


@pytest.mark.parametrize(
    ("args", "code", "says"),
    [
        (["no.onnx"], 3, "no such file"),
        (["{net}", "--batch", "1,x"], 2, "not a list of sizes"),
        (["{net}", "--batch", "0"], 2, "not a list of sizes"),
        (["{net}", "--runs", "0"], 2, "not in the range"),
        (["{net}", "--duration", "0"], 2, "not in the range"),
        (["{net}", "--provider", "tpu"], 2, "tpu"),
        (["{net}", "--shape", "z:1x2"], 2, "no input 'z'"),
        (["{net}", "--report", "r.pdf"], 2, "unknown kind of report"),
        (["{net}", "--report", "{net}"], 2, "unknown kind of report"),
        (["{net}", "--report", "nowhere/r.json"], 2, "does not exist"),
        (["{net}", "{net}", "--sweep"], 2, "--sweep takes one model"),
        (["{net}", "--sweep", "--per-layer"], 2, "exclude each other"),
        (["{net}", "--calib", "no.npz"], 3, "no such file"),
        (["{net}", "--shape", "x:1x3x16x16", "--batch", "4"], 2, "--batch excludes"),
        ([], 2, "Missing argument"),
    ],
)
def test_what_makes_no_sense(net: Path, args: list[str], code: int, says: str) -> None:
    ended = command("bench", *(a.format(net=net) for a in args))
    assert ended.code == code
    assert says in ended.err
    assert ended.out == ""


@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_numbers_are_never_cut(compared: BenchReport, width: int) -> None:
    def printed(width: int) -> str:
        console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
        print_bench(compared, console, verbose=True)
        assert isinstance(console.file, io.StringIO)
        return console.file.getvalue()

    found = printed(width)
    assert "…" not in found
    assert all(len(line.rstrip()) <= width for line in found.splitlines())
    row = compared.cases[0].rows[0].ms
    assert milliseconds(row.median) in found
    assert milliseconds(row.p95) in found


def test_colour_only_on_a_terminal(net: Path) -> None:
    assert "\x1b" not in command("bench", net, "--provider", "cpu", "--runs", 2).out


def test_no_measurable_change_is_an_answer() -> None:
    same = Speedup("b", 1.004, 0.99, 1.02, False, 1.0)
    assert speedup_line(same, "a") == "b: no measurable change (1.00x, 0.99 to 1.02)"
    faster = Speedup("b", 1.6, 1.5, 1.7, True, 4.0, 0.5)
    assert speedup_line(faster, "a").splitlines() == [
        "b is 1.60x as fast as a (1.50 to 1.70); its MACs promise 4.00x: 40% of that",
        "50% of its MACs are in layers whose new widths are no multiples of 8: "
        "--align 8 may bring more",
    ]
    slower = Speedup("b", 0.5, 0.4, 0.6, True, 0.1)
    assert speedup_line(slower, "a") == "b is 0.50x as fast as a (0.40 to 0.60)"


def test_it_can_be_stopped(net: Path) -> None:
    """Ctrl-C ends it at once: no traceback, nothing written, and no process left behind."""
    code = (
        "import sys, _thread\n"
        "from onnxprune.cli.main import main\n"
        "import onnxprune.bench.measure as m\n"
        "real = m.interleave\n"
        "def stopped(*a, **k):\n"
        "    _thread.interrupt_main()\n"
        "    return real(*a, **k)\n"
        "m.interleave = stopped\n"
        "main(sys.argv[1:])\n"
    )
    report = net.parent / "r.json"
    done = subprocess.run(
        [sys.executable, "-c", code, "bench", net, "--report", report, "--provider", "cpu"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 130
    assert done.stderr.strip() == "stopped; nothing was written"
    assert done.stdout == ""
    assert not report.exists()


# ---- the sweep --------------------------------------------------------------------------------


def test_a_curve_for_each_alignment(net: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "RATIOS", (0.3, 0.6))
    monkeypatch.setattr(sweep, "ALIGNMENTS", (1, 8))
    ended = command("bench", net, "--sweep", "--runs", 3, "--provider", "cpu", "--json")
    assert (ended.code, ended.err) == (0, "")
    data = json.loads(ended.out)
    points = data["sweep"]
    assert [(p["ratio"], p["align"]) for p in points] == [(0.3, 1), (0.3, 8), (0.6, 1), (0.6, 8)]
    left = [p["macs_left"] for p in points]
    assert left[0] < left[1] < 1, "aligned keeps more"
    assert left[2] < left[0]
    assert "cases" not in data
    assert [m["name"] for m in data["models"]] == ["original"]
    shown = command("bench", net, "--sweep", "--runs", 3, "--provider", "cpu").out
    assert shown.count("align 8") == 2
    assert shown.count("|") >= 4


def test_alignments_that_come_to_the_same_are_timed_once(
    net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "RATIOS", (0.5,))
    seen: list[int] = []
    real = sweep.compare

    def counted(models: Any, *args: Any) -> BenchReport:
        seen.append(len(models))
        return real(models, *args)

    monkeypatch.setattr(sweep, "compare", counted)
    ended = command("bench", net, "--sweep", "--runs", 2, "--provider", "cpu", "--json")
    by_align = {p["align"]: p["median_ms"] for p in json.loads(ended.out)["sweep"]}
    assert by_align[1] == by_align[8], "half of 16 and 32 channels is a multiple of 8 as it is"
    assert by_align.keys() == {1, 8, 16}, "with 32 all channels stay"
    assert seen == [3]


def test_weights_in_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "RATIOS", (0.5,))
    monkeypatch.setattr(sweep, "ALIGNMENTS", (1,))
    path = with_external_data(ZOO["resnet"](0), tmp_path)
    ended = command("bench", path, "--sweep", "--runs", 2, "--provider", "cpu", "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["sweep"][0]["macs_left"] < 0.5


def test_nothing_to_sweep(fixed: Path) -> None:
    ended = command("bench", fixed, "--sweep", "--runs", 2, "--provider", "cpu")
    assert ended.code == 4


def test_missing_cases_are_hashable_and_plain() -> None:
    assert len({Missing("cuda", 1, None, "no", False), Missing("cuda", 1, None, "no", False)}) == 1


def test_usage_errors_are_not_swallowed(net: Path) -> None:
    with pytest.raises(UsageError, match="no provider 'tpu'"):
        compare({"a": net}, Settings(("tpu",), runs=2), quiet)
