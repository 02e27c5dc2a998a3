"""Inputs drawn at random or read from files: of the right type and shape, or an error that says."""

from pathlib import Path

import numpy as np
import pytest

from onnxprune.errors import Unreadable, UsageError
from onnxprune.runtime.feeds import load_feeds, random_feeds
from onnxprune.runtime.session import Port

F32, I64 = np.dtype(np.float32), np.dtype(np.int64)
X = Port("x", F32, ("n", 3))


def test_random_feeds_do_not_depend_on_order() -> None:
    ports = (X, Port("ids", I64, (1, 50)), Port("image", np.dtype(np.uint8), (4000,)))
    one = random_feeds(ports, {"x": (500, 3)}, 5, bounds={"ids": 7})
    two = random_feeds(ports[::-1], {"x": (500, 3)}, 5, bounds={"ids": 7})
    assert all(np.array_equal(one[name], two[name]) for name in one)
    assert set(one["ids"].flat) == set(range(7))
    assert (one["image"].min(), one["image"].max()) == (0, 255)
    assert abs(one["x"].std() - 1) < 0.1
    assert one["x"].dtype == F32
    assert not np.array_equal(one["x"], random_feeds(ports, {"x": (500, 3)}, 6)["x"])
    assert random_feeds(ports[1:], {}, 0)["ids"].max() == 1
    with pytest.raises(UsageError, match="nx3"):
        random_feeds(ports, {}, 0)


def batches(path: Path, *ports: Port, batch: int = 32) -> list[dict[str, np.ndarray]]:
    return list(load_feeds(path, ports, batch=batch))


def test_files_are_cut_into_batches(tmp_path: Path) -> None:
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    np.save(tmp_path / "x.npy", x)
    for port, batch, sizes in (
        (X, 4, [4, 4, 2]),
        (Port("x", F32, (3, 3)), 4, [3, 3, 3]),
        (Port("x", F32, (10, 3)), 4, [10]),
    ):
        got = batches(tmp_path / "x.npy", port, batch=batch)
        assert [len(b["x"]) for b in got] == sizes
        assert np.array_equal(np.concatenate([b["x"] for b in got]), x[: sum(sizes)])


def test_folders_single_samples_and_many_inputs(tmp_path: Path) -> None:
    for i in range(3):
        np.save(tmp_path / f"{i}.npy", np.full(3, i, np.float64))  # no batch axis, another float
    got = batches(tmp_path, X)
    assert [b["x"].tolist() for b in got] == [[[0.0] * 3], [[1.0] * 3], [[2.0] * 3]]
    assert got[0]["x"].dtype == F32
    state, rate = Port("state", F32, (2, "n", 4)), Port("rate", I64, ())
    series, states, hertz = np.ones((5, 3)), np.ones((2, 5, 4)), np.array(16, np.int32)
    np.savez(tmp_path / "a.npz", x=series, state=states, rate=hertz, labels=np.arange(5))
    (whole,) = batches(tmp_path / "a.npz", X, state, rate)
    assert whole["x"].shape == (5, 3)
    assert whole["rate"].dtype == I64
    assert "labels" not in whole
    words = Port("x", np.dtype(object), ("n",))
    np.save(tmp_path / "w.npy", np.array(["a", "é"]))
    assert batches(tmp_path / "w.npy", words)[0]["x"].tolist() == ["a", "é"]


def test_some_samples_are_taken_from_all_over(tmp_path: Path) -> None:
    x = np.repeat(np.arange(100, dtype=np.float32)[:, None], 3, axis=1)
    np.save(tmp_path / "x.npy", x)

    def some(path: Path, port: Port, samples: int) -> np.ndarray:
        got = list(load_feeds(path, [port], batch=4, samples=samples))
        return np.concatenate([b["x"] for b in got])[:, 0]

    np.testing.assert_array_equal(some(tmp_path / "x.npy", X, 100), np.arange(100))
    few = some(tmp_path / "x.npy", X, 20)
    assert len(set(few)) == 20
    assert abs((few < 50).mean() - 0.5) <= 0.1
    assert abs((few[:10] < 50).mean() - 0.5) <= 0.1
    pairs = some(tmp_path / "x.npy", Port("x", F32, (2, 3)), 21)  # whole batches of two
    assert len(pairs) == 20
    np.testing.assert_array_equal(pairs[1::2], pairs[::2] + 1)
    for k in range(5):
        np.save(tmp_path / f"y{k}.npy", x[20 * k : 20 * k + 20] + 1000)
    (tmp_path / "x.npy").unlink()
    over = some(tmp_path, X, 25)  # from several files
    assert len(set(over)) == 25
    assert all(3 <= ((over >= 1000 + 20 * k) & (over < 1020 + 20 * k)).sum() <= 7 for k in range(5))
    state = Port("state", F32, (2, "n", 4))
    for k in range(4):  # files that can't be cut into samples: one each
        arrays = {"x": np.full((5, 3), k, np.float32), "state": np.ones((2, 5, 4), np.float32)}
        np.savez(tmp_path / f"z{k}.npz", **arrays)
        (tmp_path / f"y{k}.npy").unlink()
    (tmp_path / "y4.npy").unlink()
    whole = list(load_feeds(tmp_path, [X, state], samples=2))
    assert [b["x"].shape for b in whole] == [(5, 3)] * 2
    assert whole[0]["x"][0, 0] != whole[1]["x"][0, 0]


@pytest.mark.parametrize(
    ("array", "port", "said"),
    [
        (np.ones((4, 5), np.float32), X, "4x5 where the model takes nx3"),
        (np.ones((4, 3, 1), np.float32), X, "wrong shape"),
        (np.ones((1, 3), np.float32), Port("x", F32, (2, 3)), "too few samples"),
        (np.ones((0, 3), np.float32), X, "too few samples"),
        (np.full((1, 3), np.nan), X, "not finite"),
        (np.full((1, 3), 1e30), Port("x", np.dtype(np.float16), (1, 3)), "not finite"),
        (np.ones((1, 3), np.uint8), X, "uint8 where the model takes float32"),
        (np.full((1, 3), 2**40), Port("x", np.dtype(np.int32), (1, 3)), "wrong type"),
        (np.array([[1, 2, None]]), X, "not an array file"),
        (np.ones(3), Port("x", None, (3,)), "no tensor"),
    ],
)
def test_arrays_that_do_not_fit(tmp_path: Path, array: np.ndarray, port: Port, said: str) -> None:
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(Unreadable, match=said) as error:
        batches(tmp_path / "a.npy", port)
    assert "a.npy" in str(error.value)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(Unreadable, match="no such file"):
        batches(tmp_path / "none.npz", X)
    with pytest.raises(Unreadable, match="no samples"):
        batches(tmp_path, X)
    (tmp_path / "text.npz").write_text("text")
    with pytest.raises(Unreadable, match="not an array file"):
        batches(tmp_path / "text.npz", X)
    np.savez(tmp_path / "a.npz", images=np.ones((2, 3)), z=np.ones((3, 3)))
    with pytest.raises(Unreadable, match=r"input 'x'[\s\S]*images"):
        batches(tmp_path / "a.npz", X)
    with pytest.raises(Unreadable, match="do not fit together"):
        batches(tmp_path / "a.npz", Port("images", F32, ("n", 3)), Port("z", F32, ("n", 3)))
