"""Write ONNX graphs by hand, one call a layer, random weights and shapes inferred on the way."""

from collections import ChainMap, Counter
from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import onnx
from numpy.typing import DTypeLike
from onnx import defs, helper, numpy_helper, shape_inference

MS = "com.microsoft"

Dim = int | str | None
Shape = tuple[Dim, ...]
# What an operator takes as an input: a tensor's name, a value to store, or None where it is absent.
Operand = str | np.ndarray | np.generic | Sequence[int] | Sequence[float] | int | float | None
Store = Literal["initializer", "constant", "input"]
Cell = Literal["LSTM", "GRU", "RNN"]


class Tensor(NamedTuple):
    """What is known of a tensor: its ONNX element type and its shape, named dims included."""

    elem: int
    shape: Shape


class G:
    """One graph being written. Methods append nodes and return the names of their outputs.

    opset: the default domain's version; each method writes the form that this version has.
    dtype: the type of every float that is stored.
    store: where constants live: initializers, Constant nodes (as Paddle exports them), or
        initializers that are listed as graph inputs too (as IR 3 wants them).
    """

    def __init__(
        self,
        seed: int = 0,
        opset: int = 17,
        *,
        dtype: DTypeLike = np.float32,
        store: Store = "initializer",
    ):
        self.rng = np.random.default_rng(seed)
        self.opset = opset
        self.dtype = np.dtype(dtype)
        self.store: Store = store
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.functions: list[onnx.FunctionProto] = []
        self.tensors: ChainMap[str, Tensor] = ChainMap()
        self.values: ChainMap[str, np.ndarray] = ChainMap()
        self._taken: Counter[str] = Counter()

    # The graph and its parts

    def input(self, name: str, shape: Sequence[Dim], dtype: DTypeLike | None = None) -> str:
        """Declare a graph input; a str in `shape` is a dynamic dim."""
        elem = helper.np_dtype_to_tensor_dtype(np.dtype(dtype or self.dtype))
        self.inputs.append(helper.make_tensor_value_info(name, elem, shape))
        self.tensors[name] = Tensor(elem, tuple(shape))
        return name

    def sub(self) -> Self:
        """A graph for the body of If, Loop or Scan, which sees this one's tensors."""
        child = type(self)(opset=self.opset, dtype=self.dtype)
        child.rng = self.rng
        child._taken = self._taken
        child.tensors = self.tensors.new_child()
        child.values = self.values.new_child()
        return child

    def body(self, name: str, *outputs: str) -> onnx.GraphProto:
        """What has been written so far, as a GraphProto."""
        infos = [helper.make_tensor_value_info(o, *self.tensors[o]) for o in outputs]
        return helper.make_graph(self.nodes, name, self.inputs, infos, self.initializers)

    def model(self, **outputs: str) -> onnx.ModelProto:
        """The finished model, checked; each keyword renames a tensor to be a graph output."""
        for new, old in outputs.items():
            self._rename(old, new)
        domains = sorted({"", *(n.domain for n in self.nodes)})
        imports = [helper.make_opsetid(d, 1 if d else self.opset) for d in domains]
        # IR 3 is the only one that must list initializers as inputs, and so only where asked for.
        ir = 3 if self.store == "input" else max(4, helper.find_min_ir_version_for(imports, True))
        model = helper.make_model(
            self.body("graph", *outputs),
            producer_name="onnxprune-zoo",
            opset_imports=imports,
            ir_version=max(ir, 8) if self.functions else ir,
            functions=self.functions,
        )
        onnx.checker.check_model(model, full_check=True)
        return model

    def _rename(self, old: str, new: str) -> None:
        for node in self.nodes:
            node.input[:] = [new if n == old else n for n in node.input]
            node.output[:] = [new if n == old else n for n in node.output]
        self.tensors[new] = self.tensors.pop(old)

    def fresh(self, stem: str) -> str:
        """A name not used yet: stem_0, stem_1, ..."""
        self._taken[stem] += 1
        return f"{stem}_{self._taken[stem] - 1}"

    # Tensors

    def shape(self, x: str) -> Shape:
        """Shape of a tensor, as far as it is known."""
        return self.tensors[x].shape

    def size(self, x: str, axis: int) -> int:
        """Static size of one axis."""
        size = self.tensors[x].shape[axis]
        if not isinstance(size, int):
            raise ValueError(f"axis {axis} of {x} has no static size: {self.shape(x)}")
        return size

    def const(self, value: Any, name: str | None = None) -> str:
        """Store a value: Python floats get the graph's dtype, Python ints int64."""
        array = np.asarray(value)
        if not isinstance(value, np.ndarray | np.generic):
            array = array.astype(self.dtype if array.dtype.kind == "f" else np.int64)
        name = name or self.fresh("const")
        tensor = numpy_helper.from_array(array, name)
        if self.store == "constant":
            node = helper.make_node("Constant", [], [name], name=f"{name}/Constant", value=tensor)
            self.nodes.append(node)
        else:
            self.initializers.append(tensor)
        if self.store == "input":
            self.inputs.append(helper.make_tensor_value_info(name, tensor.data_type, array.shape))
        self.tensors[name] = Tensor(tensor.data_type, array.shape)
        self.values[name] = array
        return name

    def weight(
        self, *shape: int, std: float | None = None, mean: float = 0.0, name: str | None = None
    ) -> str:
        """A random normal weight; by default scaled for an output of the input's size.

        The fan-in is everything but the first axis, so transposed matrices pass their own `std`.
        """
        std = std if std is not None else (2 / max(1, prod(shape[1:]))) ** 0.5
        array = self.rng.normal(mean, std, shape).astype(self.dtype)
        return self.const(array, name or self.fresh("weight"))

    def positive(self, *shape: int, name: str | None = None) -> str:
        """A random weight between 0.5 and 1.5 (a norm's scale or variance)."""
        array = self.rng.uniform(0.5, 1.5, shape).astype(self.dtype)
        return self.const(array, name or self.fresh("scale"))

    # Any operator

    def op(
        self,
        op_type: str,
        *inputs: Operand,
        domain: str = "",
        like: str | Tensor | None = None,
        **attrs: Any,
    ) -> str:
        """Append a node with one output. `like` says its type where ONNX can't infer it."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, like=like, **attrs)[0]

    def ops(
        self,
        op_type: str,
        *inputs: Operand,
        outputs: int,
        domain: str = "",
        like: str | Tensor | Sequence[Tensor] | None = None,
        **attrs: Any,
    ) -> tuple[str, ...]:
        """Append a node with several outputs; attributes that are None are left out."""
        name = self.fresh(op_type)
        names = [f"{name}_out{i}" if outputs > 1 else f"{name}_out" for i in range(outputs)]
        node = helper.make_node(
            op_type,
            [self._operand(i) for i in inputs],
            names,
            name=name,
            domain=domain,
            **{k: v for k, v in attrs.items() if v is not None},
        )
        self.nodes.append(node)
        if isinstance(like, str):
            like = self.tensors[like]
        if isinstance(like, Tensor):
            like = [like]
        self.tensors.update(zip(names, like or self._infer(node), strict=True))
        return tuple(names)

    def _operand(self, value: Operand) -> str:
        if value is None:
            return ""
        return value if isinstance(value, str) else self.const(value)

    def _infer(self, node: onnx.NodeProto) -> list[Tensor]:
        # A node with a body may read any tensor of the graphs around it.
        has_body = any(a.type == onnx.AttributeProto.GRAPH for a in node.attribute)
        seen = self.tensors if has_body else [n for n in node.input if n]
        # Shapes, axes, sizes and scales are what inference reads the values of.
        small = {n: self.values[n] for n in node.input if n in self.values}
        types = shape_inference.infer_node_outputs(
            defs.get_schema(node.op_type, self.opset, node.domain),
            node,
            {n: helper.make_tensor_type_proto(*self.tensors[n]) for n in seen},
            {n: numpy_helper.from_array(v) for n, v in small.items() if v.size <= 16},
            opset_imports=[helper.make_opsetid("", self.opset)],
        )
        return [self._tensor(types[name].tensor_type) for name in node.output]

    @staticmethod
    def _tensor(t: onnx.TypeProto.Tensor) -> Tensor:
        dims = (d.dim_value if d.HasField("dim_value") else d.dim_param for d in t.shape.dim)
        return Tensor(t.elem_type, tuple(d if d != "" else None for d in dims))

    # Moving data

    def reshape(self, x: str, target: Operand, like: Tensor | None = None) -> str:
        """Reshape; `like` where the target is computed in the graph."""
        if like is None and isinstance(target, list) and -1 in target:
            like = self._reshaped(x, [int(n) for n in target])
        return self.op("Reshape", x, target, like=like)

    def _reshaped(self, x: str, target: Sequence[int]) -> Tensor | None:
        """What -1 stands for where inference, which does not count named dims, would not know."""
        elem, shape = self.tensors[x]
        dims = [shape[i] if n == 0 else n for i, n in enumerate(target)]
        named = [d for d in shape if not isinstance(d, int)]
        if len(named) != 1 or named[0] in dims:
            return None
        before, after = (prod(d for d in part if isinstance(d, int)) for part in (shape, dims))
        if before != -after:
            return None
        return Tensor(elem, tuple(named[0] if d == -1 else d for d in dims))

    def transpose(self, x: str, *perm: int) -> str:
        return self.op("Transpose", x, perm=perm)

    def flatten(self, x: str) -> str:
        return self.op("Flatten", x, axis=1)

    def concat(self, *xs: str, axis: int = 1) -> str:
        return self.op("Concat", *xs, axis=axis)

    def squeeze(self, x: str, *axes: int) -> str:
        return self._with_axes("Squeeze", x, axes, since=13)

    def unsqueeze(self, x: str, *axes: int) -> str:
        return self._with_axes("Unsqueeze", x, axes, since=13)

    def reduce(self, kind: str, x: str, *axes: int, keepdims: bool = True) -> str:
        """ReduceMean, ReduceSum, ...: `kind` is the part after Reduce."""
        since = 13 if kind == "Sum" else 18
        return self._with_axes(f"Reduce{kind}", x, axes, since=since, keepdims=int(keepdims))

    def _with_axes(self, op: str, x: str, axes: Sequence[int], since: int, **attrs: Any) -> str:
        if self.opset < since:
            return self.op(op, x, axes=axes, **attrs)
        return self.op(op, x, axes, **attrs)

    def split(self, x: str, sizes: Sequence[int], axis: int = 1) -> tuple[str, ...]:
        n = len(sizes)
        if self.opset < 13:
            return self.ops("Split", x, outputs=n, axis=axis, split=sizes)
        return self.ops("Split", x, sizes, outputs=n, axis=axis)

    def halves(self, x: str, axis: int = 1, parts: int = 2) -> tuple[str, ...]:
        """Split in equal parts without saying their sizes."""
        count = parts if self.opset >= 18 else None
        return self.ops("Split", x, outputs=parts, axis=axis, num_outputs=count)

    def slice(self, x: str, start: int, end: int, axis: int = 1, step: int = 1) -> str:
        if self.opset < 10:
            if step != 1:
                raise ValueError("Slice has no steps before opset 10")
            return self.op("Slice", x, starts=[start], ends=[end], axes=[axis])
        steps = [[step]] if step != 1 else []
        return self.op("Slice", x, [start], [end], [axis], *steps)

    def pad(self, x: str, begin: Sequence[int], end: Sequence[int]) -> str:
        """Zero padding, one amount an axis on either side."""
        pads = [*begin, *end]
        return self.op("Pad", x, pads=pads) if self.opset < 11 else self.op("Pad", x, pads)

    def resize(self, x: str, factor: int = 2, mode: str = "nearest") -> str:
        """Spatial upsampling by a whole factor."""
        elem, (n, c, *spatial) = self.tensors[x]
        wide = (d * factor if isinstance(d, int) else None for d in spatial)
        like = Tensor(elem, (n, c, *wide))
        scales = np.array([1, 1, *[factor] * len(spatial)], np.float32)
        if self.opset < 9:
            return self.op("Upsample", x, like=like, mode=mode, scales=scales.tolist())
        if self.opset < 11:
            op = "Upsample" if self.opset < 10 else "Resize"
            return self.op(op, x, scales, like=like, mode=mode)
        roi = None if self.opset >= 13 else np.zeros(0, np.float32)
        where = "asymmetric" if mode == "nearest" else "half_pixel"
        return self.op(
            "Resize",
            x,
            roi,
            scales,
            like=like,
            mode=mode,
            coordinate_transformation_mode=where,
        )

    # Layers with weights

    def conv(
        self,
        x: str,
        out: int,
        kernel: int = 3,
        *,
        stride: int = 1,
        groups: int = 1,
        dilation: int = 1,
        pad: int | None = None,
        bias: bool = True,
        weight: str | None = None,
    ) -> str:
        """Conv of any rank over x (N, C, ...), padded to keep the size unless told."""
        rank = len(self.shape(x)) - 2
        name = self.fresh("conv")
        pad = dilation * (kernel - 1) // 2 if pad is None else pad
        fan = self.size(x, 1) // groups
        weight = weight or self.weight(out, fan, *[kernel] * rank, name=f"{name}.weight")
        return self.op(
            "Conv",
            x,
            weight,
            *([self.weight(out, std=0.2, name=f"{name}.bias")] if bias else []),
            kernel_shape=[kernel] * rank,
            strides=[stride] * rank,
            pads=[pad] * (2 * rank),
            dilations=[dilation] * rank,
            group=groups,
        )

    def deconv(
        self, x: str, out: int, kernel: int = 2, *, stride: int = 2, pad: int = 0, groups: int = 1
    ) -> str:
        """ConvTranspose over x (N, C, ...)."""
        rank = len(self.shape(x)) - 2
        name = self.fresh("deconv")
        fan = self.size(x, 1)
        std = (2 * groups / (fan * max(1, kernel // stride) ** rank)) ** 0.5
        shape = (fan, out // groups, *[kernel] * rank)
        return self.op(
            "ConvTranspose",
            x,
            self.weight(*shape, std=std, name=f"{name}.weight"),
            self.weight(out, std=0.2, name=f"{name}.bias"),
            kernel_shape=[kernel] * rank,
            strides=[stride] * rank,
            pads=[pad] * (2 * rank),
            group=groups,
        )

    def gemm(self, x: str, out: int, *, bias: bool = True, transposed: bool = True) -> str:
        """Gemm over x (N, C); `transposed` stores the weight as (out, C), as torch does."""
        name = self.fresh("fc")
        fan = self.size(x, 1)
        shape = (out, fan) if transposed else (fan, out)
        # Gemm may go without a bias only since opset 11.
        bias = bias or self.opset < 11
        return self.op(
            "Gemm",
            x,
            self.weight(*shape, std=fan**-0.5, name=f"{name}.weight"),
            *([self.weight(out, std=0.2, name=f"{name}.bias")] if bias else []),
            transB=1 if transposed else None,
        )

    def linear(self, x: str, out: int, *, bias: bool = True) -> str:
        """MatMul over the last axis of x, then Add."""
        name = self.fresh("linear")
        fan = self.size(x, -1)
        y = self.op("MatMul", x, self.weight(fan, out, std=fan**-0.5, name=f"{name}.weight"))
        if not bias:
            return y
        return self.op("Add", y, self.weight(out, std=0.2, name=f"{name}.bias"))

    def batch_norm(self, x: str) -> str:
        name, c = self.fresh("bn"), self.size(x, 1)
        return self.op(
            "BatchNormalization",
            x,
            self.positive(c, name=f"{name}.weight"),
            self.weight(c, std=0.3, name=f"{name}.bias"),
            self.weight(c, std=0.3, name=f"{name}.running_mean"),
            self.positive(c, name=f"{name}.running_var"),
            epsilon=1e-5,
        )

    def affine(self, x: str) -> str:
        """Scale and shift each channel by Mul and Add with (C, 1, ...): a decomposed norm."""
        name, c = self.fresh("affine"), self.size(x, 1)
        ones = [1] * (len(self.shape(x)) - 2)
        y = self.op("Mul", x, self.positive(c, *ones, name=f"{name}.scale"))
        return self.op("Add", y, self.weight(c, *ones, std=0.3, name=f"{name}.shift"))

    def instance_norm(self, x: str) -> str:
        name, c = self.fresh("in"), self.size(x, 1)
        scale = self.positive(c, name=f"{name}.weight")
        return self.op(
            "InstanceNormalization", x, scale, self.weight(c, std=0.3, name=f"{name}.bias")
        )

    def layer_norm(self, x: str) -> str:
        """LayerNorm over the last axis: the operator from opset 17 on, its parts before."""
        name, c = self.fresh("ln"), self.size(x, -1)
        scale = self.positive(c, name=f"{name}.weight")
        shift = self.weight(c, std=0.3, name=f"{name}.bias")
        if self.opset >= 17:
            return self.op("LayerNormalization", x, scale, shift, axis=-1, epsilon=1e-5)
        centred = self.op("Sub", x, self.reduce("Mean", x, -1))
        y = self.op("Div", centred, self._root_mean_square(centred))
        return self.op("Add", self.op("Mul", y, scale), shift)

    def rms_norm(self, x: str) -> str:
        """RMSNorm over the last axis: the operator from opset 23 on, its parts before."""
        scale = self.positive(self.size(x, -1), name=f"{self.fresh('rms')}.weight")
        if self.opset >= 23:
            return self.op("RMSNormalization", x, scale, axis=-1, epsilon=1e-5)
        return self.op("Mul", self.op("Div", x, self._root_mean_square(x)), scale)

    def _root_mean_square(self, x: str) -> str:
        mean = self.reduce("Mean", self.op("Pow", x, 2.0), -1)
        return self.op("Sqrt", self.op("Add", mean, 1e-5))

    def prelu(self, x: str) -> str:
        """PRelu with one slope a channel of x (N, C, ...)."""
        shape = (self.size(x, 1), *[1] * (len(self.shape(x)) - 2))
        return self.op("PRelu", x, self.weight(*shape, mean=0.2, std=0.1))

    def recurrent(
        self,
        kind: Cell,
        x: str,
        hidden: int,
        *,
        both: bool = False,
        initial: Sequence[str] = (),
    ) -> tuple[str, ...]:
        """A recurrent layer over x (T, N, C); `both` directions, `initial` states (D, N, H).

        Returns Y (T, D, N, H) and the last states (D, N, H).
        """
        name = self.fresh(kind.lower())
        gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[kind]
        d, std = 1 + both, hidden**-0.5
        return self.ops(
            kind,
            x,
            self.weight(d, gates * hidden, self.size(x, 2), std=std, name=f"{name}.W"),
            self.weight(d, gates * hidden, hidden, std=std, name=f"{name}.R"),
            self.weight(d, 2 * gates * hidden, std=0.2, name=f"{name}.B"),
            *([None, *initial] if initial else []),
            outputs=3 if kind == "LSTM" else 2,
            hidden_size=hidden,
            direction="bidirectional" if both else None,
            linear_before_reset=1 if kind == "GRU" else None,
        )

    # Activations and pools

    def relu(self, x: str) -> str:
        return self.op("Relu", x)

    def clip(self, x: str, low: float, high: float) -> str:
        if self.opset < 11:
            return self.op("Clip", x, min=low, max=high)
        return self.op("Clip", x, low, high)

    def silu(self, x: str) -> str:
        return self.op("Mul", x, self.op("Sigmoid", x))

    def gelu(self, x: str) -> str:
        """The operator from opset 20 on, its parts before."""
        if self.opset >= 20:
            return self.op("Gelu", x)
        erf = self.op("Erf", self.op("Div", x, 2**0.5))
        return self.op("Mul", self.op("Mul", x, self.op("Add", erf, 1.0)), 0.5)

    def hard_swish(self, x: str) -> str:
        if self.opset >= 14:
            return self.op("HardSwish", x)
        return self.op("Div", self.op("Mul", x, self.clip(self.op("Add", x, 3.0), 0.0, 6.0)), 6.0)

    def pool(self, x: str, kind: str = "Max", kernel: int = 2, stride: int | None = None) -> str:
        """MaxPool or AveragePool; a stride of 1 keeps the size (odd kernels)."""
        rank = len(self.shape(x)) - 2
        stride = stride or kernel
        pad = (kernel - 1) // 2 if stride < kernel else 0
        return self.op(
            f"{kind}Pool",
            x,
            kernel_shape=[kernel] * rank,
            strides=[stride] * rank,
            pads=[pad] * (2 * rank),
        )

    def gap(self, x: str, kind: str = "Average") -> str:
        return self.op(f"Global{kind}Pool", x)

    def sum(self, xs: Iterable[str]) -> str:
        """Add them up, one Add at a time."""
        first, *rest = xs
        for x in rest:
            first = self.op("Add", first, x)
        return first
