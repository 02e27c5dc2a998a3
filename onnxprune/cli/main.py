"""The command line: parse, call one verb, report, exit code. Commands load when they are named."""

from __future__ import annotations

import importlib
import os
import sys
import traceback
from typing import Any

import click

from onnxprune.errors import PruneError

COMMANDS = {
    "slim": "Remove channels from a model, prove the result, save it.",
    "inspect": "What is in a model, which groups may shrink, what is fixed and why.",
    "explain": "One node or tensor: its group, members, what fixes it.",
    "criteria": "Do the criteria agree, and can they tell the channels apart?",
    "sensitivity": "How far the outputs move as each group alone is slimmed.",
    "apply": "Replay a plan on the model that it was made for.",
    "verify": "Prove that a slim model is its original without the removed channels.",
    "bench": "Time models against each other on the providers that really work.",
    "report": "Draw a report: a page for people, or Markdown for a pull request.",
}


class Lazy(click.Group):
    """Commands are modules; `--help` must not wait for onnx and scipy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"onnxprune.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:  # the reader has gone (| head): not an error, as click has it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="onnxprune", prog_name="onnxprune")
def cli() -> None:
    """Structured pruning for exported ONNX models: smaller, faster, proven right."""


def fail(error: PruneError) -> int:
    """Tell an error: what, where, why, what to try."""
    if os.environ.get("ONNXPRUNE_DEBUG"):
        traceback.print_exc()
    click.echo(f"error: {error}", err=True)
    return error.exit_code


def main(args: list[str] | None = None) -> Any:
    """Exit codes: 0 done, 1 a check failed, 2 usage, 3 unreadable, 4 nothing to prune."""
    try:
        code = cli.main(args, prog_name="onnxprune", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except PruneError as e:
        sys.exit(fail(e))
    except click.ClickException as e:
        e.show()
        sys.exit(e.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("stopped; nothing was written", err=True)
        sys.exit(130)
    except Exception as e:
        if os.environ.get("ONNXPRUNE_DEBUG"):
            raise
        click.echo(
            f"error: something went wrong that should not: {type(e).__name__}: {e}\n"
            "  try: ONNXPRUNE_DEBUG=1 shows where; please report it with the model",
            err=True,
        )
        sys.exit(1)
