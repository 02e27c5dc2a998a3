"""onnxprune report REPORT.json: a page for people, or Markdown for a pull request."""

from __future__ import annotations

from pathlib import Path

import click


@click.command(name="report")
@click.argument("report", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path),
              help="FILE.html, FILE.md or FILE.json. Default: REPORT.html.")  # fmt: skip
def command(report: Path, out: Path | None) -> int:
    """Draw REPORT, a JSON file that --report or --json has written."""
    from onnxprune.cli.talk import stdout
    from onnxprune.errors import Unreadable, UsageError
    from onnxprune.report.write import check_kind, read, write

    out = out or report.with_suffix(".html")
    check_kind(out)
    if out.resolve() == report.resolve():
        raise UsageError("two files can't have one name", where=str(out), hint="-o FILE.html")
    data = read(report)
    try:
        write(data, out)
    except (KeyError, TypeError, ValueError, AttributeError) as e:
        why = f"{type(e).__name__}: {e}"
        raise Unreadable("the report is damaged", where=str(report), why=why) from e
    stdout().print(f"wrote {out}", markup=False, soft_wrap=True)
    return 0
