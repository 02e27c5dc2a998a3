"""Report data to a file: its suffix says in which form."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from onnxprune.errors import Unreadable, UsageError
from onnxprune.graph.atomic import replacing

KINDS = (".html", ".md", ".json")
SCHEMAS = tuple(f"onnxprune/{kind}/1" for kind in ("report", "bench", "criteria", "sensitivity"))
"""Schemas that have a page."""


def check_kind(path: Path) -> None:
    """Refuse a report that could not be written, before any work is done.

    Raises:
        UsageError: the suffix stands for no form, or what draws it is not installed.
    """
    if path.suffix not in KINDS:
        names = ", ".join(f"*{k}" for k in KINDS)
        raise UsageError("unknown kind of report", where=str(path), hint=f"name it {names}")
    missing = [m for m in ("jinja2", "PIL") if path.suffix == ".html" and find_spec(m) is None]
    if missing:
        raise UsageError(
            "HTML reports need what is not installed", where=str(path), why=", ".join(missing),
            hint="pip install 'onnxprune[report]', or name it *.md or *.json",
        )  # fmt: skip


def text_of(data: Mapping[str, Any], suffix: str) -> str:
    """A report as the text of a file with this suffix.

    Raises:
        UsageError: this kind of report has no such form.
    """
    if suffix == ".html":
        from onnxprune.report.html import render

        return render(data)
    if suffix == ".md":
        from onnxprune.report.markdown import PARTS
        from onnxprune.report.markdown import render as markdown

        if data["schema"] not in PARTS:
            raise UsageError(f"there is no Markdown for {data['schema']}", hint="*.html or *.json")
        return markdown(data)
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def write(data: Mapping[str, Any], path: Path) -> None:
    """Write a report (as from `Report.to_json`) whole or not at all.

    Raises:
        UsageError: its kind is unknown, needs what is not installed, or the file can't be written.
    """
    check_kind(path)
    text = text_of(data, path.suffix)
    try:
        with replacing([path]) as (temporary,):
            temporary.write_text(text, encoding="utf-8")
    except OSError as e:
        raise UsageError("can't write", where=str(path), why=str(e)) from e


def read(path: Path) -> dict[str, Any]:
    """Report data from a JSON file.

    Raises:
        Unreadable: it can't be read, or is no report that can be drawn.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as e:
        raise Unreadable("the report can't be read", where=str(path), why=str(e)) from e
    schema = data.get("schema") if isinstance(data, dict) else None
    if schema not in SCHEMAS:
        raise Unreadable(
            "no report that can be drawn", where=str(path),
            why=f"its schema is {schema!r}" if schema else "it names no schema",
            hint=f"known: {', '.join(SCHEMAS)}",
        )  # fmt: skip
    found: dict[str, Any] = data
    return found
