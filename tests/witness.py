"""Golden rules and their witness: what an operator is said to do, and what it really does.

`rules.txt` has one case per operator or form of it, and below it the facts that the engine states.
A case is an operator in ONNX's text syntax and its operands:

    @17 y = Conv(x, W, B) | x f[2,4,5,5], W f[3,4,3,3], B f[3]
        x . abcd~ . .  W efg abcd~ . .  B efg  ->  y . efg0 . .
        pinned x2 x3 W2 W3: Conv mixes this axis

An operand in upper case is stored in the file, one in lower case is computed by the model. The
facts give every axis: a letter per index, `.` for what is pinned, `1` for an axis of one element;
`ab` is the conjunction of a and b, `~` marks an axis that is contracted. `0` after an axis of a
result says that what is removed there is exactly zero, `0?` that it is where the operands' is.

The witness holds the facts against the operator itself, run on plain arrays: it uses what the
engine says of the axes, but neither its cut nor its mask.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from onnxprune.axes.analyse import facts_of
from onnxprune.axes.facts import Facts
from onnxprune.axes.labels import pinned
from onnxprune.axes.solve import Solution, groups, solve
from onnxprune.axes.view import View
from onnxprune.axes.zero import zero_axes
from onnxprune.choose.heads import resolve
from onnxprune.cut.cut import cut
from onnxprune.cut.mask import masked, zero_point
from onnxprune.graph.files import load
from onnxprune.graph.model import Node, normalise

RULES = Path(__file__).with_name("rules.txt")

_TYPES = {
    "f": TensorProto.FLOAT, "f16": TensorProto.FLOAT16, "d": TensorProto.DOUBLE,
    "i64": TensorProto.INT64, "i32": TensorProto.INT32, "u8": TensorProto.UINT8,
    "i8": TensorProto.INT8, "b": TensorProto.BOOL,
}  # fmt: skip
_INDEX_TYPES = frozenset((TensorProto.INT64, TensorProto.INT32, TensorProto.BOOL))
_OPERAND = re.compile(r"(\w+) (0?)(\w+)\[([\d,]*)\](?: = (.*))?")


@dataclass(frozen=True)
class Operand:
    """A value that the operator of a case reads."""

    name: str
    dtype: int
    shape: tuple[int, ...]
    values: tuple[float, ...] | None
    zero_born: bool
    """Written `0f[...]`: computed so that removed entries are exactly zero."""

    @property
    def stored(self) -> bool:
        return self.name[0].isupper()

    def array(self, rng: np.random.Generator) -> np.ndarray:
        kind = helper.tensor_dtype_to_np_dtype(self.dtype)
        if self.values is not None:
            return np.array(self.values).astype(kind).reshape(self.shape)
        if kind == np.dtype(bool):
            return rng.random(self.shape) < 0.5
        if np.issubdtype(kind, np.integer):
            low, high = {np.dtype(np.uint8): (0, 200), np.dtype(np.int8): (-90, 90)}.get(
                np.dtype(kind), (0, 2)
            )
            some = rng.random(self.shape) < 0.3
            return np.where(some, 1, rng.integers(low, high, self.shape)).astype(kind)
        return rng.uniform(0.3, 1.7, self.shape).astype(kind)  # inside every operator's domain


@dataclass
class Case:
    """One case of rules.txt."""

    head: str
    expected: list[str] = field(default_factory=list)
    line: int = 0

    @cached_property
    def parts(self) -> tuple[int, bool, str, list[Operand]]:
        m = re.fullmatch(r"@(\d+)(\+groups)? (.*) \| ?(.*)", self.head)
        assert m, f"rules.txt:{self.line}: {self.head}"
        operands = []
        for text in re.split(r", (?=\w+ \w+\[)", m[4]):
            o = _OPERAND.fullmatch(text.strip())
            assert o, f"rules.txt:{self.line}: {text}"
            shape = tuple(int(d) for d in o[4].split(",") if d)
            values = None if o[5] is None else tuple(float(v) for v in o[5].split())
            operands.append(Operand(o[1], _TYPES[o[3]], shape, values, bool(o[2])))
        return int(m[1]), bool(m[2]), m[3], operands

    @property
    def opset(self) -> int:
        return self.parts[0]

    @property
    def whole_groups(self) -> bool:
        return self.parts[1]

    @property
    def operands(self) -> list[Operand]:
        return self.parts[3]

    @cached_property
    def nodes(self) -> list[onnx.NodeProto]:
        text = self.parts[2].replace("; ", "\n")  # a line per node, as the parser wants it
        return list(onnx.parser.parse_graph(f"g () => () {{ {text} }}").node)

    @property
    def can_run(self) -> bool:
        """Not operators that nobody knows, nor forms that only GPUs have."""
        return not any("has no rule" in line or "packed" in line for line in self.expected)

    @property
    def may_shrink(self) -> bool:
        """Do the facts leave some channels of a weight free?"""
        weights = [o for o in self.operands if o.dtype not in _INDEX_TYPES]
        shown = self.expected[0].split("  ->  ")[0].split("  ")
        axes = [a for o, text in zip(self.operands, shown, strict=True) if o in weights
                for a in text.split()[1:]]  # fmt: skip
        return any(set(a) - set(".1") for a in axes)

    @property
    def operators(self) -> set[tuple[str, str]]:
        return {(n.domain, n.op_type) for n in self.nodes}

    @property
    def outputs(self) -> list[str]:
        """What the nodes make and none of them reads."""
        read = {i for n in self.nodes for i in n.input}
        return [o for n in self.nodes for o in n.output if o and o not in read]


def cases(path: Path = RULES) -> list[Case]:
    """The cases of a file; a case `{A B}` stands for one with A and one with B."""
    out: list[Case] = []
    fresh: list[Case] = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("@"):
            m = re.search(r"= (com\.microsoft\.)?\{([^}]*)\}\(", line)
            words = m[2].split() if m else [""]
            heads = [line if not m else line.replace(f"{{{m[2]}}}", w) for w in words]
            fresh = [Case(h, [], number) for h in heads]
            out += fresh
        elif line.startswith("    "):
            for c in fresh:
                c.expected.append(line.strip())
    return out


# -- models ---------------------------------------------------------------------------------------


def _imports(opset: int) -> list[onnx.OperatorSetIdProto]:
    extra = ("com.microsoft", "ai.onnx.ml", "com.example", "com.microsoft.nchwc")
    return [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in extra)]


def _made(o: Operand, weight: str, zero: bool, opset: int) -> tuple[list[onnx.NodeProto], bool]:
    """Nodes that compute an operand, index for index from a stored weight."""
    if o.dtype in (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16):
        op = "Mul" if zero else "Add"
        seed = f"seed_{o.dtype}"
        return [helper.make_node(op, [seed, weight], [o.name])], True
    pick = f"{o.name}_pick"
    return [helper.make_node("Where", [pick, weight, f"seed_{o.dtype}"], [o.name])], False


def seed_value(dtype: int) -> np.ndarray:
    """What is fed for the one scalar input of a type."""
    return np.array(1, helper.tensor_dtype_to_np_dtype(dtype))


def model_of(case: Case, arrays: Mapping[str, np.ndarray], zero: bool) -> onnx.ModelProto:
    """A model around the nodes of a case, whose operands may shrink and whose results may too."""
    nodes: list[onnx.NodeProto] = []
    inits: list[TensorProto] = []
    inputs: dict[str, onnx.ValueInfoProto] = {}
    for o in case.operands:
        array = arrays[o.name]
        if o.stored:
            inits.append(numpy_helper.from_array(array, o.name))
            continue
        made, is_float = _made(o, f"{o.name}_w", zero or o.zero_born, case.opset)
        nodes += made
        inputs[f"seed_{o.dtype}"] = helper.make_tensor_value_info(f"seed_{o.dtype}", o.dtype, [])
        if is_float and not (zero or o.zero_born):
            array = array - np.ones((), array.dtype)  # what the seed adds
        inits.append(numpy_helper.from_array(array, f"{o.name}_w"))
        if not is_float:  # the seed gives the ones: they are not zero when masked
            inits.append(numpy_helper.from_array(array != seed_value(o.dtype), f"{o.name}_pick"))
    nodes += case.nodes
    outs = []
    for k, name in enumerate(case.outputs):  # the result itself must be free to shrink
        nodes.append(helper.make_node("Shape", [name], [f"shape_{k}"]))
        outs.append(helper.make_tensor_value_info(f"shape_{k}", TensorProto.INT64, None))
    graph = helper.make_graph(nodes, "case", list(inputs.values()), outs, inits)
    return helper.make_model(graph, opset_imports=_imports(case.opset), ir_version=10)


def results(model: onnx.ModelProto, names: Sequence[str]) -> list[np.ndarray]:
    """Run a model for these values instead of its outputs.

    Raises:
        Unrunnable: neither ONNX Runtime nor onnx's reference has a kernel.
    """
    m = onnx.ModelProto()
    m.CopyFrom(model)
    del m.graph.output[:]
    m.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    feeds = {i.name: seed_value(i.type.tensor_type.elem_type) for i in m.graph.input}
    return _run(m, feeds)


class Unrunnable(Exception):
    """No kernel for this operator here."""


class _Contributed(OpRun):
    op_domain = "com.microsoft"


class BiasAdd(_Contributed):
    def _run(self, x, bias, skip):
        return (x + bias + skip,)


class BiasDropout(_Contributed):
    def _run(self, x, bias, residual=None, *_, **__):
        return (x + bias + (0 if residual is None else residual),)


class BiasSplitGelu(_Contributed):
    def _run(self, x, bias):
        left, right = np.split(x + bias, 2, axis=-1)
        erf = np.vectorize(math.erf)(right / math.sqrt(2)).astype(x.dtype)
        return (left * right * (erf + 1) / 2,)


def _group_norm(x, gamma, beta, groups, activation):
    parts = x.reshape(len(x), -1, groups, x.shape[-1] // groups)
    mean, std = parts.mean((1, 3), keepdims=True), parts.std((1, 3), keepdims=True)
    y = ((parts - mean) / (std + 1e-5)).reshape(x.shape) * gamma + beta
    return y / (1 + np.exp(-y)) if activation else y


class GroupNorm(_Contributed):
    def _run(self, x, gamma, beta, groups=None, activation=None, **_):
        return (_group_norm(x, gamma, beta, groups, activation),)


class SkipGroupNorm(_Contributed):
    def _run(self, x, gamma, beta, skip, bias=None, groups=None, activation=None, **_):
        skip = skip.reshape(len(x), *([1] * (x.ndim - 2)), -1) if skip.ndim == 2 else skip
        x = x + skip + (0 if bias is None else bias)
        return _group_norm(x, gamma, beta, groups, activation), x


_ON_GPUS = [BiasAdd, BiasDropout, BiasSplitGelu, GroupNorm, SkipGroupNorm]
"""What ONNX Runtime has no CPU kernel for, from its documentation."""


def _run(m: onnx.ModelProto, feeds: dict[str, np.ndarray]) -> list[np.ndarray]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    errors = []
    try:
        session = ort.InferenceSession(
            m.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as e:  # no kernel for the operator or for the type
        errors.append(str(e))
    else:
        return session.run(None, feeds)
    try:
        for info in m.graph.output:  # the reference wants a type there
            info.type.tensor_type.elem_type = TensorProto.FLOAT
        return list(ReferenceEvaluator(m, new_ops=_ON_GPUS).run(None, feeds))
    except Exception as e:
        errors.append(repr(e))
    raise Unrunnable(" / ".join(e[:300] for e in errors))


def run_plain(case: Case, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run the nodes of a case on plain arrays."""
    inits = [numpy_helper.from_array(np.asarray(a, order="C"), n) for n, a in arrays.items()]
    outs = [onnx.ValueInfoProto(name=n) for n in case.outputs]
    graph = helper.make_graph(case.nodes, "plain", [], outs, inits)
    return _run(helper.make_model(graph, opset_imports=_imports(case.opset), ir_version=10), {})


