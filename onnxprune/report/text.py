"""A report for the terminal: rich tables and sentences, no computation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxprune.report.data import GroupRow, Report, Size


def quantity(n: float) -> str:
    """A count for people: 3,441,000 -> 3.44 M (decimal)."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(n) >= limit:
            return f"{n / limit if unit != 'k' else n / 1e3:.4g} {unit}"
    return f"{n:,.0f}"


def share(before: float, after: float) -> str:
    """A change in percent: -74.9 %."""
    if not before:
        return ""
    change = 100 * (after / before - 1)
    return "0 %" if abs(change) < 0.05 else f"{change:+.1f} %"


_ROWS = (("channels", "channels"), ("params", "parameters"), ("macs", "MACs"), ("bytes", "bytes"))


def before_after(report: Report) -> Table:
    """Channels, parameters, MACs and bytes, before and after."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    after = report.after
    for key, title in _ROWS:
        b = getattr(report.before, key)
        if after is None:
            table.add_row(title, quantity(b), "", "")
        else:
            a = getattr(after, key)
            table.add_row(title, quantity(b), quantity(a), share(b, a))
    return table


def size_table(size: Size) -> Table:
    """One model's sizes."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for key, title in (*_ROWS, ("nodes", "nodes")):
        table.add_row(title, quantity(getattr(size, key)))
    return table


def groups_table(groups: Iterable[GroupRow]) -> Table:
    """Groups that may shrink."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("group", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    table.add_column("kept", justify="right", no_wrap=True)
    table.add_column("weights", justify="right", no_wrap=True)
    for g in groups:
        weights = len({m.tensor for m in g.members})
        table.add_row(escape(g.name), f"{g.channels:,}", f"{g.kept:,}", str(weights))
    return table


def stayed(report: Report, verbose: bool) -> list[str]:
    """Why channels stayed: a line per reason, or per group with `verbose`."""
    fixed = [g for g in report.groups if g.fixed_by]
    if verbose:
        return [f"{g.name}: {g.channels:,} channels stay: {g.fixed_by}" for g in fixed]
    counts: Counter[str] = Counter()
    channels: Counter[str] = Counter()
    for g in fixed:
        reason = g.fixed_by.split(" (")[0]
        counts[reason] += 1
        channels[reason] += g.channels
    lines = [
        f"{channels[r]:,} channels in {n} weight ax{'i' if n == 1 else 'e'}s: {r}"
        for r, n in counts.most_common(5)
    ]
    if len(counts) > 5:
        lines.append(f"and {len(counts) - 5} more reasons (-v shows all)")
    return lines


def print_report(report: Report, console: Console, verbose: bool) -> None:
    """The before/after table, what stayed and why, and notes."""
    console.print(before_after(report))
    if report.sizes:
        console.print(f"[dim]MACs at {escape(report.sizes)}[/dim]", highlight=False)
    print_stayed("Stayed", report, console, verbose)
    console.print()


def print_stayed(title: str, report: Report, console: Console, verbose: bool) -> None:
    """What stays and why, operators without a rule, and notes."""
    lines = stayed(report, verbose)
    if lines:
        console.print(f"\n[bold]{title}[/bold]")
        for line in lines:
            console.print(f"  {escape(line)}", highlight=False)
    for name, n in report.unknown.items():
        console.print(f"  no rule: {escape(name)} ({n}x)", highlight=False)
    for note in report.notes if verbose else ():
        console.print(f"  note: {escape(note)}", highlight=False)
