"""One node or tensor: which channels lie on its axes, what they are tied to, what fixes them."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxprune.axes.facts import Facts
from onnxprune.axes.reasons import reasons
from onnxprune.axes.solve import Group, Solution
from onnxprune.errors import UsageError


def explain(solution: Solution, groups: Sequence[Group], name: str) -> dict[str, Any]:
    """Tell about a node or tensor, by the name that it has in the file.

    Raises:
        UsageError: nothing in the model is called that; the error names what is close.
    """
    facts = solution.facts
    model = facts.model
    values: list[tuple[str, str]] = []
    known: set[str] = set()
    for node in model.walk():
        known |= {node.proto.name, *(model.in_file(v) for v in (*node.inputs, *node.outputs))}
        if node.proto.name == name:
            values += [(v, f"input of {node.op}") for v in node.inputs if v]
            values += [(v, f"output of {node.op}") for v in node.outputs if v]
    for value in (*model.graph.inputs, *facts.axes):
        if model.in_file(value) == name:
            values.append((value, "weight" if value in model.constants else "tensor"))
    if not values:
        close = difflib.get_close_matches(name, sorted(known - {""}), 3)
        raise UsageError(
            f"nothing in the model is called '{name}'",
            hint=f"did you mean {', '.join(close)}?" if close else "onnxprune inspect lists groups",
        )
    of = np.full(int(solution.root.max()) + 1, -1)
    for g in groups:
        of[g.roots] = g.id
    tensors = []
    for value, role in dict.fromkeys(values):
        axes = [
            _axis(solution, groups, of, value, k) for k in range(len(facts.axes.get(value, ())))
        ]
        tensors.append({"name": model.in_file(value), "role": role, "axes": axes})
    return {"name": name, "tensors": tensors}


def _axis(
    solution: Solution, groups: Sequence[Group], of: np.ndarray, value: str, k: int
) -> dict[str, Any]:
    labels = solution.facts.axes[value][k]
    ids = [int(g) for g in np.unique(of[solution.root[labels]]) if g >= 0]
    out: dict[str, Any] = {"axis": k, "size": len(labels), "groups": ids, "tied_to": []}
    if _is_dynamic(solution.facts, value, k):
        out["size"] = _symbol(solution.facts, value, k)
        out["what"] = f"dynamic, analysed at {len(labels)}"
    elif ids:
        names = ", ".join(groups[g].name for g in ids)
        out["what"] = f"may shrink, group{'s' if len(ids) > 1 else ''} {names}"
        file = solution.facts.model.in_file
        out["tied_to"] = [
            f"{file(m.value)}, axis {m.axis} ({m.role})"
            for g in ids
            for m in groups[g].members
            if m.value != value or m.axis != k
        ]
    elif len(labels) < 2:
        out["what"] = "one element"
    else:
        out["what"] = "fixed"
        out["tied_to"] = list(reasons(solution, value, k))
    return out


def _is_dynamic(facts: Facts, value: str, k: int) -> bool:
    """Does the axis take another size under another binding?"""
    a, b = facts.shape(value), facts.other.shapes.get(value)
    return a is not None and (b is None or len(a) != len(b) or a[k] != b[k])


def _symbol(facts: Facts, value: str, k: int) -> str:
    """What the file calls the size of an axis."""
    graph, name = facts.model.proto.graph, facts.model.in_file(value)
    for info in (*graph.input, *graph.output, *graph.value_info):
        dims = info.type.tensor_type.shape.dim
        if info.name == name and k < len(dims) and dims[k].dim_param:
            return dims[k].dim_param
    return "dynamic"
