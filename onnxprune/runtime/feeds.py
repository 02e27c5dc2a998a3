"""Inputs for a model: drawn at random, or read from files and checked."""

import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import Unreadable, UsageError
from onnxprune.runtime.session import Port

Feeds = dict[str, np.ndarray]


def random_feeds(
    inputs: Sequence[Port],
    shapes: Mapping[str, tuple[int, ...]],
    seed: int,
    *,
    bounds: Mapping[str, int] | None = None,
) -> Feeds:
    """Random values for each input, the same whatever the order of the inputs.

    Floats are standard normal, 8-bit integers of their full range, wider ones from 0 up to but
    not including `bounds` (by input name, default 2), booleans even. `shapes` are needed where a
    port has symbols. Raises UsageError for an input that has no known shape or is no tensor.
    """
    feeds = {}
    for port in inputs:
        shape = shapes.get(port.name, port.shape)
        if port.dtype is None or not all(isinstance(dim, int) for dim in shape):
            raise UsageError(
                f"no random values for input {port.name!r}",
                why=f"its shape is {_shown(shape)}" if port.dtype else "it is no tensor",
                hint=f"--shape {port.name}:1x... or --dim NAME=N",
            )
        rng = np.random.default_rng([seed, zlib.crc32(port.name.encode())])
        size = tuple(int(dim) for dim in shape if dim is not None)
        feeds[port.name] = _draw(rng, port.dtype, size, (bounds or {}).get(port.name, 2))
    return feeds


def _draw(
    rng: np.random.Generator, dtype: np.dtype, shape: tuple[int, ...], bound: int
) -> np.ndarray:
    if dtype == np.dtype(object):
        return rng.integers(0, 10, shape).astype(str).astype(object)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        if dtype.itemsize == 1:
            info = np.iinfo(dtype)
            return rng.integers(info.min, info.max, shape, dtype, endpoint=True)
        return rng.integers(0, bound, shape).astype(dtype)
    if dtype.kind == "c":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(dtype)
    return rng.standard_normal(shape, np.float32).astype(dtype)


def load_feeds(
    path: Path, inputs: Sequence[Port], *, batch: int = 32, samples: int | None = None
) -> Iterator[Feeds]:
    """Batches from a `.npz` (arrays by input name), a `.npy` (one input), or a folder of them.

    Where all arrays have as many samples (axis 0) they are cut into batches of the size that the
    model asks for, or of at most `batch`; a rest too small for a fixed size is dropped. A sample
    without batch axis gets one. Other arrays of a `.npz`, such as labels, are ignored. Of more
    than `samples`, so many are taken from all over (see `spread`). Raises Unreadable for what is
    missing, misshapen, of another kind of type, or not finite.
    """
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".npz", ".npy"))
    if not files:
        raise Unreadable("no samples", where=str(path), why="the folder has no .npz or .npy file")
    chosen: Mapping[Path, NDArray[np.int64] | None] = dict.fromkeys(files)
    if samples is not None:
        chosen = _chosen(files, inputs, samples)
    for file, rows in chosen.items():
        feeds = _checked(file, inputs)
        if rows is not None:
            feeds = {name: array[rows] for name, array in feeds.items()}
        yield from _batches(feeds, inputs, batch, file)


def samples_of(batches: Sequence[Mapping[str, NDArray[Any]]]) -> int:
    """How many samples these batches hold."""
    return sum(max((len(a) for a in feeds.values() if a.ndim), default=1) for feeds in batches)


def spread(count: int, samples: int) -> NDArray[np.int64]:
    """`samples` of `count` indices, from all over, and so is each beginning of them.

    Files are often sorted by class: the first ones would be of one. All of them keep their order.
    """
    if samples >= count:
        return np.arange(count)
    golden = (5**0.5 - 1) / 2  # its multiples fill [0, 1) more evenly than any other's
    return np.argsort(np.arange(count) * golden % 1, kind="stable")[:samples]


