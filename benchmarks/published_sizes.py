"""Streams queries at the published sizes, on an accelerator: ``python -m benchmarks.published_sizes``."""

from __future__ import annotations

import itertools
import statistics
import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, encode, predict
from emmi_jax.convert import PRESETS
from emmi_jax.models.init import init_params

REPEATS = 3
NUM_ANCHORS, NUM_GEOMETRY_POINTS, NUM_SUPERNODES = 16_384, 65_536, 16_384


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/published_sizes.json")
    parser.add_argument("--queries", type=int, default=7_800_000, help="number of surface queries (%(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    parser.add_argument("--implementations", nargs="+", default=["auto"], help="timed in turns (%(default)s)")
    options = parser.parse_args()
    title = f"{NUM_ANCHORS} anchors per branch, {NUM_SUPERNODES} supernodes, {measure.DEVICE}; random weights"
    cases = [_Case(*pair, options.queries) for pair in itertools.product(options.dtypes, options.implementations)]
    for _ in range(REPEATS):
        for case in cases:
            case.measure()
    measure.report(title, [case.row() for case in cases], options.json)


class _Case:
    """A model of one dtype and implementation, with its times."""

    def __init__(self, dtype: str, implementation: str, num_queries: int) -> None:
        changes = {"dtype": dtype, "implementation": implementation}
        config = AbUptConfig.from_dict(PRESETS["drivaerml-tutorial"].config.to_dict() | changes)
        self.model, rng = AnchoredBranchedUPT(config), np.random.default_rng(0)
        self.variables = {"params": jax.device_put(init_params(self.model, seed=0))}

        def positions(num: int, scale: float = 1000.0) -> np.ndarray:
            return rng.uniform(0, scale, (num, 3)).astype(np.float32)

        self.inputs = {
            "anchors": {branch: positions(NUM_ANCHORS) for branch in config.branches},
            # In a box of this size, a ball of the pooling's radius holds about max_degree points.
            "geometry": Geometry(
                positions(NUM_GEOMETRY_POINTS, 5.0),
                rng.permutation(NUM_GEOMETRY_POINTS)[:NUM_SUPERNODES].astype(np.int32),
            ),
        }
        self.queries = {"surface": positions(num_queries)}
        self.names = {"dtype": dtype, "implementation": implementation, "queries": num_queries}
        self.times: dict[str, list[float]] = {"encode_s": [], "stream_s": []}
        self.cache, self.encode_first = _timed(self.encode)
        self.stream({"surface": self.queries["surface"][:1]})  # compiles

    def encode(self) -> Any:
        return jax.block_until_ready(encode(self.model, self.variables, **self.inputs))

    def stream(self, queries: Any) -> Any:
        return predict(self.model, self.variables, self.cache, queries)

    def measure(self) -> None:
        self.encode()
        self.times["encode_s"] += [_timed(self.encode)[1] for _ in range(5)]
        self.times["stream_s"] += [_timed(lambda: self.stream(self.queries))[1]]

    def row(self) -> dict[str, Any]:
        medians = {name: statistics.median(times) for name, times in self.times.items()}
        rate = {"queries_per_second": self.names["queries"] / medians["stream_s"]}
        return self.names | {"encode_first_s": self.encode_first} | medians | rate


def _timed(call: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
