"""What a run directory makes: its data set, its model, its parameters."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.case_collection import CaseCollection, case_folders
from emmi_jax.data.case_folder import case_branches, read_case_folder
from emmi_jax.data.case_split import SPLIT_FILE, draw_split, read_split
from emmi_jax.data.samples import Dataset, Sample
from emmi_jax.data.ellipsoids import EllipsoidDataset
from emmi_jax.files.atomic import JsonDict
from emmi_jax.data.normalization import Normalizer
from emmi_jax.files.npz import read_arrays, read_case
from emmi_jax.data.point_cloud import PointCloudDataset
from emmi_jax.config import AbUptConfig
from emmi_jax.convert.files import load_torch_tensor
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.runs.checkpoints import Checkpoints
from emmi_jax.jobs.datasets import read_statistics
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.training.settings import TrainSettings, model_config
from emmi_jax.jobs.datasets import default_settings
from emmi_jax.models.init import Params, init_params


class TrainedRun(NamedTuple):
    """A trained model and what it takes to use it on points in physical units."""

    settings: TrainSettings
    model: AnchoredBranchedUPT
    params: Params
    normalizer: Normalizer
    fixed_points: dict[str, NDArray[np.float64]]


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
