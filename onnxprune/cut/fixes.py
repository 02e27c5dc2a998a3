"""What else must change when a size shrinks: attributes, baked shapes, index lists.

The second table. A fix reads index maps and sizes from the view; it never decides anything, and it
leaves a node alone when its parameters already do the right thing on the smaller tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from onnxprune.axes.view import View
from onnxprune.cut.edits import Edits
from onnxprune.cut.fix_shape import constant_of_shape, expand, reshape, shape, size
from onnxprune.cut.fix_slice import slice_
from onnxprune.graph.model import Node

Fix = Callable[[Node, View, Edits], None]


def split(n: Node, v: View, e: Edits) -> None:
    rank = len(v.shape(n.inputs[0]))
    axis = n.attrs.get("axis", 0) % rank
    if not any(v.cut_axes(o)[axis] for o in n.outputs if o):
        return
    sizes = [v.shape(o)[axis] for o in n.outputs]
    explicit = "split" in n.attrs or (len(n.inputs) > 1 and n.inputs[1])
    if not explicit and len(set(sizes)) == 1:
        return
    if n.version < 13:
        e.set_attribute(n, "split", sizes)
    else:
        base = e.node(n).input[1] if len(n.inputs) > 1 and n.inputs[1] else f"{n.label}_sizes"
        e.set_input(n, 1, e.constant(np.array(sizes, np.int64), base))
        e.set_attribute(n, "num_outputs", None)


def gather(n: Node, v: View, e: Edits) -> None:
    x = n.inputs[0]
    for move in v.facts.moves.get(n, ()):
        labels = v.facts.axes[x][move.axis]
        kept = v.mask(labels)
        if kept.all():
            continue
        if move.index.ndim == 1:
            want = v.moved(labels, move.index)
        else:  # single elements, all of them kept
            want = (np.cumsum(kept) - 1)[move.index]
        old = v.facts.known(n.inputs[1])
        assert old is not None
        if not np.array_equal(old, want):
            shaped = want.reshape(old.shape) if old.size == want.size else want
            name = e.constant(shaped.astype(old.dtype), e.node(n).input[1])
            e.set_input(n, 1, name)


def pad(n: Node, v: View, e: Edits) -> None:
    o = n.outputs[0]
    for move in v.facts.moves.get(n, ()):
        if not v.cut_axes(o)[move.axis]:
            continue
        kept, inside = v.kept(o, move.axis), np.nonzero(move.index >= 0)[0]
        before, after = int(kept[: inside[0]].sum()), int(kept[inside[-1] + 1 :].sum())
        name = "pads" if "pads" in n.attrs else "paddings"
        if name in n.attrs:
            now = next(list(a.ints) for a in e.node(n).attribute if a.name == name)
            half = len(now) // 2
            now[move.axis], now[move.axis + half] = before, after
            e.set_attribute(n, name, now)
            continue
        half = v.facts.trace.shapes[n.inputs[1]][0] // 2
        given = v.facts.known(n.inputs[3]) if len(n.inputs) > 3 and n.inputs[3] else None
        rank = len(v.shape(o))
        axes = list(range(half)) if given is None else [int(a) % rank for a in given.ravel()]
        at = axes.index(move.axis)
        mask = np.isin(np.arange(2 * half), [at, at + half])
        values = np.where(np.arange(2 * half) == at, before, after)
        e.patch(n, 1, mask, values)


def resize(n: Node, v: View, e: Edits) -> None:
    """Scales of untouched axes stay 1; sizes must be told."""
    o = n.outputs[0]
    if len(n.inputs) < 4 or not n.inputs[3] or not v.shrinks(o):
        return
    cut, now = v.cut_axes(o), v.shape(o)
    axes = n.attrs.get("axes", list(range(len(now))))
    e.patch(n, 3, np.array([cut[a] for a in axes]), np.array([now[a] for a in axes]))


def group(n: Node, v: View, e: Edits) -> None:
    """A convolution's group count is what its input has over what one filter reads."""
    weight = n.inputs[3 if n.op == "QLinearConv" else 1]
    if not (v.shrinks(n.inputs[0]) or v.shrinks(weight)):
        return
    if n.op == "ConvTranspose":
        count = v.shape(n.outputs[0])[1] // v.shape(weight)[1]
    else:
        count = v.shape(n.inputs[0])[1] // v.shape(weight)[1]
    if count != n.attrs.get("group", 1):
        e.set_attribute(n, "group", count)


