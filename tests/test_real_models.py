"""Trained models that other people exported: everything that can shrink shrinks, proven."""

from pathlib import Path

import onnx
import pytest

from onnxprune import pipeline
from onnxprune.errors import NothingToPrune
from tests.conftest import real_models

LIGHT = sorted((Path(onnx.__file__).parent / "backend" / "test" / "data" / "light").glob("*.onnx"))

FIXED = {
    "sklearn_linear_classifier": "",  # a linear model: there is nothing inside
    "lgbm_classifier_tensor": "",  # a tree
    "mjx_go2_apg_policy": "LayerNormalization mixes this axis",  # each of its widths
    "dtln_model_1": "it is an output of the model",  # its recurrent states are
    "dtln_model_2": "it is an output of the model",
}
"""Models that can't shrink, and what says so where any weight has channels."""


@pytest.mark.skipif(not real_models(), reason="no models: set ONNXPRUNE_MODELS to their folder")
def test_the_real_models_are_there() -> None:
    names = {path.stem for path in real_models()}
    assert names >= FIXED.keys()
    assert len(names) > 30


@pytest.mark.parametrize("path", real_models(), ids=lambda p: p.stem)
def test_half_of_a_real_model(path: Path) -> None:
    if path.stem in FIXED:
        with pytest.raises(NothingToPrune) as error:
            pipeline.slim(path, ratio=0.5)
        reasons = [g.fixed_by for g in error.value.report.groups]
        assert any(FIXED[path.stem] in why for why in reasons) or not FIXED[path.stem]
        return
    result = pipeline.slim(path, ratio=0.5)
    assert result.verdict.passed
    assert not result.verdict.vacuous
    assert result.report.removed["params"] > 0
    assert not result.report.unknown


@pytest.mark.parametrize("path", LIGHT, ids=lambda p: p.stem)
def test_a_model_whose_weights_are_born_in_the_graph(path: Path) -> None:
    result = pipeline.slim(path, ratio=0.5)
    assert result.verdict.passed
    assert result.report.removed["params"] > 0.5


def test_the_light_models_are_there() -> None:
    assert len(LIGHT) == 9
