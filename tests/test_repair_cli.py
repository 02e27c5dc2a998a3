"""Commands with --calib: the same twice, replayed, verified, and refused."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxprune import pipeline
from onnxprune.errors import UsageError
from onnxprune.repair.calibration import calibration
from tests.commands import files, onnxprune

NET = Path(__file__).parents[1] / "models" / "digits_resnet.onnx"
CALIB = NET.parent / "digits_calib.npz"
HOW = ("--ratio", 0.5, "--calib", CALIB, "--calib-samples", 64, "-q")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a repaired model and its plan."""
    folder = tmp_path_factory.mktemp("repaired")
    plan = folder / "plan.json"
    ended = onnxprune("slim", NET, "-o", folder / "slim.onnx", "--plan-out", plan, *HOW)
    assert ended.code == 0, ended.err
    return folder


def test_the_same_twice_gives_the_same_bytes(done: Path, tmp_path: Path) -> None:
    assert onnxprune("slim", NET, "-o", tmp_path / "again.onnx", *HOW).code == 0
    assert (tmp_path / "again.onnx").read_bytes() == (done / "slim.onnx").read_bytes()


def test_a_repaired_plan_is_replayed_with_the_same_samples(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.onnx"
    how = ("apply", done / "plan.json", NET, "-o", out, "--calib", CALIB)
    assert onnxprune(*how, "--calib-samples", 64).code == 0
    assert out.read_bytes() == (done / "slim.onnx").read_bytes()
    assert onnxprune(*how, "--calib-samples", 32).code == 0
    assert out.read_bytes() != (done / "slim.onnx").read_bytes()


def test_a_repaired_plan_needs_samples(done: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.onnx"
    ended = onnxprune("apply", done / "plan.json", NET, "-o", out)
    assert ended.code == 2
    assert "--calib" in ended.err
    assert not out.exists()


def test_an_unrepaired_plan_needs_none_although_it_was_calibrated(tmp_path: Path) -> None:
    slim, plan, out = (tmp_path / n for n in ("s.onnx", "p.json", "o.onnx"))
    how = (*HOW, "--repair", "none", "--plan-out", plan)
    assert onnxprune("slim", NET, "-o", slim, *how).code == 0
    assert onnxprune("apply", plan, NET, "-o", out).code == 0
    assert out.read_bytes() == slim.read_bytes()


# Proofs of repaired files


def test_a_repaired_file_is_proven(done: Path) -> None:
    ended = onnxprune("verify", NET, done / "slim.onnx", "--plan", done / "plan.json")
    assert ended.code == 0, ended.out + ended.err


def _other_operator(proto: onnx.ModelProto) -> None:
    next(n for n in proto.graph.node if n.op_type == "Relu").op_type = "Abs"


def _other_pads(proto: onnx.ModelProto) -> None:
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    pads = next(a for a in conv.attribute if a.name == "pads")
    pads.ints[:] = [0, 2, 2, 0]


def _other_epsilon(proto: onnx.ModelProto) -> None:
    norm = next(n for n in proto.graph.node if n.op_type == "BatchNormalization")
    del norm.attribute[:]
    norm.attribute.append(onnx.helper.make_attribute("epsilon", 0.5))


def _one_channel_less(proto: onnx.ModelProto) -> None:
    """A channel less than the plan says, everywhere between two convolutions of a block."""
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    name = next(n.input[1] for n in proto.graph.node if n.op_type == "Conv" and n is not conv)
    weight = next(t for t in proto.graph.initializer if t.name == name)
    weight.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(weight)[:-1], name))


@pytest.mark.parametrize(
    "tamper", [_other_operator, _other_pads, _other_epsilon, _one_channel_less]
)
def test_a_tampered_repaired_file_is_not(done: Path, tmp_path: Path, tamper) -> None:  # type: ignore[no-untyped-def]
    proto = onnx.load(done / "slim.onnx")
    tamper(proto)
    onnx.save(proto, tmp_path / "bad.onnx")
    ended = onnxprune("verify", NET, tmp_path / "bad.onnx", "--plan", done / "plan.json")
    assert ended.code == 1
    assert ended.out.startswith("NOT PROVEN")


def test_repaired_weights_are_no_plain_slices(done: Path, tmp_path: Path) -> None:
    """Without the word in the plan, the same file does not pass."""
    text = (done / "plan.json").read_text()
    assert '"repair": "full"' in text
    (tmp_path / "plan.json").write_text(text.replace('"repair": "full"', '"note": "full"'))
    ended = onnxprune("verify", NET, done / "slim.onnx", "--plan", tmp_path / "plan.json")
    assert ended.code == 1


# Refused


@pytest.mark.parametrize("how", [("--criterion", "obs"), ("--repair", "full")])
def test_what_needs_samples_says_so(net: Path, how: tuple[str, str]) -> None:
    ended = onnxprune("slim", net, "--ratio", 0.5, *how)
    assert ended.code == 2
    assert "calibration" in ended.err
    assert files(net) == {"net.onnx"}


def test_the_library_needs_samples_too(net: Path) -> None:
    with pytest.raises(UsageError, match="calibration"):
        pipeline.slim(net, ratio=0.5, repair="full")


@pytest.mark.parametrize(
    ("arrays", "what"),
    [
        ({"image": np.zeros((40, 1, 8, 8), np.float32)}, "no array for input"),
        ({"x": np.zeros((40, 1, 8, 9), np.float32)}, "wrong shape"),
        ({"x": np.zeros((40, 2, 8, 8), np.float32)}, "wrong shape"),
        ({"x": np.full((40, 1, 8, 8), np.nan, np.float32)}, "not finite"),
        ({"x": np.zeros((40, 1, 8, 8), np.int64)}, "wrong type"),
        ({"x": np.zeros((0, 1, 8, 8), np.float32)}, "too few samples|no samples"),
        (None, "no such file"),
    ],
)
@pytest.mark.parametrize("command", ["slim", "apply"])
def test_samples_that_do_not_fit(
    done: Path, tmp_path: Path, command: str, arrays: dict[str, np.ndarray] | None, what: str
) -> None:
    path, out = tmp_path / "calib.npz", tmp_path / "out.onnx"
    if arrays is not None:
        np.savez(path, **arrays)
    start = {"slim": ("slim", NET, "--ratio", 0.5), "apply": ("apply", done / "plan.json", NET)}
    ended = onnxprune(*start[command], "-o", out, "--calib", path)
    assert ended.code == 3
    assert any(w in ended.err for w in what.split("|")), ended.err
    assert not out.exists()


@pytest.mark.parametrize("count", ["0", "-3", "many"])
def test_a_count_of_samples_that_makes_no_sense(net: Path, count: str) -> None:
    how = ("--ratio", 0.5, "--calib", CALIB, "--calib-samples", count)
    assert onnxprune("slim", net, *how).code == 2


# Batches


@pytest.mark.parametrize("samples", [1, 31, 32, 33, 100, 256, 999])
def test_as_many_samples_as_asked_for(samples: int) -> None:
    batches = calibration(CALIB, pipeline.source_of(NET), samples)
    got = np.concatenate([b["x"] for b in batches])
    known = np.load(CALIB)["x"]
    places = [int(np.flatnonzero((known == x).all(axis=(1, 2, 3)))[0]) for x in got]
    assert len(places) == min(samples, len(known))
    gaps = np.diff([0, *sorted(places), len(known)])  # from all over
    assert len(set(places)) == len(places)
    assert gaps.max() <= 3 * -(-len(known) // samples)
    assert all(len(b["x"]) <= 32 for b in batches)
