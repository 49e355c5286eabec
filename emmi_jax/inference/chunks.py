"""Sizes of the chunks that queries are cut into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import jax

from emmi_jax.config import AbUptConfig
from emmi_jax.deploy.surrogate import check_chunk_size

ChunkSize: TypeAlias = int | Literal["auto"]

CPU_CHUNK_SIZE = 4096
"""Meaning of "auto" on a device that does not report its memory."""

LARGEST_CHUNK_SIZE = 2**17
"""The most queries that "auto" gives one device; more would not keep it busier."""

_MEMORY_SHARE = 0.25


def resolve_chunk_size(
    chunk_size: ChunkSize, config: AbUptConfig, cache: Any, devices: Sequence[jax.Device], *, num_layers: int = 1
) -> int:
    """Returns the number of queries per call of the model, a multiple of the number of devices.

    "auto" fills a quarter of each device's free memory, by an estimate of the activations, with at most
    `LARGEST_CHUNK_SIZE` queries. On a device that does not report its memory it is `CPU_CHUNK_SIZE`, and a quarter of
    that with vector potentials. `num_layers` is the number of layers whose activations are alive at once: 1 unless a
    derivative needs them later.

    Raises:
        ValueError: It is neither "auto" nor a positive integer.
    """
    if isinstance(chunk_size, str) and chunk_size == "auto":
        return len(devices) * min(_auto_chunk_size(config, cache, device, num_layers) for device in devices)
    return -(-check_chunk_size(chunk_size) // len(devices)) * len(devices)


def _auto_chunk_size(config: AbUptConfig, cache: Any, device: jax.Device, num_layers: int) -> int:
    # A curl takes three derivatives beside the value.
    num_passes = 4 if config.vector_potentials else 1
    stats = device.memory_stats() if device.platform != "cpu" else None
    if not stats or "bytes_limit" not in stats:
        return CPU_CHUNK_SIZE // num_passes
    # Residuals, q, k, v, rotations and both sides of the MLP, in float32 at worst; two chunks are alive.
    values = 16 * config.dim + 3 * max(config.mlp_hidden_dim or 0, (config.mlp_ratio or 0) * config.dim)
    if config.implementation in ("masked", "xla"):  # these hold the logits of every key
        keys = [leaf.shape[1] for leaf in jax.tree.leaves(cache) if leaf.ndim == 4]
        values += 3 * config.num_heads * len(config.branches) * max(keys, default=0)
    free = stats["bytes_limit"] - stats.get("bytes_in_use", 0)
    fitting = max(1, int(_MEMORY_SHARE * free / (4 * values * num_passes * num_layers)))
    return min(LARGEST_CHUNK_SIZE, 1 << (fitting.bit_length() - 1))
