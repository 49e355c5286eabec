"""Gradients of a surrogate of the built-in ellipsoids beside exact ones: ``python -m benchmarks.ellipsoid_angles RUN``.

For each of the 40 test ellipsoids: the derivative of an integral of the surface pressure coefficient, and of its
smooth minimum, with respect to the three semi-axes, and the angle to that of the exact flow on the same mesh.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyvista
from numpy.typing import NDArray

from benchmarks import measure
from emmi_jax.data.ellipsoids import EllipsoidDataset
from emmi_jax.data.potential_flow import Ellipsoid
from emmi_jax.design import Surface, integral, read_surface, sensitivity, smooth_minimum
from emmi_jax.points import PointSet
from emmi_jax.runs.load import load_run

Vector = NDArray[np.float64]
SHARPNESS, STEP = 20.0, 1e-4
FUNCTIONALS = {
    "integral": integral("surface", "pressure_coefficient"),
    "suction peak": smooth_minimum("surface", "pressure_coefficient", sharpness=SHARPNESS),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run on the built-in ellipsoids")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/ellipsoid_angles.json"), help="(%(default)s)"
    )
    options = parser.parse_args()
    surrogate = load_run(options.run)
    sphere, rows = unit_sphere(), []
    for name, functional in FUNCTIONALS.items():
        angles, ratios = [], []
        for number, body in enumerate(EllipsoidDataset(surrogate.sampling).test_bodies):
            surface = stretched(sphere, body)
            volume = PointSet(body.sample_volume(np.random.default_rng(number), 4096), {})
            found = sensitivity(surrogate, surface, functional, points={"volume": volume})
            # A vertex is rotation @ (unit * semi_axes).
            predicted = ((found.vertices @ body.rotation) * sphere.vertices).sum(axis=0)
            steps = STEP * np.eye(3)
            exact = np.array(
                [
                    sum(sign * _exact(name, sphere, body.semi_axes + sign * step, body.rotation) for sign in (1, -1))
                    / (2 * STEP)
                    for step in steps
                ]
            )
            norms = np.linalg.norm(predicted), np.linalg.norm(exact)
            angles.append(float(np.degrees(np.arccos(np.clip(predicted @ exact / np.prod(norms), -1, 1)))))
            ratios.append(float(norms[0] / norms[1]))
        rows.append(
            {
                "derivative of the": name,
                "shapes": len(angles),
                "median_angle_deg": float(np.median(angles)),
                "nine_in_ten_below_deg": float(np.quantile(angles, 0.9)),
                "largest_deg": max(angles),
                "median_ratio_of_lengths": float(np.median(ratios)),
            }
        )
    measure.report(f"gradients with respect to the semi-axes, {measure.DEVICE}", rows, options.json)


def unit_sphere() -> Surface:
    with TemporaryDirectory() as folder:
        sphere = pyvista.Icosphere(radius=1.0, nsub=3)
        sphere.clear_data()
        sphere.points = np.asarray(sphere.points, np.float64)
        sphere.save(Path(folder, "sphere.vtp"))
        return read_surface(Path(folder, "sphere.vtp"))


def stretched(sphere: Surface, body: Ellipsoid) -> Surface:
    return sphere.moved(sphere.vertices * body.semi_axes @ body.rotation.T)


def _exact(name: str, sphere: Surface, axes: Vector, rotation: Vector) -> float:
    body = Ellipsoid(semi_axes=axes, rotation=rotation)
    surface = stretched(sphere, body)
    areas, on_sphere = surface.areas(), surface.centers() @ rotation / axes
    on_sphere /= np.linalg.norm(on_sphere, axis=1, keepdims=True)
    values = body.pressure_coefficient(on_sphere * axes @ rotation.T)
    if name == "integral":
        return float((values * areas).sum())
    return float(-np.log((np.exp(-SHARPNESS * values) * areas).sum() / areas.sum()) / SHARPNESS)


if __name__ == "__main__":
    main()
