"""onnxprune sensitivity MODEL: output error as each group alone is slimmed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.options import model_argument
from onnxprune.cli.studies import (
    check_output,
    check_reports,
    identity,
    opened,
    study_options,
    time_left,
    write_text,
)
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.pipeline import Analysis
    from onnxprune.study.sensitivity import Scored


def _ratios(ctx: click.Context, param: click.Parameter, text: str) -> tuple[float, ...]:
    """Shares above 0 and below 1, with commas between."""
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = (0.0,)
    if not all(0 < r < 1 for r in found):
        raise click.BadParameter(f"'{text}' is not R,R,... with each R above 0 and below 1")
    return found


@click.command(name="sensitivity")
@model_argument
@click.option("--ratios", callback=_ratios, default="0.25,0.5,0.75", show_default=True,
              metavar="R,R,...", help="Shares of its channels that each group loses.")  # fmt: skip
@click.option("--criterion", help="What ranks channels: as for slim.")
@click.option("--calib", type=click.Path(path_type=Path),
              help="Unlabelled inputs; random ones without.")  # fmt: skip
@click.option("--calib-samples", type=click.IntRange(1), default=64, show_default=True)
@click.option("--eval", "data", type=click.Path(path_type=Path),
              help="Inputs and labels (.npz with y): shows the accuracy too.")  # fmt: skip
@click.option("--metric", metavar="FILE.py:FUNCTION", help="Another metric on --eval.")
@click.option("--per-layer-out", type=click.Path(path_type=Path),
              help="Write ratios at which all groups cost the same (YAML).")  # fmt: skip
@click.option("--ratio", default=0.5, show_default=True,
              help="Share of all channels that --per-layer-out removes.")  # fmt: skip
@study_options
def command(
    model: str,
    ratios: tuple[float, ...],
    criterion: str | None,
    calib: Path | None,
    calib_samples: int,
    data: Path | None,
    metric: str | None,
    per_layer_out: Path | None,
    ratio: float,
    reports: tuple[Path, ...],
    seed: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **how: Any,
) -> int:
    """How far the outputs of MODEL move as each group of channels alone is slimmed.

    --per-layer-out writes a file for `slim --per-layer` with a ratio for each group, chosen so
    that all of them cost about the same.
    """
    if not 0 < ratio < 1:
        raise UsageError("--ratio must be above 0 and below 1", where=f"--ratio {ratio}")
    if metric is not None and data is None:
        raise UsageError("--metric needs the data to score", hint="--eval data.npz")
    check_reports(reports, model)
    if per_layer_out is not None:
        check_output(per_layer_out, model)
    from onnxprune.cli.talk import print_json, stdout, working
    from onnxprune.report.write import write
    from onnxprune.study.sensitivity import study_sensitivity
    from onnxprune.study.text import print_sensitivity

    with working("reading the model", quiet or as_json) as tell:
        analysis, batches = opened(model, calib, calib_samples, how, ratio, tell)
        study = study_sensitivity(
            analysis.solution, analysis.groups, batches, ratios=ratios, criterion=criterion,
            scored=None if data is None else _scored(analysis, data, metric), ratio=ratio,
            seed=seed, tell=tell, progress=time_left(tell, "slimming each group alone"),
            **identity(analysis),
        )  # fmt: skip
    report = study.to_json()
    for path in reports:
        write(report, path)
    if per_layer_out is not None:
        write_text(study.yaml(), per_layer_out)
    if as_json:
        print_json(report)
    elif not quiet:
        print_sensitivity(study, stdout(), verbose)
        if per_layer_out is not None:
            stdout().print(f"wrote {per_layer_out}: {study.even_sentence}", markup=False,
                           soft_wrap=True)  # fmt: skip
    return 0


def _scored(analysis: Analysis, data: Path, metric: str | None) -> Scored:
    """Labelled samples, and how good outputs for them are."""
    from onnxprune.check.evaluate import evaluation
    from onnxprune.study.sensitivity import Scored

    found = evaluation(analysis.source, data, metric)
    return Scored(found.name, found.batches, lambda outputs: found.value(outputs, found.data))
