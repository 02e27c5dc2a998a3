"""onnxprune bench MODEL [MODEL ...]: interleaved timing on the providers that really work."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.options import json_flag, sizes
from onnxprune.errors import UsageError

if TYPE_CHECKING:
    from onnxprune.bench.data import BenchReport
    from onnxprune.bench.settings import Settings


def _batches(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, ...]:
    """1,8,64."""
    parts = value.split(",") if value else []
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise click.BadParameter(f"'{value}' is not a list of sizes, as in 1,8,64", ctx, param)
    return tuple(dict.fromkeys(int(part) for part in parts))


@click.command(name="bench")
@click.argument("models", type=click.Path(path_type=Path), nargs=-1, required=True)
@click.option("--provider", "providers", type=click.Choice(["cpu", "cuda", "tensorrt"]),
              multiple=True, help="Repeatable. Default: all that work here.")  # fmt: skip
@click.option("--batch", "batches", metavar="1,8,64", callback=_batches,
              help="Batch sizes. Default: the model's, or 1.")  # fmt: skip
@click.option("--threads", type=click.IntRange(1), help="Default: a thread a core.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), metavar="SECONDS",
              help="Of timing a case. Default: until it is sure to 1 %, or a minute to 2 %.",
              )  # fmt: skip
@click.option("--runs", type=click.IntRange(1), help="Rounds a case, instead.")
@click.option("--calib", type=click.Path(path_type=Path),
              help="Inputs, where values matter (.npz, .npy, a folder of them).")  # fmt: skip
@click.option("--per-layer", is_flag=True, help="Where the time went, and what got no faster.")
@click.option("--sweep", "sweeping", is_flag=True,
              help="Slim MODEL by several ratios and alignments, and time them.")  # fmt: skip
@click.option("--spin", is_flag=True, help="Let idle threads wait actively while a model runs.")
@click.option("--report", "reports", type=click.Path(path_type=Path), multiple=True,
              help="Write the numbers (.json).")  # fmt: skip
@sizes
@json_flag
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="All layers.")
def command(
    models: tuple[Path, ...],
    sweeping: bool,
    reports: tuple[Path, ...],
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **how: Any,
) -> int:
    """Time MODELs against each other in ONNX Runtime. The first is the baseline.

    They take turns in one process, A B B A, and are compared round by round: a busy machine slows
    all of them. The speed-up comes with its 95 % interval. Exit code 1 says that a provider left
    nodes that multiply to another, so that there is no number, or that a case could not be run.
    """
    _check(models, sweeping, reports, how)
    from onnxprune.bench.text import print_bench
    from onnxprune.cli.talk import print_json, stderr, stdout
    from onnxprune.errors import PruneError
    from onnxprune.report.write import write

    def finish(report: BenchReport, errors: bool) -> None:
        for path in reports:
            write(report.to_json(), path)
        if as_json:
            print_json(report.to_json())
        elif not quiet:
            print_bench(report, stderr() if errors else stdout(), verbose)

    try:
        with _progress(quiet or as_json) as tell:
            report = (_sweep if sweeping else _compare)(models, how, tell)
    except PruneError as e:
        if e.report is not None:
            finish(e.report, True)  # type: ignore[arg-type]
        raise
    finish(report, False)
    return 1 if report.failed else 0


def _check(
    models: Sequence[Path], sweeping: bool, reports: Sequence[Path], how: dict[str, Any]
) -> None:
    """Refuse what makes no sense before anything is loaded."""
    from onnxprune.report.write import check_kind

    if sweeping and len(models) > 1:
        raise UsageError("--sweep takes one model: it makes the others")
    if sweeping and how["per_layer"]:
        raise UsageError("--sweep and --per-layer exclude each other")
    for path in reports:
        check_kind(path)
        if not path.parent.is_dir():
            raise UsageError("the output folder does not exist", where=str(path.parent))
        if path.is_dir():
            raise UsageError("a folder can't be replaced by a file", where=str(path))
        if path.resolve() in {m.resolve() for m in models}:
            raise UsageError("a report can't replace a model", where=str(path))


def _settings(how: dict[str, Any]) -> Settings:
    from onnxprune.bench.inputs import Wanted
    from onnxprune.bench.settings import Settings

    return Settings(
        providers=how["providers"],
        batches=how["batches"],
        threads=how["threads"],
        spin=how["spin"],
        duration=how["duration"],
        runs=how["runs"],
        early=how["duration"] is None and how["runs"] is None,
        inputs=Wanted(dict(how["dims"]), dict(how["shapes"]), how["calib"]),
        per_layer=how["per_layer"],
    )


def _compare(
    models: Sequence[Path], how: dict[str, Any], tell: Callable[[str, float], None]
) -> BenchReport:
    from onnxprune.bench.compare import compare
    from onnxprune.bench.models import short_names

    names = short_names(models)
    return compare(dict(zip(names, models, strict=True)), _settings(how), tell)


def _sweep(
    models: Sequence[Path], how: dict[str, Any], tell: Callable[[str, float], None]
) -> BenchReport:
    from onnxprune import pipeline
    from onnxprune.bench.sweep import sweep

    source = pipeline.source_of(models[0])
    given = pipeline.Sizes(dict(how["dims"]), dict(how["shapes"]))

    def slimmed(ratio: float, align: int) -> Any:
        made = pipeline.slim(
            source, ratio=ratio, align=align, verify=False, repair="none", sizes=given
        )
        return made.model

    return sweep(source, slimmed, _settings(how), tell)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr with what is being done and the time left, on a terminal only."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from onnxprune.cli.talk import stderr

    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda what, share: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(20), TimeRemainingColumn())
    # A thread that drew the bar would do so while models are timed.
    with Progress(*columns, console=console, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=1.0)

        def tell(what: str, share: float) -> None:
            progress.update(task, description=what, completed=share, refresh=True)

        yield tell
