"""Random runs: models x ratios x policies x seeds, each with the proof. None may be wrong.

    python -m bench.fuzz [FOLDER ...] [--runs 8] [--seed 0] [--largest-mb 4]

Without folders: the zoo of `models/`. Channels are ranked at random, so that every run cuts others.
Beside the proof, every plan is written, read and replayed, which must give the identical model, and
the slim model must open in ONNX Runtime with all optimisations on. Prints every failure with the
keywords that repeat it, and the counts; exit code 1 if there was a failure.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

import onnxprune
from bench import isolated
from models.zoo import ZOO
from onnxprune.choose.plan import from_json, to_json
from onnxprune.errors import CheckFailed, NothingToPrune, PruneError
from onnxprune.runtime.session import open_session

GOOD = ("proven", "untouched", "unproven", "vacuous")
"""`unproven`: the original does not run. `vacuous`: what went had no influence (a dead channel)."""


def draws(name: str, seed: int, runs: int) -> Iterator[dict[str, Any]]:
    """Keywords of `onnxprune.slim`, the same for the same model and seed."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    for _ in range(runs):
        keywords: dict[str, Any] = {
            "ratio": float(rng.choice([0.1, 0.3, 0.5, 0.7, 0.9])),
            "heads": str(rng.choice(["auto", "whole", "dims"])),
            "scope": str(rng.choice(["layer", "layer", "global"])),
            "criterion": str(rng.choice(["random", "random", "random", "l1", "geometric-median"])),
            "align": int(rng.choice([1, 1, 1, 2, 8])),
            "seed": int(rng.integers(1 << 16)),
        }
        yield keywords


def once(file: Path, keywords: dict[str, Any]) -> tuple[str, str]:
    """How a run ended, and the details."""
    try:
        result = onnxprune.slim(file, **keywords)
    except NothingToPrune:
        return "untouched", ""
    except CheckFailed as error:
        return ("unproven" if error.report is None else "WRONG"), " ".join(str(error).split())
    except PruneError as error:
        return "REFUSED", " ".join(str(error).split())
    except Exception as error:
        return "CRASHED", f"{type(error).__name__}: {error}"
    verdict = result.verdict
    if verdict is None or verdict.vacuous:
        return "vacuous", ""
    if onnxprune.apply(from_json(to_json(result.plan)), file) != result.model:
        return "NOT REPLAYED", "the plan gives another model"
    try:
        open_session(result.model, optimise=True, folder=file.parent).close()
    except PruneError as error:
        return "NOT LOADED", str(error.why)
    return "proven", f"{verdict.max_rel_err:.1e}"


def one_file(file: Path, seed: int, runs: int) -> None:
    """All runs of a model: JSON lines."""
    for keywords in draws(file.name, seed, runs):
        how, why = once(file, keywords)
        print(json.dumps({"how": how, "why": why, "keywords": keywords}), flush=True)


def zoo(folder: Path, seed: int) -> list[Path]:
    """Every small architecture of `models/`, as a file."""
    paths = []
    for name, build in ZOO.items():
        paths.append(folder / f"{name}.onnx")
        onnx.save(build(seed), paths[-1])
    return paths


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--runs", type=int, default=8, help="runs a model")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--largest-mb", type=float, default=4, help="leave out larger files")
    parser.add_argument("--timeout", type=float, default=600, help="seconds a model")
    parser.add_argument("--memory", type=float, default=12, help="GB a model")
    parser.add_argument("--only", type=Path, help=argparse.SUPPRESS)  # the process of one model
    args = parser.parse_args()
    if args.only is not None:
        one_file(args.only, args.seed, args.runs)
        return
    counts: Counter[str] = Counter()
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        files = [f for folder in args.folders for f in sorted(folder.glob("*.onnx"))]
        files = files or zoo(Path(temporary), args.seed)
        files = [f for f in files if f.stat().st_size <= args.largest_mb * 1e6]
        for k, file in enumerate(files):
            command = [sys.executable, "-m", "bench.fuzz", "--only", str(file),
                       "--seed", str(args.seed), "--runs", str(args.runs)]  # fmt: skip
            done = isolated.run(command, timeout=args.timeout, memory_gb=args.memory)
            rows = [json.loads(line) for line in done.out.splitlines() if line[:1] == "{"]
            if done.code != 0:
                rows.append({"how": "ENDED", "why": done.trouble, "keywords": {}})
            for row in rows:
                counts[row["how"]] += 1
                if row["how"] not in GOOD:
                    print(f"{row['how']} {file.name} {row['keywords']} {row['why']}", flush=True)
            if sys.stderr.isatty():
                print(f"\r{k + 1} of {len(files)} models", end="", file=sys.stderr, flush=True)
    bad = sum(n for how, n in counts.items() if how not in GOOD)
    told = ", ".join(f"{n} {how}" for how, n in counts.most_common())
    print(f"{sum(counts.values())} runs on {len(files)} models in "
          f"{time.monotonic() - start:.0f} s: {told}")  # fmt: skip
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    main()
