"""What does not shrink leaves byte for byte as it came."""

from functools import cache

import ml_dtypes
import numpy as np
import onnx
import pytest
from google.protobuf.unknown_fields import UnknownFieldSet
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

from models.builder import G
from models.zoo import ZOO, ZOO_NO_RUNTIME
from onnxprune import pipeline
from onnxprune.cut.cut import cut
from onnxprune.pipeline import Result

ALL = ZOO | ZOO_NO_RUNTIME
FIXED = {"int4_ragged"}  # see test_equivalence
NAMES = [name for name in ALL if name not in FIXED]
INLINED = {"local_function"}  # pruned inside: its functions become nodes


@cache
def model(name: str) -> ModelProto:
    return ALL[name](0)


@cache
def halved(name: str) -> Result:
    return pipeline.slim(model(name), ratio=0.5, repair="none", verify=False)


def bare(message: ModelProto | GraphProto | NodeProto, *emptied: str) -> bytes:
    """A message without some of its fields."""
    copy = type(message)()
    copy.CopyFrom(message)
    for field in emptied:
        copy.ClearField(field)
    return copy.SerializeToString(deterministic=True)


def by_name(proto: ModelProto) -> dict[str, NodeProto]:
    found = {n.name: n for n in proto.graph.node}
    assert len(found) == len(proto.graph.node)
    return found


def attributes(node: NodeProto) -> dict[str, bytes]:
    return {a.name: a.SerializeToString() for a in node.attribute}


# All of the zoo


@pytest.mark.parametrize("name", [n for n in NAMES if n not in INLINED])
def test_the_rest_of_the_file_is_the_same(name: str) -> None:
    before, after = model(name), halved(name).model
    assert bare(after, "graph") == bare(before, "graph")
    parts = ("node", "initializer", "value_info", "input")
    assert bare(after.graph, *parts) == bare(before.graph, *parts)
    stored = {t.name for t in before.graph.initializer}
    added = {t.name for t in after.graph.initializer} - stored
    for a, b in ((after, before), (before, after)):
        theirs = {i.name: i for i in b.graph.input}
        for i in a.graph.input:
            assert i.name in stored | added or theirs[i.name] == i


@pytest.mark.parametrize("name", [n for n in NAMES if n not in INLINED])
def test_weights_that_did_not_shrink_keep_their_bytes(name: str) -> None:
    result, shrunk = halved(name), {t.name for t in halved(name).plan.tensors}
    before = {t.name: t for t in model(name).graph.initializer}
    after = {t.name: t for t in result.model.graph.initializer}
    assert [t for t in after if t in before] == [t for t in before if t in after]
    for t in before.keys() & after.keys():
        if t not in shrunk:
            assert after[t].SerializeToString() == before[t].SerializeToString()
        assert after[t].data_type == before[t].data_type


SIZES = {
    "group", "num_groups", "hidden_size", "qkv_hidden_sizes", "num_heads", "q_num_heads",
    "kv_num_heads", "scale", "pads", "value", "body", "then_branch", "else_branch",
}  # fmt: skip
"""Attributes that say how many channels there are, or hold what does."""

REPLACED = {"Constant", "Gather"}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in INLINED])
def test_nodes_keep_names_order_and_what_they_say(name: str) -> None:
    before, after = by_name(model(name)), by_name(halved(name).model)
    same = [n for n in after if n in before]
    assert same == [n for n in before if n in after]
    for n in same:
        old, new = before[n], after[n]
        if new.op_type in REPLACED and old.op_type != new.op_type:
            continue
        says = ("input", "output", "attribute")
        assert bare(new, *says) == bare(old, *says)
        changed = {a for a, _ in attributes(new).items() ^ attributes(old).items()}
        assert changed <= SIZES - ({"pads"} if old.op_type != "Pad" else set())


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_left_without_a_reader(name: str) -> None:
    assert unread(halved(name).model) <= unread(model(name))


def unread(proto: ModelProto) -> set[str]:
    made, read = set(), set()

    def see(graph: GraphProto) -> None:
        made.update(t.name for t in graph.initializer)
        read.update(o.name for o in graph.output)
        for node in graph.node:
            made.update(node.output)
            read.update(node.input)
            for a in node.attribute:
                if a.HasField("g"):
                    see(a.g)

    see(proto.graph)
    return made - read - {""}


# What a file may say beside the network


def annotated() -> ModelProto:
    """A network with everything in the file that a tool may forget."""
    g = G(0, 21)
    x = g.relu(g.conv(g.input("x", ("N", 3, 8, 8)), 8))
    proto = g.model(y=g.gemm(g.flatten(g.gap(g.conv(x, 6))), 4))
    proto = onnx.shape_inference.infer_shapes(proto)
    proto.ir_version = 10
    proto.producer_name, proto.producer_version = "someone", "1.2"
    proto.domain, proto.model_version, proto.doc_string = "org.example", 7, "what it is"
    proto.opset_import.append(helper.make_opsetid("org.example", 3))
    proto.graph.doc_string = "the graph"
    conv = next(n for n in proto.graph.node if n.op_type == "Conv")
    weight = next(t for t in proto.graph.initializer if t.name == conv.input[1])
    conv.doc_string, weight.doc_string = "the first", "filters"
    conv.attribute[0].doc_string = "as ever"
    for k, place in enumerate((proto, proto.graph, conv, weight, *proto.graph.value_info[:1])):
        place.metadata_props.add(key="where", value=str(k))
    proto.graph.input[0].doc_string = "an image"
    proto.graph.input[0].type.denotation = "IMAGE"
    proto.graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    note = proto.graph.quantization_annotation.add(tensor_name=conv.output[0])
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=weight.name)
    return proto


