"""The size of a chunk: given, or from the memory and the model."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from emmi_jax.inference.chunks import CPU_CHUNK_SIZE, LARGEST_CHUNK_SIZE, resolve_chunk_size
from tests.inference.streaming_cases import CONFIG, QUERIES, case


@pytest.mark.parametrize("chunk_size", [0, -1, 2.5, "all", True])
def test_a_wrong_chunk_size_is_named(chunk_size):
    with pytest.raises(ValueError, match=re.escape(f"'auto' or a positive integer, got {chunk_size!r}")):
        case(CONFIG)(QUERIES, chunk_size=chunk_size)


class FakeDevice:
    platform = "gpu"

    def __init__(self, **stats: int) -> None:
        self.stats = stats

    def memory_stats(self) -> dict[str, int] | None:
        return self.stats or None


def automatic(*devices: FakeDevice, **changes: Any) -> int:
    cache = {"key": np.zeros((1, 1024, 3, 64), np.float32)}
    return resolve_chunk_size("auto", dataclasses.replace(CONFIG, dim=192, **changes), cache, devices)


def test_the_automatic_chunk_grows_with_free_memory_up_to_a_limit():
    sizes = [automatic(FakeDevice(bytes_limit=gib * 2**30, bytes_in_use=0)) for gib in (1, 4, 1000)]
    assert sizes == sorted(set(sizes))
    assert sizes[-1] == LARGEST_CHUNK_SIZE
    assert automatic(FakeDevice(bytes_limit=4 * 2**30, bytes_in_use=3 * 2**30)) == sizes[0]


def test_the_automatic_chunk_is_smaller_where_logits_are_held():
    device = FakeDevice(bytes_limit=2**30, bytes_in_use=0)
    assert automatic(device, implementation="masked") < automatic(device)


@pytest.mark.parametrize("device", [FakeDevice(), FakeDevice(bytes_limit=2**30, bytes_in_use=0)])
def test_the_automatic_chunk_is_smaller_for_curls(device):
    assert automatic(device, vector_potentials={"volume": ("velocity",)}) <= automatic(device) // 4


def test_the_automatic_chunk_has_a_default_where_memory_is_not_known_and_counts_devices():
    assert automatic(FakeDevice()) == CPU_CHUNK_SIZE
    small, large = FakeDevice(bytes_limit=2**30, bytes_in_use=0), FakeDevice(bytes_limit=2**34, bytes_in_use=0)
    assert automatic(small, large) == 2 * automatic(small)
