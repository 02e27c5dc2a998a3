"""A report for the terminal: rich tables and sentences, no computation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

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
    for row in (*_latency_rows(report), *_fidelity_rows(report)):
        table.add_row(*row)
    return table


def _latency_rows(report: Report) -> Iterable[tuple[str, str, str, str]]:
    search = report.search or {}
    if search.get("kind") == "latency" and "reached" in search:
        b, a = search["original"], search["reached"]
        yield "latency", f"{b:.4g} ms", f"{a:.4g} ms", share(b, a)


def _fidelity_rows(report: Report) -> Iterable[tuple[str, str, str, str]]:
    """A metric before and after, and how far the outputs agree, the worst of them."""
    found = report.fidelity or {}
    if metric := found.get("metric"):
        b, a = metric["before"], metric["after"]
        yield escape(metric["name"].rpartition(":")[2]), f"{b:.4g}", f"{a:.4g}", f"{a - b:+.4f}"
    for key, title, form in (("agreement", "same top-1", "{:.1%}"), ("snr_db", "SNR", "{:.1f} dB"),
                             ("kl", "KL", "{:.4g}")):  # fmt: skip
        values = [o[key] for o in found.get("outputs", ()) if o[key] is not None]
        if values:
            yield title, "", form.format(max(values) if key == "kl" else min(values)), ""


def fidelity_line(report: Report) -> str:
    """What the outputs were compared on."""
    found = report.fidelity or {}
    if not found.get("outputs"):
        return ""
    what = {"held-out": "held-out samples", "evaluation": "samples of --eval",
            "calibration": "calibration samples, which the model was fitted to"}  # fmt: skip
    worst = ", the worst output" if len(found["outputs"]) > 1 else ""
    return f"outputs compared on {found['samples']:,} {what[found['on']]}{worst}"


def search_table(search: Mapping[str, Any]) -> Table:
    """What a search tried, and what came of it."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    timed = search["kind"] == "latency"
    for title in ("MACs", "latency" if timed else escape(search["quantity"].rpartition(":")[2]),
                  "of the original" if timed else "drop"):  # fmt: skip
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("")
    for t in search["trials"]:
        value = f"{t['ms']:.4g} ms" if timed else f"{t['score']:.4g}"
        effect = f"{t['share']:.1%}" if timed else f"{t['drop']:.4f}"
        table.add_row(f"{t['macs']:.1%}", value, effect, "ok" if t["accepted"] else "too much")
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
    if line := fidelity_line(report):
        console.print(f"[dim]{line}[/dim]", highlight=False)
    if report.search and report.search.get("trials"):
        console.print("\n[bold]Tried[/bold]")
        console.print(search_table(report.search))
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
