"""What values that are computed from the file's constants alone hold."""

from __future__ import annotations

import numpy as np

from onnxprune.axes.facts import Facts
from onnxprune.axes.trace import run_operator


def constant_value(value: str, facts: Facts) -> np.ndarray:
    """The content of a constant, or of what nodes compute from constants alone."""
    model = facts.model
    done: dict[str, np.ndarray] = {}

    def get(name: str) -> np.ndarray:
        if name in done:
            return done[name]
        if name in model.constants:
            return model.array(model.constants[name])
        if name in facts.trace.values:
            return facts.trace.values[name]
        node = model.producer[name]
        results = run_operator(node, [get(i) if i else None for i in node.inputs])
        done.update(zip(node.outputs, results, strict=False))
        return done[name]

    return get(value)
