"""Checks of the arrays that a user passes in, and small helpers for any array."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

AnyArray: TypeAlias = jax.Array | NDArray[Any]

KINDS: dict[str, tuple[type, ...]] = {
    "bool": (np.bool_,),
    "integer": (jnp.integer,),
    "floating point": (jnp.floating,),
    # Half precision would round coordinates near 1000 to a multiple of 4 (bfloat16) and move outputs by 10 %.
    "float32": (np.float32, np.float64),
}
"""Dtypes that serve as each kind; `float32` is the kind of positions."""


def check_array(name: str, array: object, kind: str, shape: Sequence[int | str]) -> None:
    """Checks what a user passed in.

    Args:
        name: Name of the argument, for the message.
        array: What was given.
        kind: A key of `KINDS`.
        shape: Size of each axis; a string names an axis of any size.

    Raises:
        ValueError: It is no NumPy or JAX array, or has another dtype or shape.
    """
    array = checked_array(name, array)
    fits = array.ndim == len(shape) and all(
        isinstance(want, str) or size == want for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits or not any(jnp.issubdtype(array.dtype, dtype) for dtype in KINDS[kind]):
        wanted = ", ".join(map(str, shape))
        got = f"{array.dtype} of shape [{', '.join(map(str, array.shape))}]"
        raise ValueError(f"{name} must be {kind} of shape [{wanted}], got {got}")


def checked_array(name: str, array: object) -> AnyArray:
    """Returns an array that layers can compute on.

    Raises:
        ValueError: It is no NumPy or JAX array, or one that is masked or in another byte order than this machine's.
    """
    if not isinstance(array, jax.Array | np.ndarray) or isinstance(array, np.ma.MaskedArray):
        raise ValueError(f"{name} must be a NumPy or JAX array, got {type(array).__module__}.{type(array).__name__}")
    if not array.dtype.isnative:
        raise ValueError(f"{name} must have the byte order of this machine, got {array.dtype.str}: convert it")
    return array


def over_channels(vector: jax.Array, x: jax.Array) -> jax.Array:
    """Returns a vector [C] with the rank of x [..., C], which `jax_numpy_rank_promotion` may ask for."""
    return vector.reshape((1,) * (x.ndim - 1) + vector.shape)


def at_least_float32(array: jax.Array) -> jax.Array:
    """Returns an array in at least float32, in which small terms of a sum are not lost."""
    return array.astype(jnp.float32) if array.dtype.itemsize < 4 else array


def safe_norm(vectors: Any, xp: Any = jnp) -> Any:
    """Returns norms over the last axis, by `jax.numpy` or NumPy; the root has no derivative at 0, this one has 0."""
    squared = (vectors * vectors).sum(axis=-1)
    return xp.where(squared > 0, xp.sqrt(xp.where(squared > 0, squared, 1)), 0)


def is_concrete(array: object) -> bool:
    """Returns whether the values are known while JAX traces."""
    return not isinstance(array, jax.core.Tracer)


@contextlib.contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Raises a failed chex assertion again as a ValueError that names the arguments.

    Args:
        what: Names of the arguments under test, such as ``"q, k and v"``.

    Raises:
        ValueError: An assertion inside the block failed.
    """
    try:
        yield
    except AssertionError as error:
        raise ValueError(f"{what} do not fit: {error}") from error
