"""A sweep over 21 angles beside single predictions: ``python -m benchmarks.condition_sweep``.

A model of the size of the recipe `ellipsoids-stream`, with random parameters, predicts the forces on a sphere. All
calls are warm and take turns. The condition modulates every block; the pooling of the geometry alone does not depend on
it, so its time, with that of the search of neighbours, is the most that a sweep could save per angle.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import jax
import numpy as np
from rich.console import Console

from benchmarks import measure
from emmi_jax.config import TrainSettings
from emmi_jax.data.load import load_dataset, make_normalizer
from emmi_jax.deploy.conditions import condition_dim
from emmi_jax.inference.streaming import _query
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.predict_meshes import MeshJob
from emmi_jax.jobs.predict_sweep import Sweep, predict_sweep
from emmi_jax.layers.supernode_pooling import Geometry, SupernodePooling
from emmi_jax.meshes.forces import ForceReference
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import init_params
from emmi_jax.training.plan import default_settings
from emmi_jax.training.recipes import read_recipe
from emmi_jax.training.settings import model_config

ANGLES = tuple(np.linspace(-10, 10, 21).tolist())
SPEED = ForceReference(area=1.0, speed=1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5, help="(%(default)s)")
    parser.add_argument("--resolution", type=int, default=100, help="of the sphere (%(default)s)")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/condition_sweep.json"), help="(%(default)s)"
    )
    options = parser.parse_args()
    settings = default_settings(None).updated(read_recipe("ellipsoids-stream"))
    surrogate = untrained(settings)
    with TemporaryDirectory() as folder:
        job, num_faces = write_meshes(Path(folder), options.resolution)

        def run(angles: tuple[float, ...]) -> None:
            predict_sweep(job, SPEED, surrogate, {}, Sweep("yaw", angles), "pitch=0", console=Console(quiet=True))

        run(ANGLES[:1])
        programs = _query._cache_size()  # type: ignore[attr-defined]
        calls = lambda: run(ANGLES), lambda: run(ANGLES[:1]), pooling(surrogate)
        sweep, single, pooled = in_turns(calls, options.turns)
        row = {
            "faces": num_faces,
            "sweep_s": sweep,
            "single_s": single,
            "sweep / 21 singles": sweep / (len(ANGLES) * single),
            "pooling_s": pooled,
            "programs compiled by the sweep": _query._cache_size() - programs,  # type: ignore[attr-defined]
        }
    measure.report(f"A sweep of {len(ANGLES)} angles, {measure.NUM_THREADS} threads", [row], options.json)


def untrained(settings: TrainSettings) -> Surrogate:
    """Returns a surrogate with random parameters."""
    dataset = load_dataset(settings)
    config = model_config(settings, dataset.fields, condition_dim(dataset.conditions), dataset.features)
    model = AnchoredBranchedUPT(config)
    normalizer = make_normalizer(settings, dataset)
    return Surrogate(model, init_params(model, seed=0), normalizer, settings.sampling)


def pooling(surrogate: Surrogate) -> Callable[[], object]:
    """Returns a call that pools the geometry of a case, compiled, its search of neighbours included."""
    config, sampling = surrogate.model.config, surrogate.sampling
    position = np.random.default_rng(0).uniform(0, 100, size=(1, sampling.num_geometry_points, 3)).astype(np.float32)
    geometry = Geometry(position, np.arange(sampling.num_test_supernodes, dtype=np.int32)[None])
    module = SupernodePooling(config.dim, config.supernode_pooling, config.others)
    pool = jax.jit(lambda params: module.apply({"params": params}, geometry))
    jax.block_until_ready(pool(surrogate.params["encoder"]))
    return lambda: jax.block_until_ready(pool(surrogate.params["encoder"]))


def write_meshes(folder: Path, resolution: int) -> tuple[MeshJob, int]:
    """Writes a sphere with an array in its cells and points around it; returns the job and the number of faces."""
    pyvista = import_pyvista()
    sphere = pyvista.Sphere(radius=1.0, theta_resolution=resolution, phi_resolution=resolution)
    sphere.cell_data["p"] = np.zeros(sphere.n_cells, np.float32)
    around = pyvista.PolyData(2.0 * np.asarray(sphere.points)).cast_to_unstructured_grid()
    meshes = {"surface": folder / "surface.vtp", "volume": folder / "volume.vtu"}
    sphere.save(meshes["surface"])
    around.save(meshes["volume"])
    return MeshJob(meshes=meshes, out=folder / "out"), sphere.n_cells


def in_turns(calls: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """Returns the median seconds of calls that take turns."""
    seconds: list[list[float]] = [[] for _ in calls]
    for _ in range(turns):
        for times, call in zip(seconds, calls, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return [statistics.median(times) for times in seconds]


if __name__ == "__main__":
    main()
