"""What tests share: real models where there are any, small files, and a plain environment."""

import os
import signal
from pathlib import Path

import onnx
import pytest

from models.zoo import ZOO

ROOT = Path(__file__).parents[1]


def real_models() -> list[Path]:
    """Trained models from elsewhere: in $ONNXPRUNE_MODELS, or in shared/models beside the repo."""
    folder = Path(os.environ.get("ONNXPRUNE_MODELS", ROOT.parent / "shared" / "models"))
    return sorted(folder.glob("*.onnx"))


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing in the developer's shell changes what the tool prints."""
    for name in ("ONNXPRUNE_DEBUG", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def net(tmp_path: Path) -> Path:
    """A residual network, alone in its folder."""
    onnx.save(ZOO["resnet"](0), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


@pytest.fixture
def fixed(tmp_path: Path) -> Path:
    """A network that can't be pruned, alone in its folder."""
    onnx.save(ZOO["int4_ragged"](0), tmp_path / "fixed.onnx")
    return tmp_path / "fixed.onnx"


def pytest_configure() -> None:
    """Ctrl-C is tested: a shell that starts the tests in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