# -- facts ----------------------------------------------------------------------------------------


def facts_for(case: Case, zero: bool = False, seed: int = 0) -> tuple[Facts, dict[str, np.ndarray]]:
    """What the engine states about a case, and the arrays that its operands hold."""
    rng = np.random.default_rng(seed)
    arrays = {o.name: o.array(rng) for o in case.operands}
    model = model_of(case, arrays, zero)
    analysed = normalise(load(model))
    facts = facts_of(analysed, whole_groups=case.whole_groups)
    # outputs of a model never shrink, so the results become outputs only now
    analysed.graph.outputs += case.outputs
    analysed.proto.graph.output.extend(onnx.ValueInfoProto(name=o) for o in case.outputs)
    return facts, arrays


class _Names:
    """Letters for channels, in order of their first appearance."""

    LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

    def __init__(self, s: Solution) -> None:
        labels = s.facts.labels
        self.s = s
        self.names: dict[int, str] = {}
        self.atoms = 0
        self.parts: dict[int, tuple[int, int]] = {}
        for x, p, q in zip(labels.both, labels.both_a, labels.both_b, strict=True):
            for r, a, b in zip(s.root[x], s.root[p], s.root[q], strict=True):
                if s.zero not in (a, b) and r not in (a, b):
                    self.parts[int(r)] = (int(a), int(b))

    def of(self, root: int) -> str:
        if root == self.s.zero:
            return "."
        if root not in self.names:
            if root in self.parts:
                a, b = self.parts[root]
                self.names[root] = self.of(a) + self.of(b)
            else:
                self.names[root] = self.LETTERS[self.atoms]
                self.atoms += 1
        return self.names[root]

    def axis(self, roots: np.ndarray) -> str:
        if len(roots) == 1:
            return "1"
        if (roots == self.s.zero).all():
            return "."
        words = [self.of(int(r)) for r in roots]
        return ("," if max(map(len, words)) > 1 else "").join(words)


