"""What to measure, and how."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from onnxprune.bench.inputs import Wanted
from onnxprune.bench.measure import Budget
from onnxprune.runtime.session import RESTING, Tuning

PAIRED_SECONDS = 60.0
ALONE_SECONDS = 10.0
"""How long a case is timed at most where nothing is said: models against each other, or one."""

PROVIDER_OPTIONS: Mapping[str, Mapping[str, str]] = {
    # ONNX Runtime's defaults, said so that a report can say them.
    "cuda": {"cudnn_conv_algo_search": "EXHAUSTIVE", "use_tf32": "1"},
}


@dataclass(frozen=True)
class Settings:
    """A request: providers and batches make the cases, the rest holds for all of them."""

    providers: tuple[str, ...] = ()
    """Empty means all that work here."""
    batches: tuple[int, ...] = ()
    """Empty means the batch that the model fixes, or 1."""
    threads: int | None = None
    """None means ONNX Runtime's choice."""
    spin: bool = False
    """Let idle threads of a pool wait actively while a model runs (never in between)."""
    duration: float | None = None
    """Seconds of timing a case; None means a minute (three if it is busy), ten seconds for one
    model alone."""
    runs: int | None = None
    """Rounds a case, instead."""
    early: bool = True
    """Stop as soon as the answer is sure enough, and go on while it is not (see `bench.measure`);
    has no meaning with `runs`."""
    inputs: Wanted = field(default_factory=Wanted)
    per_layer: bool = False
    memory: bool = True
    """Open each model once more, in a process of its own, to see what it needs."""

    def tuning(self, provider: str) -> Tuning:
        """What sessions are opened with."""
        # Idle threads that spin would take the cores of the model whose turn it is.
        spinning = {"session.force_spinning_stop": "1"}
        config = spinning if self.spin else RESTING
        return Tuning(self.threads, config, PROVIDER_OPTIONS.get(provider, {}))

    def budget(self, models: int) -> Budget:
        """How long a case may take."""
        default = PAIRED_SECONDS if models > 1 else ALONE_SECONDS
        seconds = self.duration or (math.inf if self.runs else default)
        return Budget(seconds, self.runs, early=self.early and not self.runs)

    def said(self, provider: str) -> dict[str, str]:
        """What sessions are made with, as a report says it."""
        spinning = "while running" if self.spin else "off"
        options = {"graph_optimization_level": "all", "spinning": spinning}
        return {**options, **PROVIDER_OPTIONS.get(provider, {})}
