"""What ONNX Runtime made of the nodes of a file: fused, renamed, added; and where it ran.

ONNX Runtime names what it fuses after the last output of a chain, after the node that it began
with, or after nothing. All three lead back to nodes of the file, whose names and outputs a slim
model shares with its original.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from onnx import NodeProto

from onnxprune.bench.models import Contestant, Work
from onnxprune.runtime.placement import NodeTime, named, nodes

MULTIPLYING = frozenset((
    "Conv", "FusedConv", "NhwcConv", "NhwcFusedConv", "ConvTranspose", "ConvInteger", "QLinearConv",
    "Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "TransposeMatMul", "MatMulInteger",
    "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QLinearMatMul", "MatMulNBits", "Einsum",
    "LSTM", "GRU", "RNN", "DynamicQuantizeLSTM", "Attention", "QAttention", "MultiHeadAttention",
    "GroupQueryAttention", "PackedMultiHeadAttention", "DeformConv", "GemmFastGelu",
    "FusedMatMulActivation",
))  # fmt: skip
"""Operators, ONNX Runtime's own with them, that carry multiply-accumulates."""

_WITH_BODIES = frozenset(("If", "Loop", "Scan", "SequenceMap"))

BLOCKED = "_nchwc"
"""How the names end of what runs in the CPU provider's blocked layout."""
_DECORATION = re.compile(rf"^(InsertedPrecisionFreeCast_|fused )|(_token_\d+|{BLOCKED})+$")
"""What ONNX Runtime puts before and behind a name: half floats computed in float, layouts."""

_LONGEST_CHAIN = 12
"""Nodes that are fused behind one that multiplies."""


@dataclass(frozen=True, eq=False)
class Ran:
    """What one model spent on one executed node, median over runs, and the file's nodes in it."""

    event: NodeTime
    parts: tuple[str, ...]
    """First outputs of the file's nodes; empty for what ONNX Runtime added."""
    ms: float


@dataclass(frozen=True, eq=False)
class Names:
    """The file's nodes by what ONNX Runtime may call what became of them."""

    nodes: Sequence[NodeProto]

    @cached_property
    def by_name(self) -> dict[str, NodeProto]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def by_output(self) -> dict[str, NodeProto]:
        return {output: node for node in self.nodes for output in node.output if output}

    def node(self, event: str) -> NodeProto | None:
        """The node that an executed one is called after."""
        for name in (event, _DECORATION.sub("", event)):
            found = self.by_name.get(name) or self.by_output.get(name)
            if found is not None:
                return found
        while "/" in name.strip("/"):  # MatMul/MatMulAddFusion, MatMul//MatmulTransposeFusion/
            name = name.rstrip("/").rpartition("/")[0].rstrip("/")
            if name in self.by_name:
                return self.by_name[name]
        return None


def names_of(contestant: Contestant) -> Names:
    """The names that `placement.profile` gives to the nodes of a model."""
    return Names([*nodes(named(contestant.source.proto).graph)])


def misplaced(
    events: Iterable[NodeTime], provider: str, names: Names, work: Mapping[str, Work]
) -> list[NodeTime]:
    """Executed nodes that carry multiply-accumulates and ran on another provider."""
    found = {}
    for event in events:
        if event.provider == provider:
            continue
        node = names.node(event.node)
        if event.op in MULTIPLYING or (node is not None and _key(node) in work):
            found[event.node] = event
    return list(found.values())


def ran(events: Sequence[NodeTime], names: Names, work: Mapping[str, Work]) -> list[Ran]:
    """A profile with runs made one, every node with the nodes of the file that are in it."""
    runs = 1 + max((e.run for e in events), default=0)
    spent: dict[tuple[str, int], list[float]] = defaultdict(list)
    first: dict[tuple[str, int], NodeTime] = {}
    times: Counter[tuple[str, int]] = Counter()
    for event in events:
        if event.op in _WITH_BODIES:
            continue  # the nodes of their bodies are timed themselves
        occurrence = times[event.node, event.run]  # in a loop's body
        times[event.node, event.run] += 1
        key = (event.node, occurrence)
        spent[key].append(event.ms)
        first.setdefault(key, event)
    claimed: set[str] = set()
    out = []
    for key, event in first.items():
        parts = _parts(event, names, work, claimed)
        claimed.update(parts)
        out.append(Ran(event, parts, float(np.median(spent[key])) * len(spent[key]) / runs))
    return out


def _parts(
    event: NodeTime, names: Names, work: Mapping[str, Work], claimed: set[str]
) -> tuple[str, ...]:
    """The file's nodes in an executed one: the chain from its last back to what multiplies."""
    last = names.node(event.node)
    if last is None:
        return ()
    if event.op not in MULTIPLYING or _key(last) in work:
        return (_key(last),)
    todo: deque[tuple[str, ...]] = deque([(_key(last),)])
    seen = {_key(last)}
    while todo:
        chain = todo.popleft()
        for name in names.by_output[chain[-1]].input:
            node = names.by_output.get(name)
            if node is None or _key(node) in seen or len(chain) > _LONGEST_CHAIN:
                continue
            key = _key(node)
            seen.add(key)
            if key in work and key not in claimed:
                return (*chain, key)
            if key not in work:
                todo.append((*chain, key))
    return (_key(last),)


def _key(node: NodeProto) -> str:
    return next(filter(None, node.output), node.name)
