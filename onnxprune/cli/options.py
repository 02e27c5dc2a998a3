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


def align(ctx: click.Context, param: click.Parameter, value: str | None) -> int | str | None:
    """N or auto; whether N makes sense is checked with the rest of the request."""
    if value is None or value == "auto":
        return value
    if not re.fullmatch(r"-?\d+", value):
        raise click.BadParameter(f"'{value}' is neither a number nor auto", ctx, param)
    return int(value)


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


def _bytes(ctx: click.Context, param: click.Parameter, value: str) -> int:
    """A number of bytes: 2GB, 500MB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", value.strip().upper())
    if found is None:
        raise click.BadParameter(f"'{value}' is no number of bytes, as 2GB is", ctx, param)
    return int(float(found[1]) * 1000 ** " KMGT".index(found[2] or " "))


memory = click.option(
    "--memory", default="2GB", show_default=True, callback=_bytes,
    help="Memory that a repair's activations may take before they go to disk.",
)  # fmt: skip
