"""A benchmark for the terminal: tables and sentences, no computation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.bench.data import BenchReport, Case, LayerRow, Missing, Row, Speedup, SweepPoint

LAYERS_SHOWN = 20
"""Layers that are shown without -v: those that take the most time."""
BUSY = 0.25
"""Share of the cores taken by other programs from which absolute times deserve a warning."""

UNEVEN = 0.2
"""Share of the MACs in layers of awkward widths from which it is worth saying."""

_BAR = 24
"""Characters of the longest bar of a sweep."""


def milliseconds(ms: float) -> str:
    """Three digits or more, and a unit."""
    digits = 3 if ms < 1 else 2 if ms < 10 else 1 if ms < 100 else 0
    return f"{ms:,.{digits}f} ms"


def megabytes(count: int | None) -> str:
    """Decimal megabytes."""
    return "" if count is None else f"{count / 1e6:,.1f} MB"


def count(n: int | None) -> str:
    """A count for people: 3,441,000 -> 3.44 M."""
    if n is None:
        return ""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if n >= limit:
            return f"{n / limit:.3g} {unit}"
    return str(n)


def factor(x: float) -> str:
    """A ratio: 1.62x."""
    return f"{x:.2f}x" if x < 10 else f"{x:.1f}x"


def print_bench(report: BenchReport, console: Console, verbose: bool) -> None:
    """Where it ran, a table for each case, what came of it, and what could not be had."""
    _say(console, machine_line(report), style="dim")
    for case in report.cases:
        if not report.sweep:
            console.print()
            print_case(case, console, verbose)
    if report.sweep:
        print_sweep(report.sweep, console)
    lines = [*(missing_line(m) for m in report.missing), *report.notes]
    if lines:
        console.print()
    for line in lines:
        _say(console, line)


def machine_line(report: BenchReport) -> str:
    """What it ran on."""
    m = report.machine
    parts = [
        f"{m.get('cpu', 'unknown processor')}, {m.get('cores', '?')} cores",
        f"{m['gpu']}, driver {m.get('gpu_driver', '?')}" if "gpu" in m else "",
        f"ONNX Runtime {m['onnxruntime']}" if "onnxruntime" in m else "",
    ]
    return "; ".join(filter(None, parts))


def missing_line(missing: Missing) -> str:
    """Why there is no number."""
    batch = "" if missing.batch is None else f", batch {missing.batch}"
    model = "" if missing.model is None else f" ({missing.model})"
    return f"{missing.provider}{batch}: not measured{model}: {missing.why}"


def print_case(case: Case, console: Console, verbose: bool) -> None:
    """All models on one provider at one batch size."""
    head = [case.provider]
    head += [f"batch {case.batch}"] if case.batch is not None else []
    if case.threads is not None and case.provider == "cpu":
        head.append(f"{case.threads} thread{'s' * (case.threads != 1)}")
    _say(console, ", ".join(head), style="bold")
    sizes = ", ".join(f"{n}:{'x'.join(map(str, s)) or 'scalar'}" for n, s in case.shapes.items())
    options = ", ".join(f"{key} {value}" for key, value in case.options.items())
    _say(console, f"{sizes}; {options}", style="dim")
    _print_table(console, "model", [r.model for r in case.rows], [_cells(r) for r in case.rows])
    for found in case.speedups:
        _say(console, speedup_line(found, case.rows[0].model))
    for row in case.rows:
        if row.elsewhere:
            ops = ", ".join(f"{op} {n}" for op, n in row.elsewhere.items())
            total = sum(row.elsewhere.values())
            _say(console, f"{row.model}: {total} node{'s' * (total > 1)} ran elsewhere: {ops}")
    if case.busy is not None and case.busy >= BUSY:
        _say(console, f"other programs had {case.busy:.0%} of the cores: a quiet machine is faster")
    for note in case.notes:
        _say(console, f"note: {note}")
    if case.layers:
        print_layers(case, console, verbose)


def _cells(row: Row) -> list[tuple[str, str]]:
    """Column by column; empty ones are left out of the table."""
    ms = row.ms
    return [
        ("median", milliseconds(ms.median)),
        ("IQR", milliseconds(ms.iqr)),
        ("p95", milliseconds(ms.p95)),
        ("min", milliseconds(ms.min)),
        (
            "a second",
            f"{row.per_second:,.4g}" if row.per_second < 1e4 else f"{row.per_second:,.0f}",
        ),
        ("runs", f"{ms.rounds:,}"),
        ("MACs", count(row.macs)),
        ("to open", milliseconds(row.opening_ms)),
        ("memory", megabytes(row.host_bytes)),
        ("GPU memory", megabytes(row.device_bytes)),
    ]


def speedup_line(found: Speedup, baseline: str) -> str:
    """What came of it, and how near it is to what the multiply-accumulates promise."""
    spread = f"{found.low:.2f} to {found.high:.2f}"
    if not found.measurable:
        what = f"{found.model}: no measurable change ({factor(found.ratio)}, {spread})"
    else:
        what = f"{found.model} is {factor(found.ratio)} as fast as {baseline} ({spread})"
    if found.promised is None or found.reached is None or found.promised < 1.005:
        return what
    what += f"; its MACs promise {factor(found.promised)}: {found.reached:.0%} of that"
    if found.uneven and found.uneven >= UNEVEN and found.reached < 1:
        share = f"\n{found.uneven:.0%} of its MACs are in layers whose new widths are no multiples"
        what += f"{share} of 8: --align 8 may bring more"
    return what


def print_layers(case: Case, console: Console, verbose: bool) -> None:
    """Where the time went, layer by layer."""
    models = [row.model for row in case.rows]
    shown = list(case.layers)
    if not verbose and len(shown) > LAYERS_SHOWN:
        shown.sort(key=lambda r: -max(r.ms.values()))
        shown = [r for r in case.layers if r in shown[:LAYERS_SHOWN]]
    names = [r.name for r in shown]
    rows = [_layer_cells(r, models) for r in shown]
    rest = [r for r in case.layers if r not in shown]
    if rest:
        names.append(f"({len(rest)} more)")
        rows.append([("op", ""), *_layer_times(rest, models)])
    names.append("all layers")
    rows.append([("op", ""), *_layer_times(case.layers, models)])
    console.print()
    _print_table(console, "layer", names, rows)


def _layer_times(rows: Iterable[LayerRow], models: Sequence[str]) -> list[tuple[str, str]]:
    rows = list(rows)
    sums = [sum(r.ms.get(m, 0.0) for r in rows) for m in models]
    cells = [(m, milliseconds(ms)) for m, ms in zip(models, sums, strict=True)]
    if len(models) == 2 and all(sums):
        cells.append(("faster", factor(sums[0] / sums[1])))
    return cells


def _layer_cells(row: LayerRow, models: Sequence[str]) -> list[tuple[str, str]]:
    cells = [("op", row.op)]
    cells += [(m, milliseconds(row.ms[m]) if m in row.ms else "-") for m in models]
    if len(models) == 2:
        a, b = models
        both = row.ms.get(a) and row.ms.get(b)
        cells.append(("faster", factor(row.ms[a] / row.ms[b]) if both else ""))
        macs = row.macs.get(a) and row.macs.get(b)
        cells.append(("MACs", factor(row.macs[a] / row.macs[b]) if macs else ""))
    widths = [
        f"{i}>{o}" for i, o in dict.fromkeys(row.widths[m] for m in models if m in row.widths)
    ]
    cells += [("channels", " to ".join(widths)), ("why", "; ".join(row.why))]
    return cells


def print_sweep(points: Sequence[SweepPoint], console: Console) -> None:
    """Latency against multiply-accumulates, for each alignment: bars, with what MACs promise."""
    for provider, batch in dict.fromkeys((p.provider, p.batch) for p in points):
        mine = [p for p in points if (p.provider, p.batch) == (provider, batch)]
        console.print()
        _say(console, ", ".join([provider, *([f"batch {batch}"] if batch else [])]), style="bold")
        names, rows = [], []
        for p in sorted(mine, key=lambda p: (p.align, p.ratio)):
            names.append(f"align {p.align}")
            rows.append(
                [
                    ("ratio", f"{p.ratio:.1f}"),
                    ("MACs", "" if p.macs_left is None else f"{p.macs_left:.0%}"),
                    ("time", f"{1 / p.speedup.ratio:.0%}"),
                    ("median", milliseconds(p.median_ms)),
                    ("as fast", factor(p.speedup.ratio)),
                    ("interval", f"{p.speedup.low:.2f} to {p.speedup.high:.2f}"),
                    ("reached", "" if p.speedup.reached is None else f"{p.speedup.reached:.0%}"),
                    ("time, | what MACs promise", _bar(p)),
                ]
            )
        _print_table(console, "", names, rows)


def _bar(p: SweepPoint) -> str:
    """The share of the original's time as a bar; the mark is where its MACs would put it."""
    filled = min(_BAR, round(_BAR / p.speedup.ratio))
    bar = list("#" * filled + "." * (_BAR - filled))
    if p.macs_left is not None:
        bar[min(_BAR - 1, max(0, round(_BAR * p.macs_left) - 1))] = "|"
    return "".join(bar)


