"""How close the slim model's outputs are to the original's, and the user's metric."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnxprune.report.figures import gain, percent, short


@dataclass(frozen=True)
class Output:
    name: str
    agreement: str
    share: float | None
    """Of samples with the same answer."""
    snr: str
    kl: str


@dataclass(frozen=True)
class Fidelity:
    on: str
    samples: int
    outputs: tuple[Output, ...]
    metric: tuple[str, str, str, str] | None
    """Its name, before, after, and the change."""


def fidelity(report: Mapping[str, Any]) -> Fidelity | None:
    """Agreement, signal to noise and divergence per output."""
    found = report.get("fidelity")
    if not found:
        return None
    outputs = tuple(
        Output(
            r["output"], percent(r["agreement"]) if r.get("agreement") is not None else "",
            r.get("agreement"), f"{r['snr_db']:.1f} dB" if r.get("snr_db") is not None else "",
            short(r["kl"]) if r.get("kl") is not None else "",
        )
        for r in found.get("outputs", ())
    )  # fmt: skip
    return Fidelity(found.get("on", ""), found.get("samples", 0), outputs, metric(found))


def metric(found: Mapping[str, Any]) -> tuple[str, str, str, str] | None:
    """A metric's name, its values before and after, and the change."""
    m = found.get("metric")
    if not m:
        return None
    before, after = m["before"], m["after"]
    return m["name"], f"{before:.4g}", f"{after:.4g}", gain(before, after)
