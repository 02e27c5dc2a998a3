"""How much comes off every model of some folders at one ratio, and is it proven?

    python -m bench.coverage FOLDER ...                    onnxprune alone
    python -m bench.coverage FOLDER ... --peer             and onnxsim's structured pruning
    python -m bench.coverage FOLDER ... --again            onnxprune anew, the peer as it is known
    python -m bench.coverage FOLDER ... --table            no runs, only the tables
    python -m bench.coverage --light ...                   the models inside the onnx package

Every model runs through `onnxprune slim MODEL --ratio R` with its defaults, in a process of its own
with a limit on time and memory. What is known is appended to a file of JSON lines, a line for each
model and tool, so an interrupted run goes on where it stopped; the last line wins.

The peer (`pip install onnxsim==0.8.1`) gets each file as it came, and with batch norm folded by its
own `simplify`; the better of the two counts, and a result that does not load or is wrong counts as
nothing removed (see bench/peer.py). All parameters are counted by onnxprune.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import onnx

from bench import isolated
from onnxprune.runtime import machine

Row = dict[str, Any]
OURS = "onnxprune"
PEERS = ("onnxsim", "onnxsim-folded")
SLACK = 0.001
"""A share of the parameters by which the peer may be ahead without being listed."""


def models(places: Iterable[Path]) -> list[Path]:
    """The .onnx files of folders (not of folders in them), small ones first."""
    found: dict[Path, int] = {}
    for place in places:
        files = sorted(place.glob("*.onnx")) if place.is_dir() else [place]
        found |= {file: file.stat().st_size for file in files}
    return sorted(found, key=lambda f: found[f])


def light() -> Path:
    """Nine well-known networks that come with onnx, their weights made by ConstantOfShape."""
    return Path(onnx.__file__).parent / "backend/test/data/light"


def label(file: Path) -> str:
    """A model's name in tables and results: its folder and file, wherever they lie."""
    return f"{file.resolve().parent.name}/{file.name}"


