"""Sine-cosine embedding: recorded values and the order of channels."""

from __future__ import annotations

import json

import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.ops.sincos import axis_frequencies, sincos_embedding
from tests.golden_files import FOLDER, golden_names, load_golden
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward


@pytest.mark.parametrize("name", golden_names("sincos"))
def test_recorded_embedding_is_reproduced(name: str) -> None:
    golden = load_golden(name)
    embedding = sincos_embedding(golden.inputs["pos"], golden.meta["dim"], golden.meta["max_wavelength"])
    assert_close(embedding, golden.outputs["y"], FORWARD)


def test_frequencies_have_the_recorded_bits() -> None:
    widths = set()
    for path in FOLDER.glob("*.npz"):
        with np.load(path) as file:
            meta = json.loads(str(file["meta"]))
            for key in file.files:
                if key.endswith("omega") and "conditioner" not in key:
                    max_wavelength = 10_000 if "encoder" in key else meta.get("max_wavelength", 10_000)
                    omega, _ = axis_frequencies(2 * file[key].size, 1, max_wavelength)
                    assert omega.tobytes() == file[key].tobytes(), (path.stem, key)
                    widths.add((omega.size, max_wavelength))
    # Where NumPy's power of float32 is an ulp off on some processors.
    assert {(5, 10_000), (6, 10_000), (6, 40_000), (3, 40_000)} <= widths


@pytest.mark.parametrize(("dim", "num_axes"), [(24, 3), (20, 3), (7, 1), (17, 2), (32, 4)])
def test_channels_are_sines_then_cosines_of_each_axis_then_zeros(dim: int, num_axes: int) -> None:
    positions = np.linspace(0.5, 2.5, num_axes, dtype=np.float32)
    width = dim // num_axes // 2 * 2
    angles = np.outer(positions, 10_000.0 ** (-np.arange(0, width, 2) / width))
    expected = np.zeros(dim)
    expected[: num_axes * width] = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).ravel()
    assert_close(sincos_embedding(positions, dim), expected, FORWARD)


@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (2, 0), (2, 3, 4)])
def test_leading_axes_are_kept(shape: tuple[int, ...]) -> None:
    positions = jnp.ones((*shape, 3))
    embedding = sincos_embedding(positions, 24)
    assert embedding.shape == (*shape, 24)
    assert_close(embedding, np.broadcast_to(sincos_embedding(jnp.ones(3), 24), embedding.shape), FORWARD)


@pytest.mark.parametrize("dtype", ["bfloat16", "int32"])
def test_embedding_is_float32_whatever_the_positions_are(dtype: str) -> None:
    positions = jnp.full((2, 3), 3, dtype)
    embedding = sincos_embedding(positions, 24)
    assert embedding.dtype == jnp.float32
    assert_close(embedding, sincos_embedding(positions.astype(jnp.float32), 24), 0.0)


@pytest.mark.parametrize(
    ("dim", "max_wavelength", "message"),
    [(5, 10_000, "5 channels are too few for 3 position axes; needed: 6"), (24, 0.0, "must be positive, got 0.0")],
)
def test_impossible_embeddings_are_refused(dim: int, max_wavelength: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sincos_embedding(jnp.zeros((2, 3)), dim, max_wavelength)
