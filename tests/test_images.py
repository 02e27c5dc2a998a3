"""Folders of images as calibration samples: what is read, how it is scaled, and what is refused."""

import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from onnxprune.axes.analyse import facts_of
from onnxprune.cli.images import image_options
from onnxprune.errors import PruneError, Unreadable, UsageError
from onnxprune.graph.files import load
from onnxprune.graph.model import normalise
from onnxprune.repair.calibration import calibration, notes_on
from onnxprune.repair.images import Images, canvas
from onnxprune.runtime.feeds import Feeds
from onnxprune.runtime.session import Port
from tests.choosing import model_of

F32, U8 = np.dtype(np.float32), np.dtype(np.uint8)


def _net(shape: list[int | str], kind: str = "float32") -> Any:
    """A model that gives its input back, of this shape and type."""
    model = model_of([("Identity", ["x"], ["y"], {})], {}, shape, shape)
    number = {"float32": 1, "float16": 10, "uint8": 2, "int64": 7}[kind]
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = number
    return load(model)


def _save(folder: Path, name: str, pixels: np.ndarray) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


def _flat(folder: Path, count: int, size: tuple[int, int] = (4, 4)) -> None:
    """Images of one colour, their number."""
    for k in range(count):
        _save(folder, f"{k:03}.png", np.full((*size, 3), k, np.uint8))


def _all(batches: Any) -> np.ndarray:
    return np.concatenate([b["x"] for b in batches])


def _read(path: Path, shape: list[int | str], samples: int = 512, kind: str = "float32",
          **how: Any) -> np.ndarray:  # fmt: skip
    return _all(calibration(path, _net(shape, kind), samples, Images(**how) if how else None))


def test_pixels_become_what_the_model_takes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (6, 5, 3), np.uint8)
    _save(tmp_path, "a.png", pixels)
    plain = _read(tmp_path, ["n", 3, 6, 5])
    np.testing.assert_allclose(plain, pixels.transpose(2, 0, 1)[None] / 255, atol=1e-6)
    assert plain.dtype == np.float32
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    scaled = _read(tmp_path, ["n", 6, 5, 3], mean=mean, std=std)
    np.testing.assert_allclose(scaled, ((pixels / 255 - mean) / std)[None], atol=1e-6)
    both = _read(tmp_path, ["n", 3, 6, 5], mean=(0.5,), std=(0.5,))
    np.testing.assert_allclose(both, plain * 2 - 1, atol=1e-6)
    assert _read(tmp_path, ["n", 3, 6, 5], kind="float16").dtype == np.float16
    np.testing.assert_array_equal(_read(tmp_path, ["n", 6, 5, 3], kind="uint8"), pixels[None])
    grey = _read(tmp_path, ["n", 1, 6, 5])
    expected = np.asarray(Image.fromarray(pixels).convert("L")) / 255
    np.testing.assert_allclose(grey[0, 0], expected, atol=1e-6)


@pytest.mark.parametrize("size", [(40, 60), (60, 40), (33, 32), (8, 8), (32, 200)])
def test_images_are_scaled_to_cover_and_their_centre_is_cut_out(
    tmp_path: Path, size: tuple[int, int]
) -> None:
    """A ramp across and another down stay ramps around the middle, and neither is squeezed."""
    down, across = np.meshgrid(*(np.arange(s) for s in size), indexing="ij")
    middle = [(s - 1) / 2 for s in size]
    step = 16 * 4 / min(size)  # so many grey levels a pixel: four where it is scaled to 16
    planes = [128 + step * (down - middle[0]) / 2, 128 + step * (across - middle[1]) / 2]
    pixels = np.stack([*planes, np.zeros(size)], axis=2)
    _save(tmp_path, "a.png", np.clip(np.round(pixels), 0, 255).astype(np.uint8))
    (got,) = _read(tmp_path, ["n", 3, 16, 16]) * 255
    inner = slice(3, 13)
    ramp = 128 + 2 * (np.arange(16) - 7.5)
    slack = 2 if min(size) % 16 else 1.1
    assert np.abs(got[0, inner, inner] - ramp[inner, None]).max() <= slack
    assert np.abs(got[1, inner, inner] - ramp[None, inner]).max() <= slack


def test_scaling_down_is_smooth(tmp_path: Path) -> None:
    """Fine stripes turn grey, as with torchvision's antialiasing, and not into coarse ones."""
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    _save(tmp_path, "a.png", stripes)
    got = _read(tmp_path, ["n", 3, 16, 16])
    assert np.abs(got[..., 2:-2] - 0.5).max() < 0.02


