import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.files import checksums as module
from emmi_jax.files.checksums import begin_checksums, checksums

SHAPES = [(), (5,), (2, 3, 4), (0, 3), (2000, 300)]


def test_host_and_devices_agree(monkeypatch):
    arrays = {str(shape): 8 * jax.random.normal(jax.random.key(0), shape) for shape in SHAPES}
    arrays |= {dtype: jnp.arange(21).reshape(3, 7).astype(dtype) for dtype in ("bfloat16", "int32", "uint8", "bool")}
    on_host = checksums(arrays)
    begun = begin_checksums(arrays)
    monkeypatch.setattr(module, "_is_shared", lambda array: True)
    assert checksums(arrays) == begun() == on_host


@pytest.mark.parametrize("shape", [(60,), (6, 10), (3, 4, 5)])
def test_every_flipped_bit_changes_it(shape):
    words = np.random.default_rng(0).integers(2**32, size=shape, dtype=np.uint32)
    before = checksums([jnp.asarray(words)])
    for bit in range(32):
        words.flat[bit] ^= np.uint32(1 << bit)
        assert checksums([jnp.asarray(words)]) != before
        words.flat[bit] ^= np.uint32(1 << bit)


def test_places_and_signs_count():
    values = jnp.arange(1.0, 9.0)
    others = [values[::-1], values.reshape(2, 4).T.reshape(-1), -values, values.at[:2].multiply(-1.0)]
    found = [checksums([array])["[0]"] for array in [values, *others]]
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 4)])
def test_of_two_words_any_exchange_and_both_signs_count(shape):
    values = np.arange(1.0, 25.0, dtype=np.float32)
    changed = [values]
    for one in range(24):
        for other in range(one):
            changed += [values.copy(), values.copy()]
            changed[-2][[one, other]] = values[[other, one]]
            changed[-1][[one, other]] *= -1
    found = [checksums([jnp.asarray(array.reshape(shape))])["[0]"] for array in changed]
    assert found[0] not in found[1:]


def test_what_is_summed_later_may_be_donated_meanwhile():
    array = jnp.arange(5.0) + 0
    expected, wait = checksums([array]), begin_checksums([array])
    jax.block_until_ready(jax.jit(jnp.negative, donate_argnums=0)(array))
    assert wait() == expected
