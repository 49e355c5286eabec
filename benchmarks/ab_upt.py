"""One AB-UPT training step against PyTorch: ``python -m benchmarks.ab_upt``."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

from benchmarks import measure, torch_model
from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry
from emmi_jax.convert import PRESETS, ab_upt_from_torch
from emmi_jax.ops.neighbors import Neighbors
from emmi_jax.ops.neighbors_host import radius_neighbors_host

LEARNING_RATE = 5e-5


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/ab_upt.json")
    parser.add_argument("--anchors", type=int, default=1024, help="anchors per branch (%(default)s)")
    parser.add_argument("--points", type=int, default=4096, help="geometry points (%(default)s)")
    parser.add_argument("--supernodes", type=int, default=1024, help="supernodes (%(default)s)")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of products (%(default)s)")
    parser.add_argument("--implementations", nargs="+", default=["auto"], help="the first counts (%(default)s)")
    options = parser.parse_args()
    measure.use_all_threads()
    config = AbUptConfig.from_dict(
        PRESETS["drivaerml-tutorial"].config.to_dict()
        | {"implementation": options.implementations[0], "dtype": options.dtype}
    )
    inputs = make_inputs(config, options)
    torch.manual_seed(0)
    reference = torch_model.AbUpt.from_config(config).to(measure.TORCH_DEVICE)
    params = jax.tree.map(jnp.asarray, ab_upt_from_torch(reference.state_dict(), config))
    model = AnchoredBranchedUPT(config)
    predicted = jax.jit(model.apply)({"params": params}, **inputs)
    torch_inputs = _to_torch(inputs)
    with torch.no_grad():
        expected = _predict(reference, torch_inputs, options.dtype)
    difference = measure.check_equal(
        {"jax": [predicted[name] for name in expected], "torch": list(expected.values())}, options.dtype
    )
    jax_step, first_call = make_jax_step(model, jax.tree.map(jnp.copy, params), inputs)
    contestants = {"jax": jax_step}
    for name in options.implementations[1:]:
        other = AnchoredBranchedUPT(dataclasses.replace(config, implementation=name))
        contestants[name], _ = make_jax_step(other, jax.tree.map(jnp.copy, params), inputs)
    contestants |= {"torch": _torch_step(reference, torch_inputs, options.dtype)}
    if options.torch_compile:
        contestants["compiled_torch"] = _torch_step(torch.compile(reference), torch_inputs, options.dtype)
    for call in contestants.values():
        measure.wait(call())
    times = measure.interleaved_medians(contestants, options.seconds)
    row: dict[str, Any] = {
        "anchors_per_branch": options.anchors,
        "points": options.points,
        "supernodes": options.supernodes,
        "jax_ms": 1e3 * times["jax"],
        "compile_and_first_s": first_call,
    }
    for name in list(times)[1:]:
        row |= {f"{name}_ms": 1e3 * times[name], f"ratio_{name}": times[name] / times["jax"]}
    row |= measure.peak_memory(contestants)
    title = f"AB-UPT training step, {measure.DEVICE}, {options.dtype}; ratios are to jax"
    measure.report(title, [row | {"difference": difference}], options.json)


def make_inputs(config: AbUptConfig, options: Any) -> dict[str, Any]:
    rng = np.random.default_rng(0)

    def positions(num: int, scale: float) -> jax.Array:
        return jnp.asarray(rng.uniform(0, scale, (1, num, 3)).astype(np.float32))

    # In a box of this size, the radius of 0.25 holds about as many neighbours as on a car.
    points = positions(options.points, 2.0)
    idx = rng.permutation(options.points)[None, : options.supernodes].astype(np.int32)
    pooling = config.supernode_pooling
    neighbors = radius_neighbors_host(points, idx, radius=pooling.radius, max_degree=pooling.max_degree)
    return {
        "anchors": {branch: positions(options.anchors, 1000) for branch in config.branches},
        "geometry": Geometry(points, jnp.asarray(idx), Neighbors(*map(jnp.asarray, neighbors))),
    }


def _to_torch(inputs: dict[str, Any]) -> dict[str, Any]:
    tensors = jax.tree.map(lambda a: torch.from_numpy(np.array(a)).to(measure.TORCH_DEVICE), inputs)
    geometry = tensors["geometry"]
    # PyTorch's own search sorts all distances. A data loader would find the neighbours, so both models are given them.
    return {
        "anchors": tensors["anchors"],
        "geometry_position": geometry.position,
        "geometry_supernode_idx": geometry.supernode_idx.long(),
        "geometry_neighbors": (geometry.neighbors.idx.long(), geometry.neighbors.mask),
    }


def _predict(reference: Any, inputs: dict[str, Any], dtype: str) -> dict[str, torch.Tensor]:
    with torch.autocast(measure.TORCH_DEVICE, torch.bfloat16, enabled=dtype == "bfloat16"):
        return reference(**inputs)


def make_jax_step(model: AnchoredBranchedUPT, params: Any, inputs: dict[str, Any]) -> tuple[Any, float]:
    optimizer = optax.adamw(LEARNING_RATE)

    def loss_fn(params: Any) -> jax.Array:
        return sum(jnp.mean(a.astype(jnp.float32) ** 2) for a in model.apply({"params": params}, **inputs).values())

    def step(params: Any, opt_state: Any) -> Any:
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, loss

    step, state = jax.jit(step, donate_argnums=(0, 1)), [params, optimizer.init(params)]

    def call() -> Any:
        *state[:], loss = step(*state)
        return loss

    start = time.perf_counter()
    jax.block_until_ready(call())
    return call, time.perf_counter() - start


def _torch_step(reference: Any, inputs: dict[str, Any], dtype: str) -> Any:
    optimizer = torch.optim.AdamW(reference.parameters(), lr=LEARNING_RATE, weight_decay=1e-4)

    def call() -> torch.Tensor:
        optimizer.zero_grad()
        loss = sum(a.float().square().mean() for a in _predict(reference, inputs, dtype).values())
        loss.backward()
        optimizer.step()
        return loss

    return call


if __name__ == "__main__":
    main()
