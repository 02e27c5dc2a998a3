"""Connected components, the one thing that solving needs: which labels are the same channel?"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.axes.labels import Vector, distinct_pairs


def components(count: int, a: Vector, b: Vector) -> NDArray[np.int64]:
    """The component of each of `count` labels, where `a[k]` and `b[k]` are the same.

    Components are numbered by their smallest label, so that of label 0 is 0. Every round hooks each
    root to the smallest root that it is tied to and flattens the trees (Shiloach and Vishkin 1982);
    three to five rounds are usual. SciPy has the same, and takes longer to import than this to run.
    """
    root = np.arange(count)
    while True:
        a, b = root[a], root[b]
        open_ = a != b
        if not open_.any():
            break
        a, b = distinct_pairs(np.maximum(a, b)[open_], np.minimum(a, b)[open_])
        first = np.ones(len(a), bool)
        np.not_equal(a[1:], a[:-1], out=first[1:])
        root[a[first]] = b[first]
        while not np.array_equal(up := root[root], root):
            root = up
    return (np.cumsum(root == np.arange(count)) - 1)[root]
