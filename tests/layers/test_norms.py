"""Norms of queries and keys are those of PyTorch in every dtype."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AttentionConfig
from emmi_jax.layers.norms import head_norm

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_small_queries_are_normed_as_in_torch(dtype):
    x = 1e-2 * np.random.default_rng(0).standard_normal((1, 3, 2, 8), np.float32)
    expected = torch.nn.RMSNorm(8).to(getattr(torch, dtype))(torch.tensor(x).to(getattr(torch, dtype)))
    config = AttentionConfig(dim=16, num_heads=2, dtype=dtype)
    normed, _ = head_norm(config).init_with_output(jax.random.key(0), jnp.asarray(x, dtype))
    assert normed.dtype == dtype
    tolerance = 2 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(normed.astype(jnp.float32), expected.detach().float(), rtol=tolerance, atol=tolerance)
