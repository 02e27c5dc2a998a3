"""Calibration samples: unlabelled inputs that are like those the model will see."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnxprune.errors import Unreadable
from onnxprune.graph.files import Source
from onnxprune.runtime.feeds import Feeds, load_feeds
from onnxprune.runtime.session import open_session

BATCH = 32


def calibration(path: Path, source: Source, samples: int) -> list[Feeds]:
    """At most `samples` samples in batches, from arrays by input name (see `runtime.feeds`).

    Raises:
        Unreadable: no such file, wrong names, shapes or types, values that are not finite, or no
            sample at all.
    """
    with open_session(source.proto, folder=source.folder) as session:
        ports = session.inputs
    batches: list[Feeds] = []
    count = 0
    for feeds in load_feeds(path, ports, batch=BATCH):
        size = min((len(a) for a in feeds.values() if np.ndim(a)), default=1)
        left = samples - count
        if size > left:
            feeds = {k: a[:left] if np.ndim(a) and len(a) == size else a for k, a in feeds.items()}
        batches.append(feeds)
        count += min(size, left)
        if count >= samples:
            break
    if not count:
        raise Unreadable("no samples to calibrate with", where=str(path))
    return batches
