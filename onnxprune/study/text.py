"""Studies for the terminal: tables and sentences, no computation."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from onnxprune.study.criteria import CriteriaStudy, GroupRow
from onnxprune.study.curves import Curve
from onnxprune.study.sensitivity import Sensitivity

MOST, LEAST = 8, 4
"""Groups that are shown of either end without -v."""


def print_criteria(study: CriteriaStudy, console: Console, verbose: bool) -> None:
    """How alike the criteria are, how far their scores spread, and what follows."""
    console.print("[bold]Do the criteria agree?[/bold]")
    console.print(
        "rank correlation: left of the diagonal inside a group (mean of "
        f"{len(study.groups)}), right of it over the whole network",
        style="dim",
    )
    console.print(_matrix(study))
    console.print("\n[bold]Can they tell the channels apart?[/bold]")
    console.print("standard deviation over mean of a group's scores (median)", style="dim")
    console.print(_spreads(study, _gap(console)))
    tested = study.normality.tested
    if tested:
        share = study.normality.normal / tested
        console.print(f"{share:.0%} of {tested:,} filters look as if drawn from a normal "
                      "distribution", style="dim")  # fmt: skip
    if verbose:
        console.print("\n[bold]Groups[/bold]")
        console.print(_groups(study, _gap(console)))
        console.print("* too close to call", style="dim")
    console.print()
    for line in study.advice:
        console.print(line, markup=False, soft_wrap=True)
    for note in study.notes if verbose else ():
        console.print(f"note: {note}", markup=False, soft_wrap=True)


def _gap(console: Console) -> int:
    """Spaces between columns."""
    return 2 if console.width >= 80 else 1


def _table(gap: int) -> Table:
    return Table(box=None, pad_edge=False, header_style="bold", padding=(0, 0, 0, gap))


def _matrix(study: CriteriaStudy) -> Table:
    """Columns go by number: names would not fit a narrow terminal."""
    table = _table(1)
    table.add_column("", no_wrap=True)
    for k in range(len(study.criteria)):
        table.add_column(str(k + 1), justify="right", no_wrap=True)
    for i, name in enumerate(study.criteria):
        inside, over = study.layer[i][:i], study.network[i][i + 1 :]
        table.add_row(f"{i + 1:>2} {name}", *map(_number, inside), "", *map(_number, over))
    return table


def _number(value: float | None) -> str:
    """In three characters: columns are many and terminals narrow."""
    if value is None:
        return "-"
    if value >= 0.995 or value <= -0.95:
        return "1.0" if value > 0 else "-1"
    text = f"{abs(value):.2f}" if value > -0.005 else f"{value:.1f}"
    return text.replace("0.", ".", 1)


def _spreads(study: CriteriaStudy, gap: int) -> Table:
    seen = "obs" if "obs" in study.criteria else "l2"
    table = _table(gap)
    table.add_column("", no_wrap=True)
    for title in ("spread", "by\nchance", "groups too\nclose to call", f"in common\nwith {seen}"):
        table.add_column(title, justify="right", no_wrap=True)
    common = study.common[study.criteria.index(seen)]
    for row, same in zip(study.spread, common, strict=True):
        close = f"{row.close} of {row.groups}" if row.groups else ""
        chance = "" if row.gaussian is None else _percent(row.gaussian)
        with_seen = "" if row.criterion == seen or same is None else f"{same:.0%}"
        table.add_row(row.criterion, _percent(row.cv), chance, close, with_seen)
    return table


def _percent(share: float) -> str:
    """Two digits that count, or all before the point."""
    if share < 0.001:
        return "0%" if share < 5e-7 else f"{100 * share:.1g}%"
    return f"{share:.2%}" if share < 0.01 else f"{share:.1%}" if share < 0.1 else f"{share:.0%}"


def _groups(study: CriteriaStudy, gap: int) -> Table:
    """Group by group: the default criterion against chance, and against what sees data.

    Titles are broken by hand: what a narrow terminal takes away, it takes from the names.
    """
    table = _table(gap)
    table.add_column("group", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    for title in ("l2\nspread", "by\nchance", "normal\nfilters"):
        table.add_column(title, justify="right", no_wrap=True)
    names = study.criteria
    seen = "obs" if "obs" in names else "l1"
    known = seen in names and "l2" in names
    if known:
        table.add_column(f"l2 like\n{seen}", justify="right", no_wrap=True)
    for g in study.groups:
        cells = _group(g, names.index("l2"), names.index(seen) if known else None)
        table.add_row(escape(g.name), f"{g.channels:,}", *cells)
    return table


def _group(g: GroupRow, l2: int, seen: int | None) -> Sequence[str]:
    spread = g.spread["l2"]
    close = " *" if spread.close else ""
    tested = g.normality.tested
    return [
        _percent(spread.cv) + close,
        "" if spread.gaussian is None else _percent(spread.gaussian),
        f"{g.normality.normal / tested:.0%}" if tested else "",
        *([] if seen is None else [_number(g.correlation[l2][seen])]),
    ]


def print_sensitivity(study: Sensitivity, console: Console, verbose: bool) -> None:
    """The groups that the outputs depend on most and least, and what follows."""
    ranked = sorted(study.groups, key=lambda c: -c.worst)
    console.print(_about(study), style="dim", highlight=False)
    if verbose or len(ranked) <= MOST + LEAST:
        console.print("[bold]Output error, the most sensitive group first[/bold]")
        console.print(_curves(study, ranked, _gap(console)))
    else:
        console.print(
            f"[bold]Output error: the {MOST} most sensitive of {len(ranked)} groups[/bold]"
        )
        console.print(_curves(study, ranked[:MOST], _gap(console)))
        console.print(f"\n[bold]The {LEAST} least sensitive[/bold]", highlight=False)
        console.print(_curves(study, ranked[-LEAST:], _gap(console)))
    console.print()
    for line in (*study.advice, *(f"note: {n}" for n in (study.notes if verbose else ()))):
        console.print(line, markup=False, soft_wrap=True)


def _about(study: Sensitivity) -> str:
    about = (
        f"each group alone, channels ranked by {study.criterion}; squared error over power, "
        f"{study.samples:,} {study.inputs} samples"
    )
    if study.baseline is None:
        return about
    return f"{about}; {study.metric} of the original: {study.baseline:.3g}"


def _curves(study: Sensitivity, curves: Sequence[Curve], gap: int) -> Table:
    """A row a group; a column for each ratio, and where there are labels one for its metric."""
    table = _table(gap)
    table.add_column("group", overflow="fold")
    table.add_column("channels", justify="right", no_wrap=True)
    for ratio in study.ratios:
        table.add_column(f"-{ratio:.0%}", justify="right", no_wrap=True)
    half = study.ratios[len(study.ratios) // 2]
    told = (study.metric or "").rpartition(":")[2] or (
        "agreed" if any(_at(c, half, "agreement") for c in curves) else ""
    )
    if told:
        table.add_column(f"{told}\nat -{half:.0%}", justify="right", no_wrap=True)
    table.add_column("equal\ncost", justify="right", no_wrap=True)
    for c in curves:
        cells = [_at(c, r, "error") for r in study.ratios]
        if told:
            cells.append(_at(c, half, "metric" if study.metric else "agreement"))
        cells.append("" if c.even is None else f"-{c.even:.0%}".replace("-0%", "0%"))
        table.add_row(escape(c.name), f"{c.channels:,}", *cells)
    return table


def _at(curve: Curve, ratio: float, what: str) -> str:
    """A number of the point that a ratio leads to; "" where it removes no channel."""
    point = curve.at(ratio)
    value = None if point is None else getattr(point, what)
    if value is None:
        return ""
    return (
        _percent(value)
        if what == "error"
        else f"{value:.3g}"
        if what == "metric"
        else f"{value:.0%}"
    )
