"""A layer as a function of any input, with weights given as a matrix; and its transpose."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from onnxprune.repair.jobs import Job
from onnxprune.repair.rewrite import write_array
from onnxprune.repair.taps import explicit_pads
from onnxprune.runtime.session import Session, open_session


class Operator:
    """A job's linear map, with weights and bias (*lead, D, O), in float32."""

    def __init__(self, job: Job, w: NDArray[np.float64]) -> None:
        self.job = job
        self.weight = np.ascontiguousarray(
            write_array(w[..., :-1, :], job.layer, job.shape), np.float32
        )
        self.bias = np.ascontiguousarray(w[..., -1, :].ravel(), np.float32)
        self._sessions: dict[tuple[int, ...], Session] = {}

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """(samples, channels, ...) or (..., channels): its output."""
        x = x.astype(np.float32, copy=False)
        if not self.job.layer.is_conv:
            return np.asarray(x @ self._matrix + self.bias)
        if () not in self._sessions:
            self._sessions[()] = self._conv(
                self.job.layer.node.op, self._attributes(), self.weight, self.bias
            )
        return self._sessions[()].run({"x": x})["y"]

    def back(self, r: np.ndarray, shape: Sequence[int]) -> np.ndarray:
        """The transpose, applied to a map like its output; `shape` is that of its input."""
        if not self.job.layer.is_conv:
            return np.asarray(r @ self._matrix.T)
        key = tuple(shape[2:])
        if key not in self._sessions:
            kernel = self.job.shape[2:]
            attributes = self._attributes()
            begins, ends = explicit_pads(self.job.layer.node, key, kernel)
            attributes |= {"auto_pad": "NOTSET", "pads": [*begins, *ends]}
            turned = "Conv" if self.job.layer.node.op == "ConvTranspose" else "ConvTranspose"
            attributes.pop("output_padding", None)
            if turned == "ConvTranspose":
                strides = attributes.get("strides", [1] * len(key))
                dilations = attributes.get("dilations", [1] * len(key))
                reach = [
                    s * (n - 1) + d * (k - 1) + 1 - b - e
                    for s, n, d, k, b, e in zip(
                        strides, r.shape[2:], dilations, kernel, begins, ends, strict=True
                    )
                ]
                attributes["output_padding"] = [n - m for n, m in zip(key, reach, strict=True)]
            self._sessions[key] = self._conv(turned, attributes, self.weight, None)
        return self._sessions[key].run({"x": r.astype(np.float32, copy=False)})["y"]

    @property
    def _matrix(self) -> np.ndarray:
        return self.weight.T if self.job.layer.axis == 1 else self.weight

    def _attributes(self) -> dict[str, Any]:
        known = ("strides", "dilations", "pads", "auto_pad", "output_padding", "kernel_shape")
        attributes = {k: v for k, v in self.job.layer.node.attrs.items() if k in known}
        return attributes | {"group": self.job.groups}

    @staticmethod
    def _conv(
        op: str, attributes: dict[str, Any], weight: np.ndarray, bias: np.ndarray | None
    ) -> Session:
        rank = weight.ndim
        stored = {"w": weight} if bias is None else {"w": weight, "b": bias}
        tensors = [
            helper.make_tensor(k, TensorProto.FLOAT, v.shape, v.tobytes(), raw=True)
            for k, v in stored.items()
        ]
        x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [None] * rank) for n in "xy")
        node = helper.make_node(op, ["x", *stored], ["y"], **attributes)
        graph = helper.make_graph([node], "layer", [x], [y], tensors)
        opset = [helper.make_opsetid("", 13)]
        return open_session(helper.make_model(graph, opset_imports=opset, ir_version=8),
                            optimise=True)  # fmt: skip
