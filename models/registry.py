"""The table that every builder of a small architecture enters itself into."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike

from models.builder import G, Store

Build = Callable[..., str | dict[str, str]]

ZOO: dict[str, Callable[[int], onnx.ModelProto]] = {}
# Valid models that ONNX Runtime has no CPU kernels for.
ZOO_NO_RUNTIME: dict[str, Callable[[int], onnx.ModelProto]] = {}


def model(
    name: str,
    *,
    opset: int,
    dtype: DTypeLike = np.float32,
    store: Store = "initializer",
    runs: bool = True,
    **variant: Any,
) -> Callable[[Build], Build]:
    """Enter a function (G, **variant) -> output name(s) as `name`; may be stacked.

    A single output is called `y`. The other keywords are those of `G`.
    """

    def enter(build: Build) -> Build:
        table = ZOO if runs else ZOO_NO_RUNTIME
        if name in table:
            raise ValueError(f"two models are called {name}")
        table[name] = partial(_make, build, variant, opset=opset, dtype=dtype, store=store)
        return build

    return enter


def _make(build: Build, variant: dict[str, Any], seed: int, **graph: Any) -> onnx.ModelProto:
    g = G(seed, **graph)
    outputs = build(g, **variant)
    return g.model(**({"y": outputs} if isinstance(outputs, str) else outputs))
