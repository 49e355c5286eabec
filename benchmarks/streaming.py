"""Streaming: memory by number of queries, and speed against PyTorch: ``python -m benchmarks.streaming``."""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks import measure, torch_model
from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, encode, predict
from emmi_jax.convert import PRESETS, ab_upt_from_torch
from emmi_jax.models.init import init_params
from emmi_jax.ops.neighbors_host import radius_neighbors_host

NUM_ANCHORS, NUM_GEOMETRY_POINTS, NUM_SUPERNODES = 1024, 65_536, 16_384
FEW, MANY = 200_000, 2_000_000
TORCH_CHUNK_SIZE = 4096
BRANCH = "volume"
FIELDS = {"surface": {"pressure": 1, "wallshearstress": 3}, BRANCH: {"pressure": 1, "velocity": 3}}


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/streaming.json")
    parser.add_argument("--queries", type=int, default=8 * TORCH_CHUNK_SIZE, help="number to time (%(default)s)")
    parser.add_argument("--memory-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.memory_of is not None:
        print(_peak_resident_bytes(options.memory_of))
        return
    peaks = [_in_own_process(num) for num in (FEW, MANY)]
    memory = {"queries": f"{FEW:,} and {MANY:,}", "peaks_mib": " and ".join(f"{peak / 2**20:.0f}" for peak in peaks)}
    rows = [{"what": "peak memory", **memory, "ratio": peaks[1] / peaks[0], "bar": "<= 1.15"}]
    measure.report("Peak resident memory of a process", rows, options.json.with_stem("streaming_memory"))
    measure.use_all_threads()
    title = f"{NUM_ANCHORS} anchors per branch, {measure.NUM_THREADS} threads, float32; ratio = jax / torch"
    measure.report(title, [_speed(options)], options.json)


def _in_own_process(num_queries: int) -> int:
    command = [sys.executable, "-m", "benchmarks.streaming", "--memory-of", str(num_queries)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak_resident_bytes(num_queries: int) -> int:
    """Streams queries from memory-map to memory-map with a small model; nothing else may run in this process."""
    config = AbUptConfig(dim=12, num_heads=1, fields=FIELDS, physics_blocks=("self",), decoder_depths={}, mlp_ratio=1)
    model = AnchoredBranchedUPT(config)
    variables = {"params": init_params(model, seed=0)}
    rng = np.random.default_rng(0)
    cache = encode(model, variables, anchors={branch: _positions(rng, 64) for branch in config.branches})
    with tempfile.TemporaryDirectory() as folder:

        def memory_map(name: str, channels: int) -> np.memmap:
            return np.memmap(Path(folder) / name, np.float32, "w+", shape=(num_queries, channels))

        queries = memory_map("positions", 3)
        for start in range(0, num_queries, FEW):
            queries[start : start + FEW] = _positions(rng, min(FEW, num_queries - start))
        queries.flush()
        queries = np.memmap(Path(folder) / "positions", np.float32, "r", shape=(num_queries, 3))
        out = {f"{BRANCH}_{name}": memory_map(name, channels) for name, channels in FIELDS[BRANCH].items()}
        predict(model, variables, cache, {BRANCH: queries}, out=out)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _positions(rng: np.random.Generator, num: int, scale: float = 1000.0) -> np.ndarray:
    return rng.uniform(0, scale, (num, 3)).astype(np.float32)


def _speed(options: Any) -> dict[str, Any]:
    config = AbUptConfig.from_dict(PRESETS["drivaerml-tutorial"].config.to_dict() | {"fields": FIELDS})
    rng = np.random.default_rng(0)
    anchors = {branch: _positions(rng, NUM_ANCHORS) for branch in config.branches}
    # In a box of this size, a ball of the pooling's radius holds about max_degree points.
    geometry = _positions(rng, NUM_GEOMETRY_POINTS, 5.0)
    supernode_idx = rng.permutation(NUM_GEOMETRY_POINTS)[:NUM_SUPERNODES].astype(np.int32)
    queries = _positions(rng, options.queries)
    reference = torch_model.AbUpt.from_config(config).eval()
    model = AnchoredBranchedUPT(config)
    variables = {"params": jax.tree.map(jnp.asarray, ab_upt_from_torch(reference.state_dict(), config))}

    def ours() -> list[np.ndarray]:
        cache = encode(model, variables, anchors=anchors, geometry=Geometry(geometry, supernode_idx))
        return list(predict(model, variables, cache, {BRANCH: queries}).values())

    # PyTorch's own search would hold all distances, too many here, so it is given the neighbours. Ours searches.
    pooling = config.supernode_pooling
    neighbors = radius_neighbors_host(
        geometry[None], supernode_idx[None], radius=pooling.radius, max_degree=pooling.max_degree
    )
    idx, mask = (torch.from_numpy(np.array(a)) for a in neighbors)
    inputs = {
        "anchors": {branch: torch.from_numpy(position)[None] for branch, position in anchors.items()},
        "geometry_position": torch.from_numpy(geometry)[None],
        "geometry_supernode_idx": torch.from_numpy(supernode_idx).long()[None],
        "geometry_neighbors": (idx.long(), mask),
    }

    @torch.no_grad()
    def theirs() -> list[np.ndarray]:
        chunks = []
        for chunk in torch.from_numpy(queries).split(TORCH_CHUNK_SIZE):
            outputs = reference(queries={BRANCH: chunk[None]}, **inputs)
            chunks.append([outputs[f"query_{BRANCH}_{name}"][0].numpy() for name in FIELDS[BRANCH]])
        return [np.concatenate(field) for field in zip(*chunks, strict=True)]

    difference = measure.check_equal({"jax": ours(), "torch": theirs()}, "float32")
    times = measure.interleaved_medians({"jax": ours, "torch": theirs}, options.seconds)
    return {
        "queries": options.queries,
        **{f"{name}_queries_per_second": options.queries / seconds for name, seconds in times.items()},
        "ratio": times["torch"] / times["jax"],
        "bar": ">= 2",
        "difference": difference,
    }


if __name__ == "__main__":
    main()
