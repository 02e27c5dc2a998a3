"""onnxprune slim MODEL: remove channels, prove the result, save it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from onnxprune.cli.images import image_options
from onnxprune.cli.options import align, json_flag, memory, model_argument, sizes
from onnxprune.errors import PruneError, UsageError

if TYPE_CHECKING:
    from onnxprune.report.data import Report

_MANY = 0.25
"""Share of the work in odd widths from which they are worth a word."""
_HELD_OUT = 128
"""Samples beyond those of --calib-samples that a slim model is compared with the original on."""


@click.command(name="slim")
@model_argument
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Default: MODEL.slim.onnx.")
@click.option("--ratio", type=float, help="Share of channels to remove from every group.")
@click.option("--target", metavar="KEY=VALUE",
              help="What may remain: macs=50%, params=1.2M, bytes=4MB, latency=8ms.")  # fmt: skip
@click.option("--max-drop", type=float, metavar="X",
              help="The slimmest model that loses no more of the metric (0.01 = a point).",
              )  # fmt: skip
@click.option("--threshold", type=float, help="Remove what scores under it (1 = average).")
@click.option("--dead", is_flag=True, help="Remove only what changes no output.")
@click.option("--per-layer", type=click.Path(path_type=Path), help="YAML or JSON: regex -> ratio.")
@click.option("--criterion", help="l2 (default), l1, linf, bn-scale, geometric-median, random, "
              "moments (default for --target), obs (default with --calib).")  # fmt: skip
@click.option("--scores", type=click.Path(path_type=Path), help="Scores by weight name (.npz).")
@click.option("--scope", type=click.Choice(["layer", "global"]), default="layer",
              show_default=True, help="Ratio of every group, or of all together.")  # fmt: skip
@click.option("--heads", type=click.Choice(["auto", "whole", "dims"]), default="auto",
              show_default=True, help="Whole attention heads, or dims of every head.")  # fmt: skip
@click.option("--include", multiple=True, metavar="REGEX", help="Only groups that match.")
@click.option("--exclude", multiple=True, metavar="REGEX", help="Not groups that match.")
@click.option("--align", callback=align, metavar="N|auto",
              help="Keep multiples of N channels; auto: what is fast here (default for latency).",
              )  # fmt: skip
@click.option("--min-channels", default=1, show_default=True, help="Keep at least so many.")
@click.option("--max-ratio", type=float, help="A group loses at most this share.")
@click.option("--calib", type=click.Path(path_type=Path),
              help="Unlabelled inputs (.npz, .npy, a folder of them or of images).")  # fmt: skip
@click.option("--calib-samples", type=click.IntRange(1), default=512, show_default=True)
@click.option("--eval", "data", type=click.Path(path_type=Path),
              help="Inputs and labels (.npz with y or labels): top-1 before and after.",
              )  # fmt: skip
@click.option("--metric", metavar="FILE.py:FUNCTION", help="Your own metric; larger is better.")
@image_options
@click.option("--repair", type=click.Choice(["auto", "none", "bias", "linear", "full",
                                             "synthetic"]), default="auto", show_default=True,
              help="How layers make up for what went: auto is full with --calib, and a closed "
              "form without.")  # fmt: skip
@memory
@click.option("--plan-out", type=click.Path(path_type=Path), help="Write what was chosen (JSON).")
@click.option("--report", "reports", type=click.Path(path_type=Path), multiple=True,
              help="Write a report (.html, .md, .json).")  # fmt: skip
@click.option("--dry-run", is_flag=True, help="Choose, cut and prove, but write no model.")
@click.option("--no-verify", is_flag=True, help="Skip the proof.")
@click.option("--provider", type=click.Choice(["cpu", "cuda", "tensorrt"]), default="cpu",
              show_default=True, help="Where the proof runs.")  # fmt: skip
@click.option("--bench", is_flag=True, help="Time the slim model against the original.")
@click.option("--seed", default=0, show_default=True)
@sizes
@json_flag
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("-v", "--verbose", is_flag=True, help="Every group that stayed, and all notes.")
def command(
    model: str,
    out: Path | None,
    plan_out: Path | None,
    reports: tuple[Path, ...],
    dry_run: bool,
    bench: bool,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    **how: Any,
) -> int:
    """Remove channels from MODEL, prove the result, save it.

    Say how much with one of --ratio, --target, --max-drop, --threshold, --dead, --per-layer (which
    may also override --ratio, --target and --max-drop). A ratio of 0.5 removes half of the channels
    of every group; parameters and MACs fall by more. Without repair, a high ratio costs accuracy.
    """
    _check(how, reports)
    out = out or Path(model).with_suffix("").with_name(f"{Path(model).stem}.slim.onnx")
    _check_paths(Path(model), out, (*reports, *([plan_out] if plan_out else [])))
    from onnxprune import pipeline
    from onnxprune.cli.talk import print_json, stderr, stdout, working
    from onnxprune.graph.files import check_output
    from onnxprune.report.text import print_report

    source = pipeline.source_of(model)
    if not dry_run:
        check_output(source.proto, out, source.folder)
    try:
        with working("reading the model", quiet or as_json) as tell:
            result = _run(source, how, tell)
            if not dry_run:
                tell("saving")
                result.save(out)
    except PruneError as e:
        report = e.report
        if report is not None:
            _write(report, reports)  # type: ignore[arg-type]
            if as_json:
                print_json(report.to_json())  # type: ignore[attr-defined]
            elif not quiet:
                print_report(report, stderr(), verbose)  # type: ignore[arg-type]
        raise
    report = result.report if dry_run else pipeline.with_out(result.report, out)
    times = None
    if bench:
        slim_model = result.model if dry_run else out
        times = _timed({"original": source, "slim": slim_model}, how, quiet or as_json)
        report = replace(report, bench=times.to_json())
    if any(path.suffix == ".html" for path in reports):
        report = pipeline.with_pictures(report, result)
    _write(report, reports)
    if plan_out is not None:
        from onnxprune.choose.plan import to_json

        _replace(plan_out, to_json(result.plan))
    if as_json:
        print_json(report.to_json())
    elif not quiet:
        console = stdout()
        print_report(report, console, verbose)
        if times is not None:
            from onnxprune.bench.text import print_bench

            print_bench(times, console, verbose)
        warnings = result.verdict.notes if result.verdict else ()
        ending = "nothing was written (--dry-run)" if dry_run else f"wrote {out}"
        advice = _advice(result.report.repair, how)
        notes = [f"note: {w}" for w in warnings]
        widths = "" if bench or how["dead"] else _widths(result.report)
        for line in filter(None, (result.sentence, *notes, advice, widths, ending)):
            console.print(line, markup=False, soft_wrap=True)  # names may have brackets
    return 0


def _timed(models: dict[str, Any], how: dict[str, Any], silent: bool) -> Any:
    """Times of original and slim model in turn, on the run's provider and sizes."""
    from onnxprune.bench.compare import compare
    from onnxprune.bench.inputs import Wanted
    from onnxprune.bench.settings import Settings
    from onnxprune.cli.talk import working

    inputs = Wanted(dict(how["dims"]), dict(how["shapes"]), None)
    settings = Settings(providers=(how["provider"],), inputs=inputs)
    with working("timing both models", silent) as tell:
        return compare(models, settings, lambda text, left: tell(text))


