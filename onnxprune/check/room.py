"""What a run takes, and what there is: Linux kills a process that takes more, without a word."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

from onnx import helper

from onnxprune.axes.facts import Facts
from onnxprune.check.probes import reads
from onnxprune.errors import OutOfMemory

_CGROUP = Path("/sys/fs/cgroup")
_MEMINFO = Path("/proc/meminfo")


def value_bytes(value: str, facts: Facts) -> int:
    """Bytes of a tensor at the sizes of the analysis; 0 where they are not known."""
    shape, dtype = facts.trace.shapes.get(value), facts.trace.types.get(value)
    if shape is None or not dtype:
        return 0
    return prod(shape) * helper.tensor_dtype_to_np_dtype(dtype).itemsize


def growth(facts: Facts, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """How much larger inputs of these shapes are than those of the analysis."""
    analysed = sum(prod(facts.trace.shapes.get(i, ())) for i in facts.model.graph.inputs)
    return sum(prod(shape) for shape in shapes.values()) / max(analysed, 1)


def least_bytes(facts: Facts) -> int:
    """Bytes of activations that a run holds at once, at the sizes of the analysis; rather less.

    A node may write into an input that nobody reads any more; room to work in is not counted.
    """
    nodes = facts.model.graph.nodes
    last = {i: k for k, node in enumerate(nodes) for i in reads(node)}
    last |= dict.fromkeys(facts.model.graph.outputs, len(nodes))
    held = most = 0
    for k, node in enumerate(nodes):
        made = sum(value_bytes(o, facts) for o in node.outputs)
        over = {i for i in reads(node) if last[i] == k and i in facts.model.producer}
        freed = [value_bytes(i, facts) for i in over]
        most = max(most, held + made - min(made, max(freed, default=0)))
        held += made - sum(freed)
        held -= sum(value_bytes(o, facts) for o in node.outputs if o not in last)
    return most


def ensure_room(need: float) -> None:
    """Raise OutOfMemory where there are fewer bytes."""
    free = free_bytes()
    if free is not None and need > free:
        raise OutOfMemory(f"a run takes over {need / 1e9:.1f} GB, {free / 1e9:.1f} GB are free")


def free_bytes() -> int | None:
    """Memory that this process can still get; None where the system does not tell."""
    try:
        table = dict(line.split(":", 1) for line in _MEMINFO.read_text().splitlines())
        free = int(table["MemAvailable"].split()[0]) * 1024
    except (OSError, ValueError, KeyError):
        return None
    try:  # in a container
        limit, used = ((_CGROUP / f"memory.{x}").read_text() for x in ("max", "current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # there is none, or it is "max"
        return free
