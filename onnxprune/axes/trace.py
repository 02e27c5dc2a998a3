"""Shapes, types and small values of a model under one binding of its symbolic dimensions.

One pass, node by node, through onnx's own shape inference and reference operators. Nothing of the
size of an activation is ever made. Sizes that only the data decides take the binding's `unknown`
size: they differ between two bindings, which marks them as dynamic like any other symbol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
from onnx import TensorProto, TypeProto, defs, helper, numpy_helper, shape_inference

from onnxprune.axes.contrib import AS_STANDARD, CONTRIB_SHAPES, KEPT_ATTRS, TYPED_LIKE
from onnxprune.axes.operators import run_operator
from onnxprune.axes.sequences import SEQUENCES, trace_sequence
from onnxprune.axes.turns import trace_turns
from onnxprune.graph.binding import Binding, free_inputs
from onnxprune.graph.model import Graph, Model, Node

Shape = tuple[int, ...]

FOLD_LIMIT = 1 << 16
"""Elements up to which a value is computed: index lists and masks yes, weights no."""
SMALL = 4096

_SAME_SHAPE = frozenset(
    "Relu Sigmoid Clip Erf Tanh Sqrt HardSwish HardSigmoid LeakyRelu Gelu Exp Log Neg Abs Swish "
    "Reciprocal Floor Ceil Round Sign Sin Cos Tan Softplus Softsign Elu Selu Celu Mish "
    "ThresholdedRelu Identity Softmax LogSoftmax Not GroupNormalization RMSNormalization "
    "InstanceNormalization LpNormalization MeanVarianceNormalization LRN".split()
)
_BROADCAST = frozenset("Add Sub Mul Div Pow PRelu Max Min Sum Mean And Or Xor Mod".split())
_COMPARE = frozenset("Equal Less Greater LessOrEqual GreaterOrEqual".split())
_IMPURE = frozenset(
    "Dropout RandomNormal RandomUniform RandomNormalLike RandomUniformLike Multinomial Bernoulli "
    "LSTM GRU RNN DequantizeLinear QuantizeLinear Conv Attention".split()
)


@dataclass
class Trace:
    """Shapes, element types and small values by value name; nodes where inference failed."""

    binding: Binding
    shapes: dict[str, Shape] = field(default_factory=dict)
    types: dict[str, int] = field(default_factory=dict)
    values: dict[str, np.ndarray] = field(default_factory=dict)
    sequences: dict[str, list[tuple[int, Shape]]] = field(default_factory=dict)
    """Element types and shapes of the tensors of a sequence."""
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(node, why) where a shape could not be had."""
    guessed: bool = False
    """Some size depends on the data and took the binding's `unknown`."""


