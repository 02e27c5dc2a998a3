"""What one model needs by itself: its peak memory, in a process that does nothing else."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import Tuning

_PATIENCE = 300
"""Seconds: TensorRT builds its engines when a model is opened."""
_START = "from onnxprune.bench.fresh import main; main()"


@dataclass(frozen=True)
class Memory:
    """Bytes that a model needed more than the process that opened it; None where not known."""

    host: int | None
    device: int | None


def memory(path: Path, provider: str, tuning: Tuning, feeds: Feeds) -> Memory:
    """Open a model and run it once in a new process, and see what that took.

    The GPU's memory is what all programs on it use more afterwards: ONNX Runtime keeps what it
    once had. Nothing is raised: a model that can't be run there says so where it is measured.
    """
    plain = all(array.dtype.isbuiltin == 1 and array.dtype != object for array in feeds.values())
    if not plain:  # neither strings nor what ml_dtypes adds go through a .npy
        return Memory(None, None)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as folder:
        values = {name: str(Path(folder) / f"{k}.npy") for k, name in enumerate(feeds)}
        for name, file in values.items():
            np.save(file, feeds[name], allow_pickle=False)
        request = {
            "path": str(path), "provider": provider, "tuning": asdict(tuning), "feeds": values,
        }  # fmt: skip
        try:
            done = subprocess.run(
                [sys.executable, "-c", _START], input=json.dumps(request), text=True,
                capture_output=True, timeout=_PATIENCE, check=True,
            )  # fmt: skip
            return Memory(**json.loads(done.stdout))
        except (OSError, subprocess.SubprocessError, ValueError):
            return Memory(None, None)


def main() -> None:
    """The new process: a request on stdin, the answer on stdout."""
    from onnxprune.runtime.machine import gpu_bytes, resident_bytes
    from onnxprune.runtime.providers import onnxruntime
    from onnxprune.runtime.session import open_session

    request = json.load(sys.stdin)
    feeds = {name: np.load(file) for name, file in request["feeds"].items()}
    path, provider, tuning = Path(request["path"]), request["provider"], Tuning(**request["tuning"])
    onnxruntime()
    on_gpu = provider != "cpu"
    used, (resident, _) = gpu_bytes() if on_gpu else None, resident_bytes()
    with open_session(path, provider=provider, optimise=True, tuning=tuning) as session:
        session.run(feeds)
        now, (_, most) = gpu_bytes() if on_gpu else None, resident_bytes()
    device = None if used is None or now is None else max(0, now - used)
    print(json.dumps({"host": most - resident if most else None, "device": device}))
