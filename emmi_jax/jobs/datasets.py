"""Which data a setting names."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from emmi_jax.convert import PRESETS
from emmi_jax.convert.files import load_torch_tensor
from emmi_jax.data.case_collection import CaseCollection, case_folders
from emmi_jax.data.case_folder import case_branches, read_case_folder
from emmi_jax.data.case_split import SPLIT_FILE, draw_split, read_split
from emmi_jax.data.ellipsoids import EllipsoidDataset
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.point_cloud import PointCloudDataset
from emmi_jax.data.samples import Dataset
from emmi_jax.files.atomic import JsonDict
from emmi_jax.files.npz import read_case
from emmi_jax.training.settings import TrainSettings, model_config


def load_dataset(settings: TrainSettings, statistics: Normalizer | None = None) -> Dataset:
    """Builds the data set that the settings name.

    Args:
        settings: The settings.
        statistics: Scales that the model has already; by default those that the settings name, or else measured ones.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file or folder does not hold a usable case.
    """
    options: Any = {"position_range": settings.position_range, "divergence_free": settings.divergence_free}
    is_weighted = settings.sampling == "weighted"
    if is_weighted and (settings.data is None or not Path(settings.data).is_dir()):
        raise ValueError("sampling is 'weighted', which needs meshes: give their folder to --data")
    if settings.data is None:
        return EllipsoidDataset(settings.sizes, **options)
    if settings.statistics is not None:
        if statistics is not None:
            raise ValueError(f"the run has statistics of its own, got --statistics {settings.statistics}")
        statistics = read_statistics(settings.statistics)
    options["statistics"] = statistics
    path = Path(settings.data)
    folders = case_folders(path)
    if folders and not case_branches(path):
        split_file = path / SPLIT_FILE if settings.split is None else Path(settings.split)
        is_drawn = settings.split is None and not split_file.is_file()
        split = draw_split(folders) if is_drawn else read_split(split_file, folders)
        load_case = partial(read_case_folder, load_tensor=load_torch_tensor, with_cell_sizes=is_weighted)
        return CaseCollection(split, load_case, settings.sizes, name=path.name, **options)
    if settings.split is not None:
        raise ValueError(f"{settings.split}: a split needs a folder of cases, {path} is none")
    if path.is_dir():
        points, body = read_case_folder(path, load_torch_tensor, with_cell_sizes=is_weighted)
        return PointCloudDataset(points, settings.sizes, geometry_position=body, name=path.name, **options)
    return PointCloudDataset({"volume": read_case(path)}, settings.sizes, name=path.name, **options)


def run_config(settings: TrainSettings, dataset: Dataset) -> JsonDict:
    """Returns the content of `config.json`: all that a run depends on."""
    config = {
        "settings": settings.to_dict(),
        "model": model_config(settings, dataset.fields).to_dict(),
        "normalizer": dataset.normalizer.to_dict(),
    }
    if isinstance(dataset, CaseCollection):
        config["split"] = dataset.split.part_of
    through_json: JsonDict = json.loads(json.dumps(config))
    return through_json


def read_statistics(source: str) -> Normalizer:
    """Returns scales.

    Args:
        source: Name of a published model, such as `drivaerml-tutorial`; or path of a run's `config.json`, or of the
            JSON values of a `Normalizer` alone, which are those under `normalizer` there.

    Raises:
        FileNotFoundError: It is neither a name nor a file.
        ValueError: The file does not hold scales.
    """
    if source in PRESETS:
        return Normalizer.from_dict(PRESETS[source].statistics)
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; published statistics are {', '.join(PRESETS)}")
    try:
        values = json.loads(path.read_text())
        return Normalizer.from_dict(values.get("normalizer", values))
    except (TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path}: not the statistics of a run: {error}") from None


def default_settings(data: str | None, *, geometry: bool = True) -> TrainSettings:
    """Returns the defaults, a run of a few minutes on two processor cores.

    Args:
        data: Path of an `.npz` case, of a folder with a case or of one with several such folders; None for the
            built-in ellipsoids.
        geometry: Whether the model has a geometry branch; that of a case without a surface has none in any way.
    """
    if data is not None:
        return _settings_of_a_case(data, geometry=geometry)
    if not geometry:
        return TrainSettings()
    return TrainSettings(
        physics_blocks=("joint", "perceiver", "joint", "joint", "joint"),
        num_geometry_points=512,
        num_supernodes=64,
        num_test_supernodes=256,
    )


def _settings_of_a_case(data: str, *, geometry: bool) -> TrainSettings:
    settings = TrainSettings(
        data=data,
        batch_size=1,
        num_anchors=128,
        num_queries=384,
        physics_blocks=("self",) * 4,
        # A far field of a hundred metres around details of centimetres: 1000 units would blur the details.
        position_range=5000.0,
        max_wavelength=10_000.0,
    )
    path = Path(data)
    branches = case_branches(path) or next(map(case_branches, case_folders(path)), ())
    if len(branches) > 1:
        settings = replace(settings, physics_blocks=("self", "cross") * 2)
    # The surface, where there is one, is also what the geometry branch sees.
    if not geometry or "surface" not in branches:
        return settings
    return replace(
        settings,
        physics_blocks=("perceiver", *settings.physics_blocks),
        num_geometry_points=1024,
        num_supernodes=128,
        num_test_supernodes=256,
    )
