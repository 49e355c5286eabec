import json

import numpy as np
import pytest

from emmi_jax.data.moments import Moments
from emmi_jax.points import row_chunks

VALUES = np.random.default_rng(0).normal(size=(1000, 3)) * [1.0, 1e-3, 1e6] + [1e4, 0.0, -1e8]
NAMES = ("minimum", "maximum", "mean", "std")


def check_equal(moments: Moments, values: np.ndarray) -> None:
    assert moments.count == len(values)
    np.testing.assert_array_equal(moments.minimum, values.min(axis=0))
    np.testing.assert_array_equal(moments.maximum, values.max(axis=0))
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(moments.std, values.std(axis=0), rtol=1e-11)


@pytest.mark.parametrize("num_rows", [1, 7, 999, 1000, 5000])
def test_chunks_give_the_statistics_of_the_whole(num_rows):
    check_equal(Moments.of_chunks(row_chunks(VALUES, num_rows)), VALUES)


def test_any_grouping_gives_the_same():
    a, b, c = (Moments.of(part) for part in np.array_split(VALUES, [100, 350]))
    left, right = a.merge(b).merge(c), a.merge(b.merge(c))
    for name in NAMES:
        np.testing.assert_allclose(getattr(left, name), getattr(right, name), rtol=1e-12)


def test_a_deviation_far_below_the_mean_survives():
    # The sum of squares minus the square of the sum would lose it all.
    values = 1e9 + np.random.default_rng(1).normal(size=(10_000, 1))
    np.testing.assert_allclose(Moments.of_chunks(row_chunks(values, 64)).std, values.std(axis=0), rtol=1e-6)


def test_float32_is_summed_in_float64():
    values = np.random.default_rng(2).normal(loc=300.0, size=200_000).astype(np.float32)
    moments = Moments.of_chunks(row_chunks(values, 1000))
    np.testing.assert_allclose(moments.mean, [values.astype(np.float64).mean()], rtol=1e-13)
    assert moments.std.dtype == np.float64


def test_a_memory_map_is_measured_like_an_array(tmp_path):
    np.save(tmp_path / "x.npy", VALUES)
    check_equal(Moments.of_chunks(row_chunks(np.load(tmp_path / "x.npy", mmap_mode="r"), 64)), VALUES)


def test_rows_that_are_not_finite_are_counted_and_left_out():
    values = VALUES.copy()
    values[[5, 6, 700], [0, 1, 2]] = np.nan, np.inf, -np.inf
    moments = Moments.of_chunks(row_chunks(values, 10))
    assert moments.num_not_finite == 3
    check_equal(moments, np.delete(VALUES, [5, 6, 700], axis=0))


def test_a_chunk_without_finite_rows_changes_only_their_count():
    bad = np.full((4, 3), np.nan)
    for chunks in ([bad, VALUES], [VALUES, bad], [bad, bad, VALUES]):
        moments = Moments.of_chunks(chunks)
        check_equal(moments, VALUES)
        assert moments.num_not_finite == 4 * (len(chunks) - 1)


@pytest.mark.parametrize("num_rows", [3, 10, 1000])
def test_a_constant_has_exactly_no_deviation(num_rows):
    values = np.full((1000, 1), 0.1)
    assert Moments.of_chunks(row_chunks(values, num_rows)).std == [0.0]


def test_different_numbers_of_channels_do_not_mix():
    with pytest.raises(ValueError, match="merge data of 3 and of 2 channels"):
        Moments.of_chunks([VALUES, VALUES[:, :2]])


def test_no_chunk_is_refused():
    with pytest.raises(ValueError, match="there are no chunks"):
        Moments.of_chunks([])


def test_moments_survive_json_exactly():
    moments = Moments.of(np.random.default_rng(0).normal(size=(50, 3)) * 1e-7)
    again = Moments.from_dict(json.loads(json.dumps(moments.to_dict())))
    assert again.to_dict() == moments.to_dict()
    np.testing.assert_array_equal(again.std, moments.std)


@pytest.mark.parametrize(
    "changes",
    [
        {"count": -1},
        {"count": True},
        {"mean": [0.0, 1.0]},
        {"mean": [float("nan")]},
        {"mean": 0.0},
        {"squares": [[0.0]]},
        {"median": [0.0]},
    ],
)
def test_other_json_is_refused(changes):
    values = Moments.of([1.0, 2.0]).to_dict()
    assert Moments.from_dict(values).count == 2
    with pytest.raises(ValueError, match="expected"):
        Moments.from_dict(values | changes)
    with pytest.raises(ValueError, match="expected"):
        Moments.from_dict([])
