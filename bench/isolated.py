"""Run a command in a process of its own, within limits: one bad model must not end a long run."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

try:
    import resource
except ImportError:  # Windows has no such limits
    resource = None  # type: ignore[assignment]


@dataclass(frozen=True)
class Outcome:
    """How a command ended. `code` is None if it took too long; a signal is a negative number."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def trouble(self) -> str:
        """What went wrong, in one line."""
        if self.code is None:
            return f"stopped after {self.seconds:.0f} s"
        if self.code < 0:
            return f"killed by {signal.Signals(-self.code).name}"
        return " ".join(self.err.split())[-300:]


def run(command: Sequence[str], *, timeout: float, memory_gb: float) -> Outcome:
    """Run a command and all its children; what needs more time or memory is ended."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, errors="replace", start_new_session=True,
        preexec_fn=partial(_limit, int(memory_gb * 1e9)) if resource else None,
    )  # fmt: skip
    code: int | None
    try:
        out, err = process.communicate(timeout=timeout)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        code = None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return Outcome(code, out, err, time.perf_counter() - start)


def _limit(bytes_: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (bytes_, bytes_))
