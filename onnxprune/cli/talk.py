"""Talking to people: data on stdout, talk on stderr, progress only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console

UNWRAPPED = 10_000
"""Characters of a line off a terminal, where whatever reads it wraps it if it likes."""


def stdout() -> Console:
    """For data. Off a terminal, lines are not wrapped."""
    return Console(width=None if sys.stdout.isatty() else UNWRAPPED, highlight=False)


def stderr() -> Console:
    """For talk; wrapped like `stdout`."""
    width = None if sys.stderr.isatty() else UNWRAPPED
    return Console(stderr=True, width=width, highlight=False)


@contextmanager
def working(text: str, quiet: bool) -> Iterator[Any]:
    """Say what is being done while it is being done; yields a function that changes the text."""
    console = stderr()
    if quiet or not console.is_terminal:
        yield lambda text: None
        return
    with console.status(text) as status:
        yield status.update


def print_json(data: Any) -> None:
    click.echo(json.dumps(data, indent=2, ensure_ascii=False))
