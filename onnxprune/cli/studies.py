"""What `criteria` and `sensitivity` share: options, opening a model with its data, reports."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from onnxprune.cli.options import json_flag, sizes
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.pipeline import Analysis
    from onnxprune.runtime.feeds import Feeds

F = TypeVar("F", bound=Callable[..., Any])


def study_options(command: F) -> F:
    """Options after those of the study itself, in the order in which --help shows them."""
    for option in reversed((
        click.option("--heads", type=click.Choice(["auto", "whole", "dims"]), default="auto",
                     show_default=True, help="Whole attention heads, or dims of every head."),
        click.option("--report", "reports", type=click.Path(path_type=Path), multiple=True,
                     help="Write a report (.json, .html)."),
        click.option("--seed", default=0, show_default=True),
        sizes,
        json_flag,
        click.option("-q", "--quiet", is_flag=True, help="Only errors."),
        click.option("-v", "--verbose", is_flag=True, help="Every group, and all notes."),
    )):  # fmt: skip
        command = option(command)
    return command


def check_reports(paths: Sequence[Path], model: str) -> None:
    """Refuse reports that could not be written, before any work is done."""
    from onnxprune.report.write import check_kind

    for path in paths:
        if path.suffix == ".md":
            raise UsageError("a study has no .md report", where=str(path), hint="*.html or *.json")
        check_kind(path)
        check_output(path, model)


def check_output(path: Path, model: str) -> None:
    """Refuse a file that could not be written, or would replace the model."""
    if not path.parent.is_dir():
        raise UsageError("the output folder does not exist", where=str(path.parent))
    if path.is_dir():
        raise UsageError("a folder can't be replaced by a file", where=str(path))
    if path.resolve() == Path(model).resolve():
        raise UsageError("a report can't replace the model", where=str(path))


def opened(
    model: str,
    calib: Path | None,
    samples: int,
    how: dict[str, Any],
    ratio: float,
    tell: Callable[[str], None],
) -> tuple[Analysis, Sequence[Feeds] | None]:
    """A model analysed as `slim` would at this ratio, and its calibration batches, if any."""
    from onnxprune import pipeline

    given = pipeline.Sizes(dict(how["dims"]), dict(how["shapes"]))
    source = pipeline.source_of(model)
    tell("finding what is tied to what")
    analysis = pipeline.analyze(source, heads=how["heads"], ratio=ratio, sizes=given)
    if calib is None:
        return analysis, None
    from onnxprune.repair.calibration import calibration

    tell("reading the calibration samples")
    return analysis, calibration(calib, source, samples)


def identity(analysis: Analysis) -> dict[str, str]:
    """Who made a report, and of what."""
    import onnxprune

    return {
        "tool": f"onnxprune {onnxprune.__version__}",
        "model": str(analysis.source.path or "(in memory)"),
    }


def time_left(tell: Callable[[str], None], what: str) -> Callable[[int, int], None]:
    """A function that is told how much is done, and tells how long the rest will take."""
    start = time.monotonic()

    def progress(done: int, of: int) -> None:
        spent = time.monotonic() - start
        left = f", about {_duration(spent / done * (of - done))} left" if done else ""
        tell(f"{what}: {done} of {of}{left}")

    return progress


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def write_text(text: str, path: Path) -> None:
    """Write a text file: whole or not at all."""
    from onnxprune.graph.atomic import replacing

    try:
        with replacing([path]) as (temporary,):
            temporary.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UsageError("can't write", where=str(path), why=str(e)) from e
