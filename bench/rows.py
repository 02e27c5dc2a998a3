"""A line of the suite's results: one network, pruned in one way, timed on one provider."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from onnxprune.errors import Unreadable

OURS = ("align 1", "align auto")
PEERS = ("onnxsim", "torch-pruning")
WIDTH = 140
"""Characters of a table of rows where no terminal says how many there is room for."""

Key = tuple[str, str, str, int, str]
"""Network, variant, provider, batch, and what it ran on."""


@dataclass(frozen=True)
class Row:
    """What is known of a variant; None where it does not apply or is not known."""

    network: str
    variant: str
    """One of OURS or PEERS."""
    provider: str
    batch: int
    machine: Mapping[str, str | int]
    """As `onnxprune.runtime.machine.describe` says it."""
    onnxprune: str
    """Version."""
    params: int | None = None
    """Of the original."""
    params_removed: float | None = None
    macs: int | None = None
    """Of the original, at this batch."""
    macs_removed: float | None = None
    promised: float | None = None
    """The ratio of multiply-accumulates: the speed-up if time were proportional to them."""
    speedup: float | None = None
    low: float | None = None
    high: float | None = None
    """The 95 % interval of `speedup`."""
    measurable: bool | None = None
    ms: float | None = None
    original_ms: float | None = None
    """Medians."""
    busy: float | None = None
    """Share of all cores that other programs had meanwhile."""
    align: int | None = None
    """The multiple of channels that `--align auto` chose."""
    seconds: float | None = None
    """Wall time: of the whole process of `onnxprune slim`; of the pass alone for peers."""
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    failed: str = ""
    """Why there is no speed-up."""

    @property
    def reached(self) -> float | None:
        """The share of the promised speed-up that was measured, in percent."""
        if self.speedup is None or not self.promised:
            return None
        return 100 * self.speedup / self.promised

    @property
    def interval(self) -> tuple[float, float] | None:
        """That of the speed-up."""
        return None if self.low is None or self.high is None else (self.low, self.high)

    @property
    def where(self) -> str:
        """What it ran on, as far as times depend on it."""
        m = self.machine
        gpu = f", {m['gpu']}" if self.provider != "cpu" and "gpu" in m else ""
        return f"{m.get('cpu', 'unknown processor')}, {m.get('cores', '?')} cores{gpu}"

    @property
    def key(self) -> Key:
        return self.network, self.variant, self.provider, self.batch, self.where

    def to_json(self) -> str:
        """One line; floats with six digits, what is not known is left out."""
        found = {**asdict(self), "reached": self.reached}
        return json.dumps({
            k: float(f"{v:.6g}") if isinstance(v, float) else v
            for k, v in found.items()
            if v is not None and v != ""
        })  # fmt: skip


def read(path: Path) -> dict[Key, Row]:
    """The rows of a file of results; the last line of a key wins. Raises Unreadable."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise Unreadable("the results can't be read", where=str(path), why=str(error)) from error
    return latest(_row(line, f"{path}:{k}") for k, line in enumerate(lines, 1) if line.strip())


def latest(rows: Iterable[Row]) -> dict[Key, Row]:
    """By key; of several the last."""
    return {row.key: row for row in rows}


def _row(line: str, where: str) -> Row:
    try:
        found = json.loads(line)
        found.pop("reached", None)
        row = Row(**found)
        if "cpu" not in row.machine:
            raise ValueError("no machine in it")
    except (ValueError, TypeError, AttributeError) as error:
        hint = "python -m bench.suite makes them"
        raise Unreadable("not a row of results", where=where, why=str(error), hint=hint) from error
    return row
