import json

import numpy as np
import pytest

from emmi_jax.data.moments import Moments
from emmi_jax.data.normalization import FieldScale, signed_log1p
from emmi_jax.data.statistics import DataMoments, measure, merge
from emmi_jax.points import PointSet, take_points

RNG = np.random.default_rng(0)
POSITION = RNG.uniform(-3, 5, size=(90, 3))
FIELDS = {"velocity": RNG.normal(size=(90, 3)) * 30, "vorticity": RNG.normal(size=(90, 3)) * 1e4}


def chunks(num: int) -> list[tuple[str, PointSet]]:
    idx = np.array_split(np.arange(90), num)
    return [("volume", PointSet(POSITION[i], {name: values[i] for name, values in FIELDS.items()})) for i in idx]


@pytest.mark.parametrize("num", [1, 2, 17])
def test_a_normalizer_from_chunks_is_that_of_the_whole(num):
    normalizer = measure(chunks(num)).normalizer(position_range=1000.0)
    assert normalizer.position_low == tuple(POSITION.min(axis=0))
    assert normalizer.position_scale == pytest.approx(1000.0 / np.ptp(POSITION, axis=0).max())
    scales = normalizer.fields["volume"]
    log = signed_log1p(FIELDS["vorticity"])
    for scale, values in ((scales["velocity"], FIELDS["velocity"]), (scales["vorticity"], log)):
        np.testing.assert_allclose(scale.mean, values.mean(axis=0), rtol=1e-11, atol=1e-12)
        np.testing.assert_allclose(scale.std, values.std(axis=0), rtol=1e-12)
    assert scales["velocity"].limit is None
    np.testing.assert_array_equal(scales["vorticity"].limit, np.abs(FIELDS["vorticity"]).max(axis=0))


def test_only_vorticity_is_log_scaled():
    scales = measure(chunks(2)).normalizer(position_range=1.0).fields["volume"]
    assert {name: scale.log_scale for name, scale in scales.items()} == {"velocity": False, "vorticity": True}


def test_a_divergence_free_field_has_no_logarithm_and_one_deviation():
    scales = measure(chunks(2)).normalizer(position_range=1.0, divergence_free=["vorticity"]).fields["volume"]
    assert not scales["vorticity"].log_scale
    assert {name: len(set(scale.std)) for name, scale in scales.items()} == {"velocity": 3, "vorticity": 1}


def test_the_box_spans_all_branches():
    surface = ("surface", PointSet(np.array([[9.0, 0, 0]]), {"p": np.ones((1, 1))}))
    normalizer = measure([*chunks(2), surface]).normalizer(position_range=10.0)
    assert set(normalizer.fields) == {"volume", "surface"}
    np.testing.assert_allclose(normalizer.position_scale, 10 / (9 - POSITION[:, 0].min()))


@pytest.mark.parametrize("bad", ["position", "velocity"])
def test_values_that_are_not_finite_are_refused(bad):
    points = PointSet(POSITION.copy(), {"velocity": FIELDS["velocity"].copy()})
    values = points.position if bad == "position" else points.fields[bad]
    values[4, 1] = np.nan
    with pytest.raises(ValueError, match="finite"):
        measure([("volume", points)]).normalizer(position_range=1.0)
    with pytest.raises(ValueError, match="89 finite rows and 1 not"):
        FieldScale.of(Moments.of(values))


def test_no_points_are_refused():
    with pytest.raises(ValueError, match="there are no points"):
        measure([])


def test_statistics_survive_json_and_parts_merge_to_the_whole():
    rng = np.random.default_rng(1)
    points = PointSet(rng.normal(size=(40, 3)), {"vorticity": rng.normal(size=(40, 3)) * 1e3})
    whole = measure([("volume", points)])
    parts = [measure([("volume", take_points(points, part))]) for part in (slice(15), slice(15, None))]
    merged = merge(DataMoments.from_dict(json.loads(json.dumps(part.to_dict()))) for part in parts)
    assert merged.channels == whole.channels == {"volume": {"vorticity": 3}}
    for found, expected in zip(merged.fields["volume"]["vorticity"], whole.fields["volume"]["vorticity"], strict=True):
        np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.std, expected.std, rtol=1e-12)


def test_statistics_of_other_fields_or_of_nothing_do_not_merge():
    position = np.eye(3)
    first, second = (measure([("volume", PointSet(position, {name: position}))]) for name in ("a", "b"))
    with pytest.raises(ValueError, match=r"cannot merge statistics of the fields \{'volume': \['a'\]\}"):
        merge([first, second])
    with pytest.raises(ValueError, match="there are no points"):
        merge([])


@pytest.mark.parametrize(
    "values", [None, {}, {"position": {}, "fields": []}, {"position": {}, "fields": {"volume": 1}}]
)
def test_other_json_is_no_statistics(values):
    with pytest.raises(ValueError, match="expected"):
        DataMoments.from_dict(values)
