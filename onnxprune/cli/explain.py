"""onnxprune explain MODEL NAME: one node or tensor, its group, what fixes it."""

from __future__ import annotations

import click

from onnxprune.cli.options import json_flag, model_argument, sizes


@click.command(name="explain")
@model_argument
@click.argument("name")
@click.option("--heads", type=click.Choice(["auto", "whole", "dims"]), default="auto")
@sizes
@json_flag
def command(
    model: str,
    name: str,
    heads: str,
    dims: tuple[tuple[str, int], ...],
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    as_json: bool,
) -> int:
    """Why NAME, a node or a tensor of MODEL, shrinks with what it shrinks with, or stays."""
    from onnxprune import pipeline
    from onnxprune.cli.talk import print_json, stdout
    from onnxprune.explain import explain

    analysis = pipeline.analyze(model, heads=heads, sizes=pipeline.Sizes(dict(dims), dict(shapes)))
    found = explain(analysis.solution, analysis.groups, name)
    if as_json:
        print_json(found)
        return 0
    console = stdout()
    for tensor in found["tensors"]:
        console.print(f"{tensor['name']}  {tensor['role']}", markup=False, style="bold")
        for axis in tensor["axes"]:
            size = axis["size"] if isinstance(axis["size"], str) else f"{axis['size']} channels"
            console.print(f"  axis {axis['axis']}, {size}: {axis['what']}", markup=False)
            for line in axis["tied_to"]:
                console.print(f"    {line}", markup=False)
    return 0
