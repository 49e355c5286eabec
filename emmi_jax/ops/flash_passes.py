"""Passes over attention on GPUs: `flash_kernels` called on arrays of any size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from emmi_jax.ops import flash_kernels

MAX_HEAD_DIM = 128
AT_ONCE = 3
"""The largest number of tangents that share a pass over the keys: those of a curl."""

_KEYS, _STATISTICS = ("k", "v", "dk", "dv"), ("lse", "dots", "mu", "second_dots")


BLOCK, NUM_WARPS, NUM_STAGES = 64, 4, 3
"""Rows of a tile, warps that share it, stages of its reads: for every pass the fastest of those tried on an H200."""


class Residuals(NamedTuple):
    """Residuals that derivatives are computed from.

    Args:
        q: Queries [B, T, N, H].
        k: Keys [B, S, N, H].
        v: Values [B, S, N, H].
        num_keys: Number of keys [B] that count, the first ones; None means all.
        out: Attention [B, T, N, H].
        lse: Logarithms of the sums of exp(logits), float32 [B, N, T].
    """

    q: Array
    k: Array
    v: Array
    num_keys: Array | None
    out: Array
    lse: Array


def forward(q: Array, k: Array, v: Array, num_keys: Array | None, *, interpret: bool) -> tuple[Array, Array]:
    """Computes attention; returns ``out`` and ``lse`` of `Residuals`."""
    outputs: dict[str, Any] = {"out": q, "lse": jax.ShapeDtypeStruct((q.shape[0], q.shape[2], q.shape[1]), jnp.float32)}
    results = _call("forward", {"q": q, "k": k, "v": v}, num_keys, outputs, interpret)
    return results["out"], results["lse"]


def tangents(x: Residuals, moved: Mapping[str, Array], *, interpret: bool) -> tuple[Array, Array]:
    """Computes derivatives of the output along A tangents.

    Args:
        x: The residuals.
        moved: Tangents ``dq`` [A, B, T, N, H], ``dk`` and ``dv`` [A, B, S, N, H], at least one; the others are zero.
        interpret: Whether Pallas' interpreter runs the kernel.

    Returns:
        The derivatives [A, B, T, N, H], and the sums of weights times derivatives of logits, float32 [A, B, N, T].
    """

    def group(moved: dict[str, Array]) -> tuple[Array, Array]:
        num = len(next(iter(moved.values())))
        outputs = {name: jax.ShapeDtypeStruct((num, *a.shape), a.dtype) for name, a in (("out", x.q), ("mu", x.lse))}
        results = _call("tangents", _given(x, "q", "k", "v", "out", "lse") | moved, x.num_keys, outputs, interpret)
        return results["out"], results["mu"]

    return _in_groups(group, dict(moved))


def query_gradients(x: Residuals, cotangents: Array, *, interpret: bool) -> Array:
    """Computes the gradients of the queries alone [A, B, T, N, H] for A cotangents of the output."""

    def group(given: dict[str, Array]) -> tuple[Array]:
        given |= {"dots": _dots(given["c"], x.out)}
        outputs = {"dq": given["c"]}
        return (
            _call("query_gradients", _given(x, "q", "k", "v", "lse") | given, x.num_keys, outputs, interpret)["dq"],
        )

    return _in_groups(group, {"c": cotangents})[0]


def gradients(x: Residuals, cotangent: Array, *, interpret: bool) -> tuple[Array, Array, Array]:
    """Computes the gradients of q, k and v for a cotangent of the output."""
    dq = query_gradients(x, cotangent[None], interpret=interpret)[0]
    arrays = _given(x, "q", "k", "v", "lse") | {"c": cotangent, "dots": _dots(cotangent, x.out)}
    of_keys = _call("key_gradients", arrays, x.num_keys, {"dk": x.k, "dv": x.v}, interpret)
    return dq, of_keys["dk"], of_keys["dv"]


def second_gradients(
    x: Residuals, moved: Mapping[str, Array], cotangent: Array, *, interpret: bool
) -> tuple[Array, Array, Array]:
    """Computes the gradients of q, k and v of the product of a cotangent and the derivative of the output.

    Args:
        x: The residuals.
        moved: The tangent that the derivative is along: ``dq``, ``dk`` and ``dv`` of the shapes of q, k and v, at least
            one; the others are zero.
        cotangent: The cotangent [B, T, N, H].
        interpret: Whether Pallas' interpreter runs the kernels.
    """
    d_out, mu = tangents(x, {name: d[None] for name, d in moved.items()}, interpret=interpret)
    arrays = _given(x, "q", "k", "v", "lse") | dict(moved) | {"c": cotangent, "mu": mu[0]}
    arrays |= {"dots": _dots(cotangent, x.out), "second_dots": _dots(cotangent, d_out[0])}
    dq = _call("second_query_gradient", arrays, x.num_keys, {"dq": x.q}, interpret)["dq"]
    of_keys = _call("second_key_gradients", arrays, x.num_keys, {"dk": x.k, "dv": x.v}, interpret)
    return dq, of_keys["dk"], of_keys["dv"]


def _given(x: Residuals, *names: str) -> dict[str, Array]:
    return {name: x._asdict()[name] for name in names}


def _dots(a: Array, b: Array) -> Array:
    """Returns scalar products [..., B, N, T] of arrays [..., B, T, N, H]."""
    return jnp.swapaxes(jnp.vecdot(a.astype(jnp.float32), b.astype(jnp.float32)), -1, -2)


def _in_groups(group: Callable[[dict[str, Array]], Any], arrays: dict[str, Array]) -> Any:
    """Runs a pass on groups of the leading axis that are small enough."""
    num = len(next(iter(arrays.values())))
    size = next(size for size in range(min(AT_ONCE, num), 0, -1) if num % size == 0)
    if size == num:
        return group(arrays)
    cut = {name: a.reshape(num // size, size, *a.shape[1:]) for name, a in arrays.items()}
    return jax.tree.map(lambda a: a.reshape(num, *a.shape[2:]), jax.lax.map(group, cut))


def _call(
    name: str,
    arrays: Mapping[str, Array],
    num_keys: Array | None,
    outputs: Mapping[str, Any],
    interpret: bool,
) -> dict[str, Array]:
    """Runs a kernel on arrays filled up to whole blocks, with a program per block, head and batch entry."""
    batch, num_queries, num_heads, head_dim = arrays["q"].shape
    owns_keys = name.endswith("key_gradients")
    sizes = {False: num_queries, True: arrays["k"].shape[1]}
    # Tensor cores multiply matrices of at least 16 rows and channels; Triton takes powers of two.
    blocks = {is_key: min(BLOCK, max(16, pl.next_power_of_2(size))) for is_key, size in sizes.items()}
    filled = {is_key: pl.cdiv(size, blocks[is_key]) * blocks[is_key] for is_key, size in sizes.items()}
    channels = max(16, pl.next_power_of_2(head_dim))

    def full(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        rows = filled[key in _KEYS]
        return (*shape[:-1], rows) if key in _STATISTICS else (*shape[:-3], rows, shape[-2], channels)

    def spec(key: str, shape: tuple[int, ...]) -> pl.BlockSpec:
        is_own = (key in _KEYS) == owns_keys
        rows = (blocks if is_own else filled)[key in _KEYS]
        several = shape[: len(shape) - (3 if key in _STATISTICS else 4)]

        def index(i: Any, n: Any, b: Any) -> tuple[Any, ...]:
            block = i if is_own else 0
            return (*(0 for _ in several), b, *((n, block) if key in _STATISTICS else (block, n, 0)))

        return pl.BlockSpec((*several, None, *((None, rows) if key in _STATISTICS else (rows, None, channels))), index)

    padded = {key: _pad(x, full(key, x.shape)) for key, x in arrays.items()}
    in_specs = {key: spec(key, x.shape) for key, x in padded.items()}
    if num_keys is not None:
        padded["num_keys"], in_specs["num_keys"] = num_keys[:, None], pl.BlockSpec((None, 1), lambda i, n, b: (b, 0))
    varying = jax.typeof(arrays["q"]).manual_axis_type
    out_shape = {
        key: jax.ShapeDtypeStruct(full(key, x.shape), x.dtype, manual_axis_type=varying) for key, x in outputs.items()
    }
    is_padded = num_keys is not None or filled[True] != sizes[True]
    tiles = flash_kernels.Tiles(
        blocks[owns_keys], blocks[not owns_keys], owns_keys, num_queries, sizes[True], is_padded, head_dim**-0.5
    )
    # Wide heads leave no room for several stages in shared memory.
    params = triton.CompilerParams(num_warps=NUM_WARPS, num_stages=NUM_STAGES if channels <= 64 else 1)
    kernel = getattr(flash_kernels, name.removeprefix("second_") if owns_keys else name)
    results = pl.pallas_call(
        lambda x, y: kernel(x, y, tiles._replace(first=pl.program_id(0) * tiles.own)),
        grid=(filled[owns_keys] // tiles.own, num_heads, batch),
        in_specs=(in_specs,),
        out_specs={key: spec(key, x.shape) for key, x in out_shape.items()},
        out_shape=out_shape,
        compiler_params=None if interpret else params,
        interpret=interpret,
        name=f"attention_{name}",
    )(padded)
    return {key: x[tuple(map(slice, outputs[key].shape))] for key, x in results.items()}


def _pad(x: Array, shape: tuple[int, ...]) -> Array:
    return x if x.shape == shape else jnp.pad(x, [(0, new - old) for new, old in zip(shape, x.shape, strict=True)])
