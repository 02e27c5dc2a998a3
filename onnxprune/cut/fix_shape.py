"""Shapes that are told: targets of Reshape and Expand, what Shape reads, shuffles of channels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import numpy_helper

from onnxprune.axes.facts import Shuffle
from onnxprune.axes.view import View
from onnxprune.cut.edits import Edits
from onnxprune.graph.model import Node


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


def size(n: Node, v: View, e: Edits) -> None:
    """Size keeps telling what the original had."""
    o = n.outputs[0]
    if v.shrinks(n.inputs[0]) and v.facts.is_static(o):
        e.replace(n, "Constant", [], value=numpy_helper.from_array(v.facts.trace.values[o]))


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
