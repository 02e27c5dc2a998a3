"""Run single standard operators through onnx's own reference implementation."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from onnxprune.graph.model import Node


def _load(op: str, version: int) -> Any:
    """The class of an operator; imported late, as loading them all takes a third of a second."""
    from onnx.reference.ops import load_op

    return load_op("", op, version)


class _Key:
    """A node proto that hashes equal: `lru_cache` must not tell equal operators apart."""

    __slots__ = ("proto",)

    def __init__(self, proto: Any) -> None:
        self.proto = proto

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key)

    def __hash__(self) -> int:
        return 0


@lru_cache(maxsize=4096)
def _instance(op: str, version: int, arity: int, attributes: bytes, key: _Key) -> Any:
    return _load(op, version)(
        key.proto, {"verbose": 0, "log": lambda *_: None, "new_ops": None, "opsets": {"": version}}
    )


def can_run(node: Node) -> bool:
    """Has onnx a reference implementation of this operator in this version?"""
    try:
        _load(node.op, node.version)
    except Exception:
        return False
    return True


def run_operator(node: Node, inputs: Sequence[np.ndarray | None]) -> list[np.ndarray]:
    """Run one standard operator through onnx's reference implementation."""
    attributes = b"|".join(sorted(a.SerializeToString() for a in node.proto.attribute))
    arity = len(node.inputs) * 64 + len(node.outputs)
    op = _instance(node.op, node.version, arity, attributes, _Key(node.proto))
    out = op.run(*inputs)
    return [np.asarray(r) for r in (out if isinstance(out, (tuple, list)) else (out,))]
