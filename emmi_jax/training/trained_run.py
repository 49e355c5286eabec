"""What a run directory makes: its data set, its model, its parameters."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.cfd.case_collection import CaseCollection, case_folders
from emmi_jax.cfd.case_folder import case_branches, read_case_folder
from emmi_jax.cfd.case_split import SPLIT_FILE, draw_split, read_split
from emmi_jax.cfd.cases import Dataset, Sample
from emmi_jax.cfd.ellipsoids import EllipsoidDataset
from emmi_jax.cfd.json_files import JsonDict
from emmi_jax.cfd.normalization import Normalizer
from emmi_jax.cfd.npz import read_arrays, read_case
from emmi_jax.cfd.point_cloud import PointCloudDataset
from emmi_jax.config import AbUptConfig
from emmi_jax.convert.files import load_torch_tensor
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import Params, init_params
from emmi_jax.training.checkpoints import Checkpoints
from emmi_jax.training.given_statistics import read_statistics
from emmi_jax.training.run_directory import RunDirectory
from emmi_jax.training.settings import TrainSettings, default_settings, model_config


class TrainedRun(NamedTuple):
    """A trained model and what it takes to use it on points in physical units."""

    settings: TrainSettings
    model: AnchoredBranchedUPT
    params: Params
    normalizer: Normalizer
    fixed_points: dict[str, NDArray[np.float64]]


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


def fixed_points(case: Sample | None) -> dict[str, NDArray[np.float64]]:
    """Names the anchors and the geometry of all predictions as `predict` takes them."""
    if case is None:
        return {}
    arrays = {f"{branch}_anchors": points.position for branch, points in case.anchors.items()}
    if case.geometry_position is not None:
        arrays["geometry"] = case.geometry_position
    return {name: np.asarray(array, dtype=np.float64) for name, array in arrays.items()}


def load_run(path: Path) -> TrainedRun:
    """Loads the newest checkpoint of a run.

    Raises:
        ValueError: The folder is not a run, or has no checkpoint yet.
    """
    run = RunDirectory.open(path)
    config = run.read_config()
    model = AnchoredBranchedUPT(AbUptConfig.from_dict(config["model"]))
    settings = (
        default_settings(None, geometry=model.config.has_geometry)
        if config["settings"] is None
        else TrainSettings.from_dict(config["settings"])
    )
    like = jax.eval_shape(lambda: init_params(model, seed=0))
    if not run.checkpoints.is_dir():
        raise ValueError(f"{path}: no checkpoint yet")
    checkpoints = Checkpoints(run.checkpoints)
    try:
        params = checkpoints.restore_params(like)
    finally:
        checkpoints.close()
    return TrainedRun(
        settings,
        model,
        params,
        Normalizer.from_dict(config["normalizer"]),
        read_arrays(run.fixed_points) if run.fixed_points.is_file() else {},
    )
