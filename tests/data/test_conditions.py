"""Conditions of cases: their scales, their channels, and what is said of unusable ones."""

from __future__ import annotations

import numpy as np
import pytest

from emmi_jax.config import Sampling
from emmi_jax.config.conditions import KINDS
from emmi_jax.data.conditions import CaseCondition, ConditionScale, measure_conditions
from emmi_jax.data.ellipsoids import EllipsoidDataset, in_stream
from emmi_jax.deploy import conditions as deployed
from emmi_jax.deploy.conditions import condition_channels, condition_dim, condition_slopes, outside_range

SCALES = {
    "speed": ConditionScale(unit="m/s", low=20, high=40, mean=30, std=5),
    "viscosity": ConditionScale(kind="logarithmic", low=1e-5, high=1e-3, mean=np.log(1e-4), std=2.0),
    "wind": ConditionScale(unit="deg", kind="angle", low=0, high=350, mean=170, std=100),
    "yaw": ConditionScale(unit="deg", kind="angle", low=-15, high=15, mean=0, std=8),
}
VALUES = {"speed": 35.0, "viscosity": 1e-4 * np.exp(2.0), "wind": 30.0, "yaw": 4.0}


def test_channels_are_scaled_and_an_angle_that_wraps_is_its_sine_and_cosine():
    assert condition_dim(SCALES) == 5
    np.testing.assert_allclose(condition_channels(SCALES, VALUES), [1, 1, 0.5, np.sqrt(0.75), 0.5], rtol=1e-6)


def test_the_order_of_names_changes_nothing():
    expected = condition_channels(SCALES, VALUES)
    np.testing.assert_array_equal(condition_channels(SCALES, dict(reversed(VALUES.items()))), expected)
    cases = {f"run_{i}": {"yaw": CaseCondition(1.0 * i), "speed": CaseCondition(2.0 * i)} for i in range(3)}
    turned = {case: dict(reversed(conditions.items())) for case, conditions in cases.items()}
    assert list(measure_conditions(cases).items()) == list(measure_conditions(turned).items())


def test_an_angle_is_the_same_after_a_turn():
    turned = VALUES | {"wind": VALUES["wind"] - 360, "yaw": VALUES["yaw"] + 720}
    np.testing.assert_allclose(condition_channels(SCALES, turned), condition_channels(SCALES, VALUES), atol=1e-6)
    assert outside_range(SCALES, turned) == []


def test_slopes_are_the_derivatives_of_the_channels():
    slopes = condition_slopes(SCALES, VALUES)
    for name, value in VALUES.items():
        step = 1e-3 * value
        above, below = (condition_channels(SCALES, VALUES | {name: value + s}) for s in (step, -step))
        np.testing.assert_allclose(slopes[name], (above - below) / (2 * step), rtol=1e-2, atol=1e-4 * abs(1 / value))


def test_what_is_outside_says_by_how_much():
    (line,) = outside_range(SCALES, VALUES | {"speed": 45.0, "wind": 355.0})
    assert line == "the condition speed is 45 m/s, outside the trained range 20 … 40 by 5 m/s, 25% of the range"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"yaw": None}, r"needs a value of the condition yaw \[deg\], trained from -15 to 15"),
        ({"pitch": 1.0}, "takes the conditions speed, viscosity, wind, yaw, got a value of 'pitch'"),
        ({"speed": float("nan")}, r"speed \[m/s\], trained from 20 to 40, must be a finite number, got nan"),
        ({"viscosity": -1.0}, "is logarithmic and must be positive, got -1"),
        ({"speed": "fast"}, "must be a finite number, got 'fast'"),
    ],
)
def test_an_unusable_value_costs_one_line(change, message):
    values = {name: value for name, value in (VALUES | change).items() if value is not None}
    with pytest.raises(ValueError, match=message):
        condition_channels(SCALES, values)


def by_case(*values: float, **options: str) -> dict[str, dict[str, CaseCondition]]:
    return {f"run_{i}": {"speed": CaseCondition(value, **options)} for i, value in enumerate(values)}


def test_scales_are_the_statistics_of_the_training_cases():
    scale = measure_conditions(by_case(10.0, 20.0, 60.0, unit="m/s"))["speed"]
    assert (scale.unit, scale.low, scale.high, scale.mean) == ("m/s", 10, 60, 30)
    logarithmic = measure_conditions(by_case(1.0, 100.0, kind="logarithmic"))["speed"]
    assert logarithmic.mean == pytest.approx(np.log(10))
    assert ConditionScale.from_dict(scale.to_dict()) == scale


@pytest.mark.parametrize(
    ("cases", "message"),
    [
        (by_case(5.0, 5.0), "'speed' is 5 in all 2 training cases, so that nothing can be learned of it: leave it out"),
        (by_case(-1.0, 359.0, unit="deg", kind="angle"), "'speed' is -1 in all 2 training cases"),
        (by_case(0.0, 5.0, kind="logarithmic"), "run_0: the condition 'speed' is logarithmic and must be positive"),
        (by_case(1.0, 2.0) | {"run_9": {"speed": CaseCondition(3.0, "m/s")}}, "expected one unit and kind"),
    ],
)
def test_conditions_that_cannot_be_learned_are_refused_with_advice(cases, message):
    with pytest.raises(ValueError, match=message):
        measure_conditions(cases)


def test_fields_of_ellipsoids_are_those_of_the_stream_of_their_angles():
    sampling = Sampling(num_anchors=3, num_queries=2, num_test_anchors=3)
    dataset = EllipsoidDataset(sampling, num_train_cases=2, num_test_cases=2, stream_angle=15.0)
    plain = EllipsoidDataset(sampling, num_train_cases=2, num_test_cases=2)
    for body, sample in zip(plain.test_bodies, dataset.test_samples(), strict=True):
        assert set(sample.condition) == {"yaw", "pitch"}
        points, turned = sample.queries["volume"], in_stream(body, sample.condition)
        np.testing.assert_allclose(points.fields["velocity"], turned.velocity(points.position))
        assert not np.allclose(points.fields["velocity"], body.velocity(points.position), rtol=1e-3)
    drawn = [dataset.train_sample(0, number) for number in range(40)]
    assert all(-15 < angle < 15 for sample in drawn for angle in sample.condition.values())
    first = plain.train_sample(0, 0)
    assert first.condition is None
    np.testing.assert_array_equal(first.anchors["volume"].position, drawn[0].anchors["volume"].position)


def test_configurations_and_exported_files_know_the_same_kinds():
    assert KINDS == deployed.KINDS
