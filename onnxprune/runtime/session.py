"""A model opened in ONNX Runtime: named arrays in, named arrays out, errors in plain words."""

import contextlib
import ctypes
import re
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, TensorProto, ValueInfoProto, helper

from onnxprune.graph import files
from onnxprune.graph.tensors import data_file, inline_bytes, is_external, stored_tensors
from onnxprune.runtime.providers import (
    SHORT,
    failed,
    not_working,
    onnxruntime,
    provider_names,
    shorten,
)

RESTING = {"session.intra_op.allow_spinning": "0"}
"""Threads that wait in a loop would take the cores from what is computed between the runs."""
_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_TYPES = dict(TensorProto.DataType.items())


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output. A dimension is a number, a symbol, or None where nothing is known."""

    name: str
    dtype: np.dtype | None
    """None for what is no tensor (sequences, maps)."""
    shape: tuple[int | str | None, ...]


@dataclass(frozen=True, slots=True)
class Tuning:
    """How ONNX Runtime is set up, beyond what makes a result right."""

    threads: int | None = None
    """Inside an operator; None means ONNX Runtime's choice (one a physical core)."""
    config: Mapping[str, str] = field(default_factory=RESTING.copy)
    """Session configuration entries, by ONNX Runtime's names."""
    provider: Mapping[str, str] = field(default_factory=dict)
    """Options of the provider that is asked for, by ONNX Runtime's names."""


AS_IT_COMES = Tuning()
"""ONNX Runtime's own choices, but that idle threads rest."""


