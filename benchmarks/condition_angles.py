"""Derivatives by the direction of the stream beside exact ones: ``python -m benchmarks.condition_angles RUN``.

For each of the 40 test ellipsoids, at a direction that is not in the training data: the derivative of the pressure
force on its upstream half, up and sideways, by the angle that turns the stream there. Over the whole body it is zero.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks import measure
from benchmarks.ellipsoid_angles import stretched, unit_sphere
from emmi_jax.data.ellipsoids import EllipsoidDataset, in_stream
from emmi_jax.data.potential_flow import Ellipsoid
from emmi_jax.design import Surface, per_point, sensitivity
from emmi_jax.runs.load import load_run

UPSTREAM = ((-9.0, -9.0, -9.0), (0.0, 9.0, 9.0))
AXES = {"pitch": 2, "yaw": 1}
STEP = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, help="a run of the recipe ellipsoids-stream")
    parser.add_argument("--stream-angle", type=float, default=15.0, help="largest angle of the run (%(default)s)")
    parser.add_argument("--shapes", type=int, default=40, help="how many of the test shapes (%(default)s)")
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/condition_angles.json"), help="(%(default)s)"
    )
    options = parser.parse_args()
    surrogate = load_run(options.run)
    dataset = EllipsoidDataset(surrogate.sampling, stream_angle=options.stream_angle)
    sphere, rows = unit_sphere(), []
    for name, axis in AXES.items():
        functional = per_point(
            "surface",
            lambda position, fields, normal, area, axis=axis: (
                -fields["pressure_coefficient"][:, 0] * normal[:, axis] * area
            ),
            box=UPSTREAM,
        )
        errors = []
        for number, body in enumerate(dataset.test_bodies[: options.shapes]):
            angles = dataset.draw_angles(2, number)
            surface = stretched(sphere, body)
            points = {"volume": body.sample_volume(np.random.default_rng(number), 2000)}
            found = sensitivity(surrogate, surface, functional, condition=angles, points=points, seed=number)
            ends = [_force(body, surface, axis, angles | {name: angles[name] + sign * STEP}) for sign in (1, -1)]
            exact = (ends[0] - ends[1]) / (2 * STEP)
            errors.append(abs(found.condition[name] - exact) / abs(exact))
        rows.append(
            {
                "derivative by": name,
                "shapes": len(errors),
                "median_relative_error": float(np.median(errors)),
                "nine_in_ten_below": float(np.quantile(errors, 0.9)),
            }
        )
    measure.report(f"derivatives by the direction of the stream, {measure.DEVICE}", rows, options.json)


def _force(body: Ellipsoid, surface: Surface, axis: int, angles: Mapping[str, float]) -> float:
    """Returns the exact pressure force on the upstream cells, with the pressure of the point on the body at each."""
    centers, corners = surface.centers(), surface.vertices[surface.corners]
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]) / 2
    level = np.linalg.norm(centers @ body.rotation / body.semi_axes, axis=1, keepdims=True)
    upstream = centers[:, 0] <= 0
    pressure = in_stream(body, angles).pressure_coefficient((centers / level * (1 + 1e-9))[upstream])
    return -float(pressure @ normal[upstream, axis])


if __name__ == "__main__":
    main()