def _widths(report: Report) -> str:
    """What to know about the speed."""
    from onnxprune.choose.limits import ALIGNED

    if report.options.get("align") != 1 or report.odd_widths < _MANY:
        return ""
    return (
        f"{report.odd_widths:.0%} of the MACs left are in layers whose new widths are no multiples "
        f"of {ALIGNED} and may run no faster: --align auto times better ones here"
    )


def _advice(repair: Any, how: dict[str, Any]) -> str:
    """What to know about the accuracy."""
    if how["dead"]:
        return ""
    if repair is None or not repair["layers"]:
        return "the weights were only sliced: measure the accuracy, or repair with --calib"
    better = [f for f in repair["layers"] if f["after"] < f["before"]]
    done = f"{len(better)} of {len(repair['layers'])} layers"
    return {
        "closed": f"{done} were corrected without data; with samples (--calib) more accuracy stays",
        "means": f"the biases of {done} were corrected without data; --calib goes further",
        "synthetic": f"{done} were refitted to synthetic images; real ones (--calib) are better",
    }.get(repair["kind"], f"{done} were refitted to the calibration data")


def _check(how: dict[str, Any], reports: tuple[Path, ...]) -> None:
    """Refuse what makes no sense before anything is loaded."""
    from onnxprune.report.write import check_kind

    ways = ("ratio", "target", "max_drop", "threshold")
    asked = [f"--{k.replace('_', '-')}" for k in ways if how[k] is not None]
    asked += ["--dead"] if how["dead"] else []
    if len(asked) > 1:
        raise UsageError(f"{asked[0]} and {asked[1]} exclude each other")
    if not asked and how["per_layer"] is None:
        raise UsageError(
            "how much should go?",
            hint="--ratio 0.5, --target macs=50%, --max-drop X, --threshold T, --per-layer FILE "
            "or --dead",
        )
    if how["per_layer"] is not None and asked and asked[0] in ("--threshold", "--dead"):
        raise UsageError(f"--per-layer and {asked[0]} exclude each other")
    if how["max_drop"] is not None and how["data"] is None and how["metric"] is None:
        raise UsageError(
            "--max-drop needs something to measure",
            hint="--eval data.npz with labels, or --metric FILE.py:FUNCTION",
        )
    for path in reports:
        check_kind(path)


