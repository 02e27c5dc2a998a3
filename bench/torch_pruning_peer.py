"""Networks as Torch-Pruning slims them, beside the originals: raw material for the suite.

    python bench/torch_pruning_peer.py FOLDER [NAME ...]
    python -m bench.suite FOLDER/*.onnx --peers

Builds torchvision's networks with random weights (nothing is downloaded), removes half of the
channels of every group in one shot, by their magnitude (`GroupMagnitudeImportance`, L2), and
exports both: `FOLDER/x.onnx` and `FOLDER/x.torch-pruning.onnx`, whose metadata says which version
made it and how long the pruning took (`torch_pruning_seconds`: tracing, scores and the cut, without
the export). The last layer is left alone, as in the library's own examples. A file that exists is
not made again.

Needs torch, torchvision, torch-pruning (1.6), onnx and onnxruntime; this is no part of the package.
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import sys
import time
from pathlib import Path

import onnx
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))  # also where it is started from another folder

from export_torchvision import export, import_torchvision, randomise

NAMES = ("resnet50", "mobilenet_v2", "vgg16", "densenet121")
RATIO = 0.5


def pruned(model: nn.Module, sample: torch.Tensor) -> tuple[nn.Module, float]:
    """A copy of the network without half of its channels, and the seconds that took."""
    import torch_pruning as tp

    slim = copy.deepcopy(model)
    # As an output of the network: Torch-Pruning would cut the classes.
    *_, last = (module for module in slim.modules() if isinstance(module, nn.Linear))
    start = time.perf_counter()
    tp.pruner.BasePruner(
        slim,
        sample,
        importance=tp.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        ignored_layers=[last],
    ).step()
    return slim.eval(), time.perf_counter() - start


def make(torchvision, name: str, folder: Path) -> str:
    """Both files of a network; says how it went."""
    plain, slim = folder / f"{name}.onnx", folder / f"{name}.torch-pruning.onnx"
    if plain.exists() and slim.exists():
        return "exists"
    torch.manual_seed(0)
    model = randomise(torchvision.models.get_model(name, weights=None))
    sample = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    free = [{0: "batch"}]
    export(model, (sample,), plain, "ts", dynamic=free)
    small, seconds = pruned(model, sample)
    export(small, (sample,), slim, "ts", dynamic=free)
    proto = onnx.load(slim)
    version = importlib.metadata.version("torch-pruning")
    found = {"torch_pruning": version, "torch_pruning_seconds": f"{seconds:.3f}"}
    onnx.helper.set_model_props(proto, found)
    onnx.save(proto, slim)
    before, after = (sum(p.numel() for p in m.parameters()) for m in (model, small))
    return f"{before / 1e6:.2f} M -> {after / 1e6:.2f} M parameters in {seconds:.1f} s"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for the files, made if missing")
    parser.add_argument("names", nargs="*", default=NAMES, metavar="NAME")
    parser.add_argument("--threads", type=int, help="threads for PyTorch and ONNX Runtime")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    torchvision = import_torchvision()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name in args.names:
        print(f"{name:16} {make(torchvision, name, args.folder)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
