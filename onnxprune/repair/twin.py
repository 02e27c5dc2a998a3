"""The float twin of a quantised model: what it computes, but for rounding, with weights as layers
read them, so that they can be refitted.

What stands between stored weights and layers is undone, and values keep their names:

* DequantizeLinear behind stored codes is the float it makes, and so are both behind a stored float;
  on activations, QuantizeLinear and DequantizeLinear are nothing, or a Clip where the quantiser
  stands for a rectifier;
* QLinearConv, QLinearMatMul, QGemm, QLinearAdd and their kin are the float operator;
* Transpose of a stored weight is the weight it makes; FusedConv and FusedGemm are a layer and what
  follows it;
* DynamicQuantizeLinear, ConvInteger or MatMulInteger, Cast, Mul by the scales (and Add of a bias,
  for a convolution) are one Conv or MatMul.

`repair.requantise` takes refitted weights back into the file's own codes and scales.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from onnxprune.graph.files import read_tensor
from onnxprune.graph.model import captured
from onnxprune.graph.tensors import add_tensor
from onnxprune.repair.cone import stored

MS = "com.microsoft"
CODES = (2, 3, 4, 5, 6)
"""Element types that weights and biases are quantised to: (u)int8, (u)int16, int32."""
PART = "/part"
"""Ends the name of what a layer gives that its file fuses with what follows."""
_ACTIVATIONS: dict[str, tuple[str, ...]] = {
    "": (), "Relu": (), "Tanh": (), "Sigmoid": (), "LeakyRelu": ("alpha",), "Clip": (),
    "HardSigmoid": ("alpha", "beta"),
}  # fmt: skip
"""Activations that layers are fused with, and the attributes that their parameters are."""
_MARK = "/is_read_twice"
"""Ends the name of what marks a bias that must stay."""
_SIZES = ("Shape", "Size")
_HIDING = frozenset(
    "DequantizeLinear QLinearConv QLinearMatMul QGemm ConvInteger MatMulInteger FusedConv "
    "FusedGemm".split()
)

Place = tuple[str, int]
"""Where a file holds a tensor: the first output of a node, and which of its inputs."""


@dataclass(frozen=True)
class Link:
    """Where a file holds what a float of the twin stands for: as codes, that is as
    round(x / scale) + zero, or as floats, which may be rounded to codes when they are used.
    """

    place: Place
    scales: tuple[Place, ...] = ()
    """All places of the scale."""
    zero: Place | None = None
    axis: int | None = None
    """Of the scales, in the file's shape; None for a single one."""
    perm: tuple[int, ...] = ()
    """The axes of the file's tensor in the twin's order, if they are turned."""
    bias_of: str = ""
    """For a bias whose scale is the weight's times another: the twin's name of the weight."""
    unit: float = 0.0
    """That other: the scale of what its layer reads."""
    held: bool = False
    """Its scale must stay: what is stored beside it is in its units, and can't be changed."""


@dataclass(frozen=True, eq=False)
class Twin:
    """A float model and, by tensor, where the quantised file holds what it stands for. Tensors that
    are not in it are the same in both.
    """

    model: onnx.ModelProto
    links: Mapping[str, Link]


class Unsupported(Exception):
    """The model computes with codes in a way that has no float twin."""


def hides_weights(model: onnx.ModelProto) -> bool:
    """Whether something stands between the weights of the main graph and the layers."""
    tensors = stored(model)
    return any(
        n.op_type in _HIDING or (n.op_type == "Transpose" and n.input[0] in tensors)
        for n in model.graph.node
    )


def twin_of(model: onnx.ModelProto, folder: Path | None) -> Twin | None:
    """The float twin; None where there is none, or nothing in it was quantised.

    Raises:
        Unreadable: stored weights can't be read.
    """
    if not hides_weights(model):
        return None
    try:
        builder = _Builder(model, folder)
        for node in model.graph.node:
            builder.visit(node)
        return builder.finish() if builder.links or builder.fused else None
    except (Unsupported, LookupError, ValueError):  # or a node that is not as its operator says
        return None