def recurrent(n: Node, v: View, e: Edits) -> None:
    if v.shrinks(n.inputs[2]) and "hidden_size" in n.attrs:
        axis = 1 if n.op == "DynamicQuantizeLSTM" else 2
        e.set_attribute(n, "hidden_size", v.shape(n.inputs[2])[axis])


def counts(n: Node, v: View, e: Edits) -> None:
    """Head and group counts of fused operators, and the scale they read off a head's size."""
    found = v.facts.heads.get(n, {})
    for name, labels in found.items():
        if name in ("size", "q_hidden", "k_hidden", "v_hidden"):
            continue
        kept = int(v.mask(labels).sum())
        if name in n.attrs and kept != n.attrs[name]:
            e.set_attribute(n, name, kept)
    size = found.get("size")
    if size is not None and not v.mask(size).all() and not n.attrs.get("scale"):
        e.set_attribute(n, "scale", float(1 / np.sqrt(len(size))))
    hidden = [found[k] for k in ("q_hidden", "k_hidden", "v_hidden") if k in found]
    if hidden and any(not v.mask(x).all() for x in hidden):
        e.set_attribute(n, "qkv_hidden_sizes", [int(v.mask(x).sum()) for x in hidden])


def squeeze(n: Node, v: View, e: Edits) -> None:
    """Without axes, what shrinks to one element would be squeezed as well."""
    x = n.inputs[0]
    if "axes" in n.attrs or any(n.inputs[1:]) or not v.shrinks(x):
        return
    axes = [k for k, d in enumerate(v.facts.trace.shapes[x]) if d == 1]
    if n.version < 13:
        e.set_attribute(n, "axes", axes)
    else:
        e.set_input(n, 1, e.constant(np.array(axes, np.int64), f"{n.label}_axes"))


def nbits(n: Node, v: View, e: Edits) -> None:
    for name, kept in (("N", v.shape(n.inputs[1])[0]), ("K", v.shape(n.inputs[0])[-1])):
        if kept != n.attrs[name]:
            e.set_attribute(n, name, kept)


def mean(n: Node, axes: Sequence[int], v: View, e: Edits) -> None:
    """A mean over channels of which the removed were 0: divide by as many as there were."""
    x = n.inputs[0]
    before = int(np.prod([v.facts.trace.shapes[x][k] for k in axes]))
    after = int(np.prod([v.shape(x)[k] for k in axes]))
    if before != after:
        dtype = v.facts.trace.types[x]
        factor = e.scalar(after / before, dtype, n.label)
        e.after(n, 0, "Mul", [None, factor])
        e.notes.append(f"{n.label} averages over channels: times {after}/{before}")


FIXES: dict[tuple[str, str], Fix] = {
    ("", "Reshape"): reshape,
    ("", "Expand"): expand,
    ("", "ConstantOfShape"): constant_of_shape,
    ("", "Split"): split,
    ("", "Slice"): slice_,
    ("", "Gather"): gather,
    ("", "Pad"): pad,
    ("", "Resize"): resize,
    ("", "Conv"): group,
    ("", "ConvInteger"): group,
    ("", "ConvTranspose"): group,
    ("", "QLinearConv"): group,
    ("", "DeformConv"): group,
    ("com.microsoft", "FusedConv"): group,
    ("", "LSTM"): recurrent,
    ("", "GRU"): recurrent,
    ("", "RNN"): recurrent,
    ("com.microsoft", "DynamicQuantizeLSTM"): recurrent,
    ("", "Shape"): shape,
    ("", "Size"): size,
    ("", "Squeeze"): squeeze,
    ("com.microsoft", "MatMulNBits"): nbits,
}