def test_sizes_layouts_and_open_axes(tmp_path: Path) -> None:
    _flat(tmp_path, 2, (20, 10))
    assert _read(tmp_path, ["n", 3, "h", "w"], size=(8, 12)).shape == (2, 3, 8, 12)
    assert _read(tmp_path, ["n", "h", "w", 3], size=(8, 12)).shape == (2, 8, 12, 3)
    assert _read(tmp_path, ["n", "c", "h", "w"], size=(8, 8)).shape == (2, 3, 8, 8)
    assert _read(tmp_path, ["n", 3, 8, "w"], size=(8, 6)).shape == (2, 3, 8, 6)
    assert _read(tmp_path, ["n", 3, 8, 3]).shape == (2, 3, 8, 3)
    assert _read(tmp_path, ["n", 3, 8, 3], layout="nhwc").shape == (2, 3, 8, 3)
    layouts = [_read(tmp_path, ["n", 3, 3, 3], layout=name)[1, 0] for name in ("nchw", "nhwc")]
    assert [a.shape for a in layouts] == [(3, 3), (3, 3)]
    assert _read(tmp_path, [1, 3, 4, 4]).shape == (2, 3, 4, 4)
    batches = calibration(tmp_path, _net([1, 3, 4, 4]), 512)
    assert [len(b["x"]) for b in batches] == [1, 1]