def _chosen(
    files: Sequence[Path], inputs: Sequence[Port], samples: int
) -> dict[Path, NDArray[np.int64] | None]:
    """The rows to take of each file that any are taken of; None for all that it has."""
    counts = [_samples(_checked(file, inputs), inputs) for file in files]
    step = 1 if None in counts else _fixed_batch(inputs) or 1
    sizes = [1 if count is None else count // step for count in counts]
    if sum(sizes) * step <= samples:
        return dict.fromkeys(files)
    starts = np.cumsum([0, *sizes])
    units = spread(sum(sizes), max(1, samples // step))
    owner = np.searchsorted(starts, units, side="right") - 1
    out: dict[Path, NDArray[np.int64] | None] = {}
    for k in dict.fromkeys(owner.tolist()):
        first = (units[owner == k] - starts[k]) * step
        out[files[k]] = None if counts[k] is None else (first[:, None] + np.arange(step)).ravel()
    return out


def _checked(file: Path, inputs: Sequence[Port]) -> Feeds:
    """The arrays of one file, as the model takes them."""
    arrays = _read(file, inputs)
    feeds = {port.name: _fit(arrays[port.name], port, file) for port in inputs}
    _check_symbols(feeds, inputs, file)
    return feeds


def _read(file: Path, inputs: Sequence[Port]) -> Feeds:
    """The arrays of one file by input name."""
    names = [port.name for port in inputs]
    try:
        loaded = np.load(file, allow_pickle=False)
        arrays = {"": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except FileNotFoundError:
        raise Unreadable("no such file", where=str(file)) from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise Unreadable("not an array file", where=str(file), why=str(error)) from None
    if len(names) == 1 and list(arrays) in ([""], ["arr_0"]):
        return {names[0]: next(iter(arrays.values()))}
    missing = [name for name in names if name not in arrays]
    if missing:
        there = ", ".join(filter(None, arrays)) or "one array without a name"
        raise Unreadable(
            f"no array for input {missing[0]!r}", where=str(file), why=f"it holds {there}",
            hint="name the arrays as the inputs: " + ", ".join(names),
        )  # fmt: skip
    return {name: arrays[name] for name in names}


def _fit(array: np.ndarray, port: Port, file: Path) -> np.ndarray:
    """`array` in the input's type and rank; sizes that the input fixes are checked."""
    where = f"input {port.name!r} in {file}"
    if port.dtype is None:
        raise Unreadable("an input that is no tensor can't come from a file", where=where)
    if array.ndim == len(port.shape) - 1 and (port.shape[0] == 1 or _is_open(port.shape[0])):
        array = array[None]
    # ONNX Runtime shows an unknown rank as no dimensions.
    agree = array.ndim == len(port.shape) and all(
        _is_open(want) or got == want
        for got, want in zip(array.shape[1:], port.shape[1:], strict=True)
    )
    if port.shape and not agree:
        why = f"{_shown(array.shape)} where the model takes {_shown(port.shape)}"
        raise Unreadable("wrong shape", where=where, why=why)
    values = _converted(array, port.dtype)
    if values is None:
        why = f"{array.dtype} where the model takes {port.dtype}"
        raise Unreadable("wrong type", where=where, why=why, hint="convert the array first")
    if values.dtype.kind not in "iubO" and not np.isfinite(values).all():
        why = f"NaN or infinite as {port.dtype}"
        raise Unreadable("values that are not finite", where=where, why=why)
    return values


def _converted(array: np.ndarray, dtype: np.dtype) -> np.ndarray | None:
    """`array` as `dtype` if that is the same kind of number and keeps integers; else None."""
    if array.dtype == dtype:
        return array
    if dtype.kind == "O":
        return array.astype(object) if array.dtype.kind in "US" else None
    if array.dtype.kind == "V":  # how numpy stores bfloat16 and its like
        return array.view(dtype) if array.dtype.itemsize == dtype.itemsize else None
    if array.dtype.kind in "iu" and dtype.kind in "iu":
        values = array.astype(dtype)
        return values if np.array_equal(values, array) else None
    if array.dtype.kind == "f" and dtype.kind in "fV":
        with np.errstate(over="ignore"):
            return array.astype(dtype)
    return None


def _check_symbols(feeds: Feeds, inputs: Sequence[Port], file: Path) -> None:
    """Axes that share a symbol must have one size."""
    sizes: dict[str, tuple[int, str]] = {}
    for port in inputs:
        for symbol, size in zip(port.shape, feeds[port.name].shape, strict=False):
            if not isinstance(symbol, str):
                continue
            known, other = sizes.setdefault(symbol, (size, port.name))
            if known != size:
                why = f"{other!r} has {known} of {symbol!r}, {port.name!r} has {size}"
                raise Unreadable("arrays that do not fit together", where=str(file), why=why)


def _fixed_batch(inputs: Sequence[Port]) -> int | None:
    """The batch size that the model asks for; None where it asks for none, or for several."""
    fixed = {port.shape[0] for port in inputs if port.shape and not _is_open(port.shape[0])}
    size = next(iter(fixed)) if len(fixed) == 1 else None
    return size if isinstance(size, int) else None


def _samples(feeds: Feeds, inputs: Sequence[Port]) -> int | None:
    """How many samples arrays have; None where they can't be cut into samples."""
    fixed = {port.shape[0] for port in inputs if port.shape and not _is_open(port.shape[0])}
    counts = {array.shape[:1] for array in feeds.values()}
    if len(counts) != 1 or () in counts or len(fixed) > 1:
        return None
    ((count,),) = counts
    return int(count)


def _batches(feeds: Feeds, inputs: Sequence[Port], batch: int, file: Path) -> Iterator[Feeds]:
    count, fixed = _samples(feeds, inputs), _fixed_batch(inputs)
    if count is not None:
        step = fixed or batch
        if not count or (fixed and count < step):
            why = f"{count} where the model takes {step} at a time"
            raise Unreadable("too few samples", where=str(file), why=why)
        last = count - step if fixed else count - 1
        for start in range(0, last + 1, step):
            yield {name: array[start : start + step] for name, array in feeds.items()}
        return
    for port in inputs:
        got = feeds[port.name].shape
        if port.shape and not _is_open(port.shape[0]) and got[0] != port.shape[0]:
            where = f"input {port.name!r} in {file}"
            why = f"{_shown(got)} where the model takes {_shown(port.shape)}"
            raise Unreadable("wrong shape", where=where, why=why)
    yield feeds


def _is_open(dim: int | str | None) -> bool:
    return not isinstance(dim, int)


def _shown(shape: Sequence[int | str | None]) -> str:
    return "x".join("?" if dim is None else str(dim) for dim in shape) or "a scalar"
