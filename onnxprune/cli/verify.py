"""onnxprune verify ORIGINAL SLIM --plan PLAN: prove a slim model from the two files."""

from __future__ import annotations

from pathlib import Path

import click

from onnxprune.cli.options import json_flag


@click.command(name="verify")
@click.argument("original", type=click.Path())
@click.argument("slim", type=click.Path())
@click.option("--plan", type=click.Path(path_type=Path), required=True, help="From --plan-out.")
@click.option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu",
              show_default=True)  # fmt: skip
@json_flag
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
def command(original: str, slim: str, plan: Path, provider: str, as_json: bool, quiet: bool) -> int:
    """Prove that SLIM is ORIGINAL without the channels that PLAN removes.

    Exit code 1 says that it is not.
    """
    from onnxprune import pipeline
    from onnxprune.choose.plan import read_plan
    from onnxprune.cli.talk import print_json, working
    from onnxprune.summary import proof_sentence, verdict_row

    with working("proving in ONNX Runtime", quiet or as_json):
        verdict = pipeline.verify(original, slim, read_plan(plan), provider=provider)
    if as_json:
        print_json(verdict_row(verdict))
    elif not quiet:
        click.echo(proof_sentence(verdict))
        for note in verdict.notes:
            click.echo(f"note: {note}")
    return 0 if verdict.passed else 1
