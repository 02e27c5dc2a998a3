"""What `onnxsim.pruning` makes of a model, judged: does it load, and is it right?

    python bench/peer.py MODEL.onnx [--ratio 0.5] [--out FOLDER]

Prints a JSON line for the file as it came ("onnxsim") and one for the form in which onnxsim's own
`simplify` has folded batch norm into the convolutions ("onnxsim-folded"); what was made of them is
saved under these names in `--out`. `removed` is the share of the parameters of what it was given,
counted as onnxprune counts them. `sound` is

    yes        it computes what the original does with the removed slices set to zero
    wrong      it does not load, does not run, or computes something else
    unproven   that can't be told: no inputs were found, or which slices went
    untouched  nothing was removed

Needs onnxsim 0.8 (`pip install onnxsim`), which is no dependency of onnxprune.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, TensorProto, numpy_helper

from onnxprune.axes.analyse import facts_of
from onnxprune.check.inputs import draw, hints, settings
from onnxprune.check.verdict import moved
from onnxprune.cost.parameters import parameters
from onnxprune.errors import PruneError
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise
from onnxprune.runtime.session import open_session

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)


def stored(graph: GraphProto) -> Iterator[TensorProto]:
    """Weights of a graph and of its bodies, by whatever they are called there."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                attribute.t.name = node.output[0]
                yield attribute.t
            if attribute.HasField("g"):
                yield from stored(attribute.g)


def kept_indices(full: np.ndarray, part: np.ndarray) -> list[np.ndarray] | None:
    """Per axis, the indices of `full` that `part` consists of; None if its values do not tell.

    Values that `full` has only once say where a slice came from; in a vector, order says the rest.
    """
    if full.ndim == 1:
        return in_order(full, part)
    values, first, count = np.unique(full, return_index=True, return_counts=True)
    found = np.minimum(np.searchsorted(values, part.ravel()), len(values) - 1)
    telling = np.flatnonzero((values[found] == part.ravel()) & (count[found] == 1))
    origin = np.unravel_index(first[found[telling]], full.shape)
    place = np.unravel_index(telling, part.shape)
    kept = []
    for axis, (before, after) in enumerate(zip(full.shape, part.shape, strict=True)):
        index = np.arange(after) if before == after else np.full(after, -1)
        if before != after:
            index[place[axis]] = origin[axis]
        kept.append(index)
    return kept if np.array_equal(full[np.ix_(*kept)], part) else None


def in_order(full: np.ndarray, part: np.ndarray) -> list[np.ndarray] | None:
    """The first places in `full`, one behind the other, where the values of `part` are."""
    index, after = [], -1
    for value in part:
        places = np.flatnonzero(full[after + 1 :] == value)
        if not len(places):
            return None
        after += 1 + int(places[0])
        index.append(after)
    return [np.array(index, np.int64)]


def masked(model: ModelProto, slim: ModelProto) -> tuple[ModelProto, bool]:
    """The model with zeros where `slim` has nothing left, and whether all of that could be told."""
    full = ModelProto()
    full.CopyFrom(model)
    left = {t.name: t for t in stored(slim.graph)}
    complete = True
    for tensor in stored(full.graph):
        other = left.pop(tensor.name, None)
        if other is None or other.dims == tensor.dims or tensor.data_type not in FLOATS:
            continue
        array, part = numpy_helper.to_array(tensor), numpy_helper.to_array(other)
        kept = kept_indices(array, part) if array.ndim == part.ndim else None
        if kept is None:
            complete = False
            continue
        zeroed = np.zeros_like(array)
        zeroed[np.ix_(*kept)] = part
        tensor.CopyFrom(numpy_helper.from_array(zeroed, tensor.name))
    return full, complete and not left  # what is new in `slim` is not understood


def judge(model: ModelProto, slim: ModelProto) -> tuple[str, str]:
    """`sound`, and why not."""
    try:
        session = open_session(slim)
    except PruneError as error:
        return "wrong", f"does not load: {error.why}"
    reference, complete = masked(model, slim)
    facts = facts_of(normalise(load(model)))
    with open_session(model) as original:
        try:
            found = settings(facts, original, 0)
        except PruneError as error:
            return "unproven", str(error.why)
    half = any(t.data_type in HALVES for t in stored(model.graph))
    worst, compared = 0.0, 0
    with open_session(reference) as full, session as small:
        for setting, _ in found:
            feeds = draw(full.inputs, setting, 0, hints(facts))
            expected = full.run(feeds)
            try:
                got = small.run(feeds)
            except PruneError as error:
                return "wrong", f"does not run: {error.why}"
            for name, a in expected.items():
                b = got[name]
                if a.shape != b.shape:
                    return "wrong", f"{name} has shape {b.shape}, not {a.shape}"
                if a.dtype.kind == "f" and np.isfinite(a).all():
                    worst, compared = max(worst, moved(a, b)), compared + 1
    if not compared:
        return "unproven", "no finite output of a floating type"
    if worst <= (2e-2 if half else 1e-3):
        return "yes", ""
    return "wrong" if complete else "unproven", f"relative error {worst:.1e}"


def prune(model: ModelProto, by: str, ratio: float, out: Path | None) -> dict[str, object]:
    from onnxsim.pruning import apply_structured_pruning

    given = ModelProto()
    given.CopyFrom(model)  # it works in place
    start = time.perf_counter()
    try:
        slim = apply_structured_pruning(given, ratio)
    except Exception as error:
        return {"by": by, "removed": 0.0, "sound": "wrong", "why": f"raises {error!r:.200}"}
    row: dict[str, object] = {"by": by, "seconds": round(time.perf_counter() - start, 3)}
    before, after = (parameters(normalise(load(m))) for m in (model, slim))
    row["removed"] = round(1 - after / before, 4) if before else 0.0
    if after == before:
        return row | {"sound": "untouched"}
    if out is not None:
        onnx.save(slim, out / f"{by}.onnx")
    sound, why = judge(model, slim)
    return row | {"sound": sound} | ({"why": why} if why else {})


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="save its results there")
    args = parser.parse_args()
    import onnxsim

    model = onnx.load(args.model)
    list(stored(model.graph))  # names Constant nodes' tensors
    print(json.dumps(prune(model, "onnxsim", args.ratio, args.out)), flush=True)
    folded = onnxsim.simplify(model)
    folded = folded[0] if isinstance(folded, tuple) else folded
    print(json.dumps(prune(folded, "onnxsim-folded", args.ratio, args.out)), flush=True)


if __name__ == "__main__":
    main()
