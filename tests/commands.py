"""Commands run as scripts run them, and how they ended."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from onnxprune.cli.main import main

START = [sys.executable, "-c", "from onnxprune.cli.main import main; main()"]


@dataclass(frozen=True)
class Ended:
    """How a command ended, and what it said: data on stdout, talk on stderr."""

    code: int
    out: str
    err: str


def onnxprune(*args: object) -> Ended:
    """Run a command in this process, as in a pipe: neither stream is a terminal."""
    out, err = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as ended,
    ):
        main([str(a) for a in args])
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


def files(path: Path) -> set[str]:
    return {f.name for f in path.parent.iterdir()}
