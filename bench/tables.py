r"""What pruning without training keeps: the README's table of accuracies.

    python -m bench.tables DATA MODELS [--only REGEX] [--subsets 3] [--samples 1024]

DATA holds `cifar10.npz` (uint8 NHWC images `calib_x` and `test_x`, labels `test_y`) and
`imagenet_sample/` (224 x 224 images, the name starts with the class); MODELS the networks named
below. Calibration images are drawn anew for each subset from images that are not scored, and the
method's settings were compared on such images alone (`bench.settings`). Every row is a run of the
pipeline with `--target macs=...` or a ratio of the channels within blocks; slicing has the same and
no repair. KL(original || slim) is in nats, of the softmax of the first output. A line of JSON a row
goes to results/tables.jsonl as well.

Where onnxsim is installed (`pip install onnxsim==0.8.1`), rows tell what it makes of the same files
with the same samples: structured pruning by Wanda's scores at the sparsity that the target takes,
and its fine-tune.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from PIL import Image

from bench.accuracy import divergence, in_batches, logits
from onnxprune import pipeline
from onnxprune.cost.cost import cost_before
from onnxprune.cost.work import sizes_at_one
from onnxprune.graph.files import Source, load

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)


@dataclass(frozen=True)
class Data:
    """Images to calibrate with, and images to score with their labels."""

    calib: np.ndarray
    test: np.ndarray
    labels: np.ndarray
    batch: int


@dataclass(frozen=True)
class Row:
    model: str
    data: str
    ask: Mapping[str, Any]
    """What goes, as `pipeline.slim` takes it."""
    ways: tuple[str, ...]
    inner: bool = False
    """Channels that several layers make, as those between residual blocks, stay."""

    @property
    def left(self) -> float:
        """Share of the MACs that remains, of a row that has a target."""
        return float(str(self.ask["target"]).removeprefix("macs="))

    @property
    def label(self) -> str:
        """What goes, for `--only`."""
        return f"{self.model} {' '.join(str(v) for v in self.ask.values())}"


def shrunk(times: float) -> dict[str, str]:
    """So many times fewer MACs."""
    return {"target": f"macs={1 / times}"}


WAYS: dict[str, dict[str, Any]] = {
    "slice": {"criterion": "l2", "repair": "none"},
    "linear": {"repair": "linear"},
    "full": {"repair": "full"},
    "closed": {"repair": "auto"},
    "synthetic": {"repair": "synthetic"},
}
DATA_FREE = ("slice", "closed", "synthetic")
_ALL = ("slice", "linear", "full")
PEER = "onnxsim"
_HALVINGS = 8
"""Of the range in which the peer's sparsity is searched."""
MBV2 = "imagenet_edgeopt_mbv2_int8_3.7M_dequantised_fp32"
ROWS = (
    *(Row("resnet56_cifar10_folded", "cifar", shrunk(t), _ALL) for t in (2.1, 2.57, 4.0)),
    *(Row("resnet20_cifar10_folded", "cifar", shrunk(t), _ALL) for t in (1.5, 2.1)),
    *(Row(MBV2, "imagenet", shrunk(t), _ALL) for t in (1.25, 1.43)),
    Row("edgeopt_mbv2_int8_3.7M", "imagenet", shrunk(1.25), ("slice", "full")),
    *(Row("cifar10_resnet56", "cifar", shrunk(t), ("closed", "synthetic")) for t in (1.5, 2.1)),
    Row("resnet56_cifar10_folded", "cifar", {"ratio": 0.3125}, ("slice", "closed"), inner=True),
)


def cifar(folder: Path) -> Data:
    d = np.load(folder / "cifar10.npz")
    return Data(_normal(d["calib_x"]), _normal(d["test_x"]), d["test_y"], 32)


def imagenet(folder: Path) -> Data:
    files = sorted((folder / "imagenet_sample").glob("*.jpg"))
    x = _normal(np.stack([np.asarray(Image.open(f).convert("RGB")) for f in files]))
    y = np.array([int(f.name[:4]) for f in files])
    return Data(x[::2], x[1::2], y[1::2], 10)


def _normal(images: np.ndarray) -> np.ndarray:
    """uint8 NHWC -> normalised float32 NCHW."""
    x = (images.astype(np.float32) / 255 - _MEAN) / _STD
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2))


