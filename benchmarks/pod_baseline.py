"""What an engineer would do without a network: modes of the fields, and a Gaussian process from parameters to modes.

``python -m benchmarks.pod_baseline DATA`` needs scikit-learn, and a ``parameters.json`` in every case. Points of two
bodies correspond if they lie at the same place in the box of the body.
"""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
from scipy.spatial import cKDTree
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

from emmi_jax.data.baselines import nearest_neighbors
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.metrics import coefficient_metrics, field_metrics
from emmi_jax.data.open import open_cases
from emmi_jax.files.atomic import read_json, write_json
from emmi_jax.points import Array, Fields, PointSet

NUM_REFERENCE_POINTS, NUM_MODES = 8000, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/pod_baseline.json"), help="(%(default)s)")
    options = parser.parse_args()
    split = read_json(options.data / "split.json")
    opened = open_cases(str(options.data), ReadOptions(with_area_vectors=True))
    assert opened is not None
    cases = {name: opened.cases.read(name) for name in split["train"] + split["test"]}
    parameters = {name: list(read_json(options.data / name / "parameters.json").values()) for name in cases}
    train, test = ([cases[name] for name in split[part]] for part in ("train", "test"))
    x, x_test = (np.array([parameters[name] for name in split[part]]) for part in ("train", "test"))
    mean, std = x.mean(axis=0), x.std(axis=0)
    closest = [int(np.argmin(np.linalg.norm((x - own) / std, axis=1))) for own in x_test]
    methods = {
        "mean of the fields": _Modes(train, 0),
        "nearest parameters": None,
        "modes and Gaussian process": _Modes(train, NUM_MODES),
    }
    rows = []
    for name, modes in methods.items():
        if modes is None:
            predicted = [_transfer(_in_box(train[near]), case) for near, case in zip(closest, test, strict=True)]
        else:
            predicted = modes.predict((x - mean) / std, (x_test - mean) / std, test)
        rows.append({"method": name, **_errors(predicted, test)})
        print(json.dumps(rows[-1]))
    write_json(options.json, rows)


def _in_box(case: Case, idx: dict[str, Array] | None = None) -> dict[str, PointSet]:
    """Returns the points with their places in the box of the surface."""
    surface = case.points["surface"].position
    low, high = surface.min(axis=0), surface.max(axis=0)
    return {
        branch: PointSet(
            ((part.position - low) / (high - low))[rows], {name: values[rows] for name, values in part.fields.items()}
        )
        for branch, part in case.points.items()
        for rows in [slice(None) if idx is None else idx[branch]]
    }


def _transfer(known: dict[str, PointSet], case: Case) -> Fields:
    """Interpolates known fields at the points of a case."""
    return {
        branch: nearest_neighbors(known[branch], part.position, num_neighbors=4)
        for branch, part in _in_box(case).items()
    }


class _Modes:
    """Modes of all fields at the points of the first case; with 0 modes, their mean."""

    def __init__(self, train: list[Case], num_modes: int) -> None:
        rng = np.random.default_rng(0)
        idx = {
            branch: rng.permutation(len(part.position))[:NUM_REFERENCE_POINTS]
            for branch, part in train[0].points.items()
        }
        self._reference = _in_box(train[0], idx)
        self._shapes = [
            (branch, name, values.shape)
            for branch, part in self._reference.items()
            for name, values in part.fields.items()
        ]
        rows = np.stack([self._row(case) for case in train])
        self._scale = np.concatenate(
            [np.full(np.prod(shape), rows[:, at].std()) for at, (_, _, shape) in self._places()]
        )
        self._mean = (rows / self._scale).mean(axis=0)
        u, s, self._modes = np.linalg.svd(rows / self._scale - self._mean, full_matrices=False)
        self._modes, self._weights = self._modes[:num_modes], (u * s)[:, :num_modes]

    def predict(self, x: Array, x_test: Array, test: list[Case]) -> list[Fields]:
        weights = np.zeros((len(x_test), len(self._modes)))
        for mode, target in enumerate(self._weights.T):
            kernel = ConstantKernel() * RBF(np.ones(x.shape[1]), (0.3, 100)) + WhiteKernel(0.1)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)
                process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=0).fit(x, target)
            weights[:, mode] = process.predict(x_test)
        rows = (weights @ self._modes + self._mean) * self._scale
        return [_transfer(self._points(row), case) for row, case in zip(rows, test, strict=True)]

    def _row(self, case: Case) -> Array:
        """The fields of a case at the reference points, one after another."""
        own, parts = _in_box(case), []
        for branch, name, _ in self._shapes:
            nearest = cKDTree(own[branch].position).query(self._reference[branch].position)[1]
            parts.append(own[branch].fields[name][nearest].ravel())
        return np.concatenate(parts)

    def _places(self) -> list[tuple[slice, tuple[str, str, tuple[int, ...]]]]:
        ends = np.cumsum([np.prod(shape) for *_, shape in self._shapes])
        return [(slice(end - np.prod(shape[2]), end), shape) for end, shape in zip(ends, self._shapes, strict=True)]

    def _points(self, row: Array) -> dict[str, PointSet]:
        fields: Fields = {}
        for at, (branch, name, shape) in self._places():
            fields.setdefault(branch, {})[name] = row[at].reshape(shape)
        return {branch: PointSet(part.position, fields[branch]) for branch, part in self._reference.items()}


def _errors(predicted: list[Fields], test: list[Case]) -> dict[str, float | None]:
    errors = {
        f"{branch}/{name}": float(
            np.mean(
                [
                    field_metrics(fields[branch][name], case.points[branch].fields[name])["relative_l2"]
                    for fields, case in zip(predicted, test, strict=True)
                ]
            )
        )
        for branch, part in test[0].points.items()
        for name in part.fields
    }
    found = coefficient_metrics(
        np.array([_drag(fields["surface"], case) for fields, case in zip(predicted, test, strict=True)]),
        np.array([_drag(case.points["surface"].fields, case) for case in test]),
    )
    return {**errors, "drag_%": found["mae_percent"], "drag_r2": found["r2"]}


def _drag(fields: dict[str, Array], case: Case) -> float:
    vectors = np.asarray(case.points["surface"].area_vector, np.float64)
    area = np.linalg.norm(vectors, axis=1)
    return float(-(fields["pressure"][:, 0] * vectors[:, 0] + fields["wallshearstress"][:, 0] * area).sum())


if __name__ == "__main__":
    main()
