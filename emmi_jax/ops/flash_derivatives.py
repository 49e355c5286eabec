"""Derivatives of flash attention of every order and in both modes.

The first, forward and reverse, and the second of any order of modes but forward over forward are passes of their own;
the rest is that of `blockwise_attention`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import SymbolicZero

from emmi_jax.ops import fa4, flash_passes
from emmi_jax.ops.blockwise_attention import blockwise_attention
from emmi_jax.ops.flash_passes import Residuals
from emmi_jax.ops.linear_call import LinearFunction, linear_call
from emmi_jax.ops.opaque_calls import opaque_call

QUERIES, KEYS, PER_QUERY, PER_SAMPLE = "btnh", "bsnh", "bnt", "b"
"""Axes as `opaque_call` names them."""

_AXES = {"q": QUERIES, "k": KEYS, "v": KEYS}

Arrays = list[Any]


class Kernels(NamedTuple):
    """Whether FlashAttention-4 runs where it can, and whether Pallas' interpreter runs our kernels."""

    use_fa4: bool
    interpret: bool = False


class Passes(NamedTuple):
    """Derivatives of attention as functions of the leaves of `Residuals`."""

    tree: Any
    kernels: Kernels

    def tangent(self, arrays: Arrays, moved: dict[str, Array]) -> Array:
        """The derivative of the output along a tangent; what is not `moved` stays."""

        def kernel(x: Residuals, *directions: Array) -> tuple[Array, ...]:
            along = {f"d{name}": d for name, d in zip(moved, directions, strict=True)}
            return flash_passes.tangents(x, along, interpret=self.kernels.interpret)[:1]

        more = [("a" + _AXES[name], d[None]) for name, d in moved.items()]
        return self._call(kernel, arrays, more, ["a" + QUERIES])[0][0]

    def gradients(self, arrays: Arrays, wanted: Sequence[str], cotangent: Array) -> Arrays:
        """The gradients of some of q, k and v for a cotangent of the output."""

        def of_queries(x: Residuals, cotangents: Array) -> tuple[Array]:
            return (flash_passes.query_gradients(x, cotangents, interpret=self.kernels.interpret),)

        def of_all(x: Residuals, cotangent: Array) -> tuple[Array, ...]:
            if self.kernels.use_fa4:
                return fa4.gradients(*x, cotangent)
            return flash_passes.gradients(x, cotangent, interpret=self.kernels.interpret)

        if list(wanted) == ["q"]:
            more = [("a" + QUERIES, cotangent[None])]
            return [self._call(of_queries, arrays, more, ["a" + QUERIES])[0][0]]
        return self._pick(self._call(of_all, arrays, [(QUERIES, cotangent)], list(_AXES.values())), wanted)

    def second_gradients(
        self, arrays: Arrays, moved: dict[str, Array], wanted: Sequence[str], cotangent: Array
    ) -> Arrays:
        """The gradients of some of q, k and v of the product of a cotangent and `tangent`."""

        def kernel(x: Residuals, cotangent: Array, *directions: Array) -> tuple[Array, ...]:
            along = {f"d{name}": d for name, d in zip(moved, directions, strict=True)}
            return flash_passes.second_gradients(x, along, cotangent, interpret=self.kernels.interpret)

        more = [(QUERIES, cotangent), *((_AXES[name], d) for name, d in moved.items())]
        return self._pick(self._call(kernel, arrays, more, list(_AXES.values())), wanted)

    def plain(self, arrays: Arrays) -> tuple[Callable[..., Array], tuple[Array, ...]]:
        """The same attention as a function that JAX can differentiate, and its arguments q, k and v."""
        x: Residuals = jax.tree.unflatten(self.tree, arrays)
        mask = None
        if x.num_keys is not None:
            mask = (jnp.arange(x.k.shape[1]) < x.num_keys[:, None])[:, None, None]
        return functools.partial(blockwise_attention, mask=mask), x[:3]

    def _call(
        self, kernel: Callable[..., Any], arrays: Arrays, more: Sequence[tuple[str, Array]], results: Sequence[str]
    ) -> Arrays:
        axes = [QUERIES, KEYS, KEYS, PER_SAMPLE, QUERIES, PER_QUERY]
        if len(arrays) < len(axes):
            axes.remove(PER_SAMPLE)

        def flat(*given: Array) -> Any:
            return kernel(jax.tree.unflatten(self.tree, given[: len(arrays)]), *given[len(arrays) :])

        return list(
            opaque_call(flat, [*axes, *(letters for letters, _ in more)], results, [*arrays, *(x for _, x in more)])
        )

    @staticmethod
    def _pick(arrays: Arrays, wanted: Sequence[str]) -> Arrays:
        return [arrays["qkv".index(name)] for name in wanted]


