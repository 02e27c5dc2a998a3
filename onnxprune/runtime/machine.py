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


def channel_block() -> int:
    """Channels in a block of ONNX Runtime's layout for convolutions on this processor."""
    try:
        return 16 if " avx512f " in Path("/proc/cpuinfo").read_text() else 8
    except OSError:
        return 8


def resident_bytes() -> tuple[int, int]:
    """Memory of this process that is resident now, and the most that ever was; 0 off Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0, 0
    # Not getrusage: its maximum starts with that of the process which made this one.
    kilobytes = {line.split(":")[0]: line.split()[1] for line in lines if line.endswith(" kB")}
    return tuple(int(kilobytes.get(key, 0)) * 1024 for key in ("VmRSS", "VmHWM"))  # type: ignore[return-value]


def gpu_bytes() -> int | None:
    """Memory in use on the first GPU, by all processes; None without one."""
    table = _output("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
    first = table.partition("\n")[0].strip()
    return int(first) * 2**20 if first.isdigit() else None


def busy_seconds() -> float | None:
    """Seconds that all cores together have worked since the machine started; None off Linux."""
    try:
        fields = Path("/proc/stat").read_text().partition("\n")[0].split()[1:9]
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal
    return sum(int(f) for k, f in enumerate(fields) if k not in (3, 4)) / os.sysconf("SC_CLK_TCK")


def _output(*command: str) -> str:
    if shutil.which(command[0]) is None:
        return ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
