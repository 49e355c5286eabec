"""Streams the gradient of the drag with respect to every vertex: ``python -m benchmarks.sensitivity``."""

from __future__ import annotations

import argparse
import functools
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Surrogate
from emmi_jax.config import Sampling
from emmi_jax.convert import PRESETS
from emmi_jax.data.normalization import FieldScale, Normalizer
from emmi_jax.design import Surface, drag, evaluate, sensitivity
from emmi_jax.models.init import init_params

SIZES = {
    "small": {"anchors": 256, "geometry": 1024, "supernodes": 256},
    "published": {"anchors": 16_384, "geometry": 65_536, "supernodes": 16_384},
}
SMALL = {"dim": 48, "num_heads": 3, "physics_blocks": ("perceiver", "joint"), "decoder_depths": {}}
SEMI_AXES = (2.3, 1.0, 0.75)
LARGEST_RATIO = 4.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", nargs="+", type=int, default=[100_000], help="cells of the surface (%(default)s)")
    parser.add_argument("--sizes", choices=SIZES, default="small", help="sizes of the model (%(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], help="float32 or bfloat16 (%(default)s)")
    parser.add_argument("--implementations", nargs="+", default=["auto"], help="timed in turns (%(default)s)")
    parser.add_argument("--chunk-size", type=int, help="points per call of the model; default: by the memory")
    parser.add_argument("--repeats", type=int, default=3, help="timed calls, of which the median counts (%(default)s)")
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/sensitivity.json"))
    options = parser.parse_args()
    rows = [row for dtype in options.dtypes for num in options.points for row in _rows(options, dtype, num)]
    title = f"Gradient of the drag, {options.sizes} sizes, {measure.DEVICE}; ratio = sensitivity / forward stream"
    measure.report(title, rows, options.json)


def ellipsoid(num_cells: int) -> Surface:
    """A closed ellipsoid of about so many quadrilaterals."""
    across = max(3, round((num_cells / 2) ** 0.5))
    around = max(3, round(num_cells / across))
    polar, azimuth = np.linspace(0, np.pi, across + 1), np.linspace(0, 2 * np.pi, around, endpoint=False)
    polar, azimuth = np.meshgrid(polar, azimuth, indexing="ij")
    unit = np.stack([np.cos(polar), np.sin(polar) * np.cos(azimuth), np.sin(polar) * np.sin(azimuth)], axis=-1)
    row, column = np.meshgrid(np.arange(across), np.arange(around), indexing="ij")
    following = (column + 1) % around
    at = [row * around + column, (row + 1) * around + column, (row + 1) * around + following, row * around + following]
    corners = np.stack(at, axis=-1).reshape(-1, 4)
    return Surface(unit.reshape(-1, 3) * SEMI_AXES, corners, np.full(len(corners), 4))


def _surrogate(sizes: str, dtype: str, implementation: str) -> Surrogate:
    changes: dict[str, Any] = {"dtype": dtype, "implementation": implementation} | (SMALL if sizes == "small" else {})
    config = AbUptConfig.from_dict(PRESETS["drivaerml-tutorial"].config.to_dict() | changes)
    model, number = AnchoredBranchedUPT(config), SIZES[sizes]
    scales = {
        branch: {name: FieldScale(mean=(0.0,) * channels, std=(1.0,) * channels) for name, channels in names.items()}
        for branch, names in config.fields.items()
    }
    low, high = np.full(3, -3.0), np.full(3, 3.0)
    sampling = Sampling(
        num_anchors=number["anchors"],
        num_queries=0,
        num_test_anchors=number["anchors"],
        num_geometry_points=number["geometry"],
        num_supernodes=number["supernodes"],
        num_test_supernodes=number["supernodes"],
    )
    normalizer = Normalizer.from_box(low, high, position_range=1000.0, fields=scales)
    return Surrogate(model, jax.device_put(init_params(model, seed=0)), normalizer, sampling)


def _rows(options: Any, dtype: str, num_cells: int) -> list[dict[str, Any]]:
    surface, functional = ellipsoid(num_cells), drag(speed=38.889, area=2.17)
    calls: dict[tuple[str, str], Callable[[], Any]] = {}
    for implementation in options.implementations:
        surrogate, rng = _surrogate(options.sizes, dtype, implementation), np.random.default_rng(0)
        anchors = {
            branch: rng.uniform(-3, 3, (SIZES[options.sizes]["anchors"], 3))
            for branch in surrogate.model.config.branches
            if branch != "surface"
        }
        size = "auto" if options.chunk_size is None else options.chunk_size
        arguments: dict[str, Any] = {"anchors": anchors, "chunk_size": size}
        arguments["draws"] = sensitivity(surrogate, surface, functional, **arguments).draws  # compiles
        evaluate(surrogate, surface, functional, **arguments)
        for name, call in (("forward", evaluate), ("both", sensitivity)):
            calls[implementation, name] = functools.partial(call, surrogate, surface, functional, **arguments)
    times: dict[tuple[str, str], list[float]] = {name: [] for name in calls}
    for _ in range(options.repeats):
        for name, timed in calls.items():
            start = time.perf_counter()
            timed()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(seconds) for name, seconds in times.items()}
    return [
        {
            "dtype": dtype,
            "implementation": implementation,
            "points": surface.num_cells,
            "forward_s": medians[implementation, "forward"],
            "sensitivity_s": medians[implementation, "both"],
            "points_per_second": surface.num_cells / medians[implementation, "both"],
            "ratio": medians[implementation, "both"] / medians[implementation, "forward"],
            "bar": f"<= {LARGEST_RATIO}",
            "device_peak_gib": _device_peak_gib(),
            "host_peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }
        for implementation in options.implementations
    ]


def _device_peak_gib() -> float | None:
    """The most memory in use on the first device since the process began; None where it does not tell."""
    stats = jax.devices()[0].memory_stats() or {}
    return stats["peak_bytes_in_use"] / 2**30 if "peak_bytes_in_use" in stats else None


if __name__ == "__main__":
    main()
