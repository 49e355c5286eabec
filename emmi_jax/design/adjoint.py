"""Values and derivatives of functionals, chunk by chunk: memory does not grow with the number of points.

Forward, each chunk reads the keys and values of the anchors and leaves a few sums. Backward, each chunk is computed
again; what it says about the keys and values is added up, and goes back through the encoding once at the end. Where the
functional is linear in the sums, as forces are, every chunk goes forward and backward at once instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from emmi_jax.deploy.streaming import pipelined
from emmi_jax.design.chunks import Chunk, Chunks, localized
from emmi_jax.design.encoding import Tree, floats, hvp_encoding, jvp_encoding, vjp_encoding, zeros_like
from emmi_jax.design.program import ChunkProgram, chunk_sums, hvp_chunk, jvp_chunk, vjp_chunk
from emmi_jax.inference.streaming import QUERY_AXIS, device_mesh, encode_inputs
from emmi_jax.ops.attention import forward_mode

Pair: TypeAlias = tuple[Any, Any]
"""Something and its derivative along a direction."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Streams:
    """Sources of the numbers.

    Args:
        variables: ``{"params": ...}``.
        inputs: The arguments of the model's call for one case, with a batch axis.
        chunks: The points of each branch that the functional reads.
        chunk_size: Rows of a chunk, a multiple of the number of devices.
        advance: Called with the number of points of each chunk that is done, forward or backward.
    """

    variables: Mapping[str, Any]
    inputs: Mapping[str, Any]
    chunks: Mapping[str, Chunks]
    chunk_size: int
    advance: Callable[[int], object] = lambda num_points: None


def streamed_value(program: ChunkProgram, streams: Streams) -> jax.Array:
    """Returns the functional."""
    cache = _encode(program, streams)
    return program.value(_forward(program, streams, cache))


def streamed_gradient(
    program: ChunkProgram, streams: Streams, collect: Callable[[str, int, Any], None]
) -> tuple[jax.Array, dict[str, Any]]:
    """Returns the functional, and its gradient with respect to the inputs.

    Args:
        program: What is computed.
        streams: Where the numbers come from.
        collect: Called with branch, first row, and the gradient [C, K, 3] with respect to the offsets of each chunk.

    Returns:
        The value; and the gradient by argument of the model: anchors [1, T, 3] by branch and geometry points [1, P, 3]
        in model units, and the condition [1, c]. None where the model takes none.
    """
    cache = _encode(program, streams)
    same = _same_weights(program, streams, cache)
    weights = jax.grad(program.value)(_forward(program, streams, cache)) if same is None else {}
    sums: dict[str, list[Any]] = {branch: [] for branch in streams.chunks}
    totals = jax.tree.map(zeros_like, (floats(cache), streams.inputs.get("condition")))
    totals = jax.device_put(totals, NamedSharding(program.mesh, P()))
    constants = _constants(program, streams, cache)

    def start(branch: str, number: int, chunk: Chunk) -> Any:
        nonlocal totals
        d_sums = weights[branch][number] if same is None else same[branch]
        totals, *of_chunk = vjp_chunk(program, branch, *constants, chunk, d_sums, totals)
        return of_chunk

    for branch, number, chunk, (result, d_offset) in _each_chunk(program, streams, start):
        sums[branch].append(result)
        if d_offset is not None:
            collect(branch, number * streams.chunk_size, d_offset)
        streams.advance(int(chunk.is_real.sum()) * (1 if same is None else 2))
    value = program.value(sums)
    d_cache, d_condition = totals
    with _first_device(program):
        gradient = vjp_encoding(program.model, streams.variables, streams.inputs, _on_first(program, d_cache))
    if d_condition is not None:
        gradient["condition"] = jax.tree.map(jnp.add, gradient["condition"], _on_first(program, d_condition))
    return value, gradient


def streamed_derivative(
    program: ChunkProgram,
    streams: Streams,
    tangents: Mapping[str, Any],
    moved: Callable[[str, int], Any],
) -> tuple[jax.Array, jax.Array]:
    """Returns the functional and its derivative along one direction, in forward mode.

    Args:
        program: What is computed.
        streams: Where the numbers come from.
        tangents: Direction of the inputs: like the gradient of `streamed_gradient`.
        moved: From branch and first row to the direction of the offsets [C, K, 3] of a chunk.
    """
    _, _, sums, d_sums = _push(program, streams, tangents, moved)
    return jax.jvp(program.value, (sums,), (d_sums,))


