"""Files that appear whole or not at all, alone or together."""

import contextlib
import os
import secrets
import shutil
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType


@contextlib.contextmanager
def replacing(targets: Sequence[Path], obsolete: Sequence[Path] = ()) -> Iterator[list[Path]]:
    """Yield one temporary path a target; what is written there replaces the targets together.

    If the body raises, or Ctrl-C or SIGTERM arrives, nothing is left behind and the old files are
    untouched. `obsolete` files go once the new ones are in place. Two files can't be renamed in
    one step: only a kill -9 or a power cut in the microseconds between them leaves one old and one
    new, with the old one still there under a temporary name.
    """
    temps = [_beside(target) for target in targets]
    with _sigterm_raises():
        try:
            yield temps
            for temp, target in zip(temps, targets, strict=True):
                _settle(temp, target)
            with _signals_wait():
                _swap(temps, targets)
                for path in obsolete:
                    # A left-over is no reason to fail: the new files do not refer to it.
                    with contextlib.suppress(OSError):
                        path.unlink()
        finally:
            for temp in temps:
                temp.unlink(missing_ok=True)


def _beside(target: Path) -> Path:
    """A free name in the same folder: renaming is atomic only inside one file system."""
    return target.with_name(f".onnxprune-{secrets.token_hex(6)}.tmp")


def _settle(temp: Path, target: Path) -> None:
    """Bring the new bytes to the disk, under the permissions that the old file had."""
    if target.exists():
        shutil.copymode(target, temp)
    with temp.open("r+b") as file:
        os.fsync(file.fileno())


def _swap(temps: Sequence[Path], targets: Sequence[Path]) -> None:
    done: list[tuple[Path, Path | None]] = []
    try:
        for temp, target in zip(temps[:-1], targets[:-1], strict=True):
            done.append((target, _set_aside(target) if target.exists() else None))
            os.replace(temp, target)
        # The last rename is the point of no return: it needs no way back.
        os.replace(temps[-1], targets[-1])
    except BaseException:
        for target, backup in done:
            if backup is None:
                target.unlink(missing_ok=True)
            else:
                os.replace(backup, target)
        raise
    finally:
        # Also after a way back: renaming onto a hard link of itself leaves both names.
        for _, backup in done:
            if backup is not None:
                backup.unlink(missing_ok=True)


def _set_aside(target: Path) -> Path:
    backup = _beside(target)
    try:
        os.link(target, backup)
    except OSError:  # a file system without hard links
        os.replace(target, backup)
    return backup


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM unwind the stack as Ctrl-C does, where nobody else handles it."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold SIGINT and SIGTERM back for the moment in which files change names."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python runs signal handlers in the main thread only
        return
    arrived: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        arrived.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
        for late in arrived:
            signal.raise_signal(late)