def describe(case: Case) -> list[str]:
    """The facts of a case as rules.txt writes them."""
    facts, _ = facts_for(case)
    also, _ = facts_for(case, zero=True)
    s = solve(facts)
    names = _Names(s)
    ends = {(x.node.inputs[x.operand], x.axis) for x in facts.sinks if _is_tested(x.node, case)}

    def write(value: str) -> str:
        if value not in facts.axes:
            return f"{value} unknown"
        axes = []
        for k, v in enumerate(facts.axes[value]):
            axis = names.axis(s.root[v])
            if axis not in ".1":
                axis += "~" if (value, k) in ends else ""
                if value in case.outputs and zero_axes(value, also)[k]:
                    axis += "0" if zero_axes(value, facts)[k] else "0?"
            axes.append(axis)
        return f"{value} {' '.join(axes)}".strip()

    left = "  ".join(write(o.name) for o in case.operands)
    right = "  ".join(write(o) for o in case.outputs)
    out = [f"{left}  ->  {right}"]
    # what everything touches, by reason
    why: dict[str, list[str]] = {}
    shown = [*(o.name for o in case.operands), *case.outputs]
    for pin in facts.labels.pins:
        for value in shown:
            for k, v in enumerate(facts.axes.get(value, ())):
                if np.isin(v, pin.labels).any() and len(v) > 1:
                    where = why.setdefault(pin.why, [])
                    if f"{value}{k}" not in where:
                        where.append(f"{value}{k}")
    out += [f"pinned {' '.join(where)}: {reason}" for reason, where in why.items()]
    for counts in facts.heads.values():
        text = [f"{n}={names.axis(s.root[v])}" for n, v in counts.items()]
        out.append("counts " + " ".join(text))
    out += [f"unknown {u}" for u in facts.unknown]
    out += [f"untraced {why}" for _, why in facts.trace.failures]
    return out


