"""Saving: byte for byte, whole or not at all, data files never shared."""

from pathlib import Path

import numpy as np
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto

from onnxprune.errors import PruneError, UsageError
from onnxprune.graph import files
from onnxprune.graph.files import (
    check_output,
    fingerprint,
    load,
    save,
    stored_tensors,
    write_tensor,
)
from onnxprune.graph.tensors import inline_bytes
from tests.test_files import external, model, same, tensor, values

REAL = sorted((Path(__file__).parents[2] / "shared" / "models").glob("*.onnx"))
BIG = tensor("big", np.arange(2**19, dtype=np.float32))


def listing(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize("path", REAL, ids=lambda p: p.stem)
def test_real_models_come_back_byte_for_byte(path: Path, tmp_path: Path) -> None:
    source = load(path)
    save(source.proto, tmp_path / "out.onnx", source.folder)
    assert listing(tmp_path) == {"out.onnx": path.read_bytes()}


def test_external_data_is_copied_and_the_source_left_alone(tmp_path: Path) -> None:
    path = external(tmp_path)
    before = listing(tmp_path)
    source = load(path)
    kept = source.proto.SerializeToString()
    save(source.proto, tmp_path / "out.onnx", source.folder)
    after = listing(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {"out.onnx", "out.onnx.data"}
    assert same(values(path), values(tmp_path / "out.onnx"))
    assert source.proto.SerializeToString() == kept, "the model in memory was changed"
    saved = {t.name: t for t in stored_tensors(load(tmp_path / "out.onnx").proto)}
    assert not saved["small"].external_data, "what came inline stays inline"
    assert {e.value for e in saved["inner"].external_data if e.key == "location"} == {
        "out.onnx.data"
    }


def test_cut_weights_go_back_to_a_data_file(tmp_path: Path) -> None:
    source = load(external(tmp_path))
    weight = source.proto.graph.initializer[0]
    weight.CopyFrom(write_tensor(weight, np.arange(9, dtype=np.float32)))
    save(source.proto, tmp_path / "out.onnx", source.folder)
    back = load(tmp_path / "out.onnx").proto.graph.initializer[0]
    assert back.data_location == TensorProto.EXTERNAL
    assert not back.raw_data
    assert values(tmp_path / "out.onnx")[0].tolist() == list(range(9))


def test_a_large_model_moves_its_weights_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    typed = TensorProto(name="typed", data_type=1, dims=[400], float_data=range(400))
    proto = model(
        tensor("tiny", np.ones(1, np.float32)), typed, BIG, body=tensor("in", np.ones(999))
    )
    monkeypatch.setattr(files, "INLINE_LIMIT", inline_bytes(proto) - 1)
    save(proto, tmp_path / "out.onnx", None)
    saved = load(tmp_path / "out.onnx")
    assert saved.size == sum(len(data) for data in listing(tmp_path).values())
    places = {
        t.name: {e.key: e.value for e in t.external_data} for t in stored_tensors(saved.proto)
    }
    assert not places["tiny"]
    assert int(places["big"]["offset"]) % 4096 == 0
    assert all(places[name]["location"] == "out.onnx.data" for name in ("typed", "big", "in"))
    monkeypatch.undo()
    save(proto, tmp_path / "whole.onnx", None)
    assert same(values(tmp_path / "out.onnx"), values(tmp_path / "whole.onnx"))


def test_weights_that_shared_bytes_go_on_sharing_them(tmp_path: Path) -> None:
    source = load(external(tmp_path))
    twin = source.proto.graph.initializer.add()
    twin.CopyFrom(source.proto.graph.initializer[0])
    twin.name = "twin"
    save(source.proto, tmp_path / "out.onnx", source.folder)
    size = (tmp_path / "out.onnx.data").stat().st_size
    assert size < 2 * 5000 * 4


def test_an_empty_tensor_at_the_end_of_the_data_file(tmp_path: Path) -> None:
    source = load(external(tmp_path))
    last = source.proto.functions[0].node[0].attribute[0].t
    last.CopyFrom(write_tensor(last, np.empty(0, np.int64)))
    save(source.proto, tmp_path / "out.onnx", source.folder)
    assert values(tmp_path / "out.onnx")[-1].size == 0


def test_in_place_and_back_to_inline(tmp_path: Path) -> None:
    first = load(external(tmp_path))
    out = tmp_path / "out.onnx"
    save(first.proto, out, tmp_path)
    content = values(out)
    again = load(out)
    save(again.proto, out, tmp_path)  # its own data file is read while the new one is written
    assert same(values(out), content)
    print_before = fingerprint(load(out))
    save(load(out).proto, out, tmp_path)
    assert fingerprint(load(out)) == print_before
    save(model(), out, None)
    assert not (tmp_path / "out.onnx.data").exists(), "the data file of the replaced model"


def test_a_stranger_beside_the_output_stays(tmp_path: Path) -> None:
    (tmp_path / "out.onnx.data").write_text("mine")
    save(model(), tmp_path / "out.onnx", None)
    assert (tmp_path / "out.onnx.data").read_text() == "mine"


def test_the_source_s_data_file_is_never_the_output(tmp_path: Path) -> None:
    source = load(external(tmp_path))
    (tmp_path / "m.onnx.weights").rename(tmp_path / "out.onnx.data")
    for stored in stored_tensors(source.proto):
        for entry in stored.external_data:
            if entry.key == "location":
                entry.value = "out.onnx.data"
    before = listing(tmp_path)
    with pytest.raises(UsageError, match="its source"):
        save(source.proto, tmp_path / "out.onnx", tmp_path)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("bad", ["none/out.onnx", "folder", "/dev/null"])
def test_where_nothing_can_be_written(tmp_path: Path, bad: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(UsageError):
        check_output(model(), tmp_path / bad, None)
    with pytest.raises(UsageError):
        save(model(), tmp_path / bad, None)
    assert Path("/dev/null").is_char_device()


def test_too_large_even_without_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EncodeError

    monkeypatch.setattr(files, "_move_out", refuse)
    with pytest.raises(PruneError, match="too large"):
        save(load(external(tmp_path)).proto, tmp_path / "out.onnx", tmp_path)
