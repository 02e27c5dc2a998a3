"""Talking to people: data on stdout, talk on stderr, progress only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click
from rich.console import Console


def stdout() -> Console:
    """For data. Off a terminal, lines are not wrapped."""
    return Console(width=None if sys.stdout.isatty() else 120, highlight=False)


def stderr() -> Console:
    """For talk."""
    return Console(stderr=True, highlight=False)


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
