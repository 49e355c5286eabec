"""Computation of a chunk: the sums of a functional and their derivatives, shared by devices."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Var
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from emmi_jax.data.normalization import Normalizer
from emmi_jax.design.chunks import Chunk, chunk_elements
from emmi_jax.design.encoding import Tree, floats, merged
from emmi_jax.design.functionals import Functional, Sums, Terms
from emmi_jax.inference.streaming import QUERY_AXIS, device_mesh, query_fields
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.ops.arrays import at_least_float32

_SHARED, _SHARE = P(), P(QUERY_AXIS)


@dataclass(frozen=True)
class ChunkProgram:
    """Everything that is computed, static under `jit`.

    Args:
        model: The model.
        normalizer: The scales of its fields.
        functional: The functional.
        mesh: The devices that share each chunk, along the axis `QUERY_AXIS`.
    """

    model: AnchoredBranchedUPT
    normalizer: Normalizer
    functional: Functional
    mesh: Mesh

    @classmethod
    def on_devices(
        cls,
        model: AnchoredBranchedUPT,
        normalizer: Normalizer,
        functional: Functional,
        devices: Sequence[jax.Device],
    ) -> ChunkProgram:
        """Returns the program whose chunks these devices share."""
        return cls(model, normalizer.for_fields(model.config.fields), functional, device_mesh(devices))

    def sums(self, branch: str, variables: Tree, cache: Tree, condition: Tree, chunk: Chunk) -> list[Terms | None]:
        """Returns the sums of a chunk; None for those of other branches."""
        elements = chunk_elements(chunk, self.normalizer.position_scale)
        variables = {**variables, "cache": cache}
        scaled = query_fields(self.model, branch, variables, condition, elements.model_position, chunk.features)
        fields = {name: self.normalizer.denormalize_field(branch, name, values) for name, values in scaled.items()}

        def relative_to(point: Any) -> jax.Array:
            shift = np.asarray(self.normalizer.position_low) - point
            return elements.position + jnp.asarray(shift, elements.position.dtype)

        def of(sums: Sums) -> Terms:
            terms = sums.terms(relative_to(sums.about), fields, elements.normal, elements.size)
            counted = chunk.is_real
            if sums.box is not None:
                low, high = map(relative_to, sums.box)
                counted &= ((low >= 0) & (high <= 0)).all(axis=-1)
            return sums.of_points(_checked(terms, len(chunk.is_real)), counted)

        return [of(sums) if sums.branch == branch else None for sums in self.functional.sums]

    def value(self, chunk_sums: Mapping[str, Sequence[list[Terms | None]]]) -> jax.Array:
        """Returns the functional of the sums of all chunks, by branch."""
        totals = []
        for number, sums in enumerate(self.functional.sums):
            of_chunks = [chunk[number] for chunk in chunk_sums[sums.branch]]
            totals.append(sums.of_chunks(jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *of_chunks)))
        return self.functional.value(totals)

    def constant_weights(self, chunk_sums: Any) -> Any:
        """Returns the gradient of `value` if that is the same for all sums of these shapes and dtypes, else None."""
        try:
            jaxpr = jax.make_jaxpr(jax.grad(self.value))(chunk_sums).jaxpr
        except (jax.errors.JAXTypeError, jax.errors.JAXIndexError):  # it asks how large the sums are
            return None
        varying = set(jaxpr.invars)
        for equation in jaxpr.eqns:
            if not varying.isdisjoint(var for var in equation.invars if isinstance(var, Var)):
                varying.update(equation.outvars)
        if not varying.isdisjoint(var for var in jaxpr.outvars if isinstance(var, Var)):
            return None
        return jax.grad(self.value)(jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), chunk_sums))


@partial(jax.jit, static_argnums=(0, 1))
def chunk_sums(program: ChunkProgram, branch: str, variables: Tree, cache: Tree, condition: Tree, chunk: Chunk) -> Tree:
    """Returns the sums of a chunk with a leading axis for the devices."""

    def on_one_device(*args: Any) -> Tree:
        return _stacked(program.sums(branch, *args))

    specs = (_SHARED, _SHARED, _SHARED, _SHARE)
    return _on_each_device(program, on_one_device, specs, _SHARE)(variables, cache, condition, chunk)


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=7)
def vjp_chunk(
    program: ChunkProgram,
    branch: str,
    variables: Tree,
    cache: Tree,
    condition: Tree,
    chunk: Chunk,
    d_sums: Tree,
    totals: Tree,
) -> tuple[Tree, Tree, Tree]:
    """Adds the gradient of a chunk with respect to cache and condition to the totals.

    Returns the totals, the sums of the chunk, and the gradient with respect to its offsets.
    """

    def on_one_device(variables: Tree, cache: Tree, condition: Tree, chunk: Chunk, d_sums: Tree) -> Tree:
        function = _sums_of_chunk(program, branch, variables, cache, chunk)
        sums, pull = jax.vjp(function, floats(cache), condition, chunk.offset)
        *shared, d_offset = pull(d_sums)
        return _total(tuple(shared)), sums, d_offset

    specs = (_SHARED, _SHARED, _SHARED, _SHARE, _SHARE)
    shared, sums, d_offset = _on_each_device(program, on_one_device, specs, (_SHARED, _SHARE, _SHARE))(
        variables, cache, condition, chunk, d_sums
    )
    return jax.tree.map(jnp.add, totals, shared), sums, d_offset


@partial(jax.jit, static_argnums=(0, 1))
def jvp_chunk(
    program: ChunkProgram,
    branch: str,
    variables: Tree,
    cache: Tree,
    condition: Tree,
    chunk: Chunk,
    shared_tangents: Tree,
    own_tangents: Tree,
) -> tuple[Tree, Tree]:
    """Returns the sums of a chunk and their derivatives along the direction of cache, condition and offsets."""

    def on_one_device(variables: Tree, cache: Tree, condition: Tree, chunk: Chunk, shared: Tree, own: Tree) -> Tree:
        sums = _sums_of_chunk(program, branch, variables, cache, chunk)
        return jax.jvp(sums, (floats(cache), condition, chunk.offset), (*shared, own))

    specs = (_SHARED, _SHARED, _SHARED, _SHARE, _SHARED, _SHARE)
    return _on_each_device(program, on_one_device, specs, (_SHARE, _SHARE))(
        variables, cache, condition, chunk, shared_tangents, own_tangents
    )


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=9)
def hvp_chunk(
    program: ChunkProgram,
    branch: str,
    variables: Tree,
    cache: Tree,
    condition: Tree,
    chunk: Chunk,
    d_sums: Tree,
    shared_tangents: Tree,
    own_tangents: Tree,
    totals: Tree,
) -> tuple[Tree, Tree]:
    """Finds the gradients of `vjp_chunk`, and their derivatives along a direction of what they depend on.

    Returns pairs of a gradient and its derivative: the totals with respect to cache and condition, and for the offsets.
    """

    def on_one_device(
        variables: Tree, cache: Tree, condition: Tree, chunk: Chunk, d_sums: Tree, shared: Tree, own: Tree
    ) -> Tree:
        def gradient(moving: Tree, condition: Tree, offset: Tree, weights: Tree) -> Tree:
            function = _sums_of_chunk(program, branch, variables, cache, chunk)
            return jax.vjp(function, moving, condition, offset)[1](weights)

        tangents = jax.jvp(gradient, (floats(cache), condition, chunk.offset, d_sums), (*shared, *own))
        return tuple(_total(tuple(part[:2])) for part in tangents), tuple(part[2] for part in tangents)

    specs = (_SHARED, _SHARED, _SHARED, _SHARE, _SHARE, _SHARED, _SHARE)
    shared, d_offset = _on_each_device(program, on_one_device, specs, (_SHARED, _SHARE))(
        variables, cache, condition, chunk, d_sums, shared_tangents, own_tangents
    )
    return jax.tree.map(jnp.add, totals, shared), d_offset


def _sums_of_chunk(
    program: ChunkProgram, branch: str, variables: Tree, cache: Tree, chunk: Chunk
) -> Callable[..., Tree]:
    """Returns the sums as a function of the floats of the cache, the condition and the offsets."""

    def sums(moving: Tree, condition: Tree, offset: Tree) -> Tree:
        return _stacked(
            program.sums(branch, variables, merged(moving, cache), condition, chunk._replace(offset=offset))
        )

    return sums


def _total(tree: Tree) -> Tree:
    """Adds up the parts of all devices."""
    return jax.lax.psum(jax.tree.map(at_least_float32, tree), QUERY_AXIS)


def _on_each_device(program: ChunkProgram, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Any:
    # Queries do not see each other. Kernels do not say how their outputs vary over the devices: that is not checked.
    return jax.shard_map(function, mesh=program.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)


def _checked(terms: Any, num_points: int) -> Terms:
    """Refuses what is no term per point."""
    for name, values in terms.items():
        if not getattr(values, "shape", None) or values.shape[0] != num_points:
            raise ValueError(
                f"a functional must return an array [{num_points}, ...], one row for each point; "
                f"the term {name!r} is {getattr(values, 'shape', values)!r}"
            )
    return terms


def _stacked(tree: Tree) -> Tree:
    return jax.tree.map(lambda leaf: leaf[None], tree)
