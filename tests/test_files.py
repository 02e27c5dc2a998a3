"""Loading, tensors and saving: nothing lost, nothing read from outside, nothing half written."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from models.zoo import ZOO
from onnxprune.errors import Unreadable
from onnxprune.graph.files import fingerprint, load, read_tensor, stored_tensors, write_tensor

KINDS = [n for n, v in TensorProto.DataType.items() if v and n != "STRING"]


def tensor(name: str, values: np.ndarray) -> TensorProto:
    return numpy_helper.from_array(values, name)


def model(*weights: TensorProto, body: TensorProto | None = None) -> ModelProto:
    """y = x + w0 + w1 ..., with a Constant node in an If branch and one in a local function."""
    info = helper.make_tensor_value_info
    nodes = [helper.make_node("Add", ["x", w.name], [f"y_{w.name}"]) for w in weights]
    nodes += [helper.make_node("Identity", ["x"], ["y"])]
    functions = []
    if body is not None:
        constant = helper.make_node("Constant", [], ["c"], value=body)
        branch = helper.make_graph([constant], "b", [], [info("c", body.data_type, None)])
        nodes += [helper.make_node("If", ["q"], ["z"], then_branch=branch, else_branch=branch)]
        opset = [helper.make_opsetid("", 18)]
        functions = [helper.make_function("own", "f", [], ["c"], [constant], opset)]
    inputs = [info("x", 1, ["n"]), info("q", TensorProto.BOOL, [])]
    outputs = [info("y", 1, ["n"]), *([info("z", body.data_type, None)] if body else [])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, list(weights))
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("own", 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=functions)


def external(folder: Path, name: str = "m.onnx") -> Path:
    """A model whose weights, one of them in branches and a function, lie in a data file."""
    one = tensor("one", np.arange(5000, dtype=np.float32))
    inner = tensor("inner", np.arange(300, dtype=np.int64))
    path = folder / name
    proto = model(one, tensor("small", np.ones(3, np.float32)), body=inner)
    for stored in stored_tensors(proto):
        if stored.name != "small":
            onnx.external_data_helper.set_external_data(stored, name + ".weights")
    onnx.save(proto, path)
    return path


def values(path: Path) -> list[np.ndarray]:
    source = load(path)
    return [read_tensor(t, source.folder) for t in stored_tensors(source.proto)]


def same(a: list[np.ndarray], b: list[np.ndarray]) -> bool:
    return all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


# ---- load -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b"\x93\x01garbage" * 9, "no ONNX protobuf"),
        (model().SerializeToString()[:-20], "ends too soon"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b'<\n ir_version: 7,\n opset_import: ["" : 10]\n>\nagraph', "as text"),
        (b'{"irVersion": "7"}', "as text"),
        (b"PK\x03\x04rest", "zip"),
        (b"\x18\x00\x00\x00ORTM", ".ort"),
        (ModelProto(ir_version=8).SerializeToString(), "ends too soon"),
        (ModelProto(ir_version=8, graph=model().graph).SerializeToString(), "operator set"),
    ],
)
def test_a_file_that_is_no_model_says_why(tmp_path: Path, data: bytes, said: str) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    with pytest.raises(Unreadable, match=said) as error:
        load(path)
    assert str(path) in str(error.value)
    assert error.value.exit_code == 3


def test_every_truncation_is_a_clear_error(tmp_path: Path) -> None:
    data = model(tensor("w", np.ones(4, np.float32))).SerializeToString()
    path = tmp_path / "m.onnx"
    for end in range(len(data)):
        path.write_bytes(data[:end])
        try:
            load(path)
        except Unreadable:
            continue
        # What is cut between two fields may still be a model, if it still says its opset.
        assert ModelProto.FromString(data[:end]).opset_import


def test_what_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(Unreadable, match="folder"):
        load(tmp_path)
    with pytest.raises(Unreadable, match="no nodes"):
        load(ModelProto(ir_version=8, opset_import=model().opset_import, graph={"name": "g"}))


def test_size_and_fingerprint(tmp_path: Path) -> None:
    path = external(tmp_path)
    source = load(path)
    assert source.size == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert load(source.proto).size == path.stat().st_size
    assert fingerprint(source) == fingerprint(load(source.proto))
    other = load(model(tensor("w", np.ones(3, np.float32))))
    assert fingerprint(source) != fingerprint(other)


# ---- tensors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 5), (), (0, 4)])
def test_every_type_survives(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    number = TensorProto.DataType.Value(kind)
    dtype = helper.tensor_dtype_to_np_dtype(number)
    array = np.arange(np.prod(shape)).reshape(shape).astype(np.float32).astype(dtype)
    template = TensorProto(name="w", data_type=number, doc_string="kept")
    template.metadata_props.add(key="k", value="v")
    inline = write_tensor(template, array)
    assert (inline.name, inline.doc_string, inline.metadata_props[0].value) == ("w", "kept", "v")
    assert inline.data_type == number
    back = read_tensor(inline, None)
    assert back.dtype == dtype
    assert back.shape == shape
    assert back.tobytes() == array.tobytes()

    (tmp_path / "d").write_bytes(b"pad" + inline.raw_data)  # nothing says that it is aligned
    place = {"location": "d", "offset": "3", "length": str(len(inline.raw_data))}
    outside = TensorProto(
        name="w", data_type=number, dims=shape, data_location=TensorProto.EXTERNAL
    )
    for key, value in place.items():
        outside.external_data.add(key=key, value=value)
    assert read_tensor(outside, tmp_path).tobytes() == array.tobytes()


def test_strings_and_typed_fields() -> None:
    words = tensor("s", np.array(["a", "é"], object))
    assert write_tensor(words, read_tensor(words, None)).string_data == words.string_data
    halves = helper.make_tensor("h", TensorProto.FLOAT16, [2], [0.5, 2])
    assert read_tensor(halves, None).tolist() == [0.5, 2]
    with pytest.raises(ValueError, match="float16"):
        write_tensor(halves, np.ones(2, np.float64))


@pytest.mark.parametrize(
    "broken",
    [
        TensorProto(name="w", data_type=1, dims=[2], raw_data=b"123"),
        TensorProto(name="w", data_type=1, dims=[-1], raw_data=b"1234"),
        TensorProto(name="w", data_type=0, dims=[1], raw_data=b"1234"),
        TensorProto(name="w", data_type=99, dims=[1], raw_data=b"1234"),
        TensorProto(name="w", data_type=8, dims=[1], string_data=[b"\xff\xfe"]),
    ],
)
def test_a_damaged_tensor_is_named(broken: TensorProto) -> None:
    with pytest.raises(Unreadable, match="'w'"):
        read_tensor(broken, None)


@pytest.mark.parametrize(
    "location",
    ["../secret", "a/../../secret", "/etc/hostname", "link", "sub/secret", "", "C:\\x", "a\0b"],
)
def test_nothing_is_read_from_outside(tmp_path: Path, location: str) -> None:
    (tmp_path / "secret").write_bytes(b"12345678")
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "sub").symlink_to(tmp_path)
    stolen = TensorProto(name="w", data_type=1, dims=[2], data_location=TensorProto.EXTERNAL)
    stolen.external_data.add(key="location", value=location)
    with pytest.raises(Unreadable, match="outside"):
        read_tensor(stolen, folder)
    (folder / "m.onnx").write_bytes(model(stolen).SerializeToString())
    with pytest.raises(Unreadable, match="outside"):
        load(folder / "m.onnx")


def test_missing_short_and_lying_data_files(tmp_path: Path) -> None:
    path = external(tmp_path)
    proto, data = load(path).proto, tmp_path / "m.onnx.weights"
    weight = proto.graph.initializer[0]
    with pytest.raises(Unreadable, match="memory"):
        read_tensor(weight, None)
    data.write_bytes(data.read_bytes()[:-1] * 0 + b"short")
    with pytest.raises(Unreadable, match=r"too short[\s\S]*'one'"):
        read_tensor(weight, tmp_path)
    data.unlink()
    assert load(path).size == path.stat().st_size
    with pytest.raises(Unreadable, match=r"missing[\s\S]*'one'"):
        read_tensor(weight, tmp_path)
    for entry in weight.external_data:
        entry.value = "-4" if entry.key == "offset" else entry.value
    data.mkdir()
    with pytest.raises(Unreadable):
        read_tensor(weight, tmp_path)


@pytest.mark.parametrize("name", ["conv_bn", "lstm", "constant_nodes", "qdq", "external"])
def test_the_size_of_a_file_is_counted_right(name: str) -> None:
    model = ModelProto()
    model.CopyFrom(ZOO["conv_bn" if name == "external" else name](0))
    if name == "external":
        tensor = model.graph.initializer[0]
        tensor.external_data.add(key="location", value="weights")
        tensor.data_location = TensorProto.EXTERNAL
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(40_000, np.int8), "large"))
    model.graph.initializer.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [1, 2]))
    assert load(model).size == len(model.SerializeToString())
