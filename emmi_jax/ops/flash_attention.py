"""Flash attention on NVIDIA GPUs.

The output and its gradients come from FlashAttention-4 where it is installed, and otherwise from our Pallas kernels, as
do all other derivatives.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from emmi_jax.ops import fa4, flash_passes
from emmi_jax.ops.flash_derivatives import (
    KEYS,
    PER_QUERY,
    PER_SAMPLE,
    QUERIES,
    Kernels,
    Passes,
    first_derivative,
)
from emmi_jax.ops.flash_passes import Residuals
from emmi_jax.ops.linear_call import linear_call
from emmi_jax.ops.masks import real_keys_first
from emmi_jax.ops.opaque_calls import opaque_call
from emmi_jax.ops.sharding import partition_automatically, vary_alike

MIN_COMPUTE_CAPABILITY = 9.0
"""That of Hopper, where the kernels were measured."""


def flash_attention(q: Array, k: Array, v: Array, *, mask: Array | None, kernels: Kernels) -> Array:
    """Computes softmax(q kᵀ / sqrt(H)) v; the mask, if any, is [B or 1, 1, 1, S or 1]."""
    num_keys = None
    if mask is not None:
        k, v, num_keys = real_keys_first(k, v, mask)

    def attend(*arrays: Any) -> Array:
        out: Array = _attention(*vary_alike(arrays), kernels)[0]
        return out

    out = partition_automatically(attend, jax.typeof(q).sharding.spec, q, k, v)(q, k, v, num_keys)
    return out if num_keys is None else jnp.where((num_keys > 0)[:, None, None, None], out, jnp.zeros_like(out))


def flash_limit(q: Array) -> str | None:
    """Returns why the GPU cannot run our kernels on these queries, or None."""
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        return f"computes in bfloat16 or float16 (the arrays are {q.dtype})"
    capability = jax.devices("gpu")[0].compute_capability
    if float(capability) < MIN_COMPUTE_CAPABILITY:
        return f"needs compute capability {MIN_COMPUTE_CAPABILITY} or higher (the GPU has {capability})"
    if q.shape[-1] % 8 or q.shape[-1] > flash_passes.MAX_HEAD_DIM:
        return f"takes a head_dim that is a multiple of 8 and at most {flash_passes.MAX_HEAD_DIM} (it is {q.shape[-1]})"
    return None


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _attention(q: Array, k: Array, v: Array, num_keys: Array | None, kernels: Kernels) -> tuple[Array, Array]:
    """Returns ``out`` and ``lse`` of `Residuals`."""

    def kernel(q: Array, k: Array, v: Array, num_keys: Array | None = None) -> tuple[Array, Array]:
        if kernels.use_fa4:
            return fa4.forward(q, k, v, num_keys)
        return flash_passes.forward(q, k, v, num_keys, interpret=kernels.interpret)

    arrays = jax.tree.leaves((q, k, v, num_keys))
    out, lse = opaque_call(kernel, (QUERIES, KEYS, KEYS, PER_SAMPLE)[: len(arrays)], (QUERIES, PER_QUERY), arrays)
    return out, lse


@functools.partial(_attention.defjvp, symbolic_zeros=True)
def _attention_jvp(kernels: Kernels, primals: Any, tangents: Any) -> Any:
    q, k, v, num_keys = primals
    x = Residuals(q, k, v, num_keys, *_attention(q, k, v, num_keys, kernels))
    moved = {name: d for name, d in zip("qkv", tangents, strict=False) if not isinstance(d, SymbolicZero)}
    arrays, tree = jax.tree.flatten(x)
    (d_out,) = linear_call(first_derivative(Passes(tree, kernels), list(moved)), arrays, list(moved.values()))
    # Only derivatives read the statistics, and these are differentiated with respect to the inputs.
    return (x.out, x.lse), (d_out, jnp.zeros_like(x.lse))