def test_everything_that_a_file_says_stays() -> None:
    before = annotated()
    after = pipeline.slim(before, ratio=0.5, repair="none").model
    assert bare(after, "graph") == bare(before, "graph")
    assert bare(after.graph, "initializer", "value_info") == bare(
        before.graph, "initializer", "value_info"
    )
    for old, new in zip(before.graph.initializer, after.graph.initializer, strict=True):
        assert bare(new, "dims", "raw_data") == bare(old, "dims", "raw_data")
    assert any(t.doc_string and t.metadata_props for t in after.graph.initializer)


def test_stale_value_info_is_updated_and_the_rest_untouched() -> None:
    before = annotated()
    after = pipeline.slim(before, ratio=0.5, repair="none").model
    conv = next(n for n in before.graph.node if n.op_type == "Conv").output[0]
    sizes = {}
    for old, new in zip(before.graph.value_info, after.graph.value_info, strict=True):
        assert (old.name, old.metadata_props) == (new.name, new.metadata_props)
        dims = [(a, b) for a, b in zip(*(i.type.tensor_type.shape.dim for i in (old, new)),
                                       strict=True)]  # fmt: skip
        sizes[old.name] = [b.dim_value for a, b in dims if a != b]
        assert dims[0][0].dim_param == dims[0][1].dim_param == "N"
    assert sizes[conv] == [4]
    inferred = onnx.shape_inference.infer_shapes(after, strict_mode=True, data_prop=True)
    assert inferred.graph.value_info == after.graph.value_info


def test_functions_are_inlined_only_where_something_is_cut() -> None:
    proto = model("local_function")
    before = proto.SerializeToString()
    result = halved("local_function")
    assert not result.model.functions
    assert any("local functions were inlined" in note for note in result.report.notes)
    assert proto.functions
    assert proto.SerializeToString() == before
    analysis = pipeline.analyze(proto)
    assert cut(analysis.view()).model.functions == proto.functions


def test_old_files_list_their_weights_as_inputs() -> None:
    before, after = model("ir3_inputs"), halved("ir3_inputs").model
    assert after.ir_version == before.ir_version == 3
    sizes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in after.graph.input}
    assert all(sizes[t.name] == list(t.dims) for t in after.graph.initializer)
    shrunk = sum(sizes[t.name] != list(t.dims) for t in before.graph.initializer if t.name in sizes)
    assert shrunk >= 10


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64, np.float32])
def test_types_of_weights_stay(dtype: type) -> None:
    g = G(0, 17, dtype=dtype)
    x = g.relu(g.linear(g.input("x", ("N", 20)), 40))
    before = g.model(y=g.linear(x, 10))
    after = pipeline.slim(before, ratio=0.5, repair="none", verify=False).model
    kinds = [{t.name: t.data_type for t in m.graph.initializer} for m in (before, after)]
    assert kinds[0] == kinds[1]
    old, new = ({t.name: numpy_helper.to_array(t) for t in m.graph.initializer}
                for m in (before, after))  # fmt: skip
    first = next(k for k, w in old.items() if w.shape == (20, 40))
    columns = {column.tobytes() for column in old[first].T}
    assert new[first].shape == (20, 20)
    assert all(column.tobytes() in columns for column in new[first].T), "nothing was rounded"


@pytest.mark.parametrize(
    "name", ["qdq", "qoperator", "qoperator_attention", "dynamic_int8", "int4_weights"]
)
def test_integer_weights_stay_integers(name: str) -> None:
    before, after = ({t.name: t for t in m.graph.initializer}
                     for m in (model(name), halved(name).model))  # fmt: skip
    small = (TensorProto.INT8, TensorProto.UINT8, TensorProto.INT4, TensorProto.INT32)
    shrunk = [t for t in after.values() if t.name in before and t.dims != before[t.name].dims]
    assert any(t.data_type in small for t in shrunk)
    assert all(t.data_type == before[t.name].data_type for t in shrunk)


def test_fields_of_a_newer_onnx_stay() -> None:
    """Field 999 is none that this onnx knows."""
    unknown = b"\xba\x3e\x05later"
    before = ModelProto.FromString(model("conv_bn").SerializeToString() + unknown)
    before.graph.MergeFromString(unknown)
    after = pipeline.slim(before, ratio=0.5, repair="none", verify=False).model
    assert [len(UnknownFieldSet(m)) for m in (after, after.graph)] == [1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_copied_late_are_the_same(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large weights are copied only if they stay as they are; here all of them are large."""
    monkeypatch.setattr("onnxprune.cut.edits._LARGE", 0)
    view = halved(name).analysis.view(halved(name).kept)
    assert cut(view).model == halved(name).model
