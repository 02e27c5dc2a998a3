"""What else must change when a size shrinks: attributes, baked shapes, index lists.

The second table. A fix reads index maps and sizes from the view; it never decides anything, and it
leaves a node alone when its parameters already do the right thing on the smaller tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from onnx import numpy_helper

from onnxprune.axes.facts import Move, Shuffle
from onnxprune.axes.view import View
from onnxprune.cut.edits import Edits
from onnxprune.graph.model import Node

Fix = Callable[[Node, View, Edits], None]


def _resolve(target: Sequence[int], shape: Sequence[int], allow_zero: bool) -> list[int] | None:
    """What a Reshape target gives on an input of this shape; None if it does not fit."""
    out = [
        shape[k] if d == 0 and not allow_zero and k < len(shape) else d
        for k, d in enumerate(target)
    ]
    if -1 in out:
        rest = int(np.prod([d for d in out if d != -1]))
        total = int(np.prod(shape))
        if not rest or total % rest:
            return None
        out[out.index(-1)] = total // rest
    return out


def reshape(n: Node, v: View, e: Edits) -> None:
    x, o = n.inputs[0], n.outputs[0]
    if not (v.shrinks(x) or v.shrinks(o)):
        return
    now, cut = list(v.shape(o)), np.array(v.cut_axes(o))
    if "shape" in n.attrs:  # opset < 5
        target = list(n.attrs["shape"])
        if _resolve(target, v.shape(x), False) != now:
            e.set_attribute(
                n, "shape", [d if c else t for d, c, t in zip(now, cut, target, strict=True)]
            )
        return
    known = v.facts.trace.values.get(n.inputs[1])
    if known is None:
        c = v.facts.model.constants.get(n.inputs[1])
        known = None if c is None else v.facts.model.array(c)
    if known is not None:
        fits = _resolve(known.ravel().tolist(), v.shape(x), bool(n.attrs.get("allowzero")))
        if fits == now:
            return
    e.patch(n, 1, cut, np.array(now))


def expand(n: Node, v: View, e: Edits) -> None:
    x, o = n.inputs[0], n.outputs[0]
    if not v.shrinks(o):
        return
    rank = len(v.shape(o))
    length = v.facts.trace.shapes[n.inputs[1]][0]
    skip = rank - length  # the target may be shorter than the output
    cut, now = v.cut_axes(o)[skip:], v.shape(o)[skip:]
    known = v.facts.trace.values.get(n.inputs[1])
    if known is not None and len(v.shape(x)) == rank:
        own = v.shape(x)[skip:]
        cut = [
            c and not (t == 1 and d == s) for c, t, d, s in zip(cut, known, now, own, strict=True)
        ]
    if any(cut):
        e.patch(n, 1, np.array(cut), np.array(now))


def constant_of_shape(n: Node, v: View, e: Edits) -> None:
    o = n.outputs[0]
    if v.shrinks(o):
        e.patch(n, 0, np.array(v.cut_axes(o)), np.array(v.shape(o)))


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


def _slice_of(index: np.ndarray, size: int) -> tuple[int, int, int] | None:
    """Bounds that pick these indices from an axis of this size, if any do."""
    if len(index) == 1:
        return int(index[0]), int(index[0]) + 1, 1
    step = int(index[1] - index[0])
    if step == 0 or not (np.diff(index) == step).all():
        return None
    last = int(index[-1])
    if step > 0:
        return int(index[0]), last + 1, step
    return int(index[0]), last - 1 if last else -size - 1, step


def slice_(n: Node, v: View, e: Edits) -> None:
    x = n.inputs[0]
    for move in v.facts.moves.get(n, ()):
        labels = v.facts.axes[x][move.axis]
        kept = v.mask(labels)
        if kept.all():
            continue
        want = v.moved(labels, move.index)
        rank = len(v.shape(x))
        at, old = _bounds(n, v, move, rank)
        size = int(kept.sum())
        if old is not None and np.array_equal(np.arange(size)[slice(*old)], want):
            continue
        bounds = _slice_of(want, size)
        if bounds is None:  # the kept ones are not evenly spaced: take them by index
            index = e.constant(want.astype(np.int64), n.label)
            e.after(n, 0, "Gather", [None, index], axis=move.axis)
            bounds = (0, size, 1)
        if "starts" in n.attrs:
            for name, b in (("starts", bounds[0]), ("ends", bounds[1])):
                now = next(list(a.ints) for a in e.node(n).attribute if a.name == name)
                now[at] = b
                e.set_attribute(n, name, now)
            if bounds[2] != 1:
                raise AssertionError("Slice of opset < 10 has no steps")
            continue
        _set_bounds(n, v, e, at, bounds)


def _bounds(
    n: Node, v: View, move: Move, rank: int
) -> tuple[int, tuple[int, int | None, int] | None]:
    """Which entry of the bounds is for this axis, and the bounds as they are if constant."""
    if "starts" in n.attrs:
        axes = n.attrs.get("axes", list(range(len(n.attrs["starts"]))))
        at = [a % rank for a in axes].index(move.axis)
        return at, (n.attrs["starts"][at], n.attrs["ends"][at], 1)
    count = v.facts.trace.shapes[n.inputs[1]][0]
    given = v.facts.known(n.inputs[3]) if len(n.inputs) > 3 and n.inputs[3] else None
    axes = list(range(count)) if given is None else [int(a) for a in given.ravel()]
    at = [a % rank for a in axes].index(move.axis)
    parts = [v.facts.known(i) for i in n.inputs[1:3]]
    steps = v.facts.known(n.inputs[4]) if len(n.inputs) > 4 and n.inputs[4] else None
    if (
        parts[0] is None
        or parts[1] is None
        or (steps is None and len(n.inputs) > 4 and n.inputs[4])
    ):
        return at, None
    step = 1 if steps is None else int(steps.ravel()[at])
    end: int | None = int(parts[1].ravel()[at])
    if step < 0 and end is not None and end < -(1 << 30):
        end = None
    return at, (int(parts[0].ravel()[at]), end, step)


def _set_bounds(n: Node, v: View, e: Edits, at: int, bounds: tuple[int, int, int]) -> None:
    """Several axes may be cut, so what an earlier one set must stay: all are set at once."""
    state = e.slices.setdefault(n, {})
    state[at] = bounds
    count = v.facts.trace.shapes[n.inputs[1]][0]
    mask = np.isin(np.arange(count), list(state))
    for k in range(3):
        values = np.array([state.get(j, (0, 0, 1))[k] for j in range(count)])
        position = (1, 2, 4)[k]
        if position < len(n.inputs) and n.inputs[position]:
            e.node(n).input[position] = n.proto.input[position]
            e.patch(n, position, mask, values)
        elif k == 2 and (values != 1).any():
            if len(n.inputs) <= 3 or not n.inputs[3]:
                e.set_input(n, 3, e.constant(np.arange(count), f"{n.label}_axes"))
            e.set_input(n, 4, e.constant(values, f"{n.label}_steps"))


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


def size(n: Node, v: View, e: Edits) -> None:
    """Size keeps telling what the original had."""
    o = n.outputs[0]
    if v.shrinks(n.inputs[0]) and v.facts.is_static(o):
        e.replace(n, "Constant", [], value=numpy_helper.from_array(v.facts.trace.values[o]))


def nbits(n: Node, v: View, e: Edits) -> None:
    kept = v.shape(n.inputs[1])[0]
    if kept != n.attrs["N"]:
        e.set_attribute(n, "N", kept)


def shape(n: Node, v: View, e: Edits) -> None:
    """Shape keeps telling the size that the original had; who reads it is fixed in turn."""
    x, o = n.inputs[0], n.outputs[0]
    window = slice(n.attrs.get("start", 0), n.attrs.get("end"))
    cut = np.array(v.cut_axes(x), bool)[window]
    if not cut.any():
        return
    facts = v.facts
    if facts.is_static(o):
        e.replace(n, "Constant", [], value=numpy_helper.from_array(facts.trace.values[o]))
        return
    told = True
    for user, k in facts.model.uses.get(o, ()):
        index = facts.known(user.inputs[1]) if user.op == "Gather" and k == 0 else None
        if index is None:
            told = False
        elif cut[index.ravel()].any():
            if facts.is_static(user.outputs[0]):
                value = numpy_helper.from_array(facts.trace.values[user.outputs[0]])
                e.replace(user, "Constant", [], value=value)
            else:
                told = False
    if not told or o in facts.model.graph.outputs:
        full = np.array(facts.trace.shapes[x], np.int64)[window]
        mask = e.constant(cut, f"{n.label}_where")
        e.after(n, 0, "Where", [mask, e.constant(full, n.label), None])
        e.notes.append(f"{n.label} tells the original size of what shrank")


def shuffle(s: Shuffle, v: View, e: Edits) -> None:
    """A permutation of channels: the reshapes stay if the kept channels allow it, else a Gather."""
    labels = v.facts.axes[s.value][s.axis]
    kept = v.mask(labels)
    if kept.all() and not v.shrinks(s.value):
        return
    first, turn, last = s.nodes
    mid = v.facts.trace.shapes[first.outputs[0]]
    inner = mid[s.axis : s.axis + len(mid) - len(v.shape(s.value)) + 1]
    table = kept.reshape(inner)
    others = [k for k, c in enumerate(v.cut_axes(s.value)) if c and k != s.axis]
    for node in v.facts.model.between(first, last):
        e.unstate(node.outputs[0])
    for j in range(len(inner)):
        line = np.moveaxis(table, j, 0).reshape(inner[j], -1)
        if not others and (line == line[:, :1]).all():
            sizes = list(mid)
            sizes[s.axis + j] = int(line[:, 0].sum())
            moved = np.zeros(len(mid), bool)
            moved[s.axis + j] = True
            _retarget(first, v, e, moved, sizes)
            out = v.shape(last.outputs[0])
            _retarget(last, v, e, np.array(v.cut_axes(last.outputs[0])), list(out))
            return
    want = v.moved(labels, s.index)
    for node in v.facts.model.between(first, last):
        e.rename(node)  # what lies in between is no longer reshaped: another tensor
    e.bypass(first)
    e.bypass(turn)
    e.replace(last, "Gather", [e.node(last).input[0], e.constant(want, last.label)], axis=s.axis)
    e.notes.append(f"channel shuffle {first.label} ... {last.label} became one Gather")


def _retarget(n: Node, v: View, e: Edits, mask: np.ndarray, now: Sequence[int]) -> None:
    if "shape" in n.attrs:
        target = n.attrs["shape"]
        new = [d if c and t > 0 else t for d, c, t in zip(now, mask, target, strict=True)]
        e.set_attribute(n, "shape", new)
        return
    known = v.facts.known(n.inputs[1])
    if known is not None:
        mask = mask & (known.ravel() > 0)  # 0 and -1 say the right thing already
    e.patch(n, 1, mask, np.array(now))


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
