"""Two files of the suite's results: what got worse, and what better, beyond the noise?

    python -m bench.compare OLD.jsonl NEW.jsonl

Rows of onnxprune are joined by network, variant, provider, batch and the processor (on a GPU, that
too); peers are not judged. A change is one if

    speed-up            the two 95 % intervals do not overlap
    parameters, MACs    the share that is removed differs at all
    the tool's CPU      by more than 20 %, and 0.3 s
    the tool's memory   by more than 10 %, and 10 MB

Wall time of the tool is left out: it tells how busy the machine was. Exit code 1 if anything got
worse, or failed that did not; 2 if the files have no row in common; 3 if one can't be read.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.rows import OURS, WIDTH, Row, read
from onnxprune.errors import PruneError, UsageError

EXACT = 1e-6
"""Digits of a share that a line of results does not keep."""
TOLERANCE = {"cpu_seconds": (0.20, 0.3), "peak_bytes": (0.10, 10e6)}
"""What of the tool's needs is noise: a share, and an amount; beyond both it is a change."""


@dataclass(frozen=True)
class Change:
    """One number of one row that changed beyond the noise."""

    row: Row
    what: str
    old: str
    new: str
    worse: bool


def changes(old: Row, new: Row) -> Iterator[Change]:
    """What changed between two rows of the same key."""
    if bool(old.failed) != bool(new.failed):
        yield Change(new, "result", old.failed or "ok", new.failed or "ok", bool(new.failed))
    yield from _speedup(old, new)
    yield from _removed("parameters removed", old.params_removed, new.params_removed, new)
    yield from _removed("MACs removed", old.macs_removed, new.macs_removed, new)
    yield from _needs("tool, CPU seconds", "cpu_seconds", old, new, 1, "{:.2f} s")
    yield from _needs("tool, peak memory", "peak_bytes", old, new, 1e6, "{:.0f} MB")


def _speedup(old: Row, new: Row) -> Iterator[Change]:
    before, after = old.interval, new.interval
    if before is None or after is None or (after[0] <= before[1] and before[0] <= after[1]):
        return
    a, b = (f"{r.speedup:.2f}x ({r.low:.2f} to {r.high:.2f})" for r in (old, new))
    yield Change(new, "speed-up", a, b, worse=after[1] < before[0])


def _removed(what: str, old: float | None, new: float | None, row: Row) -> Iterator[Change]:
    if old is not None and new is not None and abs(new - old) > EXACT:
        yield Change(row, what, f"{old:.2%}", f"{new:.2%}", worse=new < old)


def _needs(what: str, field: str, old: Row, new: Row, unit: float, form: str) -> Iterator[Change]:
    before, after = getattr(old, field), getattr(new, field)
    if before is None or after is None:
        return
    share, amount = TOLERANCE[field]
    if abs(after - before) > max(share * before, amount):
        a, b = (form.format(value / unit) for value in (before, after))
        yield Change(new, what, a, b, worse=after > before)


def compared(old: Path, new: Path) -> tuple[list[Change], str]:
    """All changes, and how much was compared.

    Raises Unreadable, and UsageError where the files have no row in common.
    """
    a, b = ({k: r for k, r in read(p).items() if r.variant in OURS} for p in (old, new))
    both = [key for key in a if key in b]
    if not both:
        ran = [", ".join(sorted({r.where for r in rows.values()})) or "nothing" for rows in (a, b)]
        raise UsageError(
            "the two files have no row in common", where=f"{old}, {new}",
            why=f"{len(a)} rows of {ran[0]}; {len(b)} of {ran[1]}",
            hint="measure the same networks on the same machine: python -m bench.suite",
        )  # fmt: skip
    said = f"{len(both)} rows compared; {len(a) - len(both)} only in {old.name}, "
    said += f"{len(b) - len(both)} only in {new.name}"
    return [change for key in both for change in changes(a[key], b[key])], said


def table(found: Sequence[Change]) -> Table:
    """A line a change."""
    out = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("network", "variant", "on", "batch", "what", "old", "new"):
        out.add_column(title, overflow="fold")
    for c in found:
        r = c.row
        cells = (r.network, r.variant, r.provider, str(r.batch), c.what, c.old, c.new)
        out.add_row(*map(Text, cells))
    return out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    args = parser.parse_args()
    try:
        found, said = compared(args.old, args.new)
    except PruneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDTH
    worse, better = [c for c in found if c.worse], [c for c in found if not c.worse]
    for title, mine in (("worse", worse), ("better", better)):
        console.print(Text(f"{title}: {len(mine) or 'nothing'}", style="bold"))
        if mine:
            console.print(table(mine))
    console.print(said, markup=False, soft_wrap=True)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