def dequantised(
    codes: np.ndarray, scale: np.ndarray, zero: np.ndarray | None, axis: int | None
) -> np.ndarray:
    """(codes - zero) * scale, in the scale's type."""
    spread = along(scale, axis, codes.ndim)
    shifted = codes.astype(np.float64)
    if zero is not None:
        shifted = shifted - along(zero, axis, codes.ndim).astype(np.float64)
    return np.asarray(shifted * spread.astype(np.float64), scale.dtype)


def along(values: np.ndarray, axis: int | None, rank: int) -> np.ndarray:
    """Scales or zero points, shaped to meet codes of this rank."""
    if axis is None or values.size == 1:
        return values.reshape((1,) * rank)
    return values.reshape([-1 if k == axis else 1 for k in range(rank)])


@dataclass(frozen=True)
class _Dynamic:
    """A layer on dynamically quantised activations."""

    layer: NodeProto
    x: str
    """The float that is quantised."""
    scale: Place
    out: str
    """The float that the scaled result is."""
    bias: Place | None
    skip: tuple[NodeProto, ...]
    """Nodes that it stands for, but the last."""
    last: NodeProto


@dataclass
class _Builder:
    model: onnx.ModelProto
    folder: Path | None
    links: dict[str, Link] = field(default_factory=dict)
    nodes: list[NodeProto] = field(default_factory=list)
    floats: dict[str, np.ndarray] = field(default_factory=dict)
    """Stored tensors of the twin."""
    same: dict[str, str] = field(default_factory=dict)
    """Values that another one stands for."""
    was_codes: set[str] = field(default_factory=set)
    """Values that are codes in the file and floats here."""
    fused: bool = False
    """Some layers were fused with what follows them."""
    means: dict[str, tuple[Place, Place]] = field(default_factory=dict)
    """Where the scale and zero point of codes stand."""

    def __post_init__(self) -> None:
        graph = self.model.graph
        self.tensors = stored(self.model)
        self.opset = next((o.version for o in self.model.opset_import if not o.domain), 1)
        self.made = {o: n for n in graph.node for o in n.output if o}
        self.users: dict[str, list[NodeProto]] = {}
        for n in graph.node:
            for i in n.input:
                self.users.setdefault(i, []).append(n)
        self.known = {i.name for i in graph.input} | {*self.made, *self.tensors}
        self.held = {o.name for o in graph.output}
        self.held |= {name for n in graph.node for name in captured(n)}
        found = [d for n in graph.node if (d := self._dynamic(n)) is not None]
        self.dynamic = {id(d.last): d for d in found}
        self.skipped = {id(n) for d in found for n in d.skip}

    # The pieces of a twin

    def visit(self, node: NodeProto) -> None:
        if id(node) in self.skipped:
            return
        if id(node) in self.dynamic:
            self._undo_dynamic(self.dynamic[id(node)])
        elif node.op_type == "QuantizeLinear":
            self._quantise(node)
        elif node.op_type == "DequantizeLinear":
            self._dequantise(node)
        elif node.op_type == "Transpose" and self._transpose(node):
            return
        elif node.op_type == "Pad" and node.input[0] in self.was_codes:
            self._pad(node)
        elif (node.domain, node.op_type) in _UNDO:
            _UNDO[node.domain, node.op_type](self, node)
        else:
            self._keep(node)

    def _keep(self, node: NodeProto) -> None:
        copy = NodeProto()
        copy.CopyFrom(node)
        copy.input[:] = [self.same.get(i, i) for i in node.input]
        self.nodes.append(copy)
        if node.op_type not in _SIZES and any(i in self.was_codes for i in node.input):
            self.was_codes.update(o for o in node.output if o)
            if node.op_type in ("Cast", "ConvInteger", "MatMulInteger"):
                raise Unsupported
        layer = node.op_type in ("Conv", "ConvTranspose", "Gemm")
        weight = self.links.get(node.input[1]) if layer else None
        if weight is None or not weight.scales:
            return
        bias = node.input[2] if len(node.input) > 2 else ""
        if bias:
            self._tie(bias, node.input[1], weight)
        else:
            copy.input[:] = [*copy.input[:2], self._no_bias(node, node.output[0], node.input[1])]

    def _tie(self, bias: str, name: str, weight: Link) -> None:
        """Note where the scale of a layer's bias is its weight's times another."""
        own = self.links.get(bias)
        if own is None or not own.scales:
            return
        spread, mine = (self._value(x.scales[0]).astype(np.float64).ravel() for x in (weight, own))
        if spread.size not in (1, mine.size) or not spread.all():
            return
        units = mine / spread
        if not np.allclose(units, units[0], rtol=1e-3):
            return
        if len(self.users[bias]) == 1:
            self.links[bias] = replace(own, bias_of=name, unit=float(units[0]))
        else:
            self.links[name] = replace(weight, held=True)

    def _no_bias(self, node: NodeProto, out: str, weight: str) -> str:
        """A bias that can't be changed, for a layer that can't be given one in the file."""
        dims, dtype = self.floats[weight].shape, self.floats[weight].dtype
        width = dims[1] if "Gemm" in node.op_type and not _flag(node, "transB") else dims[0]
        if node.op_type == "ConvTranspose":
            width = dims[1] * next((int(a.i) for a in node.attribute if a.name == "group"), 1)
        return self._fixed(out, np.zeros(width, dtype))

    def _fixed(self, out: str, bias: np.ndarray) -> str:
        """Store a layer's bias so that it is left alone: as one that two nodes read."""
        name = self._store(self._fresh(f"{out}/fixed_bias"), bias)
        self.nodes.append(helper.make_node("Identity", [name], [f"{name}{_MARK}"]))
        return name

    def _fresh(self, name: str) -> str:
        """A name that the file has not."""
        while name in self.known:
            name += "_"
        return name

    def _store(self, name: str, values: np.ndarray) -> str:
        self.floats[name] = values
        return name

    def _value(self, place: Place) -> np.ndarray:
        """What the file stores at a place."""
        name = self._name(place)
        if name not in self.tensors:
            raise Unsupported
        return read_tensor(self.tensors[name], self.folder)

    def _name(self, place: Place) -> str:
        inputs = self.made[place[0]].input
        return str(inputs[place[1]]) if len(inputs) > place[1] else ""

    def _codes(self, name: str, place: Place, scale: Place, zero: Place, axis: int) -> str:
        """Store the float behind codes under a name."""
        values, spread = self._value(place), self._value(scale)
        has_zero = self._name(zero) != ""
        if values.dtype.kind not in "iu" or values.dtype.itemsize > 4 or spread.ndim > 1:
            raise Unsupported
        one = axis % max(1, values.ndim) if spread.size > 1 else None
        if one is not None and values.shape[one] != spread.size:
            raise Unsupported
        shift = self._value(zero) if has_zero else None
        self.links[name] = Link(place, (scale,), zero if has_zero else None, one)
        return self._store(name, dequantised(values, spread, shift, one))

    def _is_alone(self, name: str) -> bool:
        """Whether a tensor is stored for one node only."""
        return name in self.tensors and len(self.users.get(name, ())) == 1 and name not in self.held

    def _operand(self, node: NodeProto, k: int) -> str:
        """A quantised operand with its scale and zero point behind it, as a float."""
        name, out = node.input[k], node.output[0]
        made = self._fresh(f"{out}/operand_{k}")
        by_row = node.op_type == "QLinearConv" or _flag(node, "transB")
        axis = 0 if by_row else 1
        if self._is_alone(name):
            return self._codes(made, (out, k), (out, k + 1), (out, k + 2), axis)
        if name in self.was_codes:
            return self.same.get(name, name)
        # codes that others read too, or that come from outside
        behind = helper.make_node("DequantizeLinear", [name, *node.input[k + 1 : k + 3]], [made])
        if self._value((out, k + 1)).size > 1:
            behind.attribute.append(helper.make_attribute("axis", axis))
        self.nodes.append(behind)
        return made

    def _emit(
        self, op: str, inputs: Sequence[str], out: str, node: NodeProto | None = None
    ) -> None:
        """Add a node, with the attributes of another."""
        copy = helper.make_node(op, list(inputs), [out], name=out)
        for a in node.attribute if node is not None else ():
            if a.name not in ("channels_last", "opset") and "activation" not in a.name:
                copy.attribute.append(a)
        self.nodes.append(copy)

    def _stands_for(self, old: str, new: str) -> None:
        """One value for another; where the other's name is held, a node between them."""
        if old in self.held:
            self._emit("Identity", [new], old)
        else:
            self.same[old] = new

    def _top(self, scale: Place, zero: Place) -> np.ndarray | None:
        """The largest float of a quantiser whose codes start at 0: it is a rectifier. Else None."""
        spread = self._value(scale)
        if self._name(zero):
            shift = self._value(zero)
        else:
            node = self.made[zero[0]]
            kind = next((a.i for a in node.attribute if a.name == "output_dtype"), 0)
            shift = np.zeros((), helper.tensor_dtype_to_np_dtype(kind or onnx.TensorProto.UINT8))
        if shift.dtype.kind not in "iu":
            raise Unsupported
        limits = np.iinfo(shift.dtype)
        if (shift != limits.min).any():
            return None
        top = (int(limits.max) - int(limits.min)) * spread.astype(np.float64).max()
        return np.asarray(min(top, float(np.finfo(spread.dtype).max)), spread.dtype)

    def _clip(self, x: str, out: str, top: np.ndarray) -> None:
        if self.opset < 11:  # the ends are attributes
            self._emit("Clip", [x], out)
            ends = {"min": 0.0, "max": float(top)}
            self.nodes[-1].attribute.extend(helper.make_attribute(k, v) for k, v in ends.items())
            return
        low = self._store(self._fresh(f"{out}/low"), np.zeros((), top.dtype))
        self._emit("Clip", [x, low, self._store(self._fresh(f"{out}/high"), top)], out)

    def _emit_into(self, op: str, inputs: Sequence[str], node: NodeProto, end: int) -> None:
        """Add what an operator on codes computes; its output's scale is operand `end`."""
        out = node.output[0]
        if not self._name((out, end)):  # it gives floats
            self._emit(op, inputs, out, node)
            return
        top = self._top((out, end), (out, end + 1))
        made = out if top is None else self._fresh(f"{out}/exact")
        self._emit(op, inputs, made, node)
        if top is not None:
            self._clip(made, out, top)
        self._make_codes(out, (out, end), (out, end + 1))

    def _make_codes(self, value: str, scale: Place, zero: Place) -> None:
        """Note that the file has codes there, and what they mean."""
        self.was_codes.add(value)
        self.means[value] = scale, zero

    def _quantise(self, node: NodeProto) -> None:
        x, out = node.input[0], node.output[0]
        if self._is_alone(x):
            self._round(node)
            return
        top, x = self._top((out, 1), (out, 2)), self.same.get(x, x)
        if top is None:
            self._stands_for(out, x)
        else:
            self._clip(x, out, top)
        self._make_codes(out, (out, 1), (out, 2))

    def _round(self, node: NodeProto) -> None:
        """Store what a quantiser makes of a stored float, as a float."""
        out = node.output[0]
        if len(node.input) < 3 or any(i not in self.tensors for i in node.input):
            self._keep(node)  # the type of its codes is not stored
            return
        values, scale = self._value((out, 0)), self._value((out, 1))
        if scale.ndim > 1 or self._value((out, 2)).dtype.kind not in "iu":
            raise Unsupported
        zero, one = self._value((out, 2)), _axis(node) % values.ndim if scale.size > 1 else None
        steps, limits = along(scale, one, values.ndim).astype(np.float64), np.iinfo(zero.dtype)
        shift = along(zero, one, values.ndim).astype(np.float64)
        codes = np.clip(np.rint(values / steps) + shift, limits.min, limits.max)
        self._store(out, np.asarray((codes - shift) * steps, values.dtype))
        self.links[out] = Link((out, 0), ((out, 1),), (out, 2), one)

    def _follow(self, old: str, new: str, link: Link) -> None:
        """What was stored under one name is stored under another, of the only node behind it."""
        if len(self.users[old]) > 1 or old in self.held or new in self.held:
            raise Unsupported
        self.links[new] = link
        self._store(new, self.floats.pop(old))
        del self.links[old]

    def _transpose(self, node: NodeProto) -> bool:
        """Store what a Transpose makes of a stored weight; False where that can't be."""
        x, out = node.input[0], node.output[0]
        given = next((tuple(a.ints) for a in node.attribute if a.name == "perm"), None)
        if out in self.held or len(self.users.get(x, ())) != 1:
            return False
        if x in self.floats and x in self.links and not self.links[x].perm:
            perm = given or tuple(range(self.floats[x].ndim))[::-1]
            self._follow(x, out, replace(self.links[x], perm=perm))
            self._store(out, self.floats[out].transpose(perm))
            return True
        if self._is_alone(x) and self.tensors[x].data_type in (1, 10, 11):
            values = self._value((out, 0))
            perm = given or tuple(range(values.ndim))[::-1]
            self.links[out] = Link((out, 0), perm=perm)
            self._store(out, values.transpose(perm))
            return True
        return False

    def _dequantise(self, node: NodeProto) -> None:
        x, out = node.input[0], node.output[0]
        if x in self.was_codes:
            self._stands_for(out, self.same.get(x, x))
        elif self._is_alone(x) and self._is_plain(node):
            self._codes(out, (out, 0), (out, 1), (out, 2), _axis(node))
        elif x in self.links:
            self._follow(x, out, replace(self.links[x], scales=(*self.links[x].scales, (out, 1))))
        else:
            self._keep(node)

    def _is_plain(self, node: NodeProto) -> bool:
        """Codes that can be taken back: whole bytes, with a scale for all or for each channel."""
        scale = self.tensors.get(node.input[1])
        if scale is None or len(scale.dims) > 1 or _flag(node, "block_size"):
            return False
        return self.tensors[node.input[0]].data_type in CODES and node.output[0] not in self.held

    def _pad(self, node: NodeProto) -> None:
        """Pad codes: what is put in means something, also if it is left out."""
        x, out = node.input[0], node.output[0]
        mode = next((a.s.decode() for a in node.attribute if a.name == "mode"), "constant")
        if x not in self.means or len(node.input) < 2 or mode != "constant":
            raise Unsupported
        scale, zero = self.means[x]
        has_value = self._name((out, 2)) != ""
        code = self._value((out, 2)).astype(np.float64) if has_value else np.zeros(())
        shift = self._value(zero).astype(np.float64) if self._name(zero) else np.zeros(1)
        spread = self._value(scale)
        value = ((code.ravel() - shift.ravel()) * spread.astype(np.float64).ravel())[:1]
        name = self._store(self._fresh(f"{out}/value"), value.astype(spread.dtype).reshape(()))
        self._emit("Pad", [self.same.get(x, x), node.input[1], name, *node.input[3:]], out, node)
        self._make_codes(out, scale, zero)

    # Operators on codes

    def _layer(self, node: NodeProto, op: str, end: int, bias: int | None = None) -> None:
        """QLinearConv, QLinearMatMul, QGemm: x and w with their scales, perhaps a bias."""
        out = node.output[0]
        x, w = self._operand(node, 0), self._operand(node, 3)
        inputs = [x, w]
        if bias is not None and self._name((out, bias)):
            factor = next((a.f for a in node.attribute if a.name == "alpha"), 1.0)
            x_scale = self._value((out, 1)).astype(np.float64).ravel()
            values = self._value((out, bias)) * x_scale * self._value((out, 4)).ravel() * factor
            values = values.astype(self.floats[w].dtype if w in self.floats else np.float32)
            if x_scale.size == 1 and w in self.links and self._is_alone(self._name((out, bias))):
                name = self._store(self._fresh(f"{out}/bias"), values)
                self.links[name] = Link((out, bias), bias_of=w, unit=float(x_scale[0]) * factor)
            else:
                name = self._fixed(out, values)
                if w in self.links:
                    self.links[w] = replace(self.links[w], held=True)
            inputs.append(name)
        elif bias is not None and w in self.floats:
            inputs.append(self._no_bias(node, out, w))
        self._emit_into(op, inputs, node, end)

    def _sum(self, node: NodeProto, op: str) -> None:
        """QLinearAdd, QLinearMul."""
        self._emit_into(op, [self._operand(node, 0), self._operand(node, 3)], node, 6)

    def _one(self, node: NodeProto, op: str) -> None:
        """QLinearSigmoid and others of one operand."""
        if _flag(node, "channels_last"):
            raise Unsupported
        self._emit_into(op, [self._operand(node, 0)], node, 3)

    def _concat(self, node: NodeProto) -> None:
        parts = [self._operand(node, k) for k in range(2, len(node.input), 3)]
        self._emit_into("Concat", parts, node, 0)

    # Fused layers

    def _unfuse(self, node: NodeProto, op: str) -> None:
        """FusedConv, FusedGemm: the layer, the sum with a fourth operand, the activation."""
        out, attributes = node.output[0], {a.name: a for a in node.attribute}
        name = attributes["activation"].s.decode() if "activation" in attributes else ""
        given = (
            [*attributes["activation_params"].floats] if "activation_params" in attributes else []
        )
        more = {a.name: a.f for a in node.attribute if a.name.startswith("activation_")
                and a.name != "activation_params"}  # fmt: skip
        given = given or [more[k] for k in ("activation_alpha", "activation_beta") if k in more]
        if name not in _ACTIVATIONS:
            raise Unsupported
        inputs = [self.same.get(i, i) for i in node.input]
        made, summed = f"{out}{PART}", len(inputs) > 3 and inputs[3]
        self._emit(op, inputs[:3], made, node)
        if summed:
            self._emit("Add", [made, inputs[3]], f"{out}/sum")
            made = f"{out}/sum"
        self.fused = True
        if name == "Clip":
            if len(given) != 2:
                raise Unsupported
            ends = zip(("low", "high"), given, strict=True)
            limits = [
                self._store(self._fresh(f"{out}/{k}"), np.array(v, np.float32)) for k, v in ends
            ]
            self._emit("Clip", [made, *limits], out)
        elif name:
            self._emit(name, [made], out)
            for k, value in zip(_ACTIVATIONS[name], given, strict=False):
                self.nodes[-1].attribute.append(helper.make_attribute(k, value))
        else:
            self._emit("Identity", [made], out)

    # Dynamic quantisation

    def _only_user(self, value: str) -> NodeProto | None:
        users = self.users.get(value, [])
        return users[0] if len(users) == 1 and value not in self.held else None

    def _dynamic(self, node: NodeProto) -> _Dynamic | None:
        """The layer that an integer operator is part of, if it is."""
        if node.op_type not in ("ConvInteger", "MatMulInteger"):
            return None
        source = self.made.get(node.input[0])
        if source is None or source.op_type != "DynamicQuantizeLinear":
            return None
        operands = [node.input[0], *node.input[2:3]]
        if operands != [source.output[0], source.output[2]] or not self._is_alone(node.input[1]):
            return None
        cast = self._only_user(node.output[0])
        if cast is None or cast.op_type != "Cast":
            return None
        mul = self._only_user(cast.output[0])
        if mul is None or mul.op_type != "Mul":
            return None
        factor = self.made.get(next((i for i in mul.input if i != cast.output[0]), ""))
        if factor is None or factor.op_type != "Mul" or source.output[1] not in factor.input:
            return None
        other = [k for k, i in enumerate(factor.input) if i != source.output[1]]
        if len(other) != 1 or factor.input[other[0]] not in self.tensors:
            return None
        scale, skip = (factor.output[0], other[0]), (node, cast)
        found = _Dynamic(node, source.input[0], scale, mul.output[0], None, skip, mul)
        add = self._only_user(mul.output[0])
        if node.op_type == "MatMulInteger" or add is None or add.op_type != "Add":
            return found
        bias = self._bias_place(add, 1 - list(add.input).index(mul.output[0]), node)
        if bias is None:
            return found
        return _Dynamic(node, source.input[0], scale, add.output[0], bias, (*skip, mul), add)

    def _bias_place(self, add: NodeProto, k: int, conv: NodeProto) -> Place | None:
        """Where the file stores a convolution's bias, if an Add has one: also behind a Reshape."""
        name, place = add.input[k], (add.output[0], k)
        reshape = self.made.get(name)
        if reshape is not None and reshape.op_type == "Reshape":
            name, place = reshape.input[0], (reshape.output[0], 0)
        width = self.tensors[conv.input[1]].dims[0]
        kept = self.tensors.get(name)
        size = 0 if kept is None else int(np.prod(kept.dims))
        alone = len(self.users.get(name, ())) == 1 and len(self.users.get(add.input[k], ())) == 1
        return place if alone and size == width else None

    def _undo_dynamic(self, d: _Dynamic) -> None:
        node, axis = d.layer, 0 if d.layer.op_type == "ConvInteger" else 1
        first = node.output[0]
        w = self._codes(self._fresh(f"{first}/weight"), (first, 1), d.scale, (first, 3), axis)
        inputs = [self.same.get(d.x, d.x), w]
        if d.bias is not None:
            bias = self._store(self._fresh(f"{d.out}/bias"), self._value(d.bias).ravel())
            self.links[bias] = Link(d.bias)
            inputs.append(bias)
        elif axis == 0:
            inputs.append(self._no_bias(node, d.out, w))
        self._emit(node.op_type.removesuffix("Integer"), inputs, d.out, node)

    # The whole

    def finish(self) -> Twin:
        """The model, without what nothing reads any more."""
        twin = onnx.ModelProto()
        twin.CopyFrom(self.model)
        graph = twin.graph
        keep = _needed(self.nodes, self.held)
        del graph.node[:], graph.value_info[:]
        graph.node.extend(keep)
        reads = {i for n in keep for i in (*n.input, *captured(n))} | self.held
        names = {t.name for t in graph.initializer}
        left = [t for t in graph.initializer if t.name in reads and t.name not in self.floats]
        gone = names - {t.name for t in left}
        inputs = [i for i in graph.input if i.name not in gone]
        del graph.initializer[:], graph.input[:]
        graph.initializer.extend(left)
        graph.input.extend(inputs)
        for name, values in self.floats.items():
            if name in reads:
                add_tensor(twin, numpy_helper.from_array(np.asarray(values, order="C"), name))
        for o in graph.output:
            if o.name in self.was_codes:
                o.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        return Twin(twin, {k: v for k, v in self.links.items() if k in reads})


