r"""The settings of the repair, compared on calibration images that were left out.

    python -m bench.settings DATA MODELS [--only REGEX] [--subsets 3]

DATA and MODELS as for `bench.tables`; no image that is scored there is looked at here. For each
subset, some of the calibration images calibrate and others judge: KL(original || slim) in nats on
these, of `pipeline.slim` with `--target macs=...` and the defaults, one setting changed at a time.
Labels are not read. Prints a table in Markdown, a row per setting and network: the KL of each
subset, and what the mean is over that of the settings as they are. A line of JSON a row goes to
results/settings.jsonl as well.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import numpy as np

from bench.accuracy import divergence, in_batches, logits
from bench.tables import LOADERS, MBV2, shrunk
from onnxprune import pipeline
from onnxprune.graph.files import Source, load
from onnxprune.pipeline import caution
from onnxprune.repair import gauss_newton, linear, obs, taps

Change = Callable[[], AbstractContextManager[object]]
_RECIPE = linear.RECIPES["full"]


def recipe(**fields: object) -> Change:
    changed = replace(_RECIPE, **fields)  # type: ignore[arg-type]
    return partial(patch.dict, linear.RECIPES, full=changed)


CHANGES: dict[str, Change] = {
    "as it is": nullcontext,
    "half the rows": partial(patch.object, taps, "ROWS", taps.ROWS // 2),
    "twice the rows": partial(patch.object, taps, "ROWS", taps.ROWS * 2),
    "no rounds": recipe(rounds=0),
    "2 rounds": recipe(rounds=2),
    "8 rounds": recipe(rounds=8),
    "a pull of .01": recipe(shares=(1e-2,)),
    "a pull of .1": recipe(shares=(1e-1,)),
    "pulls .001 to 1": recipe(shares=(1e-3, 1e-2, 1e-1, 1.0)),
    "from 8 rows a column": partial(patch.object, linear, "ENOUGH", linear.ENOUGH // 2),
    "from 32 rows a column": partial(patch.object, linear, "ENOUGH", linear.ENOUGH * 2),
    "rounds worth 1 %": partial(patch.object, gauss_newton, "_WORTH", 0.99),
    "inner pull .01": partial(patch.object, gauss_newton, "_RIDGE_IN", 1e-2),
    "inner pull .1": partial(patch.object, gauss_newton, "_RIDGE_IN", 1e-1),
    "OBS pull .001": partial(patch.object, obs, "_RIDGE", 1e-3),
    "OBS pull .1": partial(patch.object, obs, "_RIDGE", 1e-1),
    "unseen, power 1": partial(patch.object, caution, "WARY", 1),
    "unseen, power 3": partial(patch.object, caution, "WARY", 3),
}


@dataclass(frozen=True)
class Case:
    model: str
    data: str
    times: float
    """So many times fewer MACs."""
    samples: int
    batch: int


CASES = (
    Case("resnet20_cifar10_folded", "cifar", 2.1, 1024, 32),
    Case("resnet20_cifar10_folded", "cifar", 1.5, 128, 16),
    Case("resnet56_cifar10_folded", "cifar", 2.1, 1024, 32),
    Case(MBV2, "imagenet", 1.25, 100, 12),
)
_JUDGES = 1024
"""Images that judge, at most."""


def left_out(case: Case, source: Source, images: np.ndarray, subset: int) -> float:
    """KL(original || slim) on calibration images that the run has not seen."""
    order = np.random.default_rng(subset).permutation(len(images))
    name = source.proto.graph.input[0].name
    mine, others = (
        in_batches(images[np.sort(chosen)], name, case.batch)
        for chosen in (order[: case.samples], order[case.samples :][:_JUDGES])
    )
    target = shrunk(case.times)["target"]
    slim = pipeline.slim(source, target=target, calib=mine, verify=False).model
    before, after = (logits(m, others, source.folder) for m in (source.proto, slim))
    return divergence(before, after)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("models", type=Path)
    parser.add_argument("--only", default="", metavar="REGEX", help="of 'model samples setting'")
    parser.add_argument("--subsets", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("results/settings.jsonl"))
    args = parser.parse_args()
    print("| network, MACs /, samples | setting | KL on others | over as it is |")
    print("| --- | --- | --- | --- |")
    for case in CASES:
        base = None
        source, images = load(args.models / f"{case.model}.onnx"), None
        for name, change in CHANGES.items():
            if not re.search(args.only, f"{case.model} {case.samples} {name}"):
                continue
            if images is None:
                images = LOADERS[case.data](args.data).calib
            with change():
                found = [left_out(case, source, images, s) for s in range(args.subsets)]
            base = base or float(np.mean(found))
            row = {
                "model": case.model, "times": case.times, "samples": case.samples,
                "setting": name, "kl": [round(k, 4) for k in found],
                "ratio": round(float(np.mean(found)) / base, 3),
            }  # fmt: skip
            shown = ", ".join(f"{k:.3f}" for k in found)
            print(f"| {case.model}, {case.times}, {case.samples} | {name} | {shown} "
                  f"| {row['ratio']} |", flush=True)  # fmt: skip
            args.out.parent.mkdir(exist_ok=True)
            with args.out.open("a") as out:
                out.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