def ours(file: Path, args: argparse.Namespace) -> Row:
    """One run of the command line, as a row."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "slim.onnx"
        program = Path(sys.executable).with_name("onnxprune")
        command = [program, "slim", file, "-o", out, "--ratio", args.ratio, "--repair", "none",
                   "--json"]  # fmt: skip
        done = isolated.run([str(c) for c in command], timeout=args.timeout,
                            memory_gb=args.memory)  # fmt: skip
    row: Row = {"by": OURS, "exit": done.code, "seconds": round(done.seconds, 2)}
    try:
        report = json.loads(done.out)
    except ValueError:
        return row | {"removed": 0.0, "sound": "failed", "why": done.trouble}
    removed, proof = report.get("removed", {}), report.get("verify", {})
    row["params"] = report["before"]["params"]
    row["removed"] = round(removed.get("params", 0.0), 4) if done.code == 0 else 0.0
    row["macs_removed"] = round(removed.get("macs", 0.0), 4) if done.code == 0 else 0.0
    row["analyse"] = report["timings"].get("analyse")
    if done.code == 0:
        row["sound"] = "vacuous" if proof.get("vacuous") else "yes"
        row["error"] = proof.get("max_rel_err")
        return row
    why = {4: "untouched", 1: "wrong" if proof else "unproven"}.get(done.code or 0, "failed")
    return row | {"sound": why, "why": done.trouble}


def peers(file: Path, args: argparse.Namespace) -> list[Row]:
    """Both rows of the peer; what a crash or the time limit cut off counts as failed."""
    script = Path(__file__).with_name("peer.py")
    command = [sys.executable, str(script), str(file), "--ratio", str(args.ratio)]
    done = isolated.run(command, timeout=args.timeout, memory_gb=args.memory)
    rows = [json.loads(line) for line in done.out.splitlines() if line.startswith('{"by"')]
    told = {row["by"] for row in rows}
    rest = {"removed": 0.0, "sound": "failed", "why": done.trouble}
    return [*rows, *({"by": by} | rest for by in PEERS if by not in told)]


class Results:
    """Rows by model and tool, in memory and in a file that only grows."""

    def __init__(self, path: Path, ratio: float) -> None:
        self.path, self.ratio = path, ratio
        self.rows: dict[tuple[str, str], Row] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        for line in path.read_text().splitlines() if path.exists() else ():
            row = json.loads(line)
            if row.get("ratio") == ratio:
                self.rows[row["model"], row["by"]] = row

    def add(self, model: str, row: Row) -> None:
        row = {"model": model, "ratio": self.ratio, **row}
        self.rows[model, str(row["by"])] = row
        with self.path.open("a") as f:
            f.write(json.dumps(row) + "\n")
        sound = "" if row["sound"] == "yes" else f"  {row['sound']}: {row.get('why', '')}"
        print(f"{model:60} {row['by']:14} {row['removed']:6.3f}{sound}", flush=True)

    def known(self, model: str, by: Iterable[str]) -> bool:
        return all((model, b) in self.rows for b in by)

    def peer(self, model: str) -> float | None:
        """What the peer removes soundly, at best; None if it was not asked."""
        found = [self.rows[model, by] for by in PEERS if (model, by) in self.rows]
        good = [r["removed"] for r in found if r["sound"] in ("yes", "unproven")]
        return max(good, default=0.0) if found else None


def has_weights(row: Row) -> bool:
    """False for decision trees and the like: there is no share of nothing."""
    return row.get("params") != 0


def mean(values: Iterable[float]) -> float:
    return statistics.mean([*values] or [0.0])


def median(values: Iterable[float]) -> float:
    return statistics.median([*values] or [0.0])


def table(results: Results, names: Sequence[str]) -> None:
    """A line per folder, then what deserves a look."""
    groups: dict[str, list[str]] = {}
    for name in names:
        if results.known(name, [OURS]):
            groups.setdefault(name.split("/")[0], []).append(name)
    if len(groups) > 1:
        groups["all"] = [n for mine in groups.values() for n in mine]
    heads = ("models", "proven", "nothing", "bad", "params", "MACs", "peer", "peer 0", "analysis")
    print("\n" + f"{'':18}" + "".join(f"{h:>9}" for h in heads))
    for folder, mine in groups.items():
        rows = [results.rows[n, OURS] for n in mine]
        sounds = [r["sound"] for r in rows]
        asked = [results.peer(n) for n, r in zip(mine, rows, strict=True) if has_weights(r)]
        theirs = [p for p in asked if p is not None]
        complete = len(theirs) == len(asked)
        cells = [
            str(len(rows)), str(sounds.count("yes")), str(sounds.count("untouched")),
            str(sum(s not in ("yes", "untouched") for s in sounds)),
            f"{mean(r['removed'] for r in rows if has_weights(r)):.3f}",
            f"{mean(r.get('macs_removed', 0.0) for r in rows if has_weights(r)):.3f}",
            f"{mean(theirs):.3f}" if complete else "-",
            str(sum(p < 0.02 for p in theirs)) if complete else "-",
            f"{median(r['analyse'] for r in rows if r.get('analyse')):.3f} s",
        ]  # fmt: skip
        print(f"{folder:18}" + "".join(f"{c:>9}" for c in cells))
    print(
        "params, MACs, peer: mean share removed of the models that have parameters; bad: wrong, "
        "unproven, vacuous or\nfailed; peer 0: models of which the peer removes under 2 %; "
        "analysis: median"
    )
    if not groups:
        return
    mine = groups.get("all") or next(iter(groups.values()))
    _list("Not proven, or nothing removed", (
        f"{n}: {r['sound']}: {r.get('why', '')}"
        for n in mine if (r := results.rows[n, OURS])["sound"] != "yes"
    ))  # fmt: skip
    _list("The peer removes more", (
        f"{n}: {r['removed']:.3f}, the peer {peer:.3f}"
        for n in mine
        if (r := results.rows[n, OURS]) and (peer := results.peer(n) or 0) > r["removed"] + SLACK
    ))  # fmt: skip
    least = sorted(mine, key=lambda n: results.rows[n, OURS]["removed"])[:5]
    _list("Least removed", (f"{n}: {results.rows[n, OURS]['removed']:.3f}" for n in least))


def _list(title: str, lines: Iterable[str]) -> None:
    found = list(lines)
    print(f"\n{title}: {len(found) or 'none'}")
    for line in found:
        print(f"  {line}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("places", nargs="*", type=Path, help="folders, or .onnx files")
    parser.add_argument("--light", action="store_true", help="the models inside the onnx package")
    parser.add_argument("--peer", action="store_true", help="onnxsim's structured pruning too")
    parser.add_argument("--only-peer", action="store_true")
    parser.add_argument("--again", action="store_true", help="run what is known once more")
    parser.add_argument("--table", action="store_true", help="run nothing")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--timeout", type=float, default=300, help="seconds a model")
    parser.add_argument("--memory", type=float, default=12, help="GB a model")
    parser.add_argument("--results", type=Path, default=Path("results/coverage.jsonl"))
    args = parser.parse_intermixed_args()
    files = models([*args.places, *([light()] if args.light else [])])
    if not files:
        parser.error("no .onnx file there")
    results = Results(args.results, args.ratio)
    print(json.dumps(machine.describe()))
    for file in files if not args.table else ():
        name = label(file)
        if not args.only_peer and (args.again or not results.known(name, [OURS])):
            results.add(name, ours(file, args))
        if (args.peer or args.only_peer) and not results.known(name, PEERS):
            for row in peers(file, args):
                results.add(name, row)
    table(results, [label(f) for f in files])


if __name__ == "__main__":
    main()