def streamed_second_derivative(
    program: ChunkProgram,
    streams: Streams,
    tangents: Mapping[str, Any],
    moved: Callable[[str, int], Any],
    collect: Callable[[str, int, Any], None],
) -> tuple[Pair, Pair]:
    """Returns the functional and its gradient, and the derivatives of both along one direction.

    Args:
        program: What is computed.
        streams: Where the numbers come from.
        tangents: See `streamed_derivative`.
        moved: See `streamed_derivative`.
        collect: Called as by `streamed_gradient`, with a pair: the gradient with respect to the offsets of each chunk,
            and its derivative.

    Returns:
        The pairs of `streamed_gradient`'s results and of their derivatives: of the value, and of the gradient.
    """
    cache, d_cache, sums, sum_tangents = _push(program, streams, tangents, moved)
    (value, d_sums), (derivative, d_sum_tangents) = jax.jvp(jax.value_and_grad(program.value), (sums,), (sum_tangents,))
    zeros = jax.tree.map(zeros_like, (floats(cache), streams.inputs.get("condition")))
    totals = jax.device_put((zeros, jax.tree.map(jnp.copy, zeros)), NamedSharding(program.mesh, P()))
    *constants, shared = _constants(program, streams, cache, (d_cache, tangents["condition"]))

    def start(branch: str, number: int, chunk: Chunk) -> Any:
        nonlocal totals
        own = _own_direction(program, streams, branch, number, chunk, moved), d_sum_tangents[branch][number]
        with forward_mode(True):
            totals, d_offset = hvp_chunk(
                program, branch, *constants, chunk, d_sums[branch][number], shared, own, totals
            )
        return d_offset

    for branch, number, _, d_offset in _each_chunk(program, streams, start):
        if d_offset[0] is not None:
            collect(branch, number * streams.chunk_size, d_offset)
    first, second = _on_first(program, totals)
    with _first_device(program), forward_mode(True):
        gradients = hvp_encoding(program.model, streams.variables, streams.inputs, first[0], dict(tangents), second[0])
    for gradient, (_, d_condition) in zip(gradients, (first, second), strict=True):
        if d_condition is not None:
            gradient["condition"] = jax.tree.map(jnp.add, gradient["condition"], d_condition)
    return (value, derivative), gradients


def _push(
    program: ChunkProgram, streams: Streams, tangents: Mapping[str, Any], moved: Callable[[str, int], Any]
) -> tuple[Tree, Tree, Tree, Tree]:
    """Returns the cache and the sums of all chunks, each followed by its derivative along a direction."""
    with _first_device(program), forward_mode(True):
        cache, d_cache = jvp_encoding(program.model, streams.variables, streams.inputs, dict(tangents))
    sums: dict[str, list[Any]] = {branch: [] for branch in streams.chunks}
    d_sums: dict[str, list[Any]] = {branch: [] for branch in streams.chunks}
    *constants, shared = _constants(program, streams, cache, (d_cache, tangents["condition"]))

    def start(branch: str, number: int, chunk: Chunk) -> Any:
        own = _own_direction(program, streams, branch, number, chunk, moved)
        with forward_mode(True):
            return jvp_chunk(program, branch, *constants, chunk, shared, own)

    for branch, _, _, (result, d_result) in _each_chunk(program, streams, start):
        sums[branch].append(result)
        d_sums[branch].append(d_result)
    return cache, d_cache, sums, d_sums


def _own_direction(
    program: ChunkProgram, streams: Streams, branch: str, number: int, chunk: Chunk, moved: Callable[[str, int], Any]
) -> Any:
    """Returns the direction of the offsets of a chunk on its devices; None if it has none."""
    direction = None if chunk.offset is None else moved(branch, number * streams.chunk_size)
    return jax.device_put(direction, NamedSharding(program.mesh, P(QUERY_AXIS)))


def _encode(program: ChunkProgram, streams: Streams) -> Tree:
    with _first_device(program):
        return encode_inputs(program.model, streams.variables, streams.inputs)


def _forward(program: ChunkProgram, streams: Streams, cache: Tree) -> dict[str, list[Any]]:
    """Returns the sums of all chunks by branch."""
    sums: dict[str, list[Any]] = {branch: [] for branch in streams.chunks}
    constants = _constants(program, streams, cache)

    def start(branch: str, number: int, chunk: Chunk) -> Any:
        return chunk_sums(program, branch, *constants, chunk)

    for branch, _, chunk, result in _each_chunk(program, streams, start):
        sums[branch].append(result)
        streams.advance(int(chunk.is_real.sum()))
    return sums


def _same_weights(program: ChunkProgram, streams: Streams, cache: Tree) -> dict[str, Any] | None:
    """Returns the derivative of the functional by the sums of any chunk, by branch; None if it varies."""
    shapes = {}
    for branch, chunks in streams.chunks.items():
        chunk = localized(next(chunks(streams.chunk_size)), program.normalizer)
        arguments = streams.variables, cache, streams.inputs.get("condition"), chunk
        shapes[branch] = [jax.eval_shape(partial(chunk_sums, program, branch), *arguments)]
    weights = program.constant_weights(shapes)
    return None if weights is None else {branch: of_chunk for branch, [of_chunk] in weights.items()}


def _constants(program: ChunkProgram, streams: Streams, cache: Tree, *more: Tree) -> tuple[Tree, ...]:
    constants = (streams.variables, cache, streams.inputs.get("condition"), *more)
    return tuple(jax.device_put(constants, NamedSharding(program.mesh, P())))


def _first_device(program: ChunkProgram) -> Any:
    return jax.set_mesh(device_mesh(program.mesh.devices.reshape(-1)[:1].tolist()))


def _each_chunk(
    program: ChunkProgram, streams: Streams, start: Callable[[str, int, Chunk], _Result]
) -> Iterator[tuple[str, int, Chunk, _Result]]:
    """Yields the chunks of all branches with their results, and starts the next one before a result is read."""

    def begin(branch: str, numbered: tuple[int, Chunk]) -> _Result:
        chunk = localized(numbered[1], program.normalizer)
        on_devices = jax.device_put(chunk, NamedSharding(program.mesh, P(QUERY_AXIS)))
        with jax.set_mesh(program.mesh):
            return start(branch, numbered[0], on_devices)

    for branch, chunks in streams.chunks.items():
        numbered = enumerate(chunks(streams.chunk_size))
        results = pipelined(numbered, partial(begin, branch), lambda item, result: (*item, result))
        for number, chunk, result in results:
            yield branch, number, chunk, result


def _on_first(program: ChunkProgram, tree: Tree) -> Tree:
    return jax.device_put(tree, program.mesh.devices.reshape(-1)[0])