def _is_tested(n: Node, case: Case) -> bool:
    return n.proto.op_type in {p.op_type for p in case.nodes}


# -- the witness ----------------------------------------------------------------------------------


def _removed(view: View, value: str) -> list[np.ndarray]:
    return [~m for m in view.masks(value)]


def _zeroed(
    array: np.ndarray, removed: Sequence[np.ndarray], axes: Sequence[int], zero: np.ndarray | None
) -> np.ndarray:
    """Zero (a quantised zero) in the removed slices of these axes."""
    out = np.array(array)
    for k in axes:
        shape = [-1 if j == k else 1 for j in range(array.ndim)]
        fill = np.zeros(1, array.dtype) if zero is None else zero.astype(array.dtype)
        out = np.where(removed[k].reshape(shape), fill, out)
    return out.astype(array.dtype)


def _compress(array: np.ndarray, removed: Sequence[np.ndarray]) -> np.ndarray:
    for k, gone in enumerate(removed):
        array = np.compress(~gone, array, axis=k)
    return array


def _differ(a: np.ndarray, b: np.ndarray) -> float:
    """How far two results are apart, in units of the larger one (quantised: of 40 steps)."""
    assert a.shape == b.shape, f"shapes {a.shape} and {b.shape}"
    if not a.size:
        return 0.0
    if a.dtype.kind not in "fiu" or a.dtype == np.int64:
        return float((a != b).any())
    if a.dtype.itemsize == 1:
        return float(np.abs(a.astype(int) - b.astype(int)).max()) / 2 * 1e-4  # one step may differ
    assert (np.isnan(a) == np.isnan(b)).all(), "NaN in one only"
    p, q = np.nan_to_num(a.astype(np.float64)), np.nan_to_num(b.astype(np.float64))
    return float(np.abs(p - q).max() / (np.abs(p).max() + 1e-9))


