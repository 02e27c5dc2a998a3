r"""What is left of a classifier's accuracy: plain slicing, OBS ranking, OBS ranking and repair.

    python -m bench.accuracy MODEL --calib calib.npz --eval test.npz \
        [--ratios 0.3,0.5,0.7] [--inner]

Both files hold the model's input arrays by input name; the one for `--eval` holds the labels as
`y` too. They should share no sample. `--inner` leaves alone the channels that pass through a sum
of two computed terms (the trunk of a residual network). Prints a table in Markdown, then a line
of JSON a row. KL(original || slim) is the mean over the samples, in nats, of the softmax of the
first output.

Our own networks:

    python -m bench.accuracy models/digits_resnet.onnx --calib models/digits_calib.npz \
        --eval models/digits_test.npz
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune import pipeline
from onnxprune.errors import NothingToPrune
from onnxprune.graph.files import Source, load
from onnxprune.repair.calibration import calibration
from onnxprune.runtime.session import open_session

Feeds = Mapping[str, np.ndarray]
WAYS: dict[str, dict[str, Any]] = {
    "slice l2": {"criterion": "l2", "repair": "none"},
    "slice obs": {"criterion": "obs", "repair": "none"},
    "obs + repair": {"criterion": "obs", "repair": "linear"},
}


def in_batches(x: np.ndarray, name: str, size: int) -> list[dict[str, np.ndarray]]:
    """Samples as an input's batches."""
    return [{name: x[k : k + size]} for k in range(0, len(x), size)]


def logits(model: onnx.ModelProto, batches: Sequence[Feeds], folder: Path | None) -> np.ndarray:
    """The first output for all samples, (samples, classes)."""
    with open_session(model, optimise=True, folder=folder) as session:
        name = session.outputs[0].name
        parts = [session.run(feeds, [name])[name] for feeds in batches]
    return np.concatenate(parts).reshape(sum(map(len, parts)), -1).astype(np.float64)


def divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Mean KL(p || q) of two sets of logits."""
    p, q = (z - np.logaddexp.reduce(z, axis=1, keepdims=True) for z in (p, q))
    return float((np.exp(p) * (p - q)).sum(axis=1).mean())


def trunk(analysis: pipeline.Analysis) -> list[str]:
    """Patterns for the groups whose channels pass through a sum of two computed terms."""
    facts = analysis.facts
    sums = {
        o
        for n in facts.model.graph.nodes
        if n.op in ("Add", "Sum") and sum(i not in facts.constant for i in n.inputs) > 1
        for o in n.outputs
    }
    found = [g for g in analysis.groups if sums & set(g.values)]
    return [f"^{re.escape(facts.model.in_file(g.members[0].value))}$" for g in found]


def rows_of(source: Source, args: argparse.Namespace) -> list[dict[str, Any]]:
    samples = np.load(args.eval)
    labels = samples["y"]
    batches = calibration(args.eval, source, len(labels))
    calib = calibration(args.calib, source, args.calib_samples)
    exclude = trunk(pipeline.analyze(source)) if args.inner else []
    before = logits(source.proto, batches, source.folder)
    labels = labels[: len(before)]  # a fixed batch size may leave out the last ones

    def row(ratio: float, way: str, now: np.ndarray, gone: Mapping[str, float]) -> dict[str, Any]:
        return {
            "model": args.model.name, "ratio": ratio, "way": way, "inner": args.inner,
            "accuracy": round(float((now.argmax(axis=1) == labels).mean()), 5),
            "kl": round(divergence(before, now), 5),
            "params": round(gone.get("params", 0.0), 4), "macs": round(gone.get("macs", 0.0), 4),
        }  # fmt: skip

    rows = [row(0.0, "original", before, {})]
    for ratio in args.ratios:
        for way, how in WAYS.items():
            try:
                result = pipeline.slim(source, ratio=ratio, exclude=exclude, calib=calib, **how)
            except NothingToPrune as error:
                raise SystemExit(f"{args.model}: {error}") from error
            now = logits(result.model, batches, source.folder)
            rows.append(row(ratio, way, now, result.report.removed))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calib", type=Path, required=True)
    parser.add_argument("--eval", type=Path, required=True)
    parser.add_argument("--calib-samples", type=int, default=512)
    parser.add_argument(
        "--ratios", type=lambda s: [float(r) for r in s.split(",")], default=[0.3, 0.5, 0.7]
    )
    parser.add_argument("--inner", action="store_true")
    args = parser.parse_args()
    rows = rows_of(load(args.model), args)
    print("| ratio | how | accuracy | KL | parameters | MACs |")
    print("| --- | --- | --- | --- | --- | --- |")
    for r in rows:
        gone = f"-{r['params']:.0%} | -{r['macs']:.0%}"
        print(f"| {r['ratio']} | {r['way']} | {r['accuracy']:.1%} | {r['kl']:.3f} | {gone} |")
    print()
    for r in rows:
        print(json.dumps(r))


if __name__ == "__main__":
    main()
