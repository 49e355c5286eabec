"""One sequence of anchors and queries for every attention, and comparisons of trees."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import (
    RopeFrequencies,
)
from tests.cases import (
    ANCHOR_LAYOUTS,
    PORTABLE,
    Example,
    anchor_example,
    random_array,
)
from tests.tolerances import TOLERANCES, assert_close

FORWARD, GRADIENT = TOLERANCES["float32"]
LAYOUT = ANCHOR_LAYOUTS["any_order"]
ANCHOR_ROWS, QUERY_ROWS = LAYOUT.rows(LAYOUT.anchors), LAYOUT.rows(LAYOUT.queries)
MASK = jnp.asarray(np.random.default_rng(3).random((2, LAYOUT.num_tokens)) < 0.6).at[:, ANCHOR_ROWS[0]].set(True)

every_implementation = pytest.mark.parametrize("implementation", PORTABLE)


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), actual, expected)


ANCHORS = (LAYOUT.only(LAYOUT.anchors), ANCHOR_ROWS)
QUERIES = (LAYOUT.cached_anchors, QUERY_ROWS)


def store(example: Example, key_padding_mask: jax.Array | None = None) -> tuple[jax.Array, dict[str, Any]]:
    """Output and caches of a call with the anchors alone."""
    mask = None if key_padding_mask is None else key_padding_mask[:, ANCHOR_ROWS]
    y, state = example.part(*ANCHORS, key_padding_mask=mask, mutable=("cache",))
    return y, state["cache"]


@functools.cache
def gradients(implementation: str, *, is_cached: bool) -> Any:
    """Gradients with respect to parameters and inputs, of a call in two with caches or of one without."""
    example = anchor_example("cross", "any_order", implementation=implementation)

    @functools.partial(jax.grad, argnums=(0, 1))
    def loss(variables: Any, x: jax.Array, freqs: RopeFrequencies, cotangent: jax.Array) -> jax.Array:
        moved = example.uncompiled(variables, x, freqs)
        if not is_cached:
            return (moved() * cotangent).sum()
        y, cache = store(moved)
        return (y * cotangent[:, ANCHOR_ROWS]).sum() + (moved.part(*QUERIES, cache) * cotangent[:, QUERY_ROWS]).sum()

    return jax.jit(loss)(*example.arrays, random_array(np.random.default_rng(4), example.x.shape))
