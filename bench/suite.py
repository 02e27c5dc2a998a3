"""The suite behind the README: what a slim costs, and how much faster its result really is.

    python -m bench.suite                           the networks of bench/networks.py
    python -m bench.suite --only 'resnet|vgg16' --provider cpu --batch 1,8 --duration 20
    python -m bench.suite --peers                   onnxsim's pruning on the same files too
    python -m bench.suite MODEL.onnx ... --peers    these files instead

Each network goes through `onnxprune slim --ratio 0.5 --repair none`, with its proof, in a process
of its own, with `--align 1` and with `--align auto`. Then the original, both results and those of
the peers are timed in turn in one run of `onnxprune.bench`: on the CPU at batch 1, and where CUDA
works there at batch 1 and a large one, in fp32 and fp16 (`NETWORK-fp16`).

With `--peers`, onnxsim (`pip install onnxsim==0.8.1`) gets each file as it came and with batch norm
folded by itself; of what bench/peer.py does not find wrong, the one that loses more parameters
counts. `MODEL.torch-pruning.onnx` beside MODEL.onnx is timed as Torch-Pruning's, see
bench/torch_pruning_peer.py.

A line of JSON for each network, variant, provider and batch is appended to a file; what is known
there of this machine is not measured again without `--again`, and the last line wins.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import DTypeLike
from rich.console import Console
from rich.table import Table
from rich.text import Text

import onnxprune
from bench import isolated
from bench.metered import needs
from bench.networks import NETWORKS, Network
from bench.rows import OURS, WIDTH, Key, Row, latest, read
from onnxprune.bench.compare import compare
from onnxprune.bench.data import Case
from onnxprune.bench.inputs import own_batch
from onnxprune.bench.models import contestants
from onnxprune.bench.settings import Settings
from onnxprune.cost.parameters import parameters
from onnxprune.errors import PruneError
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise
from onnxprune.runtime.machine import describe
from onnxprune.runtime.placement import tried_providers
from onnxprune.runtime.providers import PROVIDERS, not_working

RATIO = 0.5
THEIRS = ".torch-pruning.onnx"
"""What Torch-Pruning made of x.onnx lies beside it as x.torch-pruning.onnx."""
NO_LIMIT_GB = 1e6
"""CUDA reserves far more addresses than it uses memory."""


@dataclass(frozen=True)
class Target:
    """A network on a provider, at some batches: the models that are timed in one run."""

    name: str
    provider: str
    batches: tuple[int, ...]
    origin: Network | Path
    dtype: DTypeLike = np.float32
    """Of the weights of a Network."""

    def file(self, folder: Path) -> Path:
        """The network as a file; one that is written for it comes into the folder."""
        if isinstance(self.origin, Path):
            return self.origin
        onnx.save(self.origin.model(self.dtype), folder / f"{self.name}.onnx")
        return folder / f"{self.name}.onnx"


@dataclass(frozen=True)
class Made:
    """What a tool made of a model, and what that took; `failed` says why there is nothing."""

    variant: str
    path: Path | None = None
    removed: float | None = None
    """Share of the parameters of what the tool was given."""
    align: int | None = None
    """What `--align auto` came to."""
    seconds: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    failed: str = ""


@dataclass(frozen=True)
class Limits:
    """What one process may take."""

    seconds: float
    memory_gb: float


def targets(
    names: Iterable[str], files: Sequence[Path], providers: Sequence[str], batches: tuple[int, ...]
) -> Iterator[Target]:
    """What there is to measure: some networks, or files instead."""
    for name in names:
        net = NETWORKS[name]
        for provider in providers:
            here = batches or ((1,) if provider == "cpu" else (1, net.batch))
            yield Target(name, provider, here, net)
            if provider != "cpu":
                yield Target(f"{name}-fp16", provider, here, net, np.float16)
    for file in files:
        own = own_batch(contestants({file.name: file})[0])
        for provider in providers:
            default = (own,) if own else (1,) if provider == "cpu" else (1, 64)
            name = f"{file.resolve().parent.name}/{file.stem}"
            yield Target(name, provider, batches or default, file)


def slimmed(file: Path, align: str, provider: str, folder: Path, limits: Limits) -> Made:
    """The tool's own run, whole, and what it took."""
    out = folder / f"align-{align}.onnx"
    command = [sys.executable, "-m", "bench.metered", "slim", str(file), "-o", str(out), "--json",
               "--ratio", str(RATIO), "--repair", "none", "--align", align,
               "--provider", provider]  # fmt: skip
    gb = limits.memory_gb if provider == "cpu" else NO_LIMIT_GB
    done = isolated.run(command, timeout=limits.seconds, memory_gb=gb)
    took = needs(done)
    made = Made(f"align {align}", seconds=round(done.seconds, 2))
    if took is not None:
        made = replace(made, cpu_seconds=took.cpu_seconds, peak_bytes=took.peak_bytes)
    if done.code != 0:
        return replace(made, failed=done.trouble or f"exit code {done.code}")
    report = json.loads(done.out)
    widths = report.get("search", {}).get("widths", {})
    removed = report["removed"]["params"]
    return replace(made, path=out, removed=removed, align=widths.get("align"))