LOADERS: dict[str, Callable[[Path], Data]] = {"cifar": cifar, "imagenet": imagenet}


def theirs(
    source: Source, limit: float, calib: Sequence[Mapping[str, np.ndarray]]
) -> onnx.ModelProto | None:
    """The peer's most accurate way, at the least sparsity within this limit of MACs; None if there
    is none.
    """
    from onnxsim.finetune import apply_pruning_finetune
    from onnxsim.pruning import apply_structured_wanda_pruning

    low, high, best = 0.0, 0.98, source.proto
    for _ in range(_HALVINGS):
        sparsity = (low + high) / 2
        model = apply_structured_wanda_pruning(
            source.proto, list(calib), num_samples=len(calib), sparsity=sparsity
        )
        if macs_of(model) <= limit:
            high, best = sparsity, model
        else:
            low = sparsity
    if best is source.proto:
        return None
    tuned: onnx.ModelProto = apply_pruning_finetune(
        source.proto, best, list(calib), num_samples=len(calib)
    )
    return tuned


def shared(source: Source) -> list[str]:
    """Patterns of the groups of channels that more than one layer makes."""
    return [
        f"^{re.escape(g.name)}$"
        for g in pipeline.analyze(source).groups
        if sum(m.role == "creates" for m in g.members) > 1
    ]


def macs_of(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of one inference at batch 1."""
    facts = pipeline.analyze(model).facts
    return cost_before(facts, sizes_at_one(facts)).macs


def measured(
    row: Row, data: Data, models: Path, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    """A result a way of pruning, the mean over the subsets."""
    source = load(models / f"{row.model}.onnx")
    name = source.proto.graph.input[0].name
    scored = in_batches(data.test, name, data.batch)
    before, whole = logits(source.proto, scored, source.folder), macs_of(source.proto)
    ask = {**row.ask, "exclude": shared(source) if row.inner else ()}
    for way in row.ways:
        found = []
        free = way in DATA_FREE
        for subset in range(1 if free else args.subsets):
            chosen = np.random.default_rng(subset).permutation(len(data.calib))[: args.samples]
            calib = None if free else in_batches(data.calib[np.sort(chosen)], name, data.batch)
            start = time.perf_counter()
            if way == PEER:
                model = theirs(source, row.left * whole, calib or ())
                if model is None:
                    print(f"onnxsim does not get {row.model} to {row.left:.0%}", file=sys.stderr)
                    return
            else:
                how = {**ask, **WAYS[way]}
                model = pipeline.slim(source, calib=calib, verify=False, **how).model
            seconds = time.perf_counter() - start
            now = logits(model, scored, source.folder)
            found.append((
                100 * (now.argmax(axis=1) == data.labels).mean(), divergence(before, now), seconds,
                whole / macs_of(model),
            ))  # fmt: skip
        accuracy, kl, seconds, macs = np.mean(found, axis=0)
        yield {
            "model": row.model, "way": way, "macs": round(macs, 2), "runs": len(found),
            "whole": round(100 * float((before.argmax(axis=1) == data.labels).mean()), 1),
            "accuracy": round(accuracy, 1), "kl": round(kl, 3), "seconds": round(seconds),
            "spread": round(float(np.ptp([f[0] for f in found])), 1),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'model what-goes way'")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--out", type=Path, default=Path("results/tables.jsonl"))
    args = parser.parse_args()
    known: dict[str, Data] = {}
    print("| network | MACs / | how | accuracy | KL | seconds |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in ROWS:
        more = (PEER,) if "linear" in row.ways and importlib.util.find_spec(PEER) else ()
        ways = tuple(w for w in row.ways + more if re.search(args.only, f"{row.label} {w}"))
        if not ways:
            continue
        if row.data not in known:
            known[row.data] = LOADERS[row.data](args.data)
        chosen = replace(row, ways=ways)
        for r in measured(chosen, known[row.data], args.models, args):
            print(f"| {r['model']} ({r['whole']}) | {r['macs']} | {r['way']} | {r['accuracy']} "
                  f"| {r['kl']} | {r['seconds']} |", flush=True)  # fmt: skip
            args.out.parent.mkdir(exist_ok=True)
            with args.out.open("a") as out:
                out.write(json.dumps(r) + "\n")


if __name__ == "__main__":
    main()
