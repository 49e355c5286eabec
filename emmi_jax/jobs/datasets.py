"""The data that settings name, and how they are scaled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rich.console import Console

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection, TrainSettings
from emmi_jax.data.case_collection import CaseCollection
from emmi_jax.data.case_folder import CaseFolder, FolderCases
from emmi_jax.data.draws import geometry_points
from emmi_jax.data.ellipsoids import EllipsoidDataset
from emmi_jax.data.mesh_dataset import sources_to_json
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.notes import box_warnings, case_boxes
from emmi_jax.data.open import OpenCases, check_selection, open_cases
from emmi_jax.data.point_cloud import TEST_FRACTION, PointCloudDataset
from emmi_jax.data.published import STATISTICS
from emmi_jax.data.readers.reader import ReadOptions
from emmi_jax.data.samples import Dataset
from emmi_jax.data.stored_case import is_store
from emmi_jax.files.atomic import JsonDict, read_json_object
from emmi_jax.files.fingerprint import fingerprint
from emmi_jax.files.npz import read_case
from emmi_jax.jobs.measured import measure_collection
from emmi_jax.jobs.progress import print_left_out, print_unusable, print_warnings


def load_dataset(settings: TrainSettings) -> Dataset:
    """Returns the data set that the settings name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file or folder does not hold a usable case.
    """
    sampling = settings.sampling
    is_weighted = sampling.method == "weighted"
    if is_weighted and (settings.data is None or not (is_store(settings.data) or Path(settings.data).is_dir())):
        raise ValueError("sampling is 'weighted', which needs meshes: give their folder to --data")
    check_selection(settings.data, settings.foam)
    if settings.data is None:
        if settings.features:
            raise ValueError(f"features need data of your own, got {dict(settings.features)!r} without --data")
        return EllipsoidDataset(sampling, stream_angle=settings.stream_angle)
    path = Path(settings.data)
    opened = open_cases(settings.data, ReadOptions(with_cell_sizes=is_weighted), settings.foam)
    if opened is not None and not opened.is_single:
        split = opened.split(settings.split, skip_unusable=settings.skip_unusable)
        conditions = opened.conditions(settings.conditions)
        if settings.skip_unusable:
            split = split.without(opened.problems(list(split.split_of), conditions.problems))
        else:
            opened.check(list(split.split_of), conditions.problems)
        dataset = CaseCollection(
            split, opened.cases, sampling, name=path.name, features=settings.features, conditions=conditions.by_case
        )
        case = dataset.first_case()
        geometry_points(case.points, case.geometry, sampling, name=split.train[0])  # refused before measuring
        return dataset
    if settings.split is not None:
        raise ValueError(
            f"{settings.split}: a split needs a folder of cases, {path} is none: --set split=none leaves it out"
        )
    if opened is not None or path.is_dir():
        case = CaseFolder.open(path, settings.foam).read(ReadOptions(with_cell_sizes=is_weighted))
        points, geometry, left_out = case.points, case.geometry, case.left_out
    else:
        points, geometry, left_out = {"volume": read_case(path)}, None, ()
    return PointCloudDataset(
        points, sampling, geometry=geometry, features=settings.features, name=path.name, left_out=left_out
    )


def make_normalizer(settings: TrainSettings, dataset: Dataset, *, console: Console) -> Normalizer:
    """Returns the normalizer that the settings name, or measures one on the training data.

    Args:
        settings: The settings.
        dataset: The data that they name.
        console: Where progress is printed.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The given statistics do not suit the data, or the data are not finite.
    """
    free = settings.divergence_free
    if (source := named_statistics(settings, dataset)) is not None:
        known = read_statistics(source).for_fields(dataset.fields, divergence_free=free)
        known.check_features({part: sum(names.values()) for part, names in dataset.features.items()})
        return replace(known, conditions=dataset.conditions)
    moments = measure_collection(dataset, console=console) if isinstance(dataset, CaseCollection) else dataset.measure()
    measured = moments.normalizer(
        position_range=settings.position_range, divergence_free=free, features=dataset.features
    )
    return replace(measured, conditions=dataset.conditions)


def named_statistics(settings: TrainSettings, dataset: Dataset) -> str | None:
    """Returns the statistics that the settings name, or the description of the data; None if they are measured."""
    cases = dataset.cases if isinstance(dataset, CaseCollection) and settings.statistics is None else None
    return cases.statistics if isinstance(cases, FolderCases) else settings.statistics


def data_fingerprint(settings: TrainSettings, dataset: Dataset) -> str | None:
    """Returns what changes if the content of the training data does, wherever they are; None for the built-in data."""
    if settings.data is None:
        return None
    if isinstance(dataset, CaseCollection):
        return dataset.fingerprint
    path = Path(settings.data)
    return CaseFolder.open(path, settings.foam).fingerprint(path) if path.is_dir() else fingerprint([path], path)


def field_sources(settings: TrainSettings) -> JsonDict:
    """Returns the arrays of mesh files that hold the fields, as in `fields.json`; empty if the data are no folder."""
    opened = _open(settings)
    return {} if opened is None else sources_to_json(opened.sources)


def describe_sources(settings: TrainSettings) -> list[str]:
    """Returns lines that say which arrays of which files are the fields; none if the data are no folder."""
    lines = []
    for branch, fields in field_sources(settings).items():
        arrows = (
            f"{name} ← {source['array']}" + f" · {source['scale']:g}" * (source["scale"] != 1)
            for name, source in fields.items()
        )
        lines.append(f"{branch:<10} {', '.join(arrows)}")
    opened = _open(settings)
    return lines if opened is None else lines + opened.describe()


def _open(settings: TrainSettings) -> OpenCases | None:
    return None if settings.data is None else open_cases(settings.data, foam=settings.foam)


def print_notes(settings: TrainSettings, dataset: Dataset, console: Console) -> None:
    """Prints what was left out of the data, and where the boxes of the first case do not fit."""
    case = dataset.first_case()
    if settings.data is None or case is None:
        return
    lines = list[str]()
    if (opened := _open(settings)) is not None and not is_store(settings.data):
        names, prefix = opened.names, ""
        if isinstance(dataset, CaseCollection):
            print_unusable(dataset.split.unusable, console)
            split_of, prefix = dataset.split.split_of, f"{dataset.split.train[0]}: "
            names = [name for name in names if name in split_of]
        lines = [*opened.left_out(names), *(f"{prefix}{line}" for line in case.left_out)]
    print_left_out(lines, console)
    print_warnings(box_warnings(case_boxes(case)), console)


def read_statistics(source: str) -> Normalizer:
    """Returns published statistics, or the normalizer of a run.

    Args:
        source: Name of published statistics, such as `drivaerml-tutorial`; or path of a run's `config.json`, or of JSON
            with the values of a `Normalizer` alone, as under `normalizer` there.

    Raises:
        FileNotFoundError: It is neither a name nor a file.
        ValueError: The file does not hold statistics.
    """
    if source in STATISTICS:
        return STATISTICS[source]
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; published statistics are {', '.join(STATISTICS)}")
    try:
        values = read_json_object(path)
        return Normalizer.from_dict(values.get("normalizer", values))
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not the statistics of a run: {error}") from None


def branches_of(data: str, foam: FoamSelection = DEFAULT_SELECTION) -> dict[str, int | None]:
    """Returns the branches of the data at a path or URL, none for those that are no folder.

    Each has the number of points that any case has for the geometry branch, where that is small; else None.
    """
    opened = open_cases(data, foam=foam)
    if opened is None:
        return {}
    least = opened.num_geometry_points()
    if least is not None and opened.is_single:  # a single case keeps a part of its points to test on
        least -= round(TEST_FRACTION * least)
    return {branch: least if branch == "surface" else None for branch in opened.branches_of(opened.names[0])}
