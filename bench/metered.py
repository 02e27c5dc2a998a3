"""Run onnxprune's command line, and say last what its process took.

    python -m bench.metered slim MODEL -o OUT --ratio 0.5

The last line on stderr is JSON: CPU seconds of all threads and children since the process began,
and the most memory that was ever resident, in bytes (0 off Linux). What `--align auto` knows of the
machine from earlier runs is out of its sight: it measures anew.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from dataclasses import dataclass

from bench.isolated import Outcome


@dataclass(frozen=True)
class Needs:
    """What a process took."""

    cpu_seconds: float
    peak_bytes: int


def needs(done: Outcome) -> Needs | None:
    """What a metered process has said of itself; None if it was ended from outside."""
    last = done.err.strip().rpartition("\n")[2]
    try:
        return Needs(**json.loads(last))
    except (ValueError, TypeError):
        return None


def main() -> None:
    from onnxprune.cli.main import main as onnxprune

    try:
        with tempfile.TemporaryDirectory() as cache:
            os.environ["ONNXPRUNE_CACHE"] = cache
            onnxprune(sys.argv[1:])
    finally:
        from onnxprune.runtime.machine import resident_bytes

        t = os.times()
        cpu = t.user + t.system + t.children_user + t.children_system
        took = {"cpu_seconds": round(cpu, 3), "peak_bytes": resident_bytes()[1]}
        print(json.dumps(took), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
