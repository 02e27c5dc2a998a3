"""A model run over all calibration batches part by part, each node once, as weights become final.

Sequential repair needs what a layer reads when everything before it has been repaired. Running
the model from its inputs for every layer would cost depth squared; here the values that later
nodes still need are kept between the parts, on disk where they take more memory than allowed.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx
from onnx import NodeProto, ValueInfoProto, helper

from onnxprune.graph.model import captured
from onnxprune.repair.cone import part
from onnxprune.runtime.session import open_session

Feeds = Mapping[str, np.ndarray]


class Store:
    """Arrays in memory up to a limit in bytes, the rest on disk; a context manager."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        self._folder = tempfile.TemporaryDirectory(prefix="onnxprune-")
        self._files = 0

    def put(self, array: np.ndarray) -> Kept:
        """Keep an array; it is given back by `Kept.array`."""
        if self.used + array.nbytes <= self.limit or not array.nbytes:
            self.used += array.nbytes
            return Kept(self, array, None)
        path = Path(self._folder.name) / f"{self._files}.npy"
        self._files += 1
        np.save(path, array)
        return Kept(self, None, path)

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._folder.cleanup()


class Kept:
    """An array of a store, until it is dropped."""

    def __init__(self, store: Store, held: np.ndarray | None, path: Path | None) -> None:
        self._store, self._held, self._path = store, held, path

    @property
    def array(self) -> np.ndarray:
        if self._held is not None:
            return self._held
        assert self._path is not None, "it was dropped"
        return np.asarray(np.load(self._path, mmap_mode="r", allow_pickle=False))

    def drop(self) -> None:
        if self._held is not None:
            self._store.used -= self._held.nbytes
            self._held = None
        elif self._path is not None:
            self._path.unlink(missing_ok=True)
            self._path = None


class Stream:
    """A model and its values so far, for all batches.

    `wanted` says how often each value will be asked for by `take`: it is kept until then. The
    weights that count are those in the model when a node's turn comes.
    """

    def __init__(
        self, model: onnx.ModelProto, batches: Sequence[Feeds], wanted: Iterable[str],
        store: Store, folder: Path | None,
    ) -> None:  # fmt: skip
        self.model, self.batches, self.store, self.folder = model, batches, store, folder
        self.wanted = Counter(wanted)
        self.live: dict[str, list[Kept]] = {}
        nodes = list(model.graph.node)
        self._maker = {o: k for k, n in enumerate(nodes) for o in n.output if o}
        self._reads = [{i for i in (*n.input, *captured(n)) if i} for n in nodes]
        self._readers = Counter(i for reads in self._reads for i in reads)
        self._done: set[int] = set()
        self._again = self._rerun(nodes)
        given = set(batches[0])
        names = {i.name for i in model.graph.input}
        self._inputs = {n for n in names if n in given}

    def take(self, names: Sequence[str]) -> None:
        """Run what these values need; they can be read with `get` until they are released."""
        todo = self._needed(names)
        if todo:
            self._run(sorted(todo), names)

    def get(self, name: str, k: int) -> np.ndarray:
        """A value that was taken, for batch `k`."""
        return self.batches[k][name] if name in self._inputs else self.live[name][k].array

    def replace(self, name: str, k: int, new: Kept) -> None:
        """Another content for a value that later nodes will read."""
        self.live[name][k].drop()
        self.live[name][k] = new

    def release(self, names: Iterable[str]) -> None:
        """These values were asked for once; they go when nothing else needs them."""
        for name in names:
            self.wanted[name] -= 1
            self._maybe_drop(name)

    def _needed(self, names: Iterable[str]) -> set[int]:
        need: set[int] = set()
        todo = [n for n in names if n not in self.live]
        while todo:
            made = self._maker.get(todo.pop())
            if made is None or made in need:
                continue
            need.add(made)
            todo += [i for i in self._reads[made] if i not in self.live]
        return need

    def _rerun(self, nodes: Sequence[NodeProto]) -> set[int]:
        """Nodes to run again where they are needed: of constants alone, and of no tensors."""
        fixed = {t.name for t in self.model.graph.initializer}
        found = set()
        for k, n in enumerate(nodes):
            if self._reads[k] <= fixed:
                fixed.update(n.output)
                found.add(k)
            elif _is_fleeting(n):
                found.add(k)
        return found

    def _run(self, todo: Sequence[int], names: Sequence[str]) -> None:
        nodes = [self.model.graph.node[k] for k in todo]
        final = [k for k in todo if k not in self._again]
        for k in final:
            self._readers.subtract(self._reads[k])
        self._done.update(final)
        made = [o for k in final for o in self.model.graph.node[k].output if o]
        keep = [o for o in made if self._readers[o] > 0 or self.wanted[o] > 0 or o in names]
        reads = {i for k in todo for i in self._reads[k]}
        given = sorted(i for i in reads if i in self.live)
        feeds = sorted(i for i in reads if i in self._inputs)
        if keep:
            inputs = [port(i, self.live[i][0].array) for i in given]
            model = part(self.model, nodes, keep, inputs)
            with open_session(model, optimise=True, folder=self.folder) as session:
                kept: dict[str, list[Kept]] = {o: [] for o in keep}
                for k, batch in enumerate(self.batches):
                    values = {i: self.live[i][k].array for i in given}
                    got = session.run(values | {i: batch[i] for i in feeds}, keep)
                    for o in keep:
                        kept[o].append(self.store.put(got[o]))
            self.live |= kept
        for i in given:
            self._maybe_drop(i)

    def _maybe_drop(self, name: str) -> None:
        if self._readers[name] <= 0 and self.wanted[name] <= 0 and name in self.live:
            for kept in self.live.pop(name):
                kept.drop()


def _is_fleeting(node: NodeProto) -> bool:
    """Whether a node's output can't be kept between parts: it is no tensor."""
    return "Sequence" in node.op_type or "Optional" in node.op_type


def port(name: str, array: np.ndarray) -> ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, [None] * array.ndim)
