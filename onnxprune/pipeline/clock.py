"""What a run is doing, and how long each part of it took."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Stage = Callable[[str], None]
"""Is told what is being done."""


def quiet(stage: str) -> None:
    """Nobody is watching."""


class Clock:
    """Seconds by stage; a stage that is met again adds up."""

    def __init__(self, stage: Stage = quiet) -> None:
        self.seconds: dict[str, float] = {}
        self.tell = stage

    @contextmanager
    def __call__(self, name: str, text: str) -> Iterator[None]:
        self.tell(text)
        start = time.perf_counter()
        try:
            yield
        finally:
            spent = self.seconds.get(name, 0.0) + time.perf_counter() - start
            self.seconds[name] = round(spent, 4)
