"""onnxprune inspect MODEL: what is in it, which groups there are, what is fixed and why."""

from __future__ import annotations

import click

from onnxprune.cli.options import json_flag, model_argument, sizes


@click.command(name="inspect")
@model_argument
@click.option("--heads", type=click.Choice(["auto", "whole", "dims"]), default="auto")
@sizes
@json_flag
@click.option("-v", "--verbose", is_flag=True, help="Every group that is fixed, with all reasons.")
def command(
    model: str,
    heads: str,
    dims: tuple[tuple[str, int], ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    as_json: bool,
    verbose: bool,
) -> int:
    """What is in MODEL, which groups of channels may shrink, what is fixed and why."""
    from onnxprune import pipeline
    from onnxprune.cli.talk import print_json, stdout
    from onnxprune.report.text import groups_table, print_stayed, size_table

    analysis = pipeline.analyze(model, heads=heads, sizes=pipeline.Sizes(dict(dims), dict(shapes)))
    report = pipeline.describe(analysis)
    if as_json:
        print_json(report.to_json())
        return 0
    console = stdout()
    console.print(size_table(report.before))
    free = [g for g in report.groups if not g.fixed_by]
    console.print(f"\n[bold]{len(free)} groups may shrink[/bold]")
    if free:
        console.print(groups_table(free))
    print_stayed("Fixed", report, console, verbose)
    return 0