def _check_paths(model: Path, out: Path, others: Iterable[Path]) -> None:
    """Refuse a report or plan that could not be written, or would replace another file of this
    run, before any is written.
    """
    taken = {model.resolve(): "the model", out.resolve(): "the slim model"}
    for path in others:
        if not path.parent.is_dir():
            raise UsageError("the output folder does not exist", where=str(path.parent))
        if path.is_dir():
            raise UsageError("a folder can't be replaced by a file", where=str(path))
        if path.resolve() in taken:
            why = f"it is {taken[path.resolve()]} too"
            raise UsageError("two files can't have one name", where=str(path), why=why)
        taken[path.resolve()] = "another output"


def _run(source: Any, how: dict[str, Any], tell: Any) -> Any:
    from onnxprune import pipeline
    from onnxprune.choose.filters import load_per_layer
    from onnxprune.choose.scores import load_scores

    sizes = pipeline.Sizes(dict(how["dims"]), dict(how["shapes"]))
    common = {"verify": not how["no_verify"], "provider": how["provider"], "sizes": sizes,
              "stage": tell}  # fmt: skip
    if how["dead"]:
        return pipeline.slim_dead(source, **common)
    calib, held_out = None, []
    if how["calib"] is not None:
        from onnxprune.repair.calibration import calibration

        tell("reading the calibration samples")
        count = how["calib_samples"]
        calib = calibration(how["calib"], source, count, how["images"])
        more = calibration(how["calib"], source, count + _HELD_OUT, how["images"])
        held_out = pipeline.others(more, calib)
    evaluation = None
    if how["data"] is not None or how["metric"] is not None:
        from onnxprune.check.evaluate import evaluation as evaluate

        tell("reading the evaluation data")
        evaluation = evaluate(source, how["data"], how["metric"])
    return pipeline.slim(
        source,
        ratio=how["ratio"],
        target=how["target"],
        max_drop=how["max_drop"],
        threshold=how["threshold"],
        per_layer=load_per_layer(how["per_layer"]) if how["per_layer"] else None,
        scope=how["scope"],
        criterion=how["criterion"],
        scores=load_scores(how["scores"]) if how["scores"] else None,
        heads=how["heads"],
        include=how["include"],
        exclude=how["exclude"],
        min_channels=how["min_channels"],
        max_ratio=how["max_ratio"],
        align=how["align"],
        calib=calib,
        held_out=held_out,
        evaluation=evaluation,
        repair=how["repair"],
        memory=how["memory"],
        images=how["images"],
        seed=how["seed"],
        **common,
    )


def _write(report: Report, paths: tuple[Path, ...]) -> None:
    from onnxprune.report.write import write

    for path in paths:
        write(report.to_json(), path)


def _replace(path: Path, text: str) -> None:
    """Write a text file: whole or not at all."""
    from onnxprune.graph.atomic import replacing

    try:
        with replacing([path]) as (temporary,):
            temporary.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UsageError("can't write", where=str(path), why=str(e)) from e
