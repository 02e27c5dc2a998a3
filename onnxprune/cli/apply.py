"""onnxprune apply PLAN MODEL: replay a plan on the model that it was made for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from onnxprune.cli.images import image_options
from onnxprune.cli.options import memory as memory_option
from onnxprune.cli.options import model_argument

if TYPE_CHECKING:
    from onnxprune.repair.images import Images


@click.command(name="apply")
@click.argument("plan", type=click.Path(path_type=Path))
@model_argument
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True)
@click.option("--calib", type=click.Path(path_type=Path), help="For a plan that was repaired.")
@click.option("--calib-samples", type=click.IntRange(1), default=512, show_default=True)
@image_options
@memory_option
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
def command(
    plan: Path, model: str, out: Path, calib: Path | None, calib_samples: int,
    images: Images | None, memory: int, quiet: bool,
) -> int:  # fmt: skip
    """Replay PLAN on MODEL: the identical slim model.

    MODEL must be the model that the plan was made for; another one ends with exit code 3.
    """
    from onnxprune import pipeline
    from onnxprune.choose.plan import read_plan
    from onnxprune.graph.files import check_output, save

    source = pipeline.source_of(model)
    check_output(source.proto, out, source.folder)
    batches = None
    if calib is not None:
        from onnxprune.repair.calibration import calibration

        batches = calibration(calib, source, calib_samples, images)
    done = pipeline.apply(read_plan(plan), source, batches, memory=memory, images=images)
    save(done, out, source.folder)
    if not quiet:
        click.echo(f"wrote {out}")
    return 0
