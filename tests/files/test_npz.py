from pathlib import Path

import numpy as np
import pytest

from emmi_jax.files.npz import read_arrays, read_case, write_arrays

POSITION = np.arange(30.0).reshape(10, 3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "case.npz"


def test_fields_of_one_and_more_channels_become_columns(path):
    np.savez(path, position=POSITION, pressure=np.arange(10, dtype=np.int16), velocity=np.ones((10, 3), np.float32))
    case = read_case(path)
    np.testing.assert_array_equal(case.position, POSITION)
    np.testing.assert_array_equal(case.fields["pressure"], np.arange(10.0)[:, None])
    assert case.fields["velocity"].shape == (10, 3)
    assert {a.dtype for a in [case.position, *case.fields.values()]} == {np.dtype(np.float64)}


def with_nan(shape: tuple[int, ...]) -> np.ndarray:
    array = np.zeros(shape)
    array.flat[:2] = np.nan, np.inf
    return array


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"velocity": np.ones((10, 3))}, "no array 'position'"),
        ({"position": POSITION}, "no field beside 'position'"),
        ({"position": POSITION[:0], "p": np.ones(0)}, "'position' holds no points"),
        ({"position": POSITION[:, :2], "p": np.ones(10)}, r"'position' has shape \(10, 2\), expected \(N, 3\)"),
        ({"position": POSITION, "p": np.ones(9)}, r"'p' has shape \(9,\), expected \(10,\) or \(10, F\)"),
        ({"position": POSITION, "p": np.ones((10, 2, 2))}, r"'p' has shape \(10, 2, 2\)"),
        ({"position": POSITION, "p": np.float64(1.0)}, r"'p' has shape \(\)"),
        ({"position": POSITION, "p": np.ones((10, 0))}, r"'p' has shape \(10, 0\)"),
        ({"position": POSITION, "p": with_nan((10, 3))}, "2 of 30 values of 'p' are NaN or infinite"),
        ({"position": with_nan((10, 3)), "p": np.ones(10)}, "2 of 30 values of 'position' are NaN or infinite"),
        ({"position": POSITION, "p": np.array(["x"] * 10)}, "'p' cannot be read: it holds <U1, expected real numbers"),
        ({"position": POSITION, "p": np.ones(10, complex)}, "'p' cannot be read: it holds complex128"),
        ({"position": POSITION, "p": np.array([object()] * 10)}, "'p' cannot be read: it holds object"),
    ],
)
def test_unusable_cases_are_refused_by_array(path, arrays, message):
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
        read_case(path)


def test_a_missing_file_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"case\.npz: no such file"):
        read_case(path)


def test_a_file_that_is_no_archive_is_refused(path):
    path.write_bytes(b"not a zip")
    with pytest.raises(ValueError, match=r"not an \.npz file"):
        read_case(path)


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_a_truncated_archive_is_refused(path, kept):
    np.savez(path, position=POSITION, p=np.ones(10))
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match="truncated"):
        read_case(path)


def test_a_damaged_array_is_named(path):
    np.savez(path, position=POSITION, p=np.ones(1000))
    content = bytearray(path.read_bytes())
    middle = content.find(b"p.npy") + 4000
    content[middle : middle + 8] = b"\xff" * 8
    path.write_bytes(bytes(content))
    with pytest.raises(ValueError, match="'p' cannot be read"):
        read_arrays(path)


def test_only_the_asked_arrays_are_read(path):
    np.savez(path, position=POSITION, other=np.array([object()]))
    assert set(read_arrays(path, ["position", "absent"])) == {"position"}


def test_written_arrays_come_back_and_nothing_else_is_left(path):
    write_arrays(path, {"velocity": np.ones((4, 3), np.float32)})
    np.testing.assert_array_equal(read_arrays(path)["velocity"], np.ones((4, 3)))
    assert [p.name for p in path.parent.iterdir()] == ["case.npz"]


@pytest.mark.parametrize("name", ["file", "allow_pickle", "self", "[red]", "a:b", "x y", "ω", "a/b"])
def test_an_array_may_have_any_name(path, name):
    write_arrays(path, {name: np.ones(2, np.float32), "other": np.zeros((0, 3), np.float32)})
    with np.load(path) as file:
        np.testing.assert_array_equal(file[name], [1, 1])
    assert {key: array.shape for key, array in read_arrays(path).items()} == {name: (2,), "other": (0, 3)}


def test_a_write_that_fails_leaves_the_old_file(path):
    write_arrays(path, {"a": np.ones(1, np.float32)})

    class Unwritable:
        def __array__(self, *args: object, **kwargs: object) -> np.ndarray:
            raise MemoryError

    with pytest.raises(MemoryError):
        write_arrays(path, {"b": Unwritable()})
    assert set(read_arrays(path)) == {"a"}
    assert [p.name for p in path.parent.iterdir()] == ["case.npz"]


@pytest.mark.parametrize("value", [1e39, -1e300, np.inf, np.nan])
def test_values_that_no_float32_holds_are_refused_by_name(value, tmp_path):
    np.savez(tmp_path / "a.npz", position=np.ones((3, 3)), u=np.array([0.0, value, 1.0]))
    with pytest.raises(ValueError, match=r"a\.npz: 1 of 3 values of 'u' are NaN or infinite, or beyond 1e\+38"):
        read_case(tmp_path / "a.npz")
