"""What a page begins with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath, PureWindowsPath

from onnxprune.report.sections.proof import Verdict


@dataclass(frozen=True)
class Tile:
    """One number that matters; `left` is the share that is left, as a bar."""

    title: str
    big: str
    small: str
    left: float | None


@dataclass(frozen=True)
class Head:
    title: str
    out: str
    sentence: str
    verdict: Verdict | None
    tiles: tuple[Tile, ...]
    advice: tuple[str, ...] = ()


def base(path: str) -> str:
    """The name of a file without its folders, whichever system the path is from."""
    return PurePath(PureWindowsPath(path).name).name or path