class _Tracer:
    def __init__(self, model: Model, binding: Binding, hints: Mapping[str, tuple[int, Shape]]):
        self.m = model
        self.t = Trace(binding)
        self.hints = hints
        for name, c in model.constants.items():
            self.set(name, c.tensor.data_type, c.dims)
        by_name = {i.name: i for i in free_inputs(model.proto.graph)}
        for name in model.graph.inputs:
            info = by_name[model.in_file(name)]
            shape = binding.shape(info)
            if shape is not None:
                self.set(name, info.type.tensor_type.elem_type, shape)
        self.imports = list(model.proto.opset_import)

    def set(self, value: str, dtype: int, shape: Sequence[int]) -> None:
        self.t.shapes[value] = tuple(shape)
        self.t.types[value] = dtype

    def put(self, value: str, array: np.ndarray) -> None:
        self.t.values[value] = array
        self.set(value, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    def known(self, value: str, limit: int = SMALL) -> np.ndarray | None:
        """The value, if it is known and small."""
        v = self.t.values.get(value)
        if v is None and (c := self.m.constants.get(value)) is not None and c.size <= limit:
            v = self.t.values[value] = self.m.array(c)
        return v

    def graph(self, g: Graph) -> None:
        for node in g.nodes:
            try:
                self.node(node)
            except Exception as e:  # a wrong binding, or a graph that is wrong: told, not raised
                self.t.failures.append((node.label, f"{node.op}: {str(e)[:160]}"))
            for o in node.outputs:
                if o and o not in self.t.shapes:
                    hint = self.hints.get(o)
                    if hint is not None:
                        self.set(o, *hint)
                if any(d < 0 for d in self.t.shapes.get(o, ())):
                    self.t.failures.append((node.label, f"{node.op}: {self.t.shapes[o]}"))

    def node(self, n: Node) -> None:
        if n.bodies:
            {"If": self.if_, "Loop": self.loop, "Scan": self.scan}.get(n.op, self.opaque)(n)
            return
        if n.domain not in ("", "com.microsoft", "ai.onnx.ml"):
            self.t.failures.append((n.label, f"operator {n.domain}.{n.op} is not known"))
            return
        sh = self.t.shapes
        if n.op in ("Shape", "Size") and not n.domain:
            if n.inputs[0] in sh:
                dims = np.array(sh[n.inputs[0]], np.int64)
                if n.op == "Size":
                    self.put(n.outputs[0], np.array(dims.prod(), np.int64))
                else:
                    self.put(n.outputs[0], dims[n.attrs.get("start", 0) : n.attrs.get("end")])
            return
        if n.op in SEQUENCES and not n.domain:
            trace_sequence(n, self.t, [self.known(i) if i else None for i in n.inputs])
            return
        if not n.domain and self.fold(n):
            return
        if not n.domain and self.quick(n):
            return
        if n.op in CONTRIB_SHAPES and (n.domain or n.op == "SimplifiedLayerNormalization"):
            shapes = CONTRIB_SHAPES[n.op](n, [sh.get(i, ()) for i in n.inputs])
            like = n.inputs[TYPED_LIKE.get(n.op, 0)]
            for o, s in zip(n.outputs, shapes, strict=False):
                if o:
                    self.set(o, self.t.types.get(like, 1), s)
            return
        self.infer(n)

    def quick(self, n: Node) -> bool:
        """Element-wise operators, without a call into onnx."""
        sh, ty = self.t.shapes, self.t.types
        if n.op in _SAME_SHAPE:
            if n.inputs[0] not in sh or len(n.outputs) != 1:
                return False
            self.set(n.outputs[0], ty[n.inputs[0]], sh[n.inputs[0]])
            return True
        if n.op in _BROADCAST or n.op in _COMPARE:
            if not all(i in sh for i in n.inputs) or n.version < 7:
                return False
            shape = np.broadcast_shapes(*(sh[i] for i in n.inputs))
            boolean = n.op in _COMPARE or n.op in ("And", "Or", "Xor")
            self.set(n.outputs[0], TensorProto.BOOL if boolean else ty[n.inputs[0]], shape)
            return True
        return False

    def fold(self, n: Node) -> bool:
        """Compute the node if its inputs are known and it is about shapes, not about weights."""
        if n.op in _IMPURE or not n.inputs or not n.outputs:
            return False
        t = self.t
        derived = any(i in t.values and i not in self.m.constants for i in n.inputs)
        if not derived:
            for i in n.inputs:
                c = self.m.constants.get(i)
                if i and (c is None or c.size > SMALL):
                    return False
            floats = (1, 10, 11, 16)
            if any(
                t.types.get(i) in floats and self.m.constants[i].size > 16 for i in n.inputs if i
            ):
                return False
        vals = [self.known(i) if i else None for i in n.inputs]
        if any(v is None and i for v, i in zip(vals, n.inputs, strict=True)):
            return False
        if not self.fits(n, vals):
            return False
        try:
            out = run_operator(n, vals)
        except Exception:  # not implemented there, or a wrong binding: shape inference will tell
            return False
        if any(r.size > FOLD_LIMIT or r.dtype == object for r in out):
            return False
        for o, r in zip(n.outputs, out, strict=False):
            if o:
                self.put(o, r)
        return True

    @staticmethod
    def fits(n: Node, vals: Sequence[np.ndarray | None]) -> bool:
        """Know the size before making the value: a ConstantOfShape can be of any size."""
        if n.op in _BROADCAST or n.op in _COMPARE or n.op == "Where":
            try:
                shape = np.broadcast_shapes(*(v.shape for v in vals if v is not None))
            except ValueError:
                return False
            return prod(shape) <= FOLD_LIMIT
        if n.op not in ("ConstantOfShape", "Expand", "Tile", "Range"):
            return True
        last = vals[-1]
        assert last is not None
        assert vals[0] is not None
        if n.op == "Range":
            assert vals[1] is not None
            return bool(abs((vals[1] - vals[0]) / last) <= FOLD_LIMIT)
        size = float(np.prod(last.astype(float)))
        return size * (vals[0].size if n.op == "Tile" else 1) <= FOLD_LIMIT

    def infer(self, n: Node) -> None:
        sh, ty = self.t.shapes, self.t.types
        proto, domain = n.proto, n.domain
        picks: Sequence[int] = range(len(n.inputs))
        quantised = n.domain == "com.microsoft" or n.op in (
            "QLinearConv",
            "QLinearMatMul",
            "ConvInteger",
        )
        if quantised:
            if n.op not in AS_STANDARD:
                raise ValueError("no shape rule for this operator")
            op, wanted = AS_STANDARD[n.op]
            proto = helper.make_node(op, [], [])
            proto.attribute.extend(a for a in n.proto.attribute if a.name in KEPT_ATTRS)
            picks = [k for k in wanted if k < len(n.inputs)]
            proto.input.extend(n.proto.input[k] for k in picks)
            proto.output.extend(n.proto.output[:1])
            domain = ""
        types: dict[str, TypeProto] = {}
        data: dict[str, TensorProto] = {}
        for k in picks:
            i, name = n.inputs[k], n.proto.input[k]
            if not i or i not in sh:
                if i:
                    return  # unknown before: unknown here, and told already
                continue
            dtype = TensorProto.FLOAT if quantised else ty[i]  # the standard twin takes no int8
            types[name] = helper.make_tensor_type_proto(dtype, sh[i])
            if len(sh[i]) <= 1 and (sh[i] == () or sh[i][0] <= 64):
                v = self.known(i, 64)
                if v is not None and v.dtype != object:
                    data[name] = numpy_helper.from_array(np.ascontiguousarray(v))
        op_type = proto.op_type
        schema = defs.get_schema(op_type, self.m.opsets.get(domain, 1), domain)
        found = shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=self.imports
        )
        by_name = dict(zip(n.proto.output, n.outputs, strict=True))
        for name, kind in found.items():
            value = by_name.get(name)
            if value:
                self.accept(n, value, kind)
                if quantised:
                    whole = n.op == "ConvInteger"
                    self.t.types[value] = TensorProto.INT32 if whole else ty[n.inputs[0]]
                    if n.op == "MatMulIntegerToFloat":
                        self.t.types[value] = TensorProto.FLOAT
        if not found:
            raise ValueError("no shape could be inferred")

    def accept(self, n: Node, value: str, kind: TypeProto) -> None:
        """Take an inferred type; a size that the data decides gets the binding's `unknown`."""
        t = kind.tensor_type
        if not t.HasField("shape"):
            self.t.types[value] = t.elem_type
            if value not in self.hints:
                raise ValueError("its rank depends on the data")
            return
        dims = [d.dim_value if d.HasField("dim_value") else -1 for d in t.shape.dim]
        if -1 in dims:
            hint = self.hints.get(value)
            if hint is not None and len(hint[1]) == len(dims):
                dims = list(hint[1])
            elif n.op == "Reshape":
                total = int(np.prod(self.t.shapes[n.inputs[0]]))
                known = int(np.prod([d for d in dims if d != -1]))
                if dims.count(-1) == 1 and known and total % known == 0:
                    dims[dims.index(-1)] = total // known
                else:
                    raise ValueError("its shape depends on the data")
            self.t.guessed = self.t.guessed or -1 in dims
            dims = [self.t.binding.unknown if d == -1 else d for d in dims]
        if n.op == "Reshape" and np.prod(dims) != np.prod(self.t.shapes[n.inputs[0]]):
            raise ValueError(f"{self.t.shapes[n.inputs[0]]} can't become {tuple(dims)}")
        self.set(value, t.elem_type, dims)

    # -- control flow -------------------------------------------------------------------------

    def opaque(self, n: Node) -> None:
        for body in n.bodies.values():
            self.graph(body)
        raise ValueError("control flow of an unknown kind")

    def if_(self, n: Node) -> None:
        self.known(n.inputs[0])  # a stored condition is a value from now on
        for body in n.bodies.values():
            self.graph(body)
        for k, o in enumerate(n.outputs):
            names = [b.outputs[k] for b in live_branches(n, self.t)]
            first = names[0]
            if len(names) == 1 and first in self.t.values:
                self.t.values[o] = self.t.values[first]
            shapes = {self.t.shapes.get(x) for x in names}
            if len(shapes) == 1 and first in self.t.shapes:
                self.set(o, self.t.types[first], self.t.shapes[first])
            elif o not in self.hints:
                raise ValueError("the branches give different shapes")

    def loop(self, n: Node) -> None:
        if any(i in self.t.sequences for i in n.inputs[2:]):
            trace_turns(n, self.t, self.known, self.graph)
            return
        body, sh, ty = n.bodies["body"], self.t.shapes, self.t.types
        self.set(body.inputs[0], TensorProto.INT64, ())
        self.set(body.inputs[1], TensorProto.BOOL, ())
        carried = n.inputs[2:]
        for inner, outer in zip(body.inputs[2:], carried, strict=True):
            if outer in sh:
                self.set(inner, ty[outer], sh[outer])
        self.graph(body)
        trips = self.known(n.inputs[0]) if n.inputs[0] else None
        k = len(carried)
        for j, o in enumerate(n.outputs):
            inner = body.outputs[1 + j]
            if not o or inner not in sh:
                continue
            if j < k:
                if sh.get(carried[j]) != sh[inner]:
                    raise ValueError("a carried value changes its shape")
                self.set(o, ty[inner], sh[inner])
            else:
                count = int(trips.item()) if trips is not None else self.t.binding.unknown
                self.t.guessed = self.t.guessed or trips is None
                self.set(o, ty[inner], (count, *sh[inner]))

    def scan(self, n: Node) -> None:
        body, sh, ty = n.bodies["body"], self.t.shapes, self.t.types
        if n.version < 9:
            raise ValueError("Scan of opset 8")
        m = n.attrs["num_scan_inputs"]
        states = len(n.inputs) - m
        axes = n.attrs.get("scan_input_axes", [0] * m)
        length = 0
        for j, (inner, outer) in enumerate(zip(body.inputs, n.inputs, strict=True)):
            shape = sh[outer]
            if j >= states:
                a = axes[j - states] % len(shape)
                length = shape[a]
                shape = shape[:a] + shape[a + 1 :]
            self.set(inner, ty[outer], shape)
        self.graph(body)
        out_axes = n.attrs.get("scan_output_axes", [0] * (len(n.outputs) - states))
        for j, o in enumerate(n.outputs):
            inner = body.outputs[j]
            if not o or inner not in sh:
                continue
            shape = sh[inner]
            if j >= states:
                a = out_axes[j - states] % (len(shape) + 1)
                shape = (*shape[:a], length, *shape[a:])
            self.set(o, ty[inner], shape)


def live_branches(n: Node, *traces: Trace) -> list[Graph]:
    """The branches of an If that can run: one, where the condition is the same in all traces."""
    seen = [t.values.get(n.inputs[0]) for t in traces]
    then, other = n.bodies["then_branch"], n.bodies["else_branch"]
    if any(v is None for v in seen):
        return [then, other]
    picks = {bool(np.asarray(v).ravel()[0]) for v in seen}
    if len(picks) > 1:
        return [then, other]
    return [then if picks.pop() else other]


def trace(
    model: Model, binding: Binding, hints: Mapping[str, tuple[int, Shape]] | None = None
) -> Trace:
    """Shapes, types and small values of every value of a model under one binding."""
    t = _Tracer(model, binding, hints or {})
    t.graph(model.graph)
    return t.t