@dataclass(eq=False)
class Session:
    """An open model; a context manager, and `close` gives its memory and temporary files back."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    providers: tuple[str, ...]
    """What nodes may run on, by our short names, the one asked for first."""
    ort: Any
    """The onnxruntime.InferenceSession, for what this class does not wrap."""
    cleanup: contextlib.ExitStack
    opening_ms: float = 0.0
    """How long ONNX Runtime took to make it."""

    def run(
        self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """The outputs `names` (default: all) for these inputs.

        A sequence of tensors comes as `name[0]`, `name[1]`, ...; a sequence of maps as an array of
        (entry, sorted key); an absent optional is left out. Raises Unreadable.
        """
        if names is not None and not names:
            return {}  # ONNX Runtime would take no names for all names
        wanted = [port for port in self.outputs if names is None or port.name in names]
        order = [port.name for port in wanted] if names is None else list(names)
        plain = all(is_native(port.dtype) for port in (*self.inputs, *wanted))
        call = _run_plain if plain else _run_extended
        try:
            values = call(self.ort, order, feeds)
        except Exception as error:  # ONNX Runtime's exceptions share no base of their own
            raise failed("ONNX Runtime cannot run the model", error) from error
        return dict(_arrays(zip(order, values, strict=True)))

    def close(self) -> None:
        """Release the session; it cannot run afterwards."""
        self.ort = None
        self.cleanup.close()

    def __enter__(self) -> "Session":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def open_session(
    model: ModelProto | Path | files.Source,
    *,
    provider: str = "cpu",
    optimise: bool = False,
    tuning: Tuning = AS_IT_COMES,
    extra_outputs: Sequence[str] = (),
    folder: Path | None = None,
    profile_prefix: Path | None = None,
) -> Session:
    """Open a model, `extra_outputs` (names of any tensors in its main graph) made outputs too.

    `folder` is where a ModelProto's external data lies. Raises MissingRuntime, UsageError (the
    provider does not work here), Unreadable.
    """
    ort = onnxruntime()
    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimise else level.ORT_DISABLE_ALL
    options.log_severity_level = 4
    if not optimise:
        # For proofs, where memory is short before time is: tensors are given back once they are
        # read, and a Shape is taken at once instead of keeping its tensor until the end.
        options.enable_cpu_mem_arena = options.enable_mem_pattern = False
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    options.intra_op_num_threads = tuning.threads or 0
    for key, value in tuning.config.items():
        options.add_session_config_entry(key, value)
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    names = provider_names(ort, provider)
    asked = [(names[0], dict(tuning.provider)), *names[1:]] if tuning.provider else names
    with contextlib.ExitStack() as stack:
        content = _content(model, extra_outputs, folder, options, stack)
        try:
            # Without fallback a provider that fails says so instead of printing to stdout.
            start = time.perf_counter_ns()
            session = ort.InferenceSession(content, options, asked, enable_fallback=0)
            opening = (time.perf_counter_ns() - start) / 1e6
            session._model_bytes = None  # kept for a fallback that is off: a whole model
        except Exception as error:
            # TensorRT that is not installed is an exception, CUDA only a provider less.
            if provider != "cpu" and "install" in str(error):
                raise not_working(provider, shorten(error)) from error
            raise failed("ONNX Runtime cannot load the model", error) from error
        if session.get_providers()[0] != names[0]:
            raise not_working(provider, "its libraries or its device can't be loaded")
        return Session(
            tuple(_port(value) for value in session.get_inputs()),
            tuple(_port(value) for value in session.get_outputs()),
            tuple(SHORT.get(name, name) for name in session.get_providers()),
            session,
            stack.pop_all(),
            opening,
        )


def _content(
    model: ModelProto | Path | files.Source,
    extra_outputs: Sequence[str],
    folder: Path | None,
    options: Any,
    stack: contextlib.ExitStack,
) -> str | bytes:
    """What to hand to ONNX Runtime: a path, or the bytes with where their data files lie."""
    source = model if isinstance(model, files.Source) else files.load(model)
    proto, folder = source.proto, source.folder or folder
    for tensor in stored_tensors(proto):
        if is_external(tensor):
            data_file(tensor, folder)  # ONNX Runtime would look in the working directory
    present = {value.name for value in proto.graph.output}
    extra = [ValueInfoProto(name=name) for name in extra_outputs if name not in present]
    if source.path is not None and not extra:
        return str(source.path)
    if inline_bytes(proto) > files.INLINE_LIMIT:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="onnxprune-")))
        files.save(proto, place / "model.onnx", folder)
        proto, folder = files.load(place / "model.onnx").proto, place
    if folder is not None:
        options.add_session_config_entry(_DATA_FOLDER, str(folder))
    # Protobuf messages merge when their bytes are joined: more outputs without copying weights.
    more = ModelProto(graph=GraphProto(output=extra)).SerializeToString() if extra else b""
    return proto.SerializeToString() + more


def _port(value: Any) -> Port:
    return Port(value.name, _dtype(value.type), tuple(value.shape or ()))


def _dtype(kind: str) -> np.dtype | None:
    match = re.fullmatch(r"tensor\((\w+)\)", kind)
    number = _TYPES.get(match[1].upper()) if match else None
    return None if number is None else helper.tensor_dtype_to_np_dtype(number)


def is_native(dtype: np.dtype | None) -> bool:
    """Whether numpy and ONNX Runtime exchange it by themselves: nothing that ml_dtypes adds."""
    return dtype is None or dtype.isbuiltin == 1


def _run_plain(ort: Any, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[Any]:
    return ort.run(names, feeds)  # type: ignore[no-any-return]


def _run_extended(ort: Any, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """Run with types that numpy only knows through ml_dtypes (bfloat16, float8)."""
    make = onnxruntime().OrtValue
    values = {}
    for name, array in feeds.items():
        if is_native(array.dtype):
            values[name] = make.ortvalue_from_numpy(array)
        else:
            bits = np.ascontiguousarray(array).view(f"u{array.dtype.itemsize}")
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            values[name] = make.ortvalue_from_numpy_with_onnx_type(bits, kind)
    return [_from_value(value) for value in ort.run_with_ort_values(names, values)]


def _from_value(value: Any) -> Any:
    dtype = _dtype(value.data_type())
    if is_native(dtype) or dtype is None:
        return value.numpy()
    shape = tuple(value.shape())
    # The value owns its memory, and goes with this call: copy.
    buffer = ctypes.string_at(value.data_ptr(), int(np.prod(shape)) * dtype.itemsize)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _arrays(outputs: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, np.ndarray]]:
    for name, value in outputs:
        if isinstance(value, list) and value and isinstance(value[0], dict):
            yield name, np.array([[row[key] for key in sorted(row)] for row in value])
        elif isinstance(value, list):
            yield from ((f"{name}[{i}]", np.asarray(item)) for i, item in enumerate(value))
        elif value is not None:
            yield name, np.asarray(value)
