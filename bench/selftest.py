"""Can the benchmark be trusted on this machine? A model against a copy of itself, many times.

    python -m bench.selftest MODEL [MODEL ...] [--times 10] [--duration 60] [--threads N]

Each time is a whole `onnxprune bench MODEL COPY`: new sessions in new order, stopped when the
interval is within 1 %, or after `--duration` seconds. Prints a JSON line a run, and a table: the
ratio should be 1.00 +- 0.02 in 9 of 10 runs, and nothing should be called measurable.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onnxprune.bench.compare import compare
from onnxprune.bench.settings import Settings

WANTED = 0.02


def once(model: Path, copy: Path, settings: Settings) -> dict[str, Any]:
    """One benchmark of a model against a copy of itself."""
    report = compare({"model": model, "copy": copy}, settings, lambda what, share: None)
    (case,) = report.cases
    (found,) = case.speedups
    return {
        "file": model.name, "ratio": found.ratio, "low": found.low, "high": found.high,
        "measurable": found.measurable, "median_ms": case.rows[0].ms.median,
        "rounds": case.rows[0].ms.rounds, "blocks": case.rows[0].ms.blocks,
        "seconds": case.seconds, "busy": case.busy, "waited": case.rows[0].waited,
        "machine": dict(report.machine),
    }  # fmt: skip


def table(rows: list[dict[str, Any]]) -> Table:
    """A line a run."""
    out = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("model", "ratio", "interval", "ms", "rounds", "seconds", "others", ""):
        out.add_column(title, justify="left" if title in ("model", "") else "right", no_wrap=True)
    for r in rows:
        verdict = "" if abs(r["ratio"] - 1) <= WANTED else "off"
        out.add_row(
            r["file"], f"{r['ratio']:.3f}", f"{r['low']:.3f} to {r['high']:.3f}",
            f"{r['median_ms']:.3f}", str(r["rounds"]), f"{r['seconds']:.0f}",
            "" if r["busy"] is None else f"{r['busy']:.0%}",
            "called a change" if r["measurable"] else verdict,
        )  # fmt: skip
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--times", type=int, default=10)
    parser.add_argument("--duration", type=float, default=60.0, help="seconds a run, at most")
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    settings = Settings(("cpu",), threads=args.threads, duration=args.duration, memory=False)
    console = Console(stderr=True, highlight=False)
    for model in args.models:
        rows = []
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(shutil.copy(model, folder))
            for _ in range(args.times):
                rows.append(once(model, copy, settings))
                print(json.dumps(rows[-1]), flush=True)
        console.print(table(rows))
        good = sum(abs(r["ratio"] - 1) <= WANTED for r in rows)
        console.print(f"{good} of {len(rows)} within 1.00 +- {WANTED}\n")


if __name__ == "__main__":
    main()
