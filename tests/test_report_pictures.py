"""Pictures of what stayed and what went, against the weights themselves."""

from base64 import b64decode
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from models.builder import G
from models.zoo import ZOO
from onnxprune import pipeline
from onnxprune.pictures import CELLS, EACH, MAPS, pictures
from onnxprune.pipeline import Result
from onnxprune.report.sections.groups import runs
from tests.conftest import ROOT


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def pictured(result: Result) -> dict[str, Any]:
    return pictures(result.analysis.view(result.kept), result.analysis.groups)


def pixels(row: dict[str, Any]) -> np.ndarray:
    return np.frombuffer(b64decode(row["data"]), np.uint8).reshape(row["shape"])


@pytest.fixture(scope="module")
def digits() -> Result:
    return pipeline.slim(ROOT / "models" / "digits_resnet.onnx", ratio=0.5, verify=False)


def test_kept_bits_are_the_plan(digits: Result) -> None:
    found = pictured(digits)["kept"]
    assert len(found) == len(digits.analysis.groups)
    for g in digits.analysis.groups:
        kept = [k for at, n in runs(found[str(g.id)], g.size) for k in range(at, at + n)]
        assert kept == list(digits.kept[g.id])


def test_first_filters(digits: Result) -> None:
    (found,) = pictured(digits)["filters"]
    w = weights(digits.source.proto)[found["weight"]]
    assert found["shape"] == [48, 3, 3, 1]
    assert (found["kept"], found["removed"], found["shown"]) == (24, 24, [24, 24])
    group = next(g for g in digits.analysis.groups for m in g.members
                 if m.value == found["weight"] and m.role == "creates")  # fmt: skip
    kept = np.asarray(digits.kept[group.id])
    strength = np.square(w).sum((1, 2, 3))
    first = w[kept[strength[kept].argmax()], 0]
    expected = 128 + 127 * first / np.abs(first).max()
    assert np.abs(pixels(found)[0, :, :, 0] - expected).max() <= 1
    norms = [strength[k] for k in kept]
    assert max(norms) == strength[kept].max()


def test_many_filters_are_not_all_shown() -> None:
    g = G(0)
    y = g.gap(g.conv(g.relu(g.conv(g.input("x", [1, 3, 16, 16]), 3 * EACH, 5)), 8, 1))
    (found,) = pictured(pipeline.slim(g.model(out=y), ratio=0.5, verify=False))["filters"]
    assert found["shown"] == [EACH, EACH]
    assert found["kept"] + found["removed"] == 3 * EACH
    assert pixels(found).shape == (2 * EACH, 5, 5, 3)


def test_maps_part_what_stays_from_what_goes(digits: Result) -> None:
    slim = weights(digits.model)
    full = weights(digits.source.proto)
    maps = pictured(digits)["maps"]
    assert 0 < len(maps) <= MAPS
    for m in maps:
        down, across = m["kept"]
        grid = pixels(m)
        assert max(grid.shape) <= CELLS
        assert grid.max() == 255
        rows, columns = m["rows"], m["columns"]
        shapes = (full[m["weight"]].shape[:2], slim[m["weight"]].shape[:2])
        assert shapes == ((rows[1], columns[1]), (rows[0], columns[0]))
        assert (down == grid.shape[0]) == (rows[0] == rows[1])
        assert (across == grid.shape[1]) == (columns[0] == columns[1])


def test_the_corner_of_a_map_is_the_slim_weight() -> None:
    """With a cell an entry, the corner holds exactly the magnitudes of the slim weight."""
    g = G(0)
    y = g.gemm(g.relu(g.gemm(g.input("x", [1, 6]), 12)), 8)
    result = pipeline.slim(g.model(out=y), ratio=0.5, repair="none", verify=False)
    full, slim = weights(result.source.proto), weights(result.model)
    for m in pictured(result)["maps"]:
        down, across = m["kept"]
        whole, left = np.abs(full[m["weight"]]), np.abs(slim[m["weight"]])
        grid = pixels(m).astype(float) * whole.max() / 255
        assert grid.shape == whole.shape
        assert np.allclose(np.sort(grid.ravel()), np.sort(whole.ravel()), atol=whole.max() / 255)
        corner = grid[:down, :across]
        assert corner.shape == left.shape
        assert np.allclose(np.sort(corner.ravel()), np.sort(left.ravel()), atol=whole.max() / 255)
        strength = np.square(grid).sum(1)[:down]
        assert (np.diff(strength) <= 0.02 * strength.max()).all()


@pytest.mark.parametrize("name", sorted(ZOO))
def test_any_model_has_pictures(name: str) -> None:
    analysis = pipeline.analyze(ZOO[name](0))
    kept = {g.id: np.arange(g.size - g.size // 2) for g in analysis.groups}
    found = pictures(analysis.view(kept), analysis.groups)
    assert len(found["maps"]) <= MAPS
    for row in (*found["filters"], *found["maps"]):
        assert pixels(row).size > 0