def _flag(node: NodeProto, name: str) -> bool:
    """Whether an integer attribute is there and not 0."""
    return any(a.name == name and a.i for a in node.attribute)


def _axis(node: NodeProto) -> int:
    return next((int(a.i) for a in node.attribute if a.name == "axis"), 1)


def _needed(nodes: Sequence[NodeProto], outputs: set[str]) -> list[NodeProto]:
    """Nodes that the outputs need, and those that mark a bias as fixed."""
    wanted, keep = set(outputs), []
    for n in reversed(nodes):
        marks = n.output[0].endswith(_MARK)
        if marks or any(o in wanted for o in n.output):
            keep.append(n)
            wanted |= {*n.input, *captured(n)}
    return keep[::-1]


_UNDO: dict[tuple[str, str], Callable[[_Builder, NodeProto], None]] = {
    ("", "QLinearConv"): lambda b, n: b._layer(n, "Conv", 6, 8),
    ("", "QLinearMatMul"): lambda b, n: b._layer(n, "MatMul", 6),
    (MS, "QGemm"): lambda b, n: b._layer(n, "Gemm", 7, 6),
    (MS, "QLinearAdd"): lambda b, n: b._sum(n, "Add"),
    (MS, "QLinearMul"): lambda b, n: b._sum(n, "Mul"),
    (MS, "QLinearSigmoid"): lambda b, n: b._one(n, "Sigmoid"),
    (MS, "QLinearLeakyRelu"): lambda b, n: b._one(n, "LeakyRelu"),
    (MS, "QLinearSoftmax"): lambda b, n: b._one(n, "Softmax"),
    (MS, "QLinearAveragePool"): lambda b, n: b._one(n, "AveragePool"),
    (MS, "QLinearGlobalAveragePool"): lambda b, n: b._one(n, "GlobalAveragePool"),
    (MS, "QLinearConcat"): lambda b, n: b._concat(n),
    (MS, "FusedConv"): lambda b, n: b._unfuse(n, "Conv"),
    (MS, "FusedGemm"): lambda b, n: b._unfuse(n, "Gemm"),
}
