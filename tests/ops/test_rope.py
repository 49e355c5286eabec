"""Rotary embedding: recorded values, and the properties of a rotation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import RopeFrequencies, apply_rope, rope_frequencies
from emmi_jax.ops.sincos import axis_frequencies
from tests.cases import random_array, random_positions
from tests.golden_files import golden_names, load_golden
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.mark.parametrize("name", golden_names("rope"))
@pytest.mark.parametrize("form", ["cos_sin", "complex"])
def test_recorded_frequencies_and_rotation_are_reproduced(name: str, form: str) -> None:
    golden = load_golden(name)
    freqs = rope_frequencies(golden.inputs["pos"], golden.meta["head_dim"], golden.meta["max_wavelength"])
    assert_close(freqs.cos, golden.outputs["freqs_real"], FORWARD)
    assert_close(freqs.sin, golden.outputs["freqs_imag"], FORWARD)
    if form == "complex":
        freqs = golden.outputs["freqs_real"] + 1j * golden.outputs["freqs_imag"]
    y = apply_rope(golden.inputs["x"].swapaxes(1, 2), freqs)
    assert_close(y.swapaxes(1, 2), golden.outputs["y"], FORWARD)


@pytest.mark.parametrize(("head_dim", "num_axes"), [(12, 3), (30, 3), (8, 3), (16, 1), (10, 2)])
def test_angles_are_ordered_by_axis_then_frequency_and_end_in_zeros(head_dim: int, num_axes: int) -> None:
    positions = np.arange(1.0, 1.0 + num_axes, dtype=np.float32)
    width = head_dim // num_axes // 2 * 2
    omega = 10_000.0 ** (-np.arange(0, width, 2) / width)
    angles = np.zeros(head_dim // 2)
    angles[: num_axes * width // 2] = np.outer(positions, omega).ravel()
    freqs = rope_frequencies(positions[None, None], head_dim)
    assert_close(freqs.cos[0, 0], np.cos(angles), FORWARD)
    assert_close(freqs.sin[0, 0], np.sin(angles), FORWARD)


@pytest.mark.parametrize("num_axes", [1, 2, 3, 4])
def test_channels_per_axis_follow_the_rule_of_the_reference_or_are_refused(num_axes: int) -> None:
    for num_channels in range(1, 50):
        rest = num_channels % num_axes
        padding = rest + num_axes * ((num_channels - rest) // num_axes % 2)
        width = (num_channels - padding) // num_axes
        if width <= 0:
            with pytest.raises(ValueError, match=f"{num_channels} channels are too few for {num_axes} position axes"):
                axis_frequencies(num_channels, num_axes, 10_000)
        else:
            omega, left_over = axis_frequencies(num_channels, num_axes, 10_000)
            assert (2 * len(omega), left_over, omega.dtype) == (width, padding, np.float32)


def test_a_pair_of_neighbouring_channels_is_one_complex_number() -> None:
    freqs = rope_frequencies(jnp.array([[[0.3, 0.5, 0.7]]]), 12)
    y = apply_rope(jnp.eye(12)[:, None, None], freqs)[:, 0, 0]
    expected = np.zeros((12, 12))
    for m, (cos, sin) in enumerate(zip(freqs.cos[0, 0], freqs.sin[0, 0], strict=True)):
        expected[2 * m : 2 * m + 2, 2 * m : 2 * m + 2] = [[cos, sin], [-sin, cos]]
    assert_close(y, expected, FORWARD)


def test_products_of_queries_and_keys_depend_on_relative_positions_only(rng: np.random.Generator) -> None:
    q, k = random_array(rng, (1, 4, 2, 24)), random_array(rng, (1, 4, 2, 24))
    positions, shift = random_positions(rng, 1, 4) / 100, jnp.array([3.0, -2.0, 5.0])

    def products(positions: jax.Array) -> jax.Array:
        freqs = rope_frequencies(positions, 24)
        return jnp.einsum("btnh,bsnh->bnts", apply_rope(q, freqs), apply_rope(k, freqs))

    assert_close(products(positions + shift), products(positions), FORWARD)
    assert not np.allclose(products(positions), jnp.einsum("btnh,bsnh->bnts", q, k), atol=0.1)


def test_the_origin_and_left_over_channels_are_not_rotated(rng: np.random.Generator) -> None:
    x = random_array(rng, (2, 5, 3, 14))
    assert_close(apply_rope(x, rope_frequencies(jnp.zeros((2, 5, 3)), 14)), x, 0.0)
    y = apply_rope(x, rope_frequencies(random_positions(rng, 2, 5), 14))
    assert_close(y[..., 12:], x[..., 12:], 0.0)
    assert not np.allclose(y[..., :12], x[..., :12])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_rotated_in_float32_and_cast_back(dtype: str, rng: np.random.Generator) -> None:
    x = random_array(rng, (2, 5, 3, 12), dtype)
    freqs = rope_frequencies(random_positions(rng, 2, 5), 12)
    y = apply_rope(x, freqs)
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, apply_rope(x.astype(jnp.float32), freqs).astype(dtype))


@pytest.mark.parametrize("dtype", ["bfloat16", "int32"])
def test_frequencies_are_float32_whatever_the_positions_are(dtype: str) -> None:
    positions = jnp.full((1, 2, 3), 3, dtype)
    freqs = rope_frequencies(positions, 12)
    assert freqs.cos.dtype == freqs.sin.dtype == jnp.float32
    assert_close(freqs.cos, rope_frequencies(positions.astype(jnp.float32), 12).cos, 0.0)


def test_one_set_of_frequencies_serves_a_whole_batch(rng: np.random.Generator) -> None:
    x, freqs = random_array(rng, (3, 5, 2, 12)), rope_frequencies(random_positions(rng, 1, 5), 12)
    repeated = RopeFrequencies(*(jnp.repeat(f, 3, axis=0) for f in freqs))
    assert_close(apply_rope(x, freqs), apply_rope(x, repeated), 0.0)


def test_no_tokens_give_no_frequencies() -> None:
    freqs = rope_frequencies(jnp.zeros((2, 0, 3)), 12)
    assert freqs.cos.shape == freqs.sin.shape == (2, 0, 6)
    assert apply_rope(jnp.zeros((2, 0, 3, 12)), freqs).shape == (2, 0, 3, 12)


@pytest.mark.parametrize(
    ("head_dim", "num_axes", "max_wavelength", "message"),
    [
        (13, 3, 10_000, "needs an even head_dim, got 13"),
        (4, 3, 10_000, "4 channels are too few for 3 position axes; needed: 6"),
        (12, 3, 0, "max_wavelength must be positive, got 0"),
        (12, 3, -1.0, "max_wavelength must be positive, got -1.0"),
    ],
)
def test_impossible_frequencies_are_refused(head_dim: int, num_axes: int, max_wavelength: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rope_frequencies(jnp.zeros((1, 2, num_axes)), head_dim, max_wavelength)


def test_an_array_of_real_frequencies_is_refused() -> None:
    with pytest.raises(ValueError, match=r"RopeFrequencies\(cos, sin\) or a complex array, got dtype float32"):
        apply_rope(jnp.zeros((1, 2, 1, 12)), jnp.zeros((1, 2, 6)))


@pytest.mark.parametrize("shape", [(1, 3, 6), (2, 2, 6), (1, 2, 12), (2, 6)])
def test_frequencies_of_the_wrong_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="x and freqs do not fit"):
        apply_rope(jnp.zeros((3, 2, 1, 12)), RopeFrequencies(jnp.ones(shape), jnp.ones(shape)))
