"""Export torchvision's models to ONNX, as raw material for development and benchmarks.

Every classification, segmentation and video architecture of torchvision is built with random
weights (nothing is downloaded) and exported with PyTorch's two exporters: `ts`, the TorchScript one
(`dynamo=False`), and `dynamo`, the one over `torch.export`. A file that already exists is left
alone, so an interrupted run can simply be started again:

    python bench/export_torchvision.py OUT_DIR
    python bench/export_torchvision.py OUT_DIR --only '^(resnet18|swin_t)$' --exporter dynamo

One line per model and exporter tells how it went: exported, skipped (with the reason) or failed
(with the error). Exported means that ONNX Runtime ran the file and got PyTorch's result.

Freshly built networks are full of constants that hide mistakes (batch norm with mean 0 and variance
1, biases of 0, LayerScale of 1e-6), so those are made random first, see `randomise`.

Needs torch, torchvision, onnx, onnxscript and onnxruntime; this is no part of the package itself.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import re
import sys
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import library as extensions
from torch import nn

OPSET = {"ts": 17, "dynamo": 18}
TOLERANCE = 1e-3  # largest relative difference allowed between ONNX Runtime and PyTorch

LIBRARIES: list[extensions.Library] = []  # a declaration is undone when its library is freed


class SkipModelError(Exception):
    """The model is left out on purpose; the message says why."""


def import_torchvision():
    """Import torchvision, even where its compiled operators do not fit the installed torch.

    Only the Python model builders are needed, but importing the package attaches fake kernels to
    compiled operators. Each that could not be loaded is declared, without an implementation.
    """
    declared = set()
    while True:
        try:
            import torchvision

            return torchvision
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if not missing or missing[1] in declared:
                raise
            declared.add(missing[1])
            for name in [key for key in sys.modules if key.partition(".")[0] == "torchvision"]:
                del sys.modules[name]
            library = extensions.Library("torchvision", "FRAGMENT")
            library.define(f"{missing[1]}(Tensor x) -> Tensor")
            LIBRARIES.append(library)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Make every constant weight and all batch norm statistics random, in place.

    A weight of 0 or near it (biases, LayerScale) becomes small noise; any other constant c
    is spread over 0.5 c to 1.5 c.
    """
    rng = torch.Generator().manual_seed(seed)

    def uniform(like: torch.Tensor, low: float, high: float) -> torch.Tensor:
        return torch.rand(like.shape, generator=rng, dtype=torch.float32) * (high - low) + low

    with torch.no_grad():
        for module in model.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.copy_(uniform(module.running_mean, -0.2, 0.2))
                module.running_var.copy_(uniform(module.running_var, 0.5, 1.5))
        for weight in model.parameters():
            constant = weight.is_floating_point() and weight.numel() > 1
            if not constant or weight.min() != weight.max():
                continue
            value = weight.flatten()[0].item()
            if abs(value) > 1e-3:
                weight.copy_(uniform(weight, 0.5, 1.5) * value)
            elif value:
                weight.copy_(uniform(weight, 0.1, 0.5))
            else:
                weight.copy_(uniform(weight, -0.1, 0.1))
    return model.eval()


class FirstOutput(nn.Module):
    """Segmentation networks return a dictionary; a graph has tensors only."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)["out"]


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep the exporters' messages and warnings off the terminal, the compiled part's too."""
    sys.stdout.flush()
    sys.stderr.flush()
    level, saved = logging.root.manager.disable, (os.dup(1), os.dup(2))
    logging.disable(logging.ERROR)
    try:
        with open(os.devnull, "w") as sink, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for target in (1, 2):
                os.dup2(sink.fileno(), target)
            with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
                yield
    finally:
        for target, backup in enumerate(saved, start=1):
            os.dup2(backup, target)
            os.close(backup)
        logging.disable(level)


def check(path: Path, inputs: tuple[torch.Tensor, ...], wanted: list[np.ndarray]) -> float:
    """Run the file in ONNX Runtime; return how far its outputs are from `wanted`, relatively."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    if len(names) != len(inputs):
        raise RuntimeError(f"the graph has {len(names)} inputs, the model {len(inputs)}")
    got = session.run(None, {n: x.numpy() for n, x in zip(names, inputs, strict=True)})
    if len(got) != len(wanted):
        raise RuntimeError(f"the graph has {len(got)} outputs, the model {len(wanted)}")
    worst = 0.0
    for a, b in zip(got, wanted, strict=True):
        if a.shape != b.shape:
            raise RuntimeError(f"shape {a.shape} in ONNX Runtime, {b.shape} in PyTorch")
        if a.size and not np.isfinite(b.astype(np.float64)).all():
            raise RuntimeError("PyTorch's output is not finite")
        if a.size:
            scale = np.abs(b.astype(np.float64)).max() + 1e-12
            worst = max(worst, float(np.abs(a.astype(np.float64) - b).max() / scale))
    return worst


def flat(outputs) -> list[np.ndarray]:
    """All tensors in a nest of tuples, lists and dictionaries, in the exporters' order."""
    if isinstance(outputs, torch.Tensor):
        return [outputs.detach().numpy()]
    if outputs is None or isinstance(outputs, (bool, int, float, str)):
        return []
    parts = outputs.values() if hasattr(outputs, "values") else outputs
    return [array for part in parts for array in flat(part)]


