"""A run with everything where it has to be: inputs on the device, outputs in place, no copies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxprune.errors import PruneError
from onnxprune.runtime.providers import failed, onnxruntime
from onnxprune.runtime.session import Port, Session, is_native


@dataclass(frozen=True, slots=True)
class Bound:
    """One inference of a session on fixed inputs, ready to be run again and again."""

    run: Callable[[], None]
    device: str
    """Where inputs and outputs lie: cpu or cuda; empty where they could not be bound."""


def bound(session: Session, feeds: Mapping[str, np.ndarray]) -> Bound:
    """Bind inputs and outputs to the device that the session's first provider computes on.

    Outputs keep the memory of a first run, so that none is asked for in between. Strings,
    sequences and maps can't be bound: then inputs and outputs are numpy's. Raises Unreadable,
    OutOfMemory.
    """
    try:
        if not all(_bindable(port) for port in (*session.inputs, *session.outputs)):
            session.run(feeds)
            return Bound(lambda: _discard(session.run(feeds)), "")
        device = "cpu" if session.providers[0] == "cpu" else "cuda"
        value, binding = onnxruntime().OrtValue, session.ort.io_binding()
        for name, array in feeds.items():
            binding.bind_ortvalue_input(name, value.ortvalue_from_numpy(array, device, 0))
        for port in session.outputs:
            binding.bind_output(port.name, device)
        session.ort.run_with_iobinding(binding)
        for port, output in zip(session.outputs, binding.get_outputs(), strict=True):
            binding.bind_ortvalue_output(port.name, output)
    except PruneError:
        raise
    except Exception as error:  # ONNX Runtime's exceptions share no base of their own
        raise failed("ONNX Runtime cannot run the model", error) from error
    inference = session.ort

    def once() -> None:
        inference.run_with_iobinding(binding)
        if device != "cpu":
            binding.synchronize_outputs()

    return Bound(once, device)


def _bindable(port: Port) -> bool:
    return port.dtype is not None and is_native(port.dtype) and port.dtype.kind != "O"


def _discard(outputs: object) -> None:
    """Nobody looks at what came out."""