def test_files_are_taken_from_all_over_in_an_order_of_their_own(tmp_path: Path) -> None:
    for k in range(100):
        folder = "cats" if k < 50 else "dogs"
        _save(tmp_path, f"{folder}/{k:03}.PNG", np.full((4, 4, 3), k, np.uint8))
    _save(tmp_path, ".hidden.png", np.full((4, 4, 3), 200, np.uint8))
    (tmp_path / "notes.txt").write_text("text")
    shape: list[int | str] = ["n", 3, 4, 4]
    everything = np.round(_read(tmp_path, shape)[:, 0, 0, 0] * 255)
    np.testing.assert_array_equal(everything, np.arange(100))
    for count in (10, 21, 64):
        some = np.round(_read(tmp_path, shape, count)[:, 0, 0, 0] * 255)
        assert len(set(some)) == count
        for part in (some, some[: count // 2]):  # the beginning is from all over too
            assert abs((part < 50).mean() - 0.5) < 0.11
            assert np.diff(np.sort(part)).max() <= 2.7 * 100 / len(part)
    np.testing.assert_array_equal(_read(tmp_path, shape, 21), _read(tmp_path, shape, 21))


def test_batches_can_be_asked_for_in_any_order(tmp_path: Path) -> None:
    _flat(tmp_path, 70)
    batches = calibration(tmp_path, _net(["n", 3, 4, 4]), 512)
    assert [len(b["x"]) for b in batches] == [8] * 8 + [6]
    np.testing.assert_array_equal(batches[-1]["x"], batches[8]["x"])
    assert [len(b["x"]) for b in batches[7:]] == [8, 6]
    with pytest.raises(IndexError):
        batches[9]
    fixed = calibration(tmp_path, _net([20, 3, 4, 4]), 512)
    assert [len(b["x"]) for b in fixed] == [20, 20, 20]


def test_a_single_image_and_one_with_transparency(tmp_path: Path) -> None:
    pixels = np.full((4, 4, 4), 90, np.uint8)
    path = _save(tmp_path, "one.png", pixels)
    np.testing.assert_allclose(_read(path, ["n", 3, 4, 4]), 90 / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "kind", "how", "error", "said"),
    [
        (["n", 3, "h", "w"], "float32", {}, UsageError, "--image-size is needed"),
        (["n", 3, 8, 8], "float32", {"size": (4, 8)}, UsageError, "4x8 is not what the model"),
        (["n", 4, 8, 8], "float32", {}, Unreadable, "takes no images"),
        (["n", 4, 8, 8], "float32", {"layout": "nchw"}, Unreadable, "takes no images"),
        (["n", 3, 8], "float32", {}, Unreadable, "nx3x8 of float32"),
        (["n", 3, 8, 8], "int64", {}, Unreadable, "takes no images"),
        (["n", 8, 8, 3], "uint8", {"mean": (0.5,)}, UsageError, "takes bytes"),
        (["n", 1, 8, 8], "float32", {"mean": (0.1, 0.2, 0.3)}, UsageError, "has 3 numbers"),
        (["n", 3, 8, 8], "float32", {"std": (0.1, 0.2)}, UsageError, "has 2 numbers"),
        (["n", 3, 8, 8], "float32", {"std": (0.0,)}, UsageError, "must be above 0"),
        (["n", 3, 8, 8], "float32", {"mean": (float("nan"),)}, UsageError, "finite"),
        ([8, 3, 4, 4], "float32", {}, Unreadable, "too few samples"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_refused(
    tmp_path: Path, shape: list[int | str], kind: str, how: dict[str, Any],
    error: type[PruneError], said: str,
) -> None:  # fmt: skip
    _flat(tmp_path, 2)
    with pytest.raises(error, match=said) as caught:
        _read(tmp_path, shape, kind=kind, **how)
    if said != "must be above 0" and "finite" not in said:
        assert str(tmp_path) in str(caught.value)


def test_several_inputs_want_arrays() -> None:
    ports = (Port("a", F32, ("n", 3, 8, 8)), Port("b", F32, ("n", 4)))
    with pytest.raises(Unreadable, match=r"2 inputs[\s\S]*a, b[\s\S]*npz"):
        canvas(ports, Images(), "here")


def test_folders_that_are_not_of_images(tmp_path: Path) -> None:
    net = _net(["n", 3, 4, 4])
    with pytest.raises(Unreadable, match=r"no samples[\s\S]*\.webp"):
        calibration(tmp_path, net, 8)
    np.save(tmp_path / "a.npy", np.ones((2, 3, 4, 4), np.float32))
    assert _all(calibration(tmp_path, net, 8)).shape == (2, 3, 4, 4)
    with pytest.raises(UsageError, match=r"--image-size[\s\S]*arrays"):
        calibration(tmp_path, net, 8, Images(size=(4, 4)))
    _flat(tmp_path / "more", 1)
    with pytest.raises(Unreadable, match=r"images and of arrays[\s\S]*000\.png[\s\S]*a\.npy"):
        calibration(tmp_path, net, 8)
    with pytest.raises(Unreadable, match="no such file"):
        calibration(tmp_path / "none.png", net, 8)


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    _flat(tmp_path, 2)
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(Unreadable, match=r"not an image[\s\S]*broken\.jpg"):
        _read(tmp_path, ["n", 3, 4, 4])
    whole = _save(tmp_path, "broken.jpg", np.zeros((64, 64, 3), np.uint8)).read_bytes()
    (tmp_path / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(Unreadable, match=r"not an image[\s\S]*broken\.jpg"):
        _read(tmp_path, ["n", 3, 4, 4])


def test_without_pillow_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _flat(tmp_path, 1)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(Unreadable, match=r"Pillow is not installed[\s\S]*onnxprune\[images\]"):
        _read(tmp_path, ["n", 3, 4, 4])


# Too few samples, or samples that say little


def _notes(batches: list[Feeds], inputs: int = 6, outputs: int = 3) -> str:
    rng = np.random.default_rng(0)
    model = model_of(
        [("MatMul", ["x", "w"], ["y"], {})],
        {"w": rng.standard_normal((inputs, outputs)).astype(np.float32)},
        ["n", inputs],
        ["n", outputs],
    )
    return "; ".join(notes_on(batches, facts_of(normalise(load(model)))))


def test_notes_on_samples() -> None:
    rng = np.random.default_rng(0)
    many = [{"x": rng.standard_normal((32, 6)).astype(np.float32)} for _ in range(3)]
    assert _notes(many) == ""
    assert "32 samples are few" in _notes(many[:1])
    assert "rows for" not in _notes(many[:1])
    few = [{"x": many[0]["x"][:5]}]
    assert "5 rows for the 7 unknowns" in _notes(few)
    same = [{"x": np.ones((80, 6), np.float32)}]
    assert _notes(same) == "calibration: all samples are the same"
    rate = [{**b, "rate": np.ones((32, 1))} for b in many]
    assert _notes(rate) == "calibration: input rate is the same in all samples"


# The command line


@pytest.mark.parametrize(
    ("args", "images"),
    [
        ([], None),
        (["--image-size", "32"], Images((32, 32))),
        (["--image-size", "32x48"], Images((32, 48))),
        (["--image-mean", "0.5", "--image-std", "0.25"], Images(None, (0.5,), (0.25,))),
        (["--image-mean", "0"], Images(None, (0.0,))),
        (["--image-mean", "0.1,0.2, 0.3"], Images(None, (0.1, 0.2, 0.3))),
        (["--image-layout", "nhwc"], Images(layout="nhwc")),
        (["--image-size", "0"], "not N or HEIGHTxWIDTH"),
        (["--image-size", "3x"], "not N or HEIGHTxWIDTH"),
        (["--image-mean", "a,b,c"], "one number or three"),
        (["--image-std", "1,2"], "one number or three"),
    ],
)
def test_options(args: list[str], images: Images | str | None) -> None:
    seen = []

    @click.command()
    @image_options
    @click.option("--other", default=3)
    def command(other: int, images: Images | None) -> None:
        seen.append((other, images))

    result = CliRunner().invoke(command, args)
    if isinstance(images, str):
        assert result.exit_code == 2
        assert images in result.output
    else:
        assert result.exit_code == 0, result.output
        assert seen == [(3, images)]
