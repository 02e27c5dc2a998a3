"""Options that several commands share, and how their values are read."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])


class ShapeOption(click.ParamType):
    """NAME:1x3x224x224 (or with commas)."""

    name = "NAME:1x3x224x224"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, tuple[int, ...]]:
        name, _, dims = str(value).rpartition(":")
        if not name or not re.fullmatch(r"\d+([x,]\d+)*", dims):
            self.fail(f"'{value}' is not NAME:SIZExSIZEx..., as in input:1x3x224x224", param, ctx)
        return name, tuple(int(d) for d in re.split("[x,]", dims))


class DimOption(click.ParamType):
    """SYMBOL=8."""

    name = "SYMBOL=8"

    def convert(self, value: Any, param: Any, ctx: Any) -> tuple[str, int]:
        name, _, size = str(value).partition("=")
        if not name or not size.isdigit() or int(size) < 1:
            self.fail(f"'{value}' is not SYMBOL=SIZE, as in batch=8", param, ctx)
        return name, int(size)


def sizes(command: F) -> F:
    """--shape and --dim: sizes of inputs whose axes are dynamic."""
    command = click.option(
        "--dim", "dims", type=DimOption(), multiple=True, help="Size of a symbolic axis."
    )(command)
    return click.option(
        "--shape", "shapes", type=ShapeOption(), multiple=True, help="Shape of an input."
    )(command)


def model_argument(command: F) -> F:
    """MODEL, a path; existence is checked when it is read, with exit code 3."""
    return click.argument("model", type=click.Path())(command)


def json_flag(command: F) -> F:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON and nothing else.")(
        command
    )
