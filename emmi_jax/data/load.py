"""The data that settings name, and how they are scaled."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from emmi_jax.config import TrainSettings
from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.case_collection import CaseCollection
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.draws import geometry_points
from emmi_jax.data.ellipsoids import EllipsoidDataset
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.open import check_selection, open_cases
from emmi_jax.data.open_cases import OpenCases
from emmi_jax.data.point_cloud import TEST_FRACTION, PointCloudDataset
from emmi_jax.data.published import read_statistics
from emmi_jax.data.report import SILENT, Report
from emmi_jax.data.samples import Dataset
from emmi_jax.data.stored_case import is_store
from emmi_jax.files.fingerprint import fingerprint
from emmi_jax.files.npz import read_case
from emmi_jax.meshes.point_inputs import input_names


def load_dataset(settings: TrainSettings, opened: OpenCases | None = None) -> Dataset:
    """Returns the data set that the settings name, whose cases may have been opened already.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file or folder does not hold a usable case.
    """
    data, is_weighted = settings.data, settings.sampling.method == "weighted"
    if is_weighted and (data is None or not (is_store(data) or Path(data).is_dir())):
        raise ValueError("sampling is 'weighted', which needs meshes: give their folder to --data")
    if data is None:
        check_selection(data, settings.foam)
        return _built_in(settings)
    opened = opened or open_cases(data, foam=settings.foam)
    check_selection(data, settings.foam, opened)
    options = ReadOptions(
        with_cell_sizes=is_weighted, inputs=input_names(settings.features), mask_nan=settings.mask_nan
    )
    opened = None if opened is None else opened.reading(options)
    if opened is not None and not opened.is_single:
        return _collection(settings, Path(data).name, opened)
    return _single_case(settings, Path(data), options, opened)


def _built_in(settings: TrainSettings) -> Dataset:
    if settings.features:
        raise ValueError(f"features need data of your own, got {dict(settings.features)!r} without --data")
    _refuse_conditions(settings, "the built-in data have those of stream_angle")
    return EllipsoidDataset(settings.sampling, stream_angle=settings.stream_angle)


def _collection(settings: TrainSettings, name: str, opened: OpenCases) -> Dataset:
    split = opened.split(settings.split, skip_unusable=settings.skip_unusable)
    conditions = opened.conditions(settings.conditions)
    if settings.skip_unusable:
        split = split.without(opened.problems(list(split.split_of), conditions.problems))
    else:
        opened.check(list(split.split_of), conditions.problems)
    dataset = CaseCollection(
        split,
        opened.cases,
        settings.sampling,
        name=name,
        features=settings.features,
        conditions=conditions.by_case,
        law=settings.nondimensionalize,
    )
    case = dataset.first_case()
    geometry_points(case.points, case.geometry, settings.sampling, name=split.train[0])  # refused before measuring
    dataset.opened = opened
    return dataset


def _single_case(settings: TrainSettings, path: Path, options: ReadOptions, opened: OpenCases | None) -> Dataset:
    if settings.split is not None:
        raise ValueError(
            f"{settings.split}: a split needs a folder of cases, {path} is none: --set split=none leaves it out"
        )
    _refuse_conditions(settings, f"{path} is one case, in which they are constant")
    if opened is None and not path.is_dir():
        case, mark = Case({"volume": read_case(path, mask_nan=settings.mask_nan)}, None), fingerprint([path], path)
    else:
        folder = CaseFolder.open(path, settings.foam, options)
        case, mark = folder.read(options), folder.fingerprint(path)
    single = PointCloudDataset(
        case.points,
        settings.sampling,
        geometry=case.geometry,
        features=settings.features,
        name=path.name,
        left_out=case.left_out,
        fingerprint=mark,
    )
    single.opened = opened
    return single


def _refuse_conditions(settings: TrainSettings, reason: str) -> None:
    if settings.conditions not in (ConditionSource(), ConditionSource(names=())):
        given = {name: value for name, value in settings.conditions.to_dict().items() if value}
        raise ValueError(f"conditions need a folder of cases, got {given!r}: {reason}")


def make_normalizer(settings: TrainSettings, dataset: Dataset, report: Report = SILENT) -> Normalizer:
    """Returns the normalizer that the settings name, or measures one on the training data.

    Args:
        settings: The settings.
        dataset: The data that they name.
        report: Where progress and warnings go.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The given statistics do not suit the data, or the data are not finite.
    """
    free, source = settings.divergence_free, settings.statistics or dataset.statistics
    if source is not None:
        known = read_statistics(source).for_fields(dataset.fields, divergence_free=free)
        known = known.for_features(dataset.features)
        return replace(known, conditions=dataset.conditions, nondimensionalize=settings.nondimensionalize)
    measured = dataset.measure(report).normalizer(
        position_range=settings.position_range,
        divergence_free=free,
        features=dataset.features,
        mask_nan=settings.mask_nan,
    )
    measured = measured.for_fields(dataset.fields)
    return replace(measured, conditions=dataset.conditions, nondimensionalize=settings.nondimensionalize)


def branches_of(opened: OpenCases | None) -> dict[str, int | None]:
    """Returns the branches of cases, none for data that are no folder.

    Each has the number of points that any case has for the geometry branch, where that is small; else None.
    """
    if opened is None:
        return {}
    least = opened.num_geometry_points()
    if least is not None and opened.is_single:  # a single case keeps a part of its points to test on
        least -= round(TEST_FRACTION * least)
    return {branch: least if branch == "surface" else None for branch in opened.branches_of(opened.names[0])}
