"""ONNX Runtime itself: imported when first needed, with the providers that it has."""

import contextlib
import importlib
import io
import re
from typing import Any

from onnxprune.errors import MissingRuntime, OutOfMemory, PruneError, Unreadable, UsageError

PROVIDERS: dict[str, tuple[str, ...]] = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}
"""What each provider asks of ONNX Runtime: itself, then whom it leaves nodes to."""

SHORT = {names[0]: short for short, names in PROVIDERS.items()}
"""From ONNX Runtime's name of a provider to ours."""

_NO_MEMORY = re.compile(
    "failed to allocate|bad.?alloc|out of memory|smaller than requested bytes", re.IGNORECASE
)
"""How its errors say so."""


def onnxruntime() -> Any:
    """The onnxruntime module; raises MissingRuntime."""
    try:
        ort = importlib.import_module("onnxruntime")
    except ImportError as error:
        installed = getattr(error, "name", None) not in (None, "onnxruntime")
        raise MissingRuntime(str(error) if installed else None) from error
    # Device discovery logs before any session has options of its own.
    ort.set_default_logger_severity(4)
    return ort


def provider_names(ort: Any, provider: str) -> list[str]:
    """ONNX Runtime's names for `provider` and those it leaves nodes to; raises UsageError."""
    if provider not in PROVIDERS:
        known = ", ".join(PROVIDERS)
        raise UsageError(f"no provider {provider!r}", hint=f"one of {known}")
    names = list(PROVIDERS[provider])
    built_in = ort.get_available_providers()
    if names[0] not in built_in:
        raise not_working(provider, "this build of ONNX Runtime has none")
    if provider != "cpu" and hasattr(ort, "preload_dlls"):
        # CUDA from pip lies where the system does not look; ONNX Runtime prints what it misses.
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()
    return [name for name in names if name in built_in]


def not_working(provider: str, why: str) -> UsageError:
    """The error for a provider that can't be used."""
    return UsageError(
        f"provider {provider!r} does not work here", why=why,
        hint="pip install 'onnxprune[gpu]' with a matching CUDA, or --provider cpu",
    )  # fmt: skip


def failed(what: str, error: Exception) -> PruneError:
    """The error for what ONNX Runtime could not do: OutOfMemory, or Unreadable with its reason."""
    if isinstance(error, MemoryError) or _NO_MEMORY.search(str(error)):
        return OutOfMemory(shorten(error))
    return Unreadable(what, why=shorten(error))


def shorten(error: Exception) -> str:
    """ONNX Runtime's message without its prefixes and source paths, in one short line."""
    text = re.sub(r"\[ONNXRuntimeError\] : \d+ : \w+ : ", "", str(error))
    text = re.sub(r"/\S+\.(?:cc|h|cu):\d+ (?:[^()]*\([^()]*\)\s*)?", "", text)
    text = " ".join(text.split())
    return text if len(text) <= 300 else text[:297] + "..."
