"""The spec mini-language: what it parses to, and how it complains."""

from __future__ import annotations

import pytest

from onnxprune.axes.rules import SPECS
from onnxprune.axes.spec import Axis, SpecError, bind, expand, parse

CONV = "n (g i) ..., (g o) i ..., (g o) -> n (g o) ..."


def test_tokens() -> None:
    spec = parse("t! (4 h) i~ ..., *b _, _ -> t! *b")
    assert spec.inputs[0] == (
        Axis(("t",), mixed=True), Axis(("4", "h")), Axis(("i",), contracted=True),
        Axis((), mixed=True, many=True),
    )  # fmt: skip
    assert spec.inputs[1] == (Axis(("b",), many=True), Axis((), mixed=True))
    assert spec.inputs[2] is None
    assert len(spec.outputs) == 1


@pytest.mark.parametrize(
    ("text", "contracts"),
    [
        (CONV, True),
        ("*b m k, *b k n -> *b m n", True),
        ("n c ..., c, c -> n c ...", False),
        ("*b c!, c -> *b c!", False),
        ("b k, k -> b", True),
        ("x y -> x", False),
        ("t b i, h i, h h~ -> t b h", True),
    ],
)
def test_contracts(text: str, contracts: bool) -> None:
    assert parse(text).contracts is contracts


def test_every_line_of_the_table_parses() -> None:
    lines = [rule for rule in SPECS.values() if isinstance(rule, str)]
    assert len(lines) > 20
    for line in lines:
        letters = {x for o in parse(line).outputs if o for a in o for x in a.letters}
        assert letters


def test_expand_names_leading_axes_from_the_right() -> None:
    (a, b) = parse("*b m k, *b k n -> *b m n").inputs
    long, short = expand(a or (), (5, 2, 3, 4), ""), expand(b or (), (2, 4, 6), "")
    assert [x.letters for x in long] == [("b.2",), ("b.1",), ("m",), ("k",)]
    assert [x.letters for x in short] == [("b.1",), ("k",), ("n",)]


def test_expand_fills_with_axes_that_stay() -> None:
    (x,) = parse("n c ... -> n c ...").inputs
    assert x
    assert [a.mixed for a in expand(x, (1, 2, 3, 4, 5), "")] == [False, False, True, True, True]
    assert len(expand(x, (1, 2), "")) == 2


@pytest.mark.parametrize("shape", [(2,), (2, 3, 4)])
def test_a_wrong_rank_repeats_the_pattern_and_the_shape(shape: tuple[int, ...]) -> None:
    text = "m k, k n -> m n"
    (first, _) = parse(text).inputs
    assert first
    with pytest.raises(SpecError) as e:
        expand(first, shape, text)
    assert text in str(e.value)
    assert str(shape) in str(e.value)


def test_too_few_axes_for_what_is_named() -> None:
    (x, *_) = parse(CONV).inputs
    assert x
    with pytest.raises(SpecError, match=r"shape \(2,\)"):
        expand(x, (2,), CONV)


def test_bind_finds_factors() -> None:
    spec = parse(CONV)
    shapes = [(1, 6, 5, 5), (4, 3, 3, 3), (4,)]
    found = [
        (expand(o, s, CONV), s) for o, s in zip(spec.inputs, shapes, strict=True) if o is not None
    ]
    assert bind(found, {"g": 2}, CONV) == {"n": 1, "g": 2, "i": 3, "o": 2}


def test_bind_repeats_the_pattern_and_the_size() -> None:
    text = "(4 h) i -> h"
    (x,) = parse(text).inputs
    assert x
    with pytest.raises(SpecError) as e:
        bind([(list(x), (10, 3))], {}, text)
    assert text in str(e.value)
    assert "10 is not a multiple of 4" in str(e.value)
