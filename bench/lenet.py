"""What pruning without training keeps of the two LeNets on MNIST, beside what others' forms keep.

    python -m bench.lenet DATA [--ratios 0.6,0.8] [--samples 512,1024] [--subsets 3]

DATA holds `mnist_train.npz` and `mnist_test.npz` as `models.train_mnist` reads them; the networks
are the ones that it trained. Every group loses the same ratio of its neurons or filters. Accuracy
is that on all test images; calibration images are drawn from the training images, anew for each
subset, and their labels are not read. The peers' forms are our own, from their papers, and have a
parameter each: they get the one that is best on the test images, we get our defaults. Prints a
table in Markdown, then a line of JSON a row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from bench.accuracy import divergence, in_batches, logits
from onnxprune import pipeline
from onnxprune.graph.files import Source, load

MODELS = Path(__file__).resolve().parents[1] / "models"
NETWORKS = ("lenet_300_100", "lenet5")
BATCH = 32

Array = NDArray[np.float64]
Form = Callable[[Array, Array], Array]
"""(kept, D) and (gone, D) weights of neurons, biases last -> (gone, kept): what stands for what."""


def merging(kept: Array, gone: Array, threshold: float) -> Array:
    """The most similar neuron, scaled, where the cosine reaches a threshold.

    Kim et al. 2020, "Neuron merging: compensating for pruned neurons".
    """
    cosine = unit(gone) @ unit(kept).T
    nearest, each = cosine.argmax(axis=1), np.arange(len(gone))
    scale = np.linalg.norm(gone, axis=1) / np.linalg.norm(kept[nearest], axis=1)
    out = np.zeros_like(cosine)
    out[each, nearest] = np.where(cosine[each, nearest] >= threshold, scale, 0)
    return out


def lbyl(kept: Array, gone: Array, ridge: float) -> Array:
    """Ridge regression on all neurons that stay; the ridge is a share of their mean power.

    Kim et al. 2022, "Look before you leap", for layers without a batch norm.
    """
    own = kept @ kept.T
    own += ridge * own.diagonal().mean() * np.eye(len(own))
    return np.asarray(np.linalg.solve(own, kept @ gone.T).T)


def unit(rows: Array) -> Array:
    return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12))


# The thresholds of its authors' scripts, for convolutions and for dense layers.
PEERS: dict[str, tuple[Form, ...]] = {
    "neuron merging": tuple(partial(merging, threshold=t) for t in (0.1, 0.45)),
    "LBYL": tuple(partial(lbyl, ridge=r) for r in (1e-3, 1e-2, 1e-1, 1.0)),
}


def made_up(result: pipeline.Result, form: Form) -> onnx.ModelProto:
    """The slim model of a run, its weights from the original by a form instead of a repair.

    What stands for a neuron takes over its weights in the layer that reads it. Forms see the
    original's weights throughout, as in the authors' code.
    """
    original = {t.name: numpy_helper.to_array(t) for t in result.source.proto.graph.initializer}
    weights = {name: w.copy() for name, w in original.items()}
    keeps = []
    for group in result.analysis.groups:
        keep = np.zeros(group.size, bool)
        keep[np.asarray(result.kept[group.id])] = True
        made = [m for m in group.members if m.role != "contracts"]
        made.sort(key=lambda m: -original[m.value].ndim)
        rows = [np.moveaxis(original[m.value], m.axis, 0).reshape(group.size, -1) for m in made]
        neurons = np.concatenate(rows, axis=1, dtype=np.float64)
        share = form(neurons[keep], neurons[~keep])
        for m in group.members:
            if m.role == "contracts":
                # A channel may be many inputs, where a map was flattened.
                at = np.argsort(m.channel, kind="stable").reshape(group.size, -1)
                inputs = np.moveaxis(weights[m.value], m.axis, 0)
                inputs[at[keep]] += np.tensordot(share.T, inputs[at[~keep]], axes=1)
            keeps.append((m, keep[m.channel]))
    for m, kept in keeps:
        weights[m.value] = np.compress(kept, weights[m.value], axis=m.axis)
    slim = onnx.ModelProto()
    slim.CopyFrom(result.model)
    for t in slim.graph.initializer:
        if t.name in weights:
            t.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(weights[t.name]), t.name))
    return slim


@dataclass(frozen=True, eq=False)
class Data:
    """Images (M, 1, 28, 28) to calibrate with and to score, with the digits of the latter."""

    train: NDArray[np.float32]
    test: NDArray[np.float32]
    labels: NDArray[np.int64]


def mnist(folder: Path) -> Data:
    train, test = (np.load(folder / f"mnist_{part}.npz") for part in ("train", "test"))
    return Data(images(train["images"]), images(test["images"]), test["labels"])


def images(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    return (pixels[:, None] / 255).astype(np.float32)


@dataclass(frozen=True)
class Row:
    network: str
    ratio: float
    """Of the neurons and filters that go."""
    way: str
    accuracy: float
    """In percent, the mean over the subsets."""
    drop: float
    """In points."""
    kl: float
    """Mean KL(original || slim) of the softmax, in nats."""
    worst: float
    """The accuracy on the worst subset."""
    seconds: float


class Judge:
    """Scores slim models of one network against the original."""

    def __init__(self, name: str, source: Source, data: Data) -> None:
        self.name, self.labels = name, data.labels
        self.scored = in_batches(data.test, "x", 1000)
        self.before = logits(source.proto, self.scored, None)
        self.whole = self.accuracy(self.before)

    def accuracy(self, outputs: Array) -> float:
        return 100 * float((outputs.argmax(axis=1) == self.labels).mean())

    def row(self, ratio: float, way: str, models: Sequence[onnx.ModelProto], seconds: float) -> Row:
        now = [logits(m, self.scored, None) for m in models]
        found = [self.accuracy(n) for n in now]
        mean = float(np.mean(found))
        kl = float(np.mean([divergence(self.before, n) for n in now]))
        return Row(
            self.name, ratio, way, round(mean, 2), round(self.whole - mean, 2), round(kl, 4),
            round(min(found), 2), round(seconds, 1),
        )  # fmt: skip


def rows_of(name: str, data: Data, args: argparse.Namespace) -> Iterator[Row]:
    source = load(MODELS / f"{name}.onnx")
    judge = Judge(name, source, data)
    yield judge.row(0.0, "original", [source.proto], 0.0)
    for ratio in args.ratios:
        sliced = {}
        for criterion in ("l2", "moments"):
            result, seconds = slim(source, ratio, criterion=criterion, repair="none")
            sliced[criterion] = result
            yield judge.row(ratio, f"{criterion}, sliced", [result.model], seconds)
        for criterion, result in sliced.items():
            for peer, forms in PEERS.items():
                tried = [
                    judge.row(ratio, f"{criterion}, {peer}", [made_up(result, f)], 0.0)
                    for f in forms
                ]
                yield max(tried, key=lambda r: r.accuracy)
            result, seconds = slim(source, ratio, criterion=criterion)
            yield judge.row(ratio, f"{criterion}, repaired without data", [result.model], seconds)
        for samples in args.samples:
            runs = [
                slim(source, ratio, calib=drawn(data.train, samples, subset))
                for subset in range(args.subsets)
            ]
            seconds = float(np.mean([s for _, s in runs]))
            way = f"obs, repaired with {samples} images"
            yield judge.row(ratio, way, [r.model for r, _ in runs], seconds)


def drawn(x: np.ndarray, samples: int, subset: int) -> list[dict[str, np.ndarray]]:
    chosen = np.random.default_rng(subset).permutation(len(x))[:samples]
    return in_batches(x[np.sort(chosen)], "x", BATCH)


def slim(source: Source, ratio: float, **how: Any) -> tuple[pipeline.Result, float]:
    """A run without the proof, and its seconds."""
    start = time.perf_counter()
    result = pipeline.slim(source, ratio=ratio, verify=False, **how)
    return result, time.perf_counter() - start


def main() -> None:
    def numbers(kind: Callable[[str], Any]) -> Callable[[str], list[Any]]:
        return lambda text: [kind(part) for part in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--ratios", type=numbers(float), default=[0.6, 0.8])
    parser.add_argument("--samples", type=numbers(int), default=[512, 1024])
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--networks", type=numbers(str), default=list(NETWORKS))
    args = parser.parse_args()
    data = mnist(args.data)
    rows = []
    print("| network | ratio | how | accuracy | drop | worst | KL | seconds |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in args.networks:
        for r in rows_of(name, data, args):
            rows.append(r)
            print(f"| {r.network} | {r.ratio} | {r.way} | {r.accuracy:.2f} | {r.drop:.2f} "
                  f"| {r.worst:.2f} | {r.kl:.4f} | {r.seconds} |", flush=True)  # fmt: skip
    print()
    for r in rows:
        print(json.dumps(asdict(r)))


if __name__ == "__main__":
    main()
