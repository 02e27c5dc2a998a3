"""onnxprune criteria MODEL: do the criteria agree, and can they tell the channels apart?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from onnxprune.cli.options import model_argument
from onnxprune.cli.studies import check_reports, identity, opened, study_options
from onnxprune.errors import UsageError


@click.command(name="criteria")
@model_argument
@click.option("--calib", type=click.Path(path_type=Path),
              help="Unlabelled inputs: adds the criteria that see data.")  # fmt: skip
@click.option("--calib-samples", type=click.IntRange(1), default=256, show_default=True)
@click.option("--ratio", default=0.5, show_default=True,
              help="Share of channels that go where choices are compared.")  # fmt: skip
@study_options
def command(
    model: str,
    calib: Path | None,
    calib_samples: int,
    ratio: float,
    reports: tuple[Path, ...],
    seed: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **how: Any,
) -> int:
    """Do the pruning criteria agree on MODEL, and can they tell its channels apart?

    Inside a layer most norms rank channels nearly alike; and where all filters look as if drawn
    from one distribution, a ranking by their norms is noise. With --calib, rankings are held
    against what data say.
    """
    if not 0 < ratio < 1:
        raise UsageError("--ratio must be above 0 and below 1", where=f"--ratio {ratio}")
    check_reports(reports, model)
    from onnxprune.cli.talk import print_json, stdout, working
    from onnxprune.report.write import write
    from onnxprune.study.criteria import study_criteria
    from onnxprune.study.text import print_criteria

    with working("reading the model", quiet or as_json) as tell:
        analysis, batches = opened(model, calib, calib_samples, how, ratio, tell)
        study = study_criteria(
            analysis.solution, analysis.groups, batches,
            ratio=ratio, seed=seed, tell=tell, **identity(analysis),
        )  # fmt: skip
    data = study.to_json()
    for path in reports:
        write(data, path)
    if as_json:
        print_json(data)
    elif not quiet:
        print_criteria(study, stdout(), verbose)
    return 0