def export(
    model: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    path: Path,
    exporter: str,
    names: list[str] | None = None,
    dynamic: list[dict[int, str]] | None = None,
    opset: int | None = None,
) -> float:
    """Write `model` to `path` and prove that it runs; return the largest relative difference.

    `dynamic` holds, for each input, the symbolic name of each axis that is to stay free. The file
    appears under its own name only when it is complete and has passed.
    """
    names = names or [f"input{i}" if i else "input" for i in range(len(inputs))]
    dynamic = dynamic or [{} for _ in inputs]
    shared = {"input_names": names, "opset_version": opset or OPSET[exporter]}
    partial = path.with_suffix(".partial")
    try:
        with torch.no_grad(), silence():
            wanted = flat(model(*inputs))
            if exporter == "ts":
                axes = {name: free for name, free in zip(names, dynamic, strict=True) if free}
                torch.onnx.export(
                    model, inputs, str(partial), dynamo=False, dynamic_axes=axes, **shared
                )
            else:
                shapes = tuple(dict(free) for free in dynamic) if any(dynamic) else None
                torch.onnx.export(
                    model,
                    inputs,
                    str(partial),
                    dynamo=True,
                    external_data=False,
                    dynamic_shapes=shapes,
                    verbose=False,
                    **shared,
                )
        worst = check(partial, inputs, wanted)
        if not worst <= TOLERANCE:
            raise RuntimeError(f"ONNX Runtime differs from PyTorch by {worst:.1e}")
        os.replace(partial, path)
        return worst
    finally:
        partial.unlink(missing_ok=True)


def catalogue(torchvision) -> dict[str, str]:
    """Model name -> kind, for everything that is a plain image or clip in, tensor out network."""
    models = torchvision.models
    kinds = {
        "classification": models,
        "segmentation": models.segmentation,
        "video": models.video,
    }
    return {name: kind for kind, mod in kinds.items() for name in models.list_models(module=mod)}


def example_shape(kind: str, transforms) -> tuple[int, ...]:
    """The shape of one sample that the architecture was made for, from its published preset."""
    crop = getattr(transforms, "keywords", {}).get("crop_size", 224)
    if kind == "segmentation":  # fully convolutional: the preset's 520 pixels would only be slow
        return (3, 224, 224)
    height, width = crop if isinstance(crop, (tuple, list)) else (crop, crop)
    return (3, 16, height, width) if kind == "video" else (3, height, width)


def build(torchvision, name: str, kind: str, max_bytes: float) -> tuple[nn.Module, tuple[int, ...]]:
    """The network with random weights, and the shape of one sample; refuses too large ones."""
    preset = torchvision.models.get_model_weights(name)
    preset = getattr(preset, "DEFAULT", None) or next(iter(preset))
    size = 4 * preset.meta["num_params"]
    if size >= max_bytes:
        raise SkipModelError(f"{size / 1e9:.2f} GB of weights")
    extra = {"weights_backbone": None} if kind == "segmentation" else {}
    if name in ("googlenet", "inception_v3"):
        extra = {"init_weights": False, "aux_logits": False}
    torch.manual_seed(0)
    with silence():
        model = torchvision.models.get_model(name, weights=None, **extra)
    model = randomise(model)
    return FirstOutput(model) if kind == "segmentation" else model, example_shape(
        kind, preset.transforms
    )


def free_batch(name: str, mode: str) -> bool:
    """Whether this model is exported with a symbolic batch; `some` takes about every second one."""
    return mode == "all" or (mode == "some" and zlib.crc32(name.encode()) % 2 == 0)


def export_one(torchvision, name: str, kind: str, exporter: str, args) -> str:
    """Export one model with one exporter and say what happened."""
    path = args.out / f"{name}.{exporter}.onnx"
    if path.exists():
        return "skipped: exists"
    started = time.perf_counter()
    try:
        model, shape = build(torchvision, name, kind, args.max_gb * 1e9)
        free = free_batch(name, args.dynamic_batch)
        sample = torch.randn(2 if free else 1, *shape, generator=torch.Generator().manual_seed(1))
        worst = export(model, (sample,), path, exporter, dynamic=[{0: "batch"}] if free else None)
    except SkipModelError as reason:
        return f"skipped: {reason}"
    except Exception as error:  # an exporter may raise anything; the others still get their turn
        text = " ".join(str(error).split()) or type(error).__name__
        return f"failed: {type(error).__name__}: {text[:200]}"
    batch = ", free batch" if free else ""
    seconds, size = time.perf_counter() - started, path.stat().st_size
    return f"exported: {size / 1e6:.1f} MB in {seconds:.0f} s, differs {worst:.0e}{batch}"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path, help="folder for the files, made if missing")
    parser.add_argument("--only", metavar="REGEX", default="", help="models whose name matches")
    parser.add_argument("--exporter", choices=("ts", "dynamo", "both"), default="both")
    parser.add_argument(
        "--dynamic-batch",
        choices=("none", "some", "all"),
        default="some",
        help="leave the batch symbolic in these models (default: about half of them)",
    )
    parser.add_argument("--max-gb", type=float, default=1.0, help="skip larger ones (default: 1)")
    parser.add_argument("--threads", type=int, help="threads for PyTorch and ONNX Runtime")
    args = parser.parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.mha.set_fastpath_enabled(False)  # a fused kernel that no exporter knows
    torchvision = import_torchvision()
    args.out.mkdir(parents=True, exist_ok=True)
    chosen = {n: k for n, k in catalogue(torchvision).items() if re.search(args.only, n)}
    if not chosen:
        parser.error(f"no model matches --only {args.only}")
    counts = {"exported": 0, "skipped": 0, "failed": 0}
    for exporter in ("ts", "dynamo") if args.exporter == "both" else (args.exporter,):
        for name, kind in chosen.items():
            outcome = export_one(torchvision, name, kind, exporter, args)
            counts[outcome.partition(":")[0]] += 1
            print(f"{name:32} {exporter:7} {outcome}", flush=True)
    print(", ".join(f"{number} {outcome}" for outcome, number in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
