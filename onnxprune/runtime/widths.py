"""How long a model's layers take at neighbouring widths, measured once a machine and version.

On some devices a width is no faster than the next multiple of 8, 16 or 32: blocked layouts pad it,
vector units idle. Only the device itself knows.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import numpy as np
from onnx import ModelProto, helper, numpy_helper

from onnxprune.errors import PruneError
from onnxprune.graph.atomic import replacing
from onnxprune.runtime.iobinding import bound
from onnxprune.runtime.machine import describe
from onnxprune.runtime.session import open_session
from onnxprune.runtime.timing import interleave

MULTIPLES = (1, 4, 8, 16, 32)
"""What kept counts may be multiples of."""
LOWER = 0
_LESS = ((LOWER, 0), (1, 1), (1, 13), (4, 4), (4, 12), (8, 8), (16, 16), (32, 0))
"""How many channels less than whole blocks a width has that stands for a multiple."""

_NARROWEST = 8
"""Channels below which a side is timed as it is."""
_SECONDS = 0.3
"""That a layer is timed, all its widths in turn."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution or a product with a stored matrix, as far as its time depends on it."""

    op: str
    """Conv, or MatMul (Gemm is timed as one)."""
    dtype: int
    inputs: int
    outputs: int
    """Channels."""
    narrows: tuple[bool, bool]
    """Whether inputs and outputs may lose channels."""
    space: tuple[int, ...]
    """Size of a convolution's input map; rows of a product."""
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    depthwise: bool = False

    def macs(self, inputs: int, outputs: int) -> float:
        """Multiply-accumulates at these widths (the same factor off for all of a layer's)."""
        positions = prod(self.space) / max(1, prod(self.strides))
        return positions * prod(self.kernel) * (outputs if self.depthwise else inputs * outputs)


@dataclass(frozen=True, slots=True)
class Width:
    """A layer at one width."""

    multiple: int
    """What it stands for, see `widths_of`."""
    inputs: int
    outputs: int
    ms: float


def widths_of(layer: Layer) -> list[tuple[int, int, int]]:
    """(multiple, inputs, outputs) to time: widths at about half of the channels.

    The last fill whole blocks on both sides, those of `LOWER` a block (or half of the channels)
    less. Between them lie widths on multiples of 1, 4, 8, 16 and of no more than that, as far from
    the end as such widths are on average.
    """

    def near(channels: int, narrows: bool, multiple: int, less: int) -> int:
        block = max((m for m in MULTIPLES if m <= channels), default=1)
        if not narrows or block < _NARROWEST:
            return channels
        most = block * max(1, round(channels / 2 / block))
        least = most - block if most > block else most // 2
        if multiple == LOWER:
            return least
        return most if multiple >= block else max(least, most - less)

    narrow_in, narrow_out = layer.narrows
    return [(m, near(layer.inputs, narrow_in, m, less), near(layer.outputs, narrow_out, m, less))
            for m, less in _LESS]  # fmt: skip


def measure(
    layers: Sequence[Layer], provider: str, tell: Callable[[str], None]
) -> dict[Layer, tuple[Width, ...]]:
    """Times of these layers, from the cache where they have been measured before.

    A layer that the provider can't run is left out.
    """
    path = _cache_path(provider)
    known = _read(path)
    fresh: dict[str, list[float]] = {}
    found: dict[Layer, tuple[Width, ...]] = {}
    for k, layer in enumerate(layers):
        widths = widths_of(layer)
        pairs = list(dict.fromkeys((i, o) for _, i, o in widths))
        key = hashlib.sha256(json.dumps([asdict(layer), pairs]).encode()).hexdigest()[:16]
        times = known.get(key)
        if times is None or len(times) != len(pairs):
            tell(f"timing layer {k + 1} of {len(layers)} at other widths")
            try:
                times = fresh[key] = _time(layer, pairs, provider)
            except PruneError:
                continue
        ms = dict(zip(pairs, times, strict=True))
        found[layer] = tuple(Width(m, i, o, ms[i, o]) for m, i, o in widths)
    if fresh:
        _write(path, {**known, **fresh})
    return found


def _time(layer: Layer, pairs: Sequence[tuple[int, int]], provider: str) -> list[float]:
    """Milliseconds at each pair of widths."""
    rng = np.random.default_rng(0)
    sessions, runs = [], {}
    try:
        for inputs, outputs in pairs:
            model, shape = _model(layer, inputs, outputs, rng)
            session = open_session(model, provider=provider, optimise=True)
            sessions.append(session)
            dtype = helper.tensor_dtype_to_np_dtype(layer.dtype)
            feeds = {"x": rng.standard_normal(shape, np.float32).astype(dtype)}
            runs[f"{inputs}x{outputs}"] = bound(session, feeds).run
        timed = interleave(runs, duration=_SECONDS, warmup=2)
        return [round(float(np.percentile(t.samples, 10)), 5) for t in timed.values()]
    finally:
        for session in sessions:
            session.close()


def _model(
    layer: Layer, inputs: int, outputs: int, rng: np.random.Generator
) -> tuple[ModelProto, tuple[int, ...]]:
    """A model of this layer alone, and the shape of its input."""
    dtype = helper.tensor_dtype_to_np_dtype(layer.dtype)
    if layer.op == "Conv":
        group = inputs if layer.depthwise else 1
        outputs = inputs if layer.depthwise else outputs
        shape: tuple[int, ...] = (1, inputs, *layer.space)
        w_shape: tuple[int, ...] = (outputs, inputs // group, *layer.kernel)
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], group=group, strides=layer.strides, pads=layer.pads,
            dilations=layer.dilations,
        )  # fmt: skip
    else:
        shape, w_shape = (*layer.space, inputs), (inputs, outputs)
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
    weight = (rng.standard_normal(w_shape, np.float32) / np.sqrt(inputs)).astype(dtype)
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node], "layer", [info("x", layer.dtype, shape)], [info("y", layer.dtype, None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    opset = helper.make_opsetid("", 13)  # old enough for every ONNX Runtime
    return helper.make_model(graph, ir_version=8, opset_imports=[opset]), shape


# ---- the cache ----------------------------------------------------------------------------------


def _cache_path(provider: str) -> Path:
    """One file a machine, ONNX Runtime version and provider."""
    base = os.environ.get("ONNXPRUNE_CACHE")
    if not base:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "onnxprune")
    machine = {k: v for k, v in describe().items() if k not in ("python", "memory_gb", "os")}
    key = json.dumps([machine, provider], sort_keys=True)
    return Path(base).expanduser() / f"widths-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def _read(path: Path) -> dict[str, list[float]]:
    """What is known; nothing where it can't be read."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return {str(k): [float(t) for t in v] for k, v in data["times"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def _write(path: Path, times: Mapping[str, Sequence[float]]) -> None:
    """Keep what was measured; a cache that can't be written is no error."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing([path]) as (temporary,):
            temporary.write_text(json.dumps({"times": times}), encoding="utf-8")
    except OSError:
        return
