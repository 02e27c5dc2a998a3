"""The spec mini-language: one line says how the axes of an operator's operands relate.

    "n (g i) ..., (g o) i ..., (g o) -> n (g o) ..."        a convolution

* a letter names a factor; axes with the same letters are the same channels
* (g i)   a product of factors, outer first; (4 h) has a fixed factor
* *b      any number of leading axes, aligned on the right like numpy broadcasting
* ...     any number of axes that never shrink
* c!      the operator mixes this axis: it can't shrink
* h~      contracted although the letter survives in an output (recurrent weights)
* _       the operand is control or a scalar: pinned
A letter that is in no output is contracted: its channels end here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache


class SpecError(ValueError):
    """A spec does not fit the operands: repeats the pattern and the shape that broke it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One token of a spec; `letters` has digits for fixed factors."""

    letters: tuple[str, ...]
    mixed: bool = False
    contracted: bool = False
    many: bool = False


Operand = tuple[Axis, ...] | None


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed spec."""

    text: str
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    contracts: bool
    """Some letter of two inputs ends here: the operator multiplies and adds."""


def _operand(text: str) -> Operand:
    text = text.strip()
    if text == "_":
        return None
    axes = []
    for token in re.findall(r"\([^)]*\)[!~]?|\S+", text):
        mark = token[-1] if token[-1] in "!~" else ""
        body = token.rstrip("!~")
        if body == "...":
            axes.append(Axis((), mixed=True, many=True))
        elif body.startswith("*"):
            axes.append(Axis((body[1:],), many=True))
        elif body == "_":
            axes.append(Axis((), mixed=True))
        else:
            letters = tuple(body.strip("()").split())
            axes.append(Axis(letters, mixed=mark == "!", contracted=mark == "~"))
    return tuple(axes)


@lru_cache(maxsize=1024)
def parse(text: str) -> Spec:
    """Parse a spec line."""
    left, right = text.split("->")
    inputs = tuple(_operand(t) for t in left.split(","))
    outputs = tuple(_operand(t) for t in right.split(","))
    alive = {x for o in outputs if o for a in o for x in a.letters}
    seen: dict[str, int] = {}
    for o in inputs:
        for x in {x for a in o or () for x in a.letters if not x.isdigit() and not a.mixed}:
            seen[x] = seen.get(x, 0) + 1
    contracts = any(k > 1 and x not in alive for x, k in seen.items()) or any(
        a.contracted for o in inputs if o for a in o
    )
    return Spec(text, inputs, outputs, contracts)


def expand(operand: tuple[Axis, ...], shape: Sequence[int], text: str) -> list[Axis]:
    """One Axis per axis of an operand of this shape.

    Raises:
        SpecError: the operand has another number of axes than the pattern allows.
    """
    many = [k for k, a in enumerate(operand) if a.many]
    rest = len(shape) - len(operand) + len(many)
    if rest < 0 or (not many and rest):
        raise SpecError(f"'{text}' does not fit an operand of shape {tuple(shape)}")
    if not many:
        return list(operand)
    k = many[0]
    if operand[k].letters:
        letter = operand[k].letters[0]
        fill = [Axis((f"{letter}.{rest - j}",)) for j in range(rest)]
    else:
        fill = [Axis((), mixed=True, many=True)] * rest
    return [*operand[:k], *fill, *operand[k + 1 :]]


def bind(
    operands: Sequence[tuple[Sequence[Axis], Sequence[int]]], known: dict[str, int], text: str
) -> dict[str, int]:
    """Sizes of all letters from the shapes of the operands.

    Raises:
        SpecError: the sizes contradict each other.
    """
    size = dict(known)
    axes = [(a, d) for op, shape in operands for a, d in zip(op, shape, strict=True) if a.letters]
    for _ in range(3):
        for a, d in axes:
            open_ = [x for x in a.letters if x not in size and not x.isdigit()]
            have = 1
            for x in a.letters:
                have *= int(x) if x.isdigit() else size.get(x, 1)
            if len(open_) == 1 and len(a.letters) > 1:
                if d % have and d != 1:
                    raise SpecError(f"'{text}': {d} is not a multiple of {have}")
                size[open_[0]] = max(1, d // have)
            elif len(a.letters) == 1 and not a.letters[0].isdigit():
                size[a.letters[0]] = max(size.get(a.letters[0], 1), d)
    return size
