"""`emmi-jax predict` on points: arrays in, arrays out, mapped where they need not fit in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray
from rich.console import Console

from emmi_jax.deploy.encoded_set import EncodedSet
from emmi_jax.deploy.features import GEOMETRY, FeatureNames
from emmi_jax.files.atomic import check_space, make_folder
from emmi_jax.files.npy import array_file_size, map_array, new_array
from emmi_jax.files.npz import checked_positions, read_arrays, write_arrays
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.intervals import SINGLE, Certainty
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.familiarity import report_familiarity
from emmi_jax.jobs.progress import ProgressBar, say, warn_few_anchors, warn_outside
from emmi_jax.points import PointSet, check_range

_ANCHORS = "_anchors"


@dataclass(frozen=True, kw_only=True)
class PointJob:
    """Options of a prediction at points.

    Args:
        points: An `.npz` file with positions; or a folder of `.npy` files, or one of them, which are mapped. Arrays are
            named by `point_names`.
        out: An `.npz` file, made in memory; or a folder, which gets one mapped `.npy` file per field.
        chunk_size: Points per call of the model.
        certainty: Draws to average over, and intervals.
    """

    points: Path
    out: Path
    chunk_size: ChunkSize = "auto"
    certainty: Certainty = SINGLE


class PointArrays(NamedTuple):
    """Positions [N, 3] with features: queries and anchors by branch, and points of the geometry."""

    queries: dict[str, PointSet]
    anchors: dict[str, PointSet]
    geometry: PointSet | None

    def positions(self) -> dict[str, NDArray[Any]]:
        """Returns the positions of the queries."""
        return {branch: points.position for branch, points in self.queries.items()}

    def features(self, group: str) -> dict[str, Any]:
        """Returns the features of ``queries`` or ``anchors`` by branch and name."""
        return {branch: part.features for branch, part in getattr(self, group).items() if part.features is not None}


def predict_points(job: PointJob, surrogate: Surrogate, *, console: Console) -> None:
    """Predicts at points and writes the fields to files.

    Args:
        job: What to predict on.
        surrogate: What predicts.
        console: Where progress and the names of the fields are printed.

    Raises:
        FileNotFoundError: A file does not exist.
        ValueError: The points are unusable, or do not suit the model.
        UnwritableFileError: The disk is full, or too small for the fields.
    """
    _check_out(job.out)
    branches = surrogate.model.config.branches
    features = surrogate.features
    files = _read_arrays(job.points, point_names(branches), _feature_names(branches, features))
    arrays = _sort_arrays({name: array for name, (_, array) in files.items()}, branches, features)
    queries = arrays.positions()
    for name in filter(files.__contains__, point_names(branches)):
        path, array = files[name]
        warn_outside(surrogate.normalizer, f"{path}: {name}", array, console)
    if surrogate.context is None:
        drawn_from = {branch: array for branch, array in queries.items() if branch not in arrays.anchors}
        warn_few_anchors(surrogate.sampling, drawn_from, console)
    encoded = surrogate.encode_draws(
        job.certainty.repeats,
        intervals=job.certainty.intervals,
        anchors={branch: part.position for branch, part in arrays.anchors.items()},
        anchor_features=arrays.features("anchors"),
        geometry=arrays.geometry,
        points=arrays.queries,
    )
    if job.certainty.familiarity is not None:
        report_familiarity(job.certainty.familiarity, encoded, console)
    shapes = {
        f"{branch}_{field}": (len(position), channels)
        for branch, position in queries.items()
        for field, channels in encoded.fields[branch].items()
    }
    names = {key: key if len(branches) > 1 else key.removeprefix(f"{branches[0]}_") for key in shapes}
    check_space(job.out, sum(map(array_file_size, shapes.values())))
    with ProgressBar(console, sum(map(len, queries.values()))) as progress:
        options: dict[str, Any] = {"chunk_size": job.chunk_size, "advance": progress.advance}
        options["query_features"] = arrays.features("queries")
        if job.out.suffix.lower() == ".npz":
            fields = encoded.predict(queries, **options)
            write_arrays(job.out, {names[key]: values for key, values in fields.items()})
        else:
            _write_folder(job.out, encoded, queries, names, shapes, options)
    written = ", ".join(f"{names[key]} {list(shape)}" for key, shape in shapes.items())
    say(console, f"{job.out}: {written}")


def point_names(branches: Sequence[str]) -> list[str]:
    """Names of the arrays that describe a case.

    A branch's queries are named after it, or `position` if it is the only one; its anchors are `<branch>_anchors`; the
    points of the geometry are `geometry`.
    """
    return [*_query_names(branches).values(), *(f"{branch}{_ANCHORS}" for branch in branches), GEOMETRY]


def _query_names(branches: Sequence[str]) -> dict[str, str]:
    return {branch: branch if len(branches) > 1 else "position" for branch in branches}


def _feature_names(branches: Sequence[str], features: FeatureNames) -> dict[str, dict[str, str]]:
    """Returns the names of the arrays of features by that of their positions, and by feature.

    They are the names of the features, after that of the positions where there are several branches.
    """
    queries = _query_names(branches)
    names_of = {}
    for part, names in features.items():
        for points in (GEOMETRY,) if part == GEOMETRY else (queries[part], f"{part}{_ANCHORS}"):
            prefix = "" if points == "position" else f"{points}_"
            names_of[points] = {name: f"{prefix}{name}" for name in names}
    return names_of


def _sort_arrays(arrays: Mapping[str, NDArray[Any]], branches: Sequence[str], features: FeatureNames) -> PointArrays:
    names, of_points = _query_names(branches), _feature_names(branches, features)

    def points(name: str) -> PointSet:
        given = {feature: arrays[array] for feature, array in of_points.get(name, {}).items() if array in arrays}
        return PointSet(arrays[name], {}, features=given or None)  # type: ignore[arg-type]

    queries = {branch: points(name) for branch, name in names.items() if name in arrays}
    if not queries:
        expected = " or ".join(map(repr, names.values()))
        raise ValueError(f"no points to predict: expected an array {expected}, found {', '.join(arrays) or 'none'}")
    anchors = {branch: points(f"{branch}{_ANCHORS}") for branch in branches if f"{branch}{_ANCHORS}" in arrays}
    return PointArrays(queries, anchors, points(GEOMETRY) if GEOMETRY in arrays else None)


def _write_folder(
    folder: Path,
    encoded: EncodedSet,
    queries: Mapping[str, NDArray[Any]],
    names: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    options: Mapping[str, Any],
) -> None:
    """Predicts into mapped files, so that no more than a chunk is held."""
    make_folder(folder)
    with ExitStack() as stack:
        out = {k: stack.enter_context(new_array(folder / f"{names[k]}.npy", shape)) for k, shape in shapes.items()}
        encoded.predict(queries, out=out, **options)


def _check_out(path: Path) -> None:
    is_archive = path.suffix.lower() == ".npz"
    if path.suffix.lower() == ".npy" or (path.exists() and path.is_dir() == is_archive):
        raise ValueError(f"{path}: fields are written to an .npz file, or to a folder as .npy files")


def _read_arrays(
    path: Path, positions: Sequence[str], features: Mapping[str, Mapping[str, str]]
) -> dict[str, tuple[Path, NDArray[Any]]]:
    """Returns positions and features with these names, and the files that hold them.

    Raises:
        ValueError: An array is unusable, or the features of positions are missing.
    """
    names = [*positions, *(name for of_points in features.values() for name in of_points.values())]
    if path.suffix.lower() != ".npy" and not path.is_dir():
        arrays = {name: (path, array) for name, array in read_arrays(path, names).items()}
    else:
        files = [path / f"{name}.npy" for name in names] if path.is_dir() else [path]
        arrays = {file.stem: (file, map_array(file)) for file in files if file.is_file() or file == path}
        if not set(arrays) <= set(names) or not arrays:
            raise ValueError(f"{path}: expected .npy files named {', '.join(names)}, got {list(arrays)}")
    for name in filter(arrays.__contains__, positions):
        checked_positions(arrays[name][0], name, arrays[name][1])
    for points, of_points in features.items():
        for feature, name in of_points.items():
            if points in arrays and name not in arrays:
                raise ValueError(f"{path}: no array {name!r}: the model takes the feature {feature!r} of {points!r}")
            if name in arrays:
                check_range(arrays[name][0], name, arrays[name][1])
    return arrays