TOLERANCE = {np.dtype(np.float16): 2e-2}


def check_cut(case: Case, policy: str, zero: bool, seed: int) -> int:
    """Remove channels at random; returns how many axes shrank.

    The slim model must give what the operator gives on the full operands with the removed slices
    of what it contracts zeroed, without the removed indices. The masked model must give that too,
    and exactly zero in the removed indices where the facts say so.
    """
    facts, arrays = facts_for(case, zero, seed)
    s = resolve(facts, policy, 0.5)
    found = groups(s)
    rng = np.random.default_rng(seed)
    kept = {}
    for g in found:
        n = int(rng.integers(1, g.size)) if g.size > 1 else 1
        kept[g.id] = np.sort(rng.permutation(g.size)[:n])
    view = View.of(s, found, kept)
    if view.keep.all():
        return 0
    outputs = [o for o in case.outputs if o in facts.axes]
    slim = results(cut(view).model, outputs)
    mask = results(masked(view), outputs)
    ends = {(x.node.inputs[x.operand], x.axis) for x in facts.sinks}
    plain = {}
    for o in case.operands:
        removed = _removed(view, o.name)
        all_zero = zero or o.zero_born or (o.stored and o.name not in facts.unmasked)
        axes = [k for k in range(len(o.shape)) if all_zero or (o.name, k) in ends]
        if o.dtype in (TensorProto.BOOL, TensorProto.INT64):
            axes = []
        point = zero_point(o.name, facts) if o.dtype in (2, 3) else None
        plain[o.name] = _zeroed(arrays[o.name], removed, axes, point)
    for name, a, b, c in zip(
        outputs, slim, mask, _named(case, run_plain(case, plain), outputs), strict=True
    ):
        removed = _removed(view, name)
        tolerance = TOLERANCE.get(a.dtype, 1e-4)
        if any(op.startswith("DynamicQuantize") for _, op in case.operators):
            tolerance = 2e-3  # a sum in another order may round to another step
        far = _differ(_compress(c, removed), a)
        assert far <= tolerance, f"{name}: the slim model is not the operator on less ({far:.1e})"
        far = _differ(_compress(b, removed), a)
        assert far <= tolerance, f"{name}: masked and slim differ ({far:.1e})"
        for k, gone in enumerate(removed):
            if zero_axes(name, facts)[k] and a.dtype.kind == "f":
                others = [g & False if j == k else g for j, g in enumerate(removed)]
                rest = np.compress(gone, _compress(b, others), axis=k)
                assert not rest.any(), f"{name} axis {k} is not zero where it is said to be"
    return sum(view.cut_axes(v).count(True) for v in (*plain, *outputs) if v in facts.axes)


