"""Structured pruning for exported ONNX models: smaller, faster, proven right.

    import onnxprune
    result = onnxprune.slim("model.onnx", ratio=0.5)
    result.save("model.slim.onnx")

`load`, `analyze`, `slim`, `apply` and `verify` take a path or a ModelProto.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
__all__ = ["analyze", "apply", "load", "slim", "verify"]

_HOMES = {
    "analyze": "onnxprune.pipeline", "apply": "onnxprune.pipeline", "load": "onnxprune.graph.files",
    "slim": "onnxprune.pipeline", "verify": "onnxprune.pipeline",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """The verbs, imported when they are first asked for (`onnxprune --help` needs none)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'onnxprune' has no attribute '{name}'")
    return getattr(import_module(_HOMES[name]), name)
