"""What a proof runs: three models, and what they are fed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx

from onnxprune.axes.view import View
from onnxprune.check.copies import in_float32
from onnxprune.check.verdict import Fed
from onnxprune.errors import CheckFailed, OutOfMemory
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import open_session


@dataclass(frozen=True, slots=True, eq=False)
class Case:
    """Three models, where their data lies, and on what provider they run."""

    view: View
    original: onnx.ModelProto
    masked: onnx.ModelProto
    slim: onnx.ModelProto
    provider: str
    folder: Path | None
    slim_folder: Path | None

    def in_float32(self) -> Case:
        """The same in float32, for types that the provider can't run."""
        original, masked = (in_float32(m, self.folder) for m in (self.original, self.masked))
        slim = in_float32(self.slim, self.slim_folder)
        return replace(self, original=original, masked=masked, slim=slim)


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """Inputs, how they came about, and what the original gave for them (None: not asked)."""

    feeds: Feeds
    fed: Fed
    before: dict[str, np.ndarray] | None = None


def outputs(
    case: Case,
    model: onnx.ModelProto,
    runs: Sequence[Run],
    extra: Iterable[str],
    folder: Path | None = None,
) -> list[dict[str, np.ndarray]]:
    """What a model gives for each run, `extra` tensors included; raises Unreadable, OutOfMemory."""
    with open_session(
        model, provider=case.provider, extra_outputs=tuple(extra), folder=folder or case.folder
    ) as session:
        return [session.run(run.feeds) for run in runs]


@contextmanager
def within_memory() -> Iterator[None]:
    """Let a proof that does not fit into memory end as CheckFailed ("unproven")."""
    try:
        yield
    except (OutOfMemory, MemoryError) as error:
        raise CheckFailed(
            "unproven: out of memory",
            why=(error.why if isinstance(error, OutOfMemory) else str(error)) or None,
            hint="smaller sizes with --dim batch=1 or --shape, or --no-verify to go without",
        ) from error
