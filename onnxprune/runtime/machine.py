"""What a measurement ran on, so that two can be compared."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from pathlib import Path


def describe() -> dict[str, str | int]:
    """`cpu`, `cores`, `memory_gb`, `os`, `python`, `onnxruntime`, and `gpu` and `gpu_driver`.

    What can't be found out is left out; nothing is raised.
    """
    found: dict[str, str | int | None] = {
        "cpu": _cpu(),
        "cores": _cores(),
        "memory_gb": _memory_gb(),
        "os": platform.platform(terse=True),
        "python": platform.python_version(),
        "onnxruntime": _onnxruntime_version(),
        **_gpu(),
    }
    return {key: value for key, value in found.items() if value}


def _cpu() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return _output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def _cores() -> int | None:
    """Cores that this process may use: a container often has fewer than the machine."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _memory_gb() -> int | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9)
    except (AttributeError, ValueError, OSError):
        return None


def _onnxruntime_version() -> str | None:
    # The version is in the metadata: no need to load the library for it.
    for package in ("onnxruntime-gpu", "onnxruntime", "onnxruntime-directml"):
        try:
            return f"{importlib.metadata.version(package)} ({package})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _gpu() -> dict[str, str]:
    query = "--query-gpu=name,driver_version"
    table = _output("nvidia-smi", query, "--format=csv,noheader")
    rows = [line.split(", ") for line in table.splitlines()]
    if not rows or any(len(row) != 2 for row in rows):
        return {}
    return {"gpu": ", ".join(row[0] for row in rows), "gpu_driver": rows[0][1]}


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