def has_onnxsim() -> bool:
    """Whether that peer is installed; it is no dependency."""
    return importlib.util.find_spec("onnxsim") is not None


def by_onnxsim(file: Path, folder: Path, limits: Limits) -> Made:
    """The better of the peer's two results that is not wrong, judged by bench/peer.py."""
    script = Path(__file__).with_name("peer.py")
    command = [sys.executable, str(script), str(file), "--ratio", str(RATIO), "--out", str(folder)]
    done = isolated.run(command, timeout=limits.seconds, memory_gb=limits.memory_gb)
    found = [json.loads(line) for line in done.out.splitlines() if line.startswith('{"by"')]
    good = [row for row in found if row["sound"] in ("yes", "unproven")]
    if not good:
        told = "; ".join(f"{row['by']}: {row['sound']}" for row in found)
        return Made("onnxsim", failed=told or done.trouble)
    best = max(good, key=lambda row: float(row["removed"]))
    path = folder / f"{best['by']}.onnx"
    return Made("onnxsim", path, best["removed"], seconds=best["seconds"])


def by_torch_pruning(file: Path) -> Made | None:
    """The result that lies beside a file; None if there is none."""
    path = file.with_suffix(THEIRS)
    if not path.exists():
        return None
    stored = {p.key: p.value for p in onnx.load(path, load_external_data=False).metadata_props}
    seconds = stored.get("torch_pruning_seconds")
    before, after = (parameters(normalise(load(p))) for p in (file, path))
    removed = 1 - after / before if before else None
    return Made("torch-pruning", path, removed, seconds=float(seconds) if seconds else None)