_WHY = "why"
_WORDS = ("op", "channels", "time, | what MACs promise", _WHY)
"""Columns of words rather than numbers."""
_NAME, _REASON = 24, 36
"""Characters that names and reasons may be folded down to."""

Rows = Sequence[Sequence[tuple[str, str]]]
"""Cells with their titles, row by row; empty ones may be left out."""


def _print_table(console: Console, title: str, names: Sequence[str], rows: Rows) -> None:
    """One table of all rows. Numbers are never cut: where they do not fit, reasons come below the
    table, and on a terminal that is narrower still each row is a list.
    """
    columns = list(dict.fromkeys(key for row in rows for key, text in row if text))
    numbers = [key for key in columns if key != _WHY]
    for shown in (columns, numbers):
        if _least_width(title, names, rows, shown) <= console.width:
            console.print(_wide(title, names, rows, shown))
            break
    else:
        console.print(_stacked(title, names, rows, numbers))
        shown = numbers
    if _WHY in columns and shown is numbers:
        for name, row in zip(names, rows, strict=True):
            if dict(row).get(_WHY):
                _say(console, f"{name}: {dict(row)[_WHY]}")


def _least_width(title: str, names: Sequence[str], rows: Rows, shown: Sequence[str]) -> int:
    width = min(_NAME, max(len(n) for n in (title, *names)))
    for key in shown:
        longest = max(len(text) for text in (key, *(dict(row).get(key, "") for row in rows)))
        width += 2 + (min(_REASON, longest) if key == _WHY else longest)
    return width


def _wide(title: str, names: Sequence[str], rows: Rows, shown: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(title, overflow="fold")
    for key in shown:
        justify: Literal["left", "right"] = "left" if key in _WORDS else "right"
        table.add_column(Text(key), justify=justify, no_wrap=key != _WHY)
    for name, row in zip(names, rows, strict=True):
        cells = dict(row)
        table.add_row(Text(name), *(Text(cells.get(key, "")) for key in shown))
    return table


def _stacked(title: str, names: Sequence[str], rows: Rows, shown: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(justify="right", overflow="fold")
    for name, row in zip(names, rows, strict=True):
        table.add_row(Text(name or title, style="bold"), "")
        for key, text in row:
            if text and key in shown:
                table.add_row(Text(f"  {key}"), Text(text))
    return table


def _say(console: Console, line: str, style: str = "") -> None:
    """A sentence; names may have brackets, which are no markup."""
    console.print(Text(line, style=style), soft_wrap=not console.is_terminal)
