"""How good a model is, in the user's own terms: top-1 on labelled data, or a function of theirs."""

from __future__ import annotations

import importlib.util
import inspect
import math
import sys
import traceback
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from onnx import ModelProto

from onnxprune.errors import PruneError, Unreadable, UsageError
from onnxprune.graph.files import Source
from onnxprune.runtime.feeds import Feeds, load_feeds
from onnxprune.runtime.session import Session, open_session

LABELS = ("y", "labels")
"""What the labels of a data file may be called."""

Outputs = dict[str, np.ndarray]
Data = Mapping[str, np.ndarray]
Metric = Callable[..., Any]
"""`metric(outputs, data)` where there is a data file, else `metric(session)`. A number, larger is
better. `outputs` are those of all samples by output name, `data` all arrays of the file, `session`
an open onnxruntime.InferenceSession.
"""


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How a model is scored; larger is better."""

    name: str
    batches: Sequence[Feeds]
    """Inputs, or none where the metric brings its own."""
    data: Data
    """All arrays of the data file, without the samples that no batch holds."""
    metric: Metric

    def score(self, model: ModelProto, folder: Path | None, provider: str = "cpu") -> float:
        """Run a model, and say how good it is.

        Raises:
            UsageError: the metric fails, or gives no finite number.
            Unreadable: ONNX Runtime can't run the model.
        """
        with open_session(model, provider=provider, optimise=True, folder=folder) as session:
            if self.batches:
                return self.value(_outputs(session, self.batches), self.data)
            return self.value(session.ort)

    def value(self, *given: Any) -> float:
        """What the metric says of what it is given.

        Raises:
            UsageError: it fails, or gives no finite number.
        """
        try:
            value = self.metric(*given)
        except PruneError:
            raise
        except Exception as error:
            raise _theirs("the metric failed", error, self.name) from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            why = f"it is {value!r:.80}"
            raise UsageError("the metric gives no finite number", where=self.name, why=why)
        return number


def evaluation(source: Source, data: Path | None, metric: str | Metric | None) -> Evaluation:
    """What `--eval data.npz` and `--metric FILE.py:FUNCTION` ask for.

    Without a metric it is the top-1 accuracy, from 0 to 1: how often the largest entry of the
    first output with a row per sample is the label (`y` or `labels` in the file).

    Raises:
        UsageError: there is no such function, or no labels.
        Unreadable: the data can't be read, or are not what the model takes.
    """
    function: Metric | None = _load(metric) if isinstance(metric, str) else metric
    if data is None:
        if function is None:
            raise UsageError("nothing to evaluate with", hint="--eval data.npz, or --metric")
        return Evaluation(_name(metric), (), {}, function)
    arrays = _arrays(data)
    with open_session(source.proto, folder=source.folder) as session:
        ports = session.inputs
    batches = list(load_feeds(data, ports))
    samples = _rows(batches[0])
    total = sum(_rows(b) or 0 for b in batches)
    whole = len(arrays[ports[0].name]) if ports and ports[0].name in arrays else 0
    if samples is not None and 0 < total < whole:  # a fixed batch size leaves a rest
        arrays = {k: a[:total] if a.ndim and len(a) == whole else a for k, a in arrays.items()}
    if function is not None:
        return Evaluation(_name(metric), batches, arrays, function)
    return Evaluation("top-1", batches, arrays, _top1(arrays, str(data)))


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            if not isinstance(file, np.lib.npyio.NpzFile):
                raise Unreadable("not a .npz file", where=str(path), why="it is a single array")
            return {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise Unreadable("no such file", where=str(path)) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unreadable("not a .npz file", where=str(path), why=str(error)[:200]) from None


def _rows(feeds: Feeds) -> int | None:
    """Samples of a batch; None where its arrays do not agree."""
    counts = {a.shape[:1] for a in feeds.values()}
    return next(iter(counts))[0] if len(counts) == 1 and () not in counts else None


def _outputs(session: Session, batches: Sequence[Feeds]) -> Outputs:
    """All outputs for all batches, one after the other along the first axis."""
    parts: dict[str, list[np.ndarray]] = {}
    for feeds in batches:
        for name, array in session.run(feeds).items():
            parts.setdefault(name, []).append(array)
    found = {}
    for name, arrays in parts.items():
        shapes = {a.shape[1:] for a in arrays}
        if len(arrays) > 1 and (not arrays[0].ndim or len(shapes) > 1):
            raise UsageError(
                f"output '{name}' can't be joined over several batches", where="--eval",
                why="it has no sample axis in front, or its other sizes differ",
                hint="give --metric alone: its function then gets the session and runs it itself",
            )  # fmt: skip
        found[name] = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
    return found


# ---- top-1 --------------------------------------------------------------------------------------


def _top1(arrays: Data, where: str) -> Metric:
    name = next((n for n in LABELS if n in arrays), None)
    if name is None:
        raise UsageError(
            "no labels", where=where, why=f"it holds {', '.join(arrays)}",
            hint="call them 'y' or 'labels', or say with --metric FILE.py:FUNCTION what is good",
        )  # fmt: skip
    labels = arrays[name].ravel()
    if labels.dtype.kind not in "iuf" or (labels != np.round(labels)).any():
        why = f"'{name}' holds {labels.dtype}"
        raise UsageError("labels must be whole numbers", where=where, why=why)
    labels = labels.astype(np.int64)

    def top1(outputs: Outputs, data: Data) -> float:
        for array in outputs.values():
            guess = _classes(array, labels)
            if guess is not None:
                return float((guess == labels).mean())
        shapes = ", ".join(f"{n} {'x'.join(map(str, a.shape))}" for n, a in outputs.items())
        raise UsageError(
            "no output looks like class scores for these labels", where=where,
            why=f"{len(labels)} labels up to {labels.max(initial=0)}; outputs: {shapes}",
            hint="say with --metric FILE.py:FUNCTION what is good",
        )  # fmt: skip

    return top1


def _classes(array: np.ndarray, labels: np.ndarray) -> np.ndarray | None:
    """The class that an output names for each sample; None where it is of another kind."""
    if array.shape[:1] != labels.shape:
        return None
    flat = array.reshape(len(labels), -1) if len(labels) else array
    if array.size == len(labels):
        return flat[:, 0] if array.dtype.kind in "iu" else None
    if flat.shape[1] != max(array.shape[1:]) or labels.max(initial=0) >= flat.shape[1]:
        return None
    return np.asarray(flat.argmax(axis=1)) if array.dtype.kind in "fV" else None


# ---- the user's own function --------------------------------------------------------------------


def _load(text: str) -> Metric:
    """FILE.py:FUNCTION."""
    where = f"--metric {text}"
    path_text, colon, name = text.rpartition(":")
    path = Path(path_text)
    if not colon or not name.isidentifier() or path.suffix != ".py":
        raise UsageError("a metric is FILE.py:FUNCTION", where=where)
    if not path.is_file():
        raise UsageError("no such file", where=where)
    spec = importlib.util.spec_from_file_location(f"onnxprune_metric_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    folder = str(path.resolve().parent)
    if folder not in sys.path:  # as if it were run from where it lies, its late imports too
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise _theirs("the metric's file can't be run", error, text) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [k for k, v in vars(module).items() if inspect.isfunction(v)]
        hint = f"it has {', '.join(known)}" if known else None
        raise UsageError(f"no function '{name}' in {path}", where=where, hint=hint)
    return function  # type: ignore[no-any-return]


def _name(metric: str | Metric | None) -> str:
    return metric if isinstance(metric, str) else getattr(metric, "__name__", "metric")


def _theirs(what: str, error: Exception, name: str) -> UsageError:
    """An error in the user's code: the innermost line of their file, and what it said."""
    path = name.rpartition(":")[0]
    frames = traceback.extract_tb(error.__traceback__)
    mine = [f for f in frames if Path(f.filename).resolve() == Path(path).resolve()]
    if isinstance(error, SyntaxError) and error.filename:
        where = f"{error.filename}, line {error.lineno}"
    elif mine:
        where = f"{mine[-1].filename}, line {mine[-1].lineno}, in {mine[-1].name}"
    else:
        where = name
    why = f"{type(error).__name__}: {error}".rstrip(": ")
    takes = "FUNCTION(outputs, data) with --eval, FUNCTION(session) without"
    return UsageError(what, where=where, why=why, hint=takes if "argument" in why else None)
