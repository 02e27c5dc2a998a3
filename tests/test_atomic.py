"""Whatever interrupts a save: all of it is there, or nothing has changed."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from onnxprune.errors import Unreadable, UsageError
from onnxprune.graph import atomic, files
from onnxprune.graph.files import load, save
from tests.test_files import external, model, values
from tests.test_save import listing


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def failing_replace(at: int, error: type[BaseException]) -> Callable[[Path, Path], None]:
    """os.replace that fails at its `at`th call, and works before and after."""
    real, calls = os.replace, [0]

    def replace(a: Path, b: Path) -> None:
        calls[0] += 1
        if calls[0] == at:
            raise error(28, "No space left on device")
        real(a, b)

    return replace


@pytest.mark.parametrize("old", [True, False], ids=["over an old pair", "fresh"])
@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_failure_between_the_files_changes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    old: bool,
    links: bool,
    error: type[BaseException],
    at: int,
) -> None:
    renames = 3 if old and not links else 2
    if at > renames:
        return
    source, out = load(external(tmp_path)), tmp_path / "out.onnx"
    if old:
        save(source.proto, out, tmp_path)
    source.proto.doc_string = "new"
    before = listing(tmp_path)
    if not links:
        monkeypatch.setattr(os, "link", lambda *_: failing_replace(1, OSError)(out, out))
    monkeypatch.setattr(os, "replace", failing_replace(at, error))
    with pytest.raises((UsageError, KeyboardInterrupt)):
        save(source.proto, out, tmp_path)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("where", ["_append", "_move_out", "_stored_bytes"])
def test_ctrl_c_while_writing_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    source = load(external(tmp_path))
    before = listing(tmp_path)
    monkeypatch.setattr(files, where, stop)
    with pytest.raises(KeyboardInterrupt):
        save(source.proto, tmp_path / "out.onnx", tmp_path)
    assert listing(tmp_path) == before


def test_missing_weights_leave_nothing(tmp_path: Path) -> None:
    source = load(external(tmp_path))
    (tmp_path / "m.onnx.weights").write_bytes(b"short")
    with pytest.raises(Unreadable):
        save(source.proto, tmp_path / "out.onnx", tmp_path)
    assert not list(tmp_path.glob("out*"))
    assert not list(tmp_path.glob(".onnxprune*"))


def test_a_signal_in_the_swap_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.replace

    def replace(a: Path, b: Path) -> None:
        signal.raise_signal(signal.SIGINT)
        real(a, b)

    source = load(external(tmp_path))
    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(KeyboardInterrupt):
        save(source.proto, tmp_path / "out.onnx", tmp_path)
    assert len(values(tmp_path / "out.onnx")) == len(values(tmp_path / "m.onnx"))


def test_sigterm_cleans_up(tmp_path: Path) -> None:
    code = """
        import os, signal, sys, time
        from pathlib import Path
        from onnxprune.graph import files
        def stopped(*_):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        files._append = stopped
        source = files.load(sys.argv[1])
        files.save(source.proto, Path(sys.argv[2]), source.folder)
    """
    path = external(tmp_path)
    before = listing(tmp_path)
    command = [sys.executable, "-c", textwrap.dedent(code), str(path), str(tmp_path / "out.onnx")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert done.returncode == 128 + signal.SIGTERM, done.stderr
    assert listing(tmp_path) == before


def test_threads_can_save_and_modes_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    thread = threading.Thread(target=save, args=(model(), out, None))
    thread.start()
    thread.join()
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o666 & ~umask
    out.chmod(0o640)
    save(model(), out, None)
    assert out.stat().st_mode & 0o777 == 0o640


def test_replacing_is_whole_or_not_at_all(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_text("old")
    with contextlib.suppress(ValueError), atomic.replacing([a, b]) as (one, two):
        one.write_text("new")
        two.write_text("new")
        raise ValueError
    assert listing(tmp_path) == {"a": b"old"}
    with atomic.replacing([a, b]) as (one, two):
        one.write_text("new")
        two.write_text("new")
    assert listing(tmp_path) == {"a": b"new", "b": b"new"}
