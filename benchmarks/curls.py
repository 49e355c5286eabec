"""Divergence-free fields at the published sizes, on an accelerator: ``python -m benchmarks.curls``.

The rows are the model without potentials, with them, and with them where attention leaves out the kernel ``flash``. All
are timed in turns.
"""

from __future__ import annotations

import contextlib
import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import ab_upt, measure
from emmi_jax import AbUptConfig, AnchoredBranchedUPT, encode, predict
from emmi_jax.convert import PRESETS
from emmi_jax.models.init import init_params

POTENTIALS = {"volume": ("velocity",)}
MODELS: dict[str, tuple[Any, bool]] = {
    "plain": ({}, False),
    "curls": (POTENTIALS, False),
    "curls without flash": (POTENTIALS, True),
}


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/curls.json")
    parser.add_argument("--queries", type=int, default=131_072, help="number of volume queries (%(default)s)")
    parser.add_argument("--anchors", type=int, default=16_384, help="anchors per branch (%(default)s)")
    parser.add_argument("--points", type=int, default=65_536, help="geometry points (%(default)s)")
    parser.add_argument("--supernodes", type=int, default=16_384, help="supernodes (%(default)s)")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--dtype", default="bfloat16")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {name: {"model": name} for name in options.models}
    for kind, contestant in (("stream", _streaming), ("step", _training)):
        calls = {}
        for name in options.models:
            with measure.without("flash") if MODELS[name][1] else contextlib.nullcontext():
                start = time.perf_counter()
                calls[name] = contestant(*MODELS[name], options)
                measure.wait(calls[name]())
                rows[name][f"{kind}_first_s"] = time.perf_counter() - start
        # A model without flash takes seconds: no means of ten calls.
        measure.CALLS_PER_SAMPLE = 1
        times = measure.interleaved_medians(calls, options.seconds)
        for name, seconds in times.items():
            rows[name] |= {f"{kind}_ms": 1e3 * seconds, f"{kind}_ratio": seconds / next(iter(times.values()))}
    sizes = f"{options.queries} volume queries, {options.anchors} anchors per branch"
    title = f"{sizes}, {options.dtype}, {measure.DEVICE}; ratios are to {options.models[0]}"
    measure.report(title, list(rows.values()), options.json)


def _model(potentials: Any, remat: bool, options: Any) -> tuple[AnchoredBranchedUPT, Any, dict[str, Any]]:
    changes = {"dtype": options.dtype, "vector_potentials": potentials, "remat": remat}
    config = AbUptConfig.from_dict(PRESETS["drivaerml-tutorial"].config.to_dict() | changes)
    model = AnchoredBranchedUPT(config)
    return model, jax.device_put(init_params(model, seed=0)), ab_upt.make_inputs(config, options)


def _streaming(potentials: Any, without_flash: bool, options: Any) -> Any:
    # `predict` keeps its programs by configuration, and `remat` does nothing where nothing is trained.
    model, params, inputs = _model(potentials, without_flash, options)
    geometry = jax.tree.map(lambda x: np.asarray(x[0]), inputs["geometry"]._replace(neighbors=None))
    anchors = {branch: np.asarray(position[0]) for branch, position in inputs["anchors"].items()}
    cache = encode(model, {"params": params}, anchors=anchors, geometry=geometry)
    queries = np.random.default_rng(0).uniform(0, 1000, (options.queries, 3)).astype(np.float32)
    return functools.partial(predict, model, {"params": params}, cache, {"volume": queries})


def _training(potentials: Any, without_flash: bool, options: Any) -> Any:
    model, params, inputs = _model(potentials, False, options)
    return ab_upt.make_jax_step(model, jax.tree.map(jnp.copy, params), inputs)[0]


if __name__ == "__main__":
    main()