def first_derivative(passes: Passes, moved: Sequence[str]) -> LinearFunction:
    """Returns the derivative of the output along some of q, k and v; its residuals are the leaves of `Residuals`."""

    def named(arrays: Arrays, names: Sequence[str] = moved) -> dict[str, Array]:
        return dict(zip(names, arrays, strict=True))

    def push(arrays: Arrays, directions: Arrays) -> Arrays:
        return [passes.tangent(arrays, named(directions))]

    def pull(arrays: Arrays, cotangents: Arrays) -> Arrays:
        return passes.gradients(arrays, moved, cotangents[0])

    def plain_push(attend: Callable[..., Array], points: Any, directions: Arrays) -> Arrays:
        given = named(directions)
        tangents = tuple(given.get(name, jnp.zeros_like(x)) for name, x in zip("qkv", points, strict=True))
        return [jax.jvp(attend, points, tangents)[1]]

    def plain_pull(attend: Callable[..., Array], points: Any, cotangents: Arrays) -> Arrays:
        grads = jax.vjp(attend, *points)[1](cotangents[0])
        return [grads["qkv".index(name)] for name in moved]

    # The derivative of a gradient is symmetric, and the transpose of that of a tangent.
    def pull_push(arrays: Arrays, moving: Sequence[str], directions: Arrays, cotangents: Arrays) -> Arrays:
        return passes.second_gradients(arrays, named(directions), moving, cotangents[0])

    def push_pull(arrays: Arrays, moving: Sequence[str], cotangents: Arrays, directions: Arrays) -> Arrays:
        return passes.second_gradients(arrays, named(directions, moving), moved, cotangents[0])

    def pull_pull(arrays: Arrays, moving: Sequence[str], cotangents: Arrays, seconds: Arrays) -> Arrays:
        return passes.second_gradients(arrays, named(seconds), moving, cotangents[0])

    pushed = _Pass(passes, push, plain_push, None, pull_push)
    pulled = _Pass(passes, pull, plain_pull, push_pull, pull_pull)
    plain = (functools.partial(_differentiable, function) for function in (pushed, pulled))
    return LinearFunction(push, pull, *plain)


class _Pass(NamedTuple):
    """A pass that is linear in some arguments, with its derivative along q, k and v.

    Args:
        passes: The passes.
        value: Takes the leaves of `Residuals` and the linear arguments.
        plain: The same, differentiable by JAX; takes attention, its arguments q, k and v, and the linear arguments.
        push: Takes the leaves, the names of what moves, the linear arguments, and tangents of what moves. None means
            that there is no fast way.
        pull: The transpose; takes cotangents of `value` in the place of the tangents.
    """

    passes: Passes
    value: Callable[..., Arrays]
    plain: Callable[..., Arrays]
    push: Callable[..., Arrays] | None
    pull: Callable[..., Arrays]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _differentiable(function: _Pass, arrays: Arrays, linear: Arrays) -> Arrays:
    return function.value(arrays, linear)


@functools.partial(_differentiable.defjvp, symbolic_zeros=True)
def _differentiable_jvp(function: _Pass, primals: Any, tangents: Any) -> tuple[Arrays, Arrays]:
    arrays, linear = primals
    # The output and its statistics are functions of q, k and v.
    moving = {name: d for name, d in zip("qkv", tangents[0], strict=False) if not isinstance(d, SymbolicZero)}
    terms = []
    if moving:
        second = _second_derivative(function, list(moving), len(arrays))
        terms.append(linear_call(second, [*arrays, *linear], list(moving.values())))
    if any(not isinstance(d, SymbolicZero) for d in tangents[1]):
        pairs = zip(linear, tangents[1], strict=True)
        directions = [jnp.zeros_like(x) if isinstance(d, SymbolicZero) else d for x, d in pairs]
        terms.append(_differentiable(function, arrays, directions))
    d_outputs = [sum(parts[1:], parts[0]) for parts in zip(*terms, strict=True)]
    return _differentiable(function, arrays, linear), d_outputs


def _second_derivative(function: _Pass, moving: Sequence[str], num_arrays: int) -> LinearFunction:
    """Returns the derivative of a pass along some of q, k and v; its residuals are the arguments of the pass."""

    def along(residuals: Arrays) -> tuple[Callable[..., Arrays], Arrays]:
        attend, points = function.passes.plain(residuals[:num_arrays])

        def moved(*arrays: Array) -> Arrays:
            given = dict(zip("qkv", points, strict=True)) | dict(zip(moving, arrays, strict=True))
            return function.plain(attend, tuple(given.values()), residuals[num_arrays:])

        return moved, [points["qkv".index(name)] for name in moving]

    def plain_push(residuals: Arrays, directions: Arrays) -> Arrays:
        moved, points = along(residuals)
        return jax.jvp(moved, points, list(directions))[1]

    def plain_pull(residuals: Arrays, cotangents: Arrays) -> Arrays:
        moved, points = along(residuals)
        return list(jax.vjp(moved, *points)[1](list(cotangents)))

    def fast(run: Callable[..., Arrays]) -> Callable[[Arrays, Arrays], Arrays]:
        return lambda residuals, given: run(residuals[:num_arrays], moving, residuals[num_arrays:], given)

    push = plain_push if function.push is None else fast(function.push)
    return LinearFunction(push, fast(function.pull), plain_push, plain_pull)
