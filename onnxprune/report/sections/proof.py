"""The proof: how far the slim model is from the original without the removed channels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import LogAxis, count, shape, short


@dataclass(frozen=True)
class Verdict:
    """`tone`: good, bad or warn."""

    tone: str
    word: str
    sentence: str


@dataclass(frozen=True)
class Mark:
    """A number on the axis; `tone` is error, limit or moved."""

    tone: str
    title: str
    text: str
    at: float


@dataclass(frozen=True)
class Proof:
    verdict: Verdict
    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    worst: str
    first_bad: str
    runs: tuple[tuple[str, int], ...]
    """Input shapes and seed."""
    outputs: tuple[str, ...]
    notes: tuple[str, ...]


_FLOOR = 1e-9
"""An error under it is drawn there: rounding has no smaller one that means anything."""


def verdict(report: Mapping[str, Any]) -> Verdict | None:
    """Is the slim model right? None where there is no slim model to ask about."""
    v = report.get("verify")
    if v is None:
        if "after" not in report:
            return None
        return Verdict("warn", "Not proven", "The proof was skipped (--no-verify).")
    error, limit = short(v["max_rel_err"]), short(v["tolerance"])
    if not v["passed"]:
        where = f" at {v['first_bad']}" if v["first_bad"] else ""
        return Verdict(
            "bad", "Wrong",
            f"The slim model is not the original without the removed channels{where}: "
            f"relative error {error}, allowed {limit}. No model was written.",
        )  # fmt: skip
    if v["vacuous"]:
        return Verdict(
            "warn", "Not shown",
            "The proof is vacuous: the removed channels do not move the outputs.",
        )  # fmt: skip
    if not v["inputs"]:
        return Verdict("good", "Proven", "The slim model is the original.")
    how = "node by node, " if v["by_node"] else ""
    where = f"{count(len(v['inputs']), 'run')}, {count(len(v['outputs']), 'output')}"
    return Verdict(
        "good", "Proven",
        "The original with the removed channels at zero and the slim model agree: "
        f"relative error {error} of {limit} allowed ({how}{where}).",
    )  # fmt: skip


def proof(report: Mapping[str, Any]) -> Proof | None:
    """The verdict, its numbers on one axis, and what was run."""
    v, found = report.get("verify"), verdict(report)
    if v is None or found is None:
        return None
    numbers = [
        ("error", "largest difference", v["max_rel_err"]),
        ("limit", "allowed", v["tolerance"]),
        ("moved", "how far zeroing the removed channels moves the outputs", v["moved"]),
    ]
    numbers = [n for n in numbers if n[2] or n[0] == "error"] if v["inputs"] else []
    axis = LogAxis.over([*(n[2] for n in numbers), 1e-4 * v["tolerance"], 1.0], _FLOOR)
    return Proof(
        found,
        tuple(Mark(tone, title, short(x), axis.at(x)) for tone, title, x in numbers),
        tuple(axis.ticks) if numbers else (),
        v["worst"],
        v["first_bad"],
        tuple((_shapes(run["shapes"]), run["seed"]) for run in v["inputs"]),
        tuple(v["outputs"]),
        tuple(v["notes"]),
    )


def _shapes(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}: {shape(s)}" for name, s in shapes.items())
