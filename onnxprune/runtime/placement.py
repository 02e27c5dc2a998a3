"""What really ran where: node by node, read back from ONNX Runtime's own profile."""

import bisect
import json
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper

from onnxprune.errors import PruneError
from onnxprune.graph import files
from onnxprune.runtime.providers import PROVIDERS, SHORT
from onnxprune.runtime.session import AS_IT_COMES, Tuning, open_session

_BYTES = ("activation_size", "parameter_size", "output_size")


@dataclass(frozen=True, slots=True)
class NodeTime:
    """One execution of one node. On a GPU `ms` is what the host spent, not the kernel."""

    node: str
    op: str
    provider: str
    ms: float
    run: int = 0
    """Which run of the model it belongs to."""
    bytes: int = 0
    """What it read and wrote: activations, parameters and outputs; 0 where it was not told."""


def profile(
    model: ModelProto | Path | files.Source,
    provider: str,
    feeds: Mapping[str, np.ndarray],
    *,
    runs: int = 1,
    optimise: bool = False,
    tuning: Tuning = AS_IT_COMES,
    folder: Path | None = None,
) -> list[NodeTime]:
    """Every node execution of `runs` runs, in order, after one run to warm up.

    A node goes by its name, or by its first output where it has none or shares it. What ONNX
    Runtime fused or added goes by the name that it gave. Raises as `open_session` and `run` do.
    """
    source = model if isinstance(model, files.Source) else files.load(model)
    with tempfile.TemporaryDirectory(prefix="onnxprune-") as place:
        session = open_session(
            named(source.proto), provider=provider, optimise=optimise, tuning=tuning,
            folder=source.folder or folder, profile_prefix=Path(place) / "profile",
        )  # fmt: skip
        with session:
            for _ in range(runs + 1):
                session.run(feeds)
            events = json.loads(Path(session.ort.end_profiling()).read_text())
    # The warm-up ends where the second run of the model begins.
    starts = sorted(e["ts"] for e in events if e.get("name") == "model_run")
    return [
        NodeTime(
            e["name"].removesuffix("_kernel_time"),
            e["args"]["op_name"],
            SHORT.get(e["args"]["provider"], e["args"]["provider"]),
            e["dur"] / 1000,
            bisect.bisect(starts, e["ts"]) - 2,
            sum(int(e["args"].get(key, 0)) for key in _BYTES),
        )
        for e in events
        if e.get("cat") == "Node"
        and e["name"].endswith("_kernel_time")
        and e["ts"] >= starts[1]
    ]  # fmt: skip


def placement(
    model: ModelProto | Path | files.Source,
    provider: str,
    feeds: Mapping[str, np.ndarray],
    *,
    optimise: bool = False,
    folder: Path | None = None,
) -> dict[str, str]:
    """The provider (cpu, cuda, tensorrt) that each node really ran on; names as in `profile`."""
    times = profile(model, provider, feeds, optimise=optimise, folder=folder)
    return {time.node: time.provider for time in times}


def available_providers() -> tuple[str, ...]:
    """Those of cpu, cuda and tensorrt that run a model on this machine, tried one by one.

    Raises MissingRuntime.
    """
    return tuple(provider for provider, why in tried_providers().items() if not why)


def tried_providers(providers: Iterable[str] = tuple(PROVIDERS)) -> dict[str, str]:
    """Why each of these providers does not run a model here; empty text for one that does.

    Raises MissingRuntime.
    """
    model, feeds = _tiny()
    found = {}
    for provider in providers:
        try:
            ran = set(placement(model, provider, feeds).values())
            found[provider] = "" if provider in ran else f"it left a MatMul to {', '.join(ran)}"
        except PruneError as error:
            if provider == "cpu":
                raise  # nothing works without it: say why
            found[provider] = error.why or error.what
    return found


def _tiny() -> tuple[ModelProto, dict[str, np.ndarray]]:
    """A model that every provider has kernels for."""
    shape = [4, 4]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "x"], ["y"], "matmul")],
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    # Old enough for every ONNX Runtime that has these providers.
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    return model, {"x": np.ones(shape, np.float32)}


def named(model: ModelProto) -> ModelProto:
    """`model`, or a copy of it in which every node has a name of its own."""
    counts = Counter(node.name for node in nodes(model.graph))
    if counts[""] == 0 and max(counts.values()) == 1:
        return model
    copy = ModelProto()
    copy.CopyFrom(model)
    for node in nodes(copy.graph):
        if not node.name or counts[node.name] > 1:
            node.name = next(filter(None, node.output), node.name)
    return copy


def nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes(attribute.g)
            for body in attribute.graphs:
                yield from nodes(body)
