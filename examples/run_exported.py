"""Predicts with a model that `emmi-jax export` wrote, on a machine without emmi_jax.

    pip install jax numpy flatbuffers
    cp -r .../emmi_jax/deploy .
    python run_exported.py car.emmi points.npz fields.npz

`points.npz` holds the points (N, 3) of each branch, in the unit of the training data. Anchors and the geometry are
drawn from them; a run on a single case brings its own.
"""

import argparse
import sys

import deploy
import numpy as np


def main(model: str, points: str, out: str) -> None:
    """Predicts the fields at all points of a file."""
    surrogate = deploy.load(model)
    print(f"{model}: {surrogate.fields}, units {surrogate.units or 'of the training data'}")
    with np.load(points, allow_pickle=False) as file:
        positions = {branch: file[branch] for branch in surrogate.fields if branch in file}
    encoded = surrogate.encode(points=positions)
    fields = encoded.predict(positions)
    np.savez(out, **fields)
    for name, values in fields.items():
        print(f"{name}: {len(values)} points, from {values.min():.4g} to {values.max():.4g}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "points", "out"):
        parser.add_argument(name)
    options = parser.parse_args()
    try:
        main(options.model, options.points, options.out)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {error}")
