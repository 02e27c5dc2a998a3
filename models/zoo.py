"""Every kind of network in small, with random weights: `ZOO[name](seed)` is a model.

The networks are in `convnets`, `sequences` and `formats`; none is made with a training framework.
Float inputs are made for about N(0, 1); integer inputs are ids below `MAX_ID`.
"""

from pathlib import Path

import numpy as np
import onnx
from onnx import helper

# The imports are what fills ZOO.
from models import convnets, formats, sequences
from models.registry import ZOO, ZOO_NO_RUNTIME

__all__ = [
    "MAX_ID",
    "ZOO",
    "ZOO_NO_RUNTIME",
    "convnets",
    "feeds",
    "formats",
    "sequences",
    "with_external_data",
]

MAX_ID = 50


def feeds(model: onnx.ModelProto, seed: int = 0, dim: int = 2) -> dict[str, np.ndarray]:
    """Random arrays for the inputs of a model of the zoo; dynamic dims get the size `dim`."""
    rng = np.random.default_rng(seed)
    stored = {t.name for t in model.graph.initializer}
    arrays = {}
    for info in model.graph.input:
        if info.name in stored:
            continue
        kind = info.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else dim for d in kind.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(kind.elem_type)
        if dtype.kind in "iub":
            high = 2 if dtype.kind == "b" else MAX_ID
            arrays[info.name] = np.asarray(rng.integers(0, high, shape), dtype)
        else:
            arrays[info.name] = np.asarray(rng.standard_normal(shape), dtype)
    return arrays


def with_external_data(model: onnx.ModelProto, folder: Path) -> Path:
    """Save a model with its weights in a file beside it; returns the model's path."""
    path = folder / "model.onnx"
    # onnx appends to a data file that is there already.
    data = folder / "model.onnx.data"
    data.unlink(missing_ok=True)
    onnx.save_model(
        onnx.ModelProto.FromString(model.SerializeToString()),
        path,
        save_as_external_data=True,
        location=data.name,
        size_threshold=0,
    )
    return path
