"""Labels: splitting, merging, conjunctions, and what solving them implies."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from onnxprune.axes.components import components
from onnxprune.axes.facts import Facts
from onnxprune.axes.labels import Labels, Vector, pinned
from onnxprune.axes.solve import Solution, choices, freeze, labels_of, solve


def solved(labels: Labels) -> Solution:
    return solve(Facts(None, None, None, labels=labels))  # type: ignore[arg-type]


def decided(labels: Labels, side: str) -> Solution:
    """Solved, and of every pair of sides this one frozen."""
    s = solved(labels)
    while open_ := choices(s):
        s = freeze(s, labels_of(s, getattr(open_[0], side)))
    return s


def same_channels(s: Solution, a: Vector, b: Vector) -> bool:
    return bool((s.root[a] == s.root[b]).all())


def test_an_axis_of_one_element_is_pinned() -> None:
    labels = Labels()
    assert labels.axis(1).tolist() == [0]
    assert labels.axis(3).tolist() == [1, 2, 3]
    assert labels.axis(2).tolist() == [4, 5]


def test_same_is_transitive_and_broadcasts() -> None:
    labels = Labels()
    a, b, c = labels.axis(6), labels.axis(3), labels.axis(3)
    labels.same(a.reshape(2, 3), b)
    labels.same(b, c)
    s = solved(labels)
    assert same_channels(s, a[:3], a[3:])
    assert same_channels(s, a[:3], c)
    assert len(np.unique(s.root[a])) == 3


def test_many_equal_pairs_are_stated_once() -> None:
    labels = Labels()
    a, b = labels.axis(4), labels.axis(4)
    labels.same(np.tile(a, 50_000), np.tile(b, 50_000))
    assert labels.same_a[0].size == 4


def test_a_pin_reaches_all_that_is_the_same() -> None:
    labels = Labels()
    a, b = labels.axis(3), labels.axis(3)
    labels.same(a, b)
    labels.pin(a[1:2], "for a reason", "node")
    s = solved(labels)
    assert (s.root[b] == s.zero).tolist() == [False, True, False]


def test_zero_is_neutral_in_a_conjunction() -> None:
    labels = Labels()
    a = labels.axis(3)
    assert labels.conjunction(a, pinned(1)).tolist() == a.tolist()
    assert labels.conjunction(pinned(3), a).tolist() == a.tolist()
    assert labels.conjunction(a, a).tolist() == a.tolist()
    assert not labels.both


def test_a_conjunction_is_made_once_per_pair() -> None:
    labels = Labels()
    a, b = labels.axis(2), labels.axis(3)
    x = labels.conjunction(np.tile(a[:, None], (1, 3)), np.tile(b, (2, 1)))
    assert len(np.unique(x)) == 6
    y = labels.conjunction(np.array([a[0], a[0]]), np.array([b[1], b[1]]))
    assert y[0] == y[1]


def test_split_and_merge_are_inverse() -> None:
    """Reshape C -> (H, D) -> C, as around attention: the same channels come back."""
    labels = Labels()
    c = labels.axis(12)
    again = labels.merge(labels.split(c, [3, 4]))
    for side in ("outer", "inner"):
        assert same_channels(decided(labels, side), again, c)


def test_split_of_three_nests() -> None:
    labels = Labels()
    c = labels.axis(12)
    parts = labels.split(c, [2, 3, 2])
    assert [len(p) for p in parts] == [2, 3, 2]
    again = labels.merge(parts)
    for side in ("outer", "inner"):
        assert same_channels(decided(labels, side), again, c)


def test_split_that_needs_no_conjunction() -> None:
    labels = Labels()
    c = labels.axis(3)
    whole = labels.split(np.repeat(c, 2), [3, 2])
    assert whole[0].tolist() == c.tolist()
    assert not whole[1].any()
    alike = labels.split(np.tile(c, 2), [2, 3])
    assert not alike[0].any()
    assert alike[1].tolist() == c.tolist()
    assert [p.tolist() for p in labels.split(c, [1, 3, 1])] == [[0], c.tolist(), [0]]
    assert not labels.both


def test_merge_with_a_pinned_axis_repeats() -> None:
    labels = Labels()
    c = labels.axis(2)
    assert labels.merge([c, pinned(3)]).tolist() == np.repeat(c, 3).tolist()
    assert labels.merge([pinned(3), c]).tolist() == np.tile(c, 3).tolist()
    assert labels.merge([pinned(2), pinned(3)]).tolist() == [0] * 6


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [((6, 4), (3, 8)), ((2, 3, 4), (6, 4)), ((12, 2), (4, 6)), ((8, 3), (2, 12))],
)
def test_regroup_keeps_every_element(parts: tuple[int, ...], sizes: tuple[int, ...]) -> None:
    labels = Labels()
    before = [labels.axis(d) for d in parts]
    after = labels.regroup(before, sizes)
    assert after is not None
    assert [len(v) for v in after] == list(sizes)
    a, b = labels.merge(before), labels.merge(after)
    for side in ("outer", "inner"):
        assert same_channels(decided(labels, side), a, b)


def test_regroup_at_uneven_places_is_refused() -> None:
    labels = Labels()
    assert labels.regroup([labels.axis(4), labels.axis(6)], (6, 4)) is None


def test_equal_conjunctions_have_equal_parts() -> None:
    """Congruence: x = a AND b = a' AND b' ties a to a' and b to b'."""
    labels = Labels()
    c = labels.axis(6)
    h, d = labels.split(c, [2, 3])
    g, e = labels.split(c, [2, 3])
    s = solved(labels)
    assert same_channels(s, h, g)
    assert same_channels(s, d, e)


def test_a_pinned_conjunction_pins_its_parts() -> None:
    labels = Labels()
    c = labels.axis(6)
    h, d = labels.split(c, [2, 3])
    labels.pin(c[4:5], "for a reason", "node")  # head 1, dim 1
    s = solved(labels)
    assert (s.root[h] == s.zero).tolist() == [False, True]
    assert (s.root[d] == s.zero).tolist() == [False, True, False]


def test_true_and_b_is_b() -> None:
    labels = Labels()
    c = labels.axis(6)
    h, d = labels.split(c, [2, 3])
    labels.pin(h, "heads stay", "node")
    s = solved(labels)
    assert same_channels(s, c, np.tile(d, 2))


def test_a_choice_is_open_until_one_side_is_frozen() -> None:
    labels = Labels()
    c = labels.axis(6)
    h, d = labels.split(c, [2, 3])
    s = solved(labels)
    (choice,) = choices(s)
    assert sorted(choice.outer) == sorted(s.root[h])
    assert sorted(choice.inner) == sorted(s.root[d])
    whole = freeze(s, labels_of(s, choice.inner))
    assert choices(whole) == []
    assert same_channels(whole, c, np.repeat(h, 3))
    assert (whole.root[d] == whole.zero).all()
    dims = freeze(s, labels_of(s, choice.outer))
    assert same_channels(dims, c, np.tile(d, 2))


def test_nested_choices_are_made_from_the_inside() -> None:
    labels = Labels()
    labels.split(labels.axis(12), [2, 3, 2])
    s = solved(labels)
    steps = 0
    while open_ := choices(s):
        s = freeze(s, labels_of(s, open_[0].outer))
        steps += 1
    assert steps == 2


@pytest.mark.parametrize("kind", ["none", "random", "dense", "chain", "shuffled chain", "star"])
def test_components(kind: str) -> None:
    rng, n = np.random.default_rng(0), 400
    order = np.arange(n) if kind == "chain" else rng.permutation(n)
    a, b = {
        "none": (order[:0], order[:0]),
        "random": (rng.integers(0, n, 150), rng.integers(0, n, 150)),
        "dense": (rng.integers(0, n, 2000), rng.integers(0, n, 2000)),
        "chain": (order[:-1], order[1:]),
        "shuffled chain": (order[:-1], order[1:]),
        "star": (np.full(n - 1, n - 1), np.arange(n - 1)),
    }[kind]
    graph = coo_matrix((np.ones(len(a), bool), (a, b)), shape=(n, n))
    assert np.array_equal(components(n, a, b), connected_components(graph, directed=False)[1])