def rows_of(target: Target, settings: Settings, peers: bool, limits: Limits) -> list[Row]:
    """Prune a network in all ways, and time the results against it in one run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        file = target.file(folder)
        made = [slimmed(file, align, target.provider, folder, limits) for align in ("1", "auto")]
        if peers and has_onnxsim():
            made.append(by_onnxsim(file, folder, limits))
        if peers and isinstance(target.origin, Path):
            made += filter(None, [by_torch_pruning(file)])
        names = distinct(made)
        cases, why = timed(file, {names[m.variant]: m.path for m in made if m.path}, settings)
        bare = Row("", "", target.provider, 0, describe(), onnxprune.__version__,
                   parameters(normalise(load(file))))  # fmt: skip
        rows = [_row(bare, target.name, m) for m in made]
        return [
            _with_times(replace(row, batch=batch), cases.get(batch), names.get(row.variant), why)
            for batch in target.batches
            for row in rows
        ]


def distinct(made: Iterable[Made]) -> dict[str, str]:
    """The name that a variant is timed by: those that came to the same graph share one."""
    first: dict[bytes, str] = {}
    found = {}
    for m in made:
        if m.path is not None:
            graph = onnx.load(m.path).graph.SerializeToString(deterministic=True)
            found[m.variant] = first.setdefault(graph, m.variant)
    return found


def timed(
    original: Path, slim: Mapping[str, Path], settings: Settings
) -> tuple[dict[int, Case], str]:
    """The cases by batch, and why there are not more."""
    if not slim:
        return {}, "nothing to time"
    try:
        report = compare({"original": original, **slim}, settings, lambda what, share: None)
    except PruneError as error:
        return {}, " ".join(filter(None, (error.what, error.why)))
    # A model without a batch axis is timed once, whatever was asked for.
    cases = {case.batch or settings.batches[0]: case for case in report.cases}
    return cases, "; ".join(m.why for m in report.missing)


def _row(bare: Row, network: str, made: Made) -> Row:
    """What is known of a result without timing it."""
    return replace(
        bare, network=network, variant=made.variant, align=made.align, params_removed=made.removed,
        seconds=made.seconds, cpu_seconds=made.cpu_seconds, peak_bytes=made.peak_bytes,
        failed=made.failed,
    )  # fmt: skip


def _with_times(row: Row, case: Case | None, name: str | None, why: str) -> Row:
    """The row with what a case says about the model that it was timed as."""
    if row.failed:
        return row
    if case is None:
        return replace(row, failed=why or "not timed")
    original = case.rows[0]
    mine = next(r for r in case.rows if r.model == name)
    found = next(s for s in case.speedups if s.model == name)
    left = mine.macs / original.macs if mine.macs and original.macs else None
    return replace(
        row, macs=original.macs, macs_removed=None if left is None else 1 - left,
        promised=found.promised, speedup=found.ratio, low=found.low, high=found.high,
        measurable=found.measurable, ms=mine.ms.median, original_ms=original.ms.median,
        busy=case.busy,
    )  # fmt: skip


# ---- which of them are known, and what is shown -------------------------------------------------


def unknown(target: Target, known: Mapping[Key, Row], wanted: Sequence[str]) -> tuple[int, ...]:
    """The batches at which not all of the wanted variants are known."""
    here = describe()
    return tuple(
        batch for batch in target.batches
        if any(
            Row(target.name, variant, target.provider, batch, here, "").key not in known
            for variant in wanted
        )
    )  # fmt: skip


def table(rows: Iterable[Row]) -> Table:
    """A line a row, those of a network and case together."""
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    out.caption = "tool: the whole process, with its proof; of peers the pass alone"
    out.caption_justify = "left"
    heads = ("network", "on", "batch", "by", "params", "MACs", "promised", "measured", "interval",
             "reached", "tool", "memory")  # fmt: skip
    for head in heads:
        words = head in ("network", "on", "by")
        out.add_column(head, justify="left" if words else "right", overflow="fold")
    last: object = None
    for row in rows:
        case = row.network, row.provider, row.batch
        first, last = case != last, case
        by = row.variant if row.align is None else f"{row.variant} ({row.align})"
        cells = [
            row.network if first else "", row.provider if first else "",
            str(row.batch) if first else "", by, *_cells(row),
        ]  # fmt: skip
        out.add_row(*map(Text, cells))
    return out


def _cells(row: Row) -> list[str]:
    def form(value: Any, text: str) -> str:
        return "" if value is None else text.format(value)

    interval = "" if row.interval is None else "{:.2f} to {:.2f}".format(*row.interval)
    measured = form(row.speedup, "{:.2f}x") + ("" if row.measurable is not False else " (none)")
    return [
        form(row.params_removed, "-{:.1%}"), form(row.macs_removed, "-{:.1%}"),
        form(row.promised, "{:.2f}x"), measured, interval, form(row.reached, "{:.0f} %"),
        form(row.seconds, "{:.1f} s"),
        form(row.peak_bytes and row.peak_bytes / 1e6, "{:,.0f} MB"),
    ]  # fmt: skip


def _batches(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of sizes, as in 1,8,64")
    return tuple(dict.fromkeys(map(int, parts)))


def _providers(asked: Sequence[str]) -> list[str]:
    """Those that were asked for, or the CPU, and CUDA where it really works."""
    tried = tried_providers(asked or ("cpu", "cuda"))
    for name, why in tried.items():
        if why and asked:
            raise not_working(name, why)
        if why:
            print(f"{name}: not measured: {why}", file=sys.stderr)
    return [name for name, why in tried.items() if not why]


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = found.add_argument
    add("models", nargs="*", type=Path, metavar="MODEL.onnx", help="instead of the networks")
    add("--only", default="", metavar="REGEX", help="networks whose name matches")
    add("--provider", action="append", choices=list(PROVIDERS), default=[])
    add("--batch", type=_batches, default=(), metavar="1,8,64")
    add("--threads", type=int, help="of a session; default: a thread a core")
    add("--duration", type=float, metavar="S", help="seconds of timing a case; default: until sure")
    add(
        "--peers", action="store_true", help="onnxsim's pruning, and Torch-Pruning's if it is there"
    )
    add("--again", action="store_true", help="measure what is known once more")
    add("--table", action="store_true", help="measure nothing, show what is known")
    add("--out", type=Path, default=Path("results/suite.jsonl"))
    add("--timeout", type=float, default=900, help="seconds a process of a tool may take")
    add("--memory", type=float, default=12, help="GB that it may take")
    return found


def run(args: argparse.Namespace, names: Sequence[str], files: Sequence[Path]) -> list[Row]:
    """Measure what is not known, and append it to the results; all rows of what was asked for."""
    known = read(args.out) if args.out.exists() else {}
    peers = ("onnxsim",) if args.peers and has_onnxsim() else ()
    if args.peers and not peers:
        print("onnxsim is not installed: pip install onnxsim==0.8.1", file=sys.stderr)
    limits = Limits(args.timeout, args.memory)
    shown: list[Row] = []
    providers = args.provider or list(PROVIDERS) if args.table else _providers(args.provider)
    for target in targets(names, files, providers, args.batch):
        theirs = isinstance(target.origin, Path) and target.origin.with_suffix(THEIRS).exists()
        wanted = (*OURS, *peers, *(("torch-pruning",) if args.peers and theirs else ()))
        left = target.batches if args.again else unknown(target, known, wanted)
        if left and not args.table:
            print(f"{target.name} on {target.provider}", file=sys.stderr, flush=True)
            settings = Settings(
                (target.provider,), left, args.threads, duration=args.duration, memory=False
            )
            found = rows_of(replace(target, batches=left), settings, args.peers, limits)
            args.out.parent.mkdir(parents=True, exist_ok=True)
            with args.out.open("a", encoding="utf-8") as out:
                out.writelines(row.to_json() + "\n" for row in found)
            known |= latest(found)
        here = Row(target.name, "", target.provider, 0, describe(), "").where
        shown += [
            row for row in known.values()
            if (row.network, row.provider, row.where) == (target.name, target.provider, here)
        ]  # fmt: skip
    return sorted(shown, key=lambda r: (r.network, r.provider, r.batch))


def main() -> None:
    args = parser().parse_args()
    names = [] if args.models else [n for n in NETWORKS if re.search(args.only, n)]
    files = [f for f in args.models if not f.name.endswith(THEIRS)]
    if not names and not files:
        parser().error(f"no network matches: {', '.join(NETWORKS)}")
    try:
        rows = run(args, names, files)
    except PruneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table(rows))
    for row in rows:
        if row.failed:
            what = f"{row.network} on {row.provider}, {row.variant}: {row.failed}"
            console.print(what, markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
