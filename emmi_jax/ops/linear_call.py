"""Linear functions with a hand-written transpose, differentiable in everything and batched by `jax.vmap`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.extend.core import ClosedJaxpr, Primitive, jaxpr_as_fun
from jax.interpreters import ad, batching, mlir

Function = Callable[[list[Any], list[Any]], list[jax.Array]]
"""Takes residuals and linear arguments to outputs."""


class LinearFunction(NamedTuple):
    """A function that is linear in its second argument, with its transpose.

    Args:
        apply: The function, as it is computed. It is never differentiated.
        transpose: Takes residuals and cotangents of the outputs to those of the linear arguments; likewise.
        apply_plain: The same function as `apply`, written so that JAX can differentiate it.
        transpose_plain: The same as `transpose`, likewise.
    """

    apply: Function
    transpose: Function
    apply_plain: Function
    transpose_plain: Function

    def transposed(self) -> LinearFunction:
        """Swaps the function and its transpose."""
        return LinearFunction(self.transpose, self.apply, self.transpose_plain, self.apply_plain)

    def mapped(self, residual_axes: list[int | None]) -> LinearFunction:
        """Maps over the given axes of the residuals, and over the leading axis of all else."""
        return LinearFunction(*(jax.vmap(function, (residual_axes, 0)) for function in self))


def linear_call(function: LinearFunction, residuals: Sequence[Any], linear: Sequence[Any]) -> list[jax.Array]:
    """Calls a linear function.

    `jax.custom_derivatives.linear_call` can neither be mapped by `jax.vmap` nor differentiated in its residuals.
    """
    jaxpr = jax.make_jaxpr(function.apply)(list(residuals), list(linear))
    outputs: list[jax.Array] = _linear_call_p.bind(
        *residuals, *linear, function=function, jaxpr=jaxpr, num_residuals=len(residuals)
    )
    return outputs


_linear_call_p = Primitive("attention_linear_call")
_linear_call_p.multiple_results = True


def _evaluate(*args: Any, jaxpr: ClosedJaxpr, **_: Any) -> list[jax.Array]:
    outputs: list[jax.Array] = jaxpr_as_fun(jaxpr)(*args)
    return outputs


def _jvp(
    primals: Sequence[Any], tangents: Sequence[Any], *, function: LinearFunction, num_residuals: int, **_: Any
) -> tuple[list[jax.Array], list[Any]]:
    residuals, linear = list(primals[:num_residuals]), list(primals[num_residuals:])
    outputs = linear_call(function, residuals, linear)
    terms = []
    if any(type(t) is not ad.Zero for t in tangents[num_residuals:]):
        directions = [ad.instantiate_zeros(t) for t in tangents[num_residuals:]]
        terms.append(linear_call(function, residuals, directions))
    moving = [i for i, t in enumerate(tangents[:num_residuals]) if type(t) is not ad.Zero]
    if moving:

        def along(*moved: Any) -> list[jax.Array]:
            everything = list(residuals)
            for i, x in zip(moving, moved, strict=True):
                everything[i] = x
            return function.apply_plain(everything, linear)

        terms.append(jax.jvp(along, [residuals[i] for i in moving], [tangents[i] for i in moving])[1])
    return outputs, [ad.add_tangents(*pair) for pair in zip(*terms, strict=True)] if len(terms) == 2 else terms[0]


def _transpose(
    cotangents: Sequence[Any], *args: Any, function: LinearFunction, jaxpr: Any, num_residuals: int
) -> list[Any]:
    residuals = args[:num_residuals]
    given = [ad.instantiate_zeros(ct) for ct in cotangents]
    return [None] * num_residuals + linear_call(function.transposed(), residuals, given)


def _batch(
    args: Sequence[Any], axes: Sequence[int | None], *, function: LinearFunction, num_residuals: int, **_: Any
) -> tuple[list[jax.Array], list[int]]:
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    linear = [batching.bdim_at_front(x, axis, size) for x, axis in zip(args, axes, strict=True)][num_residuals:]
    outputs = linear_call(function.mapped(list(axes[:num_residuals])), args[:num_residuals], linear)
    return outputs, [0] * len(outputs)


_linear_call_p.def_impl(_evaluate)
_linear_call_p.def_abstract_eval(lambda *_, jaxpr, **__: jaxpr.out_avals)
ad.primitive_jvps[_linear_call_p] = _jvp
ad.primitive_transposes[_linear_call_p] = _transpose
batching.primitive_batchers[_linear_call_p] = _batch
mlir.register_lowering(_linear_call_p, mlir.lower_fun(_evaluate, multiple_results=True))
