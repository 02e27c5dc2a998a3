"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


def _shapes(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, tuple[int, ...]]]:
    """NAME:1x3x224x224 (or with commas)."""
    out = []
    for value in values:
        name, _, dims = value.rpartition(":")
        if not name or not re.fullmatch(r"\d+([x,]\d+)*", dims):
            wanted = "NAME:SIZExSIZEx..., as in input:1x3x224x224"
            raise click.BadParameter(f"'{value}' is not {wanted}", ctx, param)
        out.append((name, tuple(int(d) for d in re.split("[x,]", dims))))
    return out


def _dims(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, int]]:
    """SYMBOL=8."""
    out = []
    for value in values:
        name, _, size = value.partition("=")
        if not name or not size.isdigit() or int(size) < 1:
            raise click.BadParameter(f"'{value}' is not SYMBOL=SIZE, as in batch=8", ctx, param)
        out.append((name, int(size)))
    return out


def sizes(command: F) -> F:
    """--shape and --dim: sizes of inputs whose axes are dynamic."""
    command = click.option(
        "--dim", "dims", metavar="SYMBOL=8", callback=_dims, multiple=True,
        help="Size of a symbolic axis.",
    )(command)  # fmt: skip
    return click.option(
        "--shape", "shapes", metavar="NAME:1x3x224x224", callback=_shapes, multiple=True,
        help="Shape of an input.",
    )(command)  # fmt: skip


def model_argument(command: F) -> F:
    """MODEL, a path; existence is checked when it is read, with exit code 3."""
    return click.argument("model", type=click.Path())(command)


def json_flag(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(
        command
    )