def _named(case: Case, values: Sequence[np.ndarray], names: Sequence[str]) -> list[np.ndarray]:
    by_name = dict(zip(case.outputs, values, strict=True))
    return [by_name[n] for n in names]


def check_independence(case: Case, seed: int = 0, limit: int = 24) -> int:
    """Disturb one channel at a time: what does not carry it must not move.

    Contracted channels may move everything. Returns how many channels moved their own indices.
    """
    facts, arrays = facts_for(case, seed=seed)
    if any(o.zero_born for o in case.operands):
        return 0  # claims about zeros only
    return independent(case, facts, arrays, seed, limit)


def independent(
    case: Case, facts: Facts, arrays: Mapping[str, np.ndarray], seed: int = 0, limit: int = 24
) -> int:
    """The same, for facts that are given."""
    moved = 0
    before = run_plain(case, arrays)
    rng = np.random.default_rng(seed)
    for policy in ("whole", "dims"):
        s = resolve(facts, policy, 0.5)
        ended = {int(r) for x in facts.sinks for r in np.unique(s.root[x.labels])}
        for counts in facts.heads.values():  # the size of a head is contracted inside
            ended |= {int(r) for r in np.unique(s.root[counts.get("size", pinned(1))])}
        roots = sorted(
            {int(r) for o in case.operands for v in facts.axes.get(o.name, ()) for r in s.root[v]}
            - ended - {s.zero}
        )  # fmt: skip
        for r in roots[:: max(1, len(roots) // limit)]:
            now = {}
            for o in case.operands:
                hit = [s.root[v] == r for v in facts.axes.get(o.name, ())]
                now[o.name] = _disturb(arrays[o.name], hit, o, rng)
            for name, a, b in zip(case.outputs, before, run_plain(case, now), strict=True):
                if name not in facts.axes:
                    continue
                own = np.zeros(a.shape, bool)
                for k, v in enumerate(facts.axes[name]):
                    shape = [-1 if j == k else 1 for j in range(a.ndim)]
                    own |= (s.root[v] == r).reshape(shape)
                step = 1e-5 * np.abs(a).max() if a.dtype.kind == "f" else 0
                rest = ~own & (a != b) & ~np.isclose(a, b, rtol=0, atol=step)
                assert not rest.any(), f"{name} moves at {np.argwhere(rest)[0]}, not its channel"
                moved += bool((own & (a != b)).any())
    return moved


def _disturb(
    array: np.ndarray, where: Sequence[np.ndarray], o: Operand, rng: np.random.Generator
) -> np.ndarray:
    if o.values is not None or o.dtype in _INDEX_TYPES:
        return array
    hit = np.zeros(array.shape, bool)
    for k, mask in enumerate(where):
        hit |= mask.reshape([-1 if j == k else 1 for j in range(array.ndim)])
    if array.dtype.kind == "f":
        other = rng.uniform(2.0, 9.0, array.shape).astype(array.dtype)
    else:
        other = rng.integers(0, 100, array.shape).astype(array.dtype)
    return np.where(hit, other, array).astype(array.dtype)


def rewrite(path: Path = RULES) -> None:
    """Write what the engine says now below every case (then read the difference!)."""
    out: list[str] = []
    shown: Iterator[Case] = iter(cases(path))
    for line in path.read_text().splitlines():
        if line.startswith("    "):
            continue
        out.append(line)
        if line.startswith("@"):
            m = re.search(r"= (?:com\.microsoft\.)?\{([^}]*)\}\(", line)
            texts = [describe(next(shown)) for _ in range(len(m[1].split()) if m else 1)]
            for t in texts:
                assert t == texts[0], f"{line}: {texts[0]} {t}"
            out += [f"    {t}" for t in texts[0]]
    path.write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    rewrite()
