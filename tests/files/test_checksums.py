import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.files.checksums import checksums


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 7), (2, 3, 4), (0, 3), (20_000,)])
def test_host_and_device_agree(shape, dtype):
    array = (8 * jax.random.normal(jax.random.key(0), shape)).astype(dtype)
    assert checksums({"a": array}) == checksums({"a": array}, on_host=True)


@pytest.mark.parametrize("bit", range(32))
def test_every_flipped_bit_changes_it(bit):
    words = np.random.default_rng(bit).integers(2**32, size=50, dtype=np.uint32)
    before = checksums([jnp.asarray(words)], on_host=True)
    words[bit] ^= np.uint32(1 << bit)
    assert checksums([jnp.asarray(words)], on_host=True) != before


def test_places_and_signs_count():
    values = jnp.arange(1.0, 9.0)
    others = [values[::-1], values.reshape(2, 4).T.reshape(-1), -values, values.at[:2].multiply(-1.0)]
    found = [checksums([array], on_host=True)["[0]"] for array in [values, *others]]
    assert len(set(found)) == len(found)
