import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.data.moments import Moments
from emmi_jax.data.normalization import FieldScale, Normalizer, signed_log1p
from emmi_jax.data.samples import Sample, normalize_sample
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.points import PointSet


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 30.0, 1e4] + [0.0, 5.0, -1e3]


def fit(values: np.ndarray, *, log_scale: bool = False, common_std: bool = False) -> FieldScale:
    compressed = Moments.of(signed_log1p(values)) if log_scale else None
    return FieldScale.of(Moments.of(values), compressed, common_std=common_std)


def make_normalizer() -> Normalizer:
    scale = FieldScale(mean=(1.0,), std=(2.0,))
    return Normalizer(position_low=(-1.0, 0.0, 2.0), position_scale=10.0, fields={"surface": {"pressure": scale}})


@pytest.mark.parametrize("log_scale", [False, True])
def test_fitted_values_have_mean_zero_and_deviation_one(values, log_scale):
    normalized = fit(values, log_scale=log_scale).normalize(values)
    np.testing.assert_allclose(normalized.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(normalized.std(axis=0), 1.0, rtol=1e-12)


@pytest.mark.parametrize("log_scale", [False, True])
def test_denormalize_inverts_normalize(values, log_scale):
    scale = fit(values, log_scale=log_scale)
    np.testing.assert_allclose(scale.denormalize(scale.normalize(values)), values, rtol=1e-11, atol=1e-10)


def test_a_common_deviation_only_shifts_and_scales_a_vector(values):
    scale = fit(values, common_std=True)
    assert len(set(scale.std)) == 1
    normalized = scale.normalize(values)
    np.testing.assert_allclose(normalized.mean(axis=0), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.square(normalized).mean(), 1.0, rtol=1e-12)


def test_log_scale_keeps_signs_and_zero():
    scale = FieldScale(mean=(0.0,), std=(1.0,), log_scale=True)
    np.testing.assert_allclose(scale.normalize([[-(np.e - 1)], [0.0], [np.e - 1]]), [[-1.0], [0.0], [1.0]], rtol=1e-15)


def test_log_scaled_predictions_stay_in_the_measured_range(values):
    scale = fit(values, log_scale=True)
    largest = np.abs(values).max(axis=0)
    np.testing.assert_array_equal(scale.denormalize([[50.0] * 3, [-50.0] * 3]), [largest, -largest])


@pytest.mark.parametrize(
    ("limit", "message"),
    [
        ((1.0, 2.0), r"expected one limit >= 0 for each of 1 channels, got \(1.0, 2.0\)"),
        ((-1.0,), r"expected one limit >= 0 for each of 1 channels, got \(-1.0,\)"),
        ((float("nan"),), "limit must hold finite numbers, got nan"),
    ],
)
def test_unusable_limits_are_refused(limit, message):
    with pytest.raises(ValueError, match=message):
        FieldScale(mean=(0.0,), std=(1.0,), limit=limit)


def test_a_constant_channel_is_only_centred():
    scale = fit(np.full((10, 1), 7.0))
    assert (scale.mean, scale.std) == ((7.0,), (1.0,))


def test_box_maps_to_the_position_range_with_one_scale():
    normalizer = Normalizer.from_box([-40, -10, 0], [80, 10, 30], position_range=1000.0, fields={})
    np.testing.assert_allclose(
        normalizer.normalize_position([[-40, -10, 0], [80, 10, 30]]), [[0, 0, 0], [1000, 1000 / 6, 250]], rtol=1e-6
    )


def test_positions_far_from_the_origin_keep_their_differences():
    normalizer = Normalizer.from_box([1e6, 1e6, 0], [1e6 + 1, 1e6 + 1, 1], position_range=1000.0, fields={})
    position = np.array([[1e6 + 0.5, 1e6 + 0.25, 0.125]])
    np.testing.assert_allclose(normalizer.normalize_position(position), [[500.0, 250.0, 125.0]], rtol=1e-6)


def test_positions_outside_the_box_are_counted():
    normalizer = Normalizer.from_box([0, 0, 0], [100, 10, 10], position_range=1000.0, fields={})
    inside = [[0, 0, 0], [100.9, 10.9, -0.9]]
    outside = [[-2, 5, 5], [50, 12, 5], [50, 5, -2]]
    assert normalizer.num_outside(np.array(inside, np.float32)) == 0
    assert normalizer.num_outside(inside + outside) == 3
    assert make_normalizer().num_outside(outside) == 0


def test_corners_of_different_spaces_are_refused():
    with pytest.raises(ValueError, match="different dimensions"):
        Normalizer(position_low=(0.0, 0.0), position_high=(1.0,), position_scale=1.0, fields={})


def test_configuration_survives_json_and_is_hashable():
    normalizer = make_normalizer()
    assert Normalizer.from_dict(json.loads(json.dumps(normalizer.to_dict()))) == normalizer
    assert hash(normalizer) == hash(make_normalizer())


@pytest.mark.parametrize("std", [(0.0,), (-1.0,), (1.0, 1.0)])
def test_unusable_deviations_are_refused(std):
    with pytest.raises(ValueError, match="positive deviations"):
        FieldScale(mean=(0.0,), std=std)


def test_coinciding_positions_are_refused():
    with pytest.raises(ValueError, match="coincide"):
        Normalizer.from_box([1, 1, 1], [1, 1, 1], position_range=1.0, fields={})


def test_a_sample_is_normalized_branch_by_branch():
    points = PointSet(np.array([[0.0, 0.0, 2.0]]), {"pressure": np.array([[5.0]])})
    geometry = Geometry(points.position, np.array([0], np.int32))
    sample = Sample({"surface": points}, {"surface": points}, geometry)
    normalized = normalize_sample(make_normalizer(), sample)
    for part in (normalized.anchors, normalized.queries):
        np.testing.assert_array_equal(part["surface"].position, np.float32([[10.0, 0.0, 0.0]]))
        np.testing.assert_array_equal(part["surface"].fields["pressure"], np.float32([[2.0]]))
    np.testing.assert_array_equal(normalized.geometry.position, np.float32([[10.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(normalized.geometry.supernode_idx, [0])


@pytest.mark.parametrize("log_scale", [False, True])
def test_arrays_of_jax_and_numpy_give_the_same(values, log_scale):
    normalizer = Normalizer.from_box(
        [-1, 0, 2], [3, 4, 5], position_range=100.0, fields={"volume": {"u": fit(values, log_scale=log_scale)}}
    )
    normalized = normalizer.normalize_field("volume", "u", values)
    for expected, found in (
        (normalizer.normalize_position(values), jax.jit(normalizer.normalize_position)(jnp.asarray(values))),
        (normalized, normalizer.normalize_field("volume", "u", jnp.asarray(values))),
        (
            normalizer.denormalize_field("volume", "u", normalized),
            normalizer.denormalize_field("volume", "u", jnp.asarray(normalized)),
        ),
    ):
        assert (type(expected), expected.dtype, found.dtype) == (np.ndarray, np.float32, np.float32)
        assert isinstance(found, jax.Array)
        np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5 * np.abs(expected).max())


@pytest.mark.parametrize("value", [-3.0, 0.0, 2.0])
def test_derivatives_pass_through_the_scales_of_positions_and_fields(value):
    """At 0 too, where sign(x) and |x| have no derivative but the logarithmic scale has one."""
    normalizer = make_normalizer()
    position = jnp.array([value, 1.0, 2.0])
    np.testing.assert_allclose(jax.jacfwd(normalizer.normalize_position)(position), 10 * np.eye(3), rtol=1e-6)
    plain, log = FieldScale(mean=(1.0,), std=(2.0,)), FieldScale(mean=(0.0,), std=(2.0,), log_scale=True)
    x = jnp.array([value])
    np.testing.assert_allclose(jax.grad(lambda x: plain.denormalize(x)[0])(x), [2.0])
    np.testing.assert_allclose(jax.grad(lambda x: log.denormalize(x)[0])(x), [2 * np.exp(2 * abs(value))], rtol=1e-6)
    np.testing.assert_allclose(jax.grad(lambda x: log.normalize(x)[0])(x), [0.5 / (1 + abs(value))], rtol=1e-6)


@pytest.mark.parametrize("channels", [1, 2, 4])
@pytest.mark.parametrize("as_array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_other_channels_than_those_of_the_scale_are_refused_in_both_directions(channels, as_array):
    values = as_array(np.ones((5, channels), np.float32))
    scale = FieldScale(mean=(1.0, 2.0, 3.0), std=(2.0, 3.0, 4.0))
    for convert in (scale.normalize, scale.denormalize):
        with pytest.raises(ValueError, match=rf"the scale has 3 channels, the values the shape \[5, {channels}\]"):
            convert(values)
    normalizer = make_normalizer()
    for convert in (normalizer.normalize_position, normalizer.is_outside):
        with pytest.raises(ValueError, match=rf"the normalizer has 3 axes, the positions the shape \[5, {channels}\]"):
            convert(values)


def test_positions_on_a_device_keep_their_digits_far_from_the_origin():
    low = (412_345.678, 5_123_456.789, 0.1)
    normalizer = Normalizer(position_low=low, position_scale=10.0, fields={})
    position = (np.array(low) + np.random.default_rng(0).uniform(0, 100, (50, 3))).astype(np.float32)
    expected = normalizer.normalize_position(position)
    np.testing.assert_allclose(jax.jit(normalizer.normalize_position)(jnp.asarray(position)), expected, rtol=1e-6)
