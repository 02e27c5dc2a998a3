"""A judge that shares nothing with `onnxprune.check`: plain ONNX Runtime, and numpy to compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime as ort

from models.zoo import feeds
from onnxprune.axes.view import View
from onnxprune.cut.mask import masked
from onnxprune.graph.files import Source

Arrays = Mapping[str, np.ndarray]

TOLERANCE = {2: 1e-2, 4: 1e-4, 8: 1e-4}
"""By bytes of a float: max|a - b| / max|masked|."""


def run(model: onnx.ModelProto, inputs: Arrays) -> dict[str, np.ndarray]:
    """Every output of a model, exactly as it is written: nothing optimised, one thread."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model.SerializeToString()
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(inputs)), strict=True))


def differences(expected: Arrays, got: Arrays) -> list[str]:
    """What is wrong with `got`, an output a line; empty if they agree."""
    if list(expected) != list(got):
        return [f"outputs {list(got)}, not {list(expected)}"]
    return [f"{name}: {why}" for name in expected if (why := _wrong(expected[name], got[name]))]


def _wrong(a: np.ndarray, b: np.ndarray) -> str:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return f"{b.dtype}{b.shape}, not {a.dtype}{a.shape}"
    if a.dtype.kind != "f":
        return "" if np.array_equal(a, b) else f"{np.mean(a != b):.1%} of the entries"
    wide, other = a.astype(np.float64), b.astype(np.float64)
    if not np.isfinite(wide).all():
        return "the expected values are not finite: choose other inputs"
    if not a.size:
        return ""
    error = np.abs(wide - other).max() / max(np.abs(wide).max(), 1e-30)
    return "" if error <= TOLERANCE[a.dtype.itemsize] else f"relative error {error:.1e}"


@dataclass(frozen=True)
class Judgement:
    """What runs at several sizes have shown."""

    wrong: list[str]
    moved: bool
    """Whether masking changed any output: if not, nothing was shown."""


def judge(
    source: Source,
    view: View,
    slim: onnx.ModelProto,
    seed: int = 0,
    *,
    batches: Sequence[int] = (2, 3),
) -> Judgement:
    """Hold a slim model against the masked original, with each of these sizes of dynamic dims."""
    onnx.checker.check_model(slim)
    full, wrong, moved = masked(view), [], False
    for dim in batches:
        inputs = feeds(source.proto, seed, dim)
        before, expected = run(source.proto, inputs), run(full, inputs)
        found = differences(expected, run(slim, inputs))
        wrong += [f"{line} (dynamic dims of {dim})" for line in found]
        moved |= any(not np.array_equal(before[name], expected[name]) for name in before)
    return Judgement(wrong, moved)
