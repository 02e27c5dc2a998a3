"""What is written: data files of its own, nothing read from outside, all of it or nothing."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto

from models.zoo import ZOO, feeds, with_external_data
from onnxprune import pipeline
from onnxprune.errors import Unreadable, UsageError
from onnxprune.graph import atomic, files
from onnxprune.graph.files import load, stored_tensors
from onnxprune.pipeline import Result
from tests.judge import run


@cache
def model(name: str) -> ModelProto:
    return ZOO[name](0)


@cache
def halved(name: str) -> Result:
    return pipeline.slim(model(name), ratio=0.5, repair="none", verify=False)


def listing(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_external_data_is_cut_into_a_data_file_of_its_own(tmp_path: Path) -> None:
    path = with_external_data(model("resnet"), tmp_path)
    before = listing(tmp_path)
    result = pipeline.slim(path, ratio=0.5, repair="none")
    result.save(tmp_path / "out.onnx")
    after = listing(tmp_path)
    assert before.items() <= after.items()
    assert after.keys() - before.keys() == {"out.onnx", "out.onnx.data"}
    assert len(after["out.onnx.data"]) < 0.6 * len(before["model.onnx.data"])
    assert all(t.data_location == TensorProto.EXTERNAL
               for t in stored_tensors(load(tmp_path / "out.onnx").proto) if t.dims)  # fmt: skip
    inputs = feeds(model("resnet"))
    slim = run(onnx.load(tmp_path / "out.onnx"), inputs)
    assert all(np.array_equal(slim[k], v) for k, v in run(halved("resnet").model, inputs).items())


def test_no_data_file_where_none_is_needed(tmp_path: Path) -> None:
    halved("resnet").save(tmp_path / "out.onnx")
    assert list(listing(tmp_path)) == ["out.onnx"]


def test_a_result_that_is_too_large_gets_a_data_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "INLINE_LIMIT", 10_000)
    result = pipeline.slim(model("resnet"), ratio=0.5)
    assert result.verdict.passed
    result.save(tmp_path / "out.onnx")
    assert set(listing(tmp_path)) == {"out.onnx", "out.onnx.data"}
    inputs = feeds(model("resnet"))
    slim = run(onnx.load(tmp_path / "out.onnx"), inputs)
    assert all(np.array_equal(slim[k], v) for k, v in run(result.model, inputs).items())


@pytest.mark.parametrize("place", ["../outside.data", "link.data"])
def test_data_outside_the_model_s_folder_is_refused(tmp_path: Path, place: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    path = with_external_data(model("mlp"), inside)
    (inside / "model.onnx.data").rename(tmp_path / "outside.data")
    (inside / "link.data").symlink_to(tmp_path / "outside.data")
    proto = onnx.load(path, load_external_data=False)
    for t in proto.graph.initializer:
        for entry in t.external_data:
            if entry.key == "location":
                entry.value = place
    path.write_bytes(proto.SerializeToString())
    with pytest.raises(Unreadable, match="outside"):
        pipeline.slim(path, ratio=0.5, verify=False)


def fail(*_: object) -> None:
    raise OSError(28, "No space left on device")


def interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("breaks", [fail, interrupt])
@pytest.mark.parametrize("step", ["_settle", "_swap"])
def test_a_failure_leaves_the_old_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, breaks: Callable[..., None]
) -> None:
    path = with_external_data(model("resnet"), tmp_path)
    out = tmp_path / "out.onnx"
    pipeline.slim(path, ratio=0.3, repair="none", verify=False).save(out)
    before = listing(tmp_path)
    result = pipeline.slim(path, ratio=0.6, repair="none", verify=False)
    monkeypatch.setattr(atomic, step, breaks)
    with pytest.raises((UsageError, KeyboardInterrupt)):
        result.save(out)
    assert listing(tmp_path) == before
    monkeypatch.undo()
    result.save(out)
    assert listing(tmp_path) != before
