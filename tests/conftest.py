"""What all tests share: the real models where there are any, and no colour in transcripts."""

import os
from pathlib import Path

import pytest

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
