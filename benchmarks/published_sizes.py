"""Streams queries at the published sizes, on an accelerator: ``python -m benchmarks.published_sizes``."""

from __future__ import annotations

import time
from typing import Any

import jax
import numpy as np

from benchmarks import measure
from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, encode, predict
from emmi_jax.convert import PRESETS
from emmi_jax.models.init import init_params

NUM_ANCHORS, NUM_GEOMETRY_POINTS, NUM_SUPERNODES = 16_384, 65_536, 16_384


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/published_sizes.json")
    parser.add_argument("--queries", type=int, default=7_800_000, help="number of surface queries (%(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"])
    options = parser.parse_args()
    title = f"{NUM_ANCHORS} anchors per branch, {NUM_SUPERNODES} supernodes, {measure.DEVICE}; random weights"
    measure.report(title, [_row(dtype, options.queries) for dtype in options.dtypes], options.json)


def _row(dtype: str, num_queries: int) -> dict[str, Any]:
    config = AbUptConfig.from_dict(PRESETS["drivaerml-tutorial"].config.to_dict() | {"dtype": dtype})
    model = AnchoredBranchedUPT(config)
    variables = {"params": init_params(model, seed=0)}
    rng = np.random.default_rng(0)

    def positions(num: int, scale: float = 1000.0) -> np.ndarray:
        return rng.uniform(0, scale, (num, 3)).astype(np.float32)

    inputs = {
        "anchors": {branch: positions(NUM_ANCHORS) for branch in config.branches},
        # In a box of this size, a ball of the pooling's radius holds about max_degree points.
        "geometry": Geometry(
            positions(NUM_GEOMETRY_POINTS, 5.0),
            rng.permutation(NUM_GEOMETRY_POINTS)[:NUM_SUPERNODES].astype(np.int32),
        ),
    }
    queries = {"surface": positions(num_queries)}
    cache, encode_first = _timed(lambda: jax.block_until_ready(encode(model, variables, **inputs)))
    _, encode_again = _timed(lambda: jax.block_until_ready(encode(model, variables, **inputs)))
    predict(model, variables, cache, {"surface": queries["surface"][:1]})  # compiles
    _, seconds = _timed(lambda: predict(model, variables, cache, queries))
    return {
        "dtype": dtype,
        "queries": num_queries,
        "encode_first_s": encode_first,
        "encode_s": encode_again,
        "stream_s": seconds,
        "queries_per_second": num_queries / seconds,
    }


def _timed(call: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    result = call()
    return result, time.perf_counter() - start


if __name__ == "__main__":
    main()
