"""The files of a run: configuration, context, metrics and checkpoints."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from emmi_jax.config import DEFAULT_SELECTION, AbUptConfig, Config, FoamSelection, Sampling, TrainSettings
from emmi_jax.config.base import as_mapping
from emmi_jax.config.checks import LARGEST_SIZE, check_count, is_number
from emmi_jax.data.mesh_dataset import Sources, parse_sources
from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Context
from emmi_jax.deploy.conditions import condition_dim
from emmi_jax.files.atomic import JsonDict, naming_the_file, read_json_object, write_atomically, write_json
from emmi_jax.files.locks import LOCK_FILE, locked
from emmi_jax.files.npz import read_arrays, write_arrays
from emmi_jax.layers.supernode_pooling import Geometry

_ANCHORS, _ANCHOR_FEATURES = "_anchors", "_anchor_features"
_GEOMETRY, _SUPERNODES, _GEOMETRY_FEATURES = "geometry", "supernode_idx", "geometry_features"


@dataclass(frozen=True, kw_only=True)
class RunConfig(Config):
    """Everything that a run depends on; the content of `config.json`.

    Args:
        model: Configuration of the model.
        normalizer: How positions and fields are scaled.
        sampling: How many points of a case the model sees, and how they are drawn.
        sources: The arrays of mesh files that hold the fields, by branch and field; empty if the data are no meshes.
        settings: Settings of the training; None for weights that were not trained here.
        split: Which case is in which split, for data of several cases.
        data_fingerprint: What changes if the content of the training data does; None where it is unknown.
        is_fine_tuned: Whether training started from another run, and took over its model and normalizer.
        positions: How the positions of cells were computed; None if the data are no meshes, or the run is older.
        num_members: Number of models whose mean is the prediction; checkpoints of several have an axis of members.
    """

    model: AbUptConfig
    normalizer: Normalizer
    sampling: Sampling
    sources: Mapping[str, Any]
    settings: TrainSettings | None = None
    split: Mapping[str, str] | None = None
    data_fingerprint: str | None = None
    is_fine_tuned: bool = False
    positions: str | None = None
    num_members: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        self.field_sources()
        split = as_mapping("split", {} if self.split is None else self.split)
        if not all(isinstance(part, str) for part in split.values()):
            raise ValueError(f"split must be the name of a split by case, got {split!r:.80}")
        if not isinstance(self.data_fingerprint, str | None):
            raise ValueError(f"data_fingerprint must be a text or none, got {self.data_fingerprint!r:.80}")
        if not isinstance(self.positions, str | None):
            raise ValueError(f"positions must be a text or none, got {self.positions!r:.80}")
        check_count("num_members", self.num_members, 1, LARGEST_SIZE)
        self.normalizer.for_fields(self.model.fields)
        named = condition_dim(self.normalizer.conditions)
        if named is not None and (self.model.conditioning_dims is not None or named != self.model.condition_dim):
            raise ValueError(f"the conditions have {named} channels, the model takes {self.model.condition_dim}")
        self.normalizer.check_features(self.model.input_features)
        if (num_axes := len(self.normalizer.position_low)) != self.model.num_position_axes:
            raise ValueError(f"the model has {self.model.num_position_axes} position axes, the normalizer {num_axes}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """Reads a `config.json`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is not JSON, or not the configuration of a run.
        """
        values = read_json_object(path)
        try:
            return cls.from_dict(_with_later_options(values))
        except (TypeError, AttributeError, ValueError, OverflowError) as error:
            raise ValueError(f"{path}: not the configuration of a run: {error}") from None

    @property
    def is_of_one_case(self) -> bool:
        """Whether the run was trained on a single case, whose context it keeps."""
        return self.split is None and self.settings is not None and self.settings.data is not None

    @property
    def mask_nan(self) -> bool:
        """Whether points whose value is NaN are left out; a run that was trained elsewhere has no say in it."""
        return self.settings is None or self.settings.mask_nan

    def field_sources(self) -> Sources:
        """Returns `sources`, parsed."""
        return parse_sources(self.sources, "sources in config.json")

    def foam(self, patches: tuple[str, ...] | None, time: str | None) -> FoamSelection:
        """Returns which part of an OpenFOAM case to read: what is given, or else as in training."""
        trained_on = DEFAULT_SELECTION if self.settings is None else self.settings.foam
        return FoamSelection(
            trained_on.patches if patches is None else patches, trained_on.time if time is None else time
        )


def _with_later_options(values: JsonDict) -> JsonDict:
    """Returns a configuration that says what runs had before there was a choice.

    The model's `max_wavelength` reached the pooling, `bias` attention alone, and block options perceivers too.
    """
    model = values.get("model")
    if not isinstance(model, Mapping) or "option_scope" in model:
        return values
    earlier = {"option_scope": "all", **({} if model.get("bias", True) else {"bias_scope": "attention"})}
    pooling = {"max_wavelength": model.get("max_wavelength", 10_000), **model.get("supernode_pooling", {})}
    settings = values.get("settings")
    if settings is not None:
        settings = {**settings, "model": {**earlier, **settings.get("model", {})}}
    return {**values, "model": {**earlier, **model, "supernode_pooling": pooling}, "settings": settings}


class RunDirectory:
    """A run's folder: `config.json`, `context.npz`, `metrics.jsonl`, `validation.jsonl`, `metrics.json`,
    `checkpoints/` and pictures.

    Args:
        path: The folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def metrics_log(self) -> Path:
        """One line of JSON per step."""
        return self.path / "metrics.jsonl"

    @property
    def validation_log(self) -> Path:
        """One line of JSON per validation."""
        return self.path / "validation.jsonl"

    @classmethod
    def create(cls, path: Path, config: RunConfig, context: Context | None = None) -> Self:
        """Makes the folder of a new run; see `making`."""
        with cls.making(path, config, context):
            pass
        return cls(path)

    @classmethod
    @contextmanager
    def making(cls, path: Path, config: RunConfig, context: Context | None = None) -> Iterator[Self]:
        """Yields a new run under another name, `aside(path)`, to add to; the folder is renamed when it is complete.

        Raises:
            ValueError: The run exists, or another process makes it.
            UnwritableFileError: The disk is full, for instance; nothing is left.
        """
        check_new(path)
        run = cls(aside(path))
        with naming_the_file(path):
            run.path.mkdir(parents=True, exist_ok=True)
        with locked(run.path):
            try:
                _clear(run.path)
                run.write_config(config)
                if context is not None:
                    run.write_context(context)
                yield run
                check_new(path)
                with naming_the_file(path):
                    run.path.rename(path)
            except BaseException:
                shutil.rmtree(run.path, ignore_errors=True)
                raise

    @classmethod
    def open(cls, path: Path) -> Self:
        """Opens the folder of an earlier run.

        Raises:
            ValueError: There is no such run.
        """
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is not a run: it has no config.json")
        return cls(path)

    def read_config(self) -> RunConfig:
        """Reads `config.json`; see `RunConfig.read`."""
        return RunConfig.read(self.path / "config.json")

    def write_config(self, config: RunConfig) -> None:
        """Writes `config.json`."""
        write_json(self.path / "config.json", config.to_dict())

    def read_context(self, config: RunConfig) -> Context | None:
        """Reads `context.npz`; None for a run that has none.

        Raises:
            ValueError: It is damaged, or missing although the run was trained on a single case.
        """
        path = self.path / "context.npz"
        if not path.is_file():
            if config.is_of_one_case:
                raise ValueError(f"{path} is missing: train --resume makes it")
            return None
        arrays = read_arrays(path)
        anchors, features = (
            {name.removesuffix(suffix): array for name, array in arrays.items() if name.endswith(suffix)}
            for suffix in (_ANCHORS, _ANCHOR_FEATURES)
        )
        if _GEOMETRY not in arrays:
            return Context(anchors, None, features)
        idx, of_points = arrays[_SUPERNODES].astype(np.int32), arrays.get(_GEOMETRY_FEATURES)
        return Context(anchors, Geometry(arrays[_GEOMETRY], idx, features=of_points), features)

    def write_context(self, context: Context) -> None:
        """Writes `context.npz`: `<branch>_anchors`, and `geometry` and `supernode_idx` if there is a geometry.

        Features are `<branch>_anchor_features` and `geometry_features`.
        """
        features = context.anchor_features
        arrays = {
            f"{branch}{_ANCHORS}": np.asarray(position, np.float64) for branch, position in context.anchors.items()
        }
        arrays |= {f"{branch}{_ANCHOR_FEATURES}": np.asarray(a, np.float64) for branch, a in features.items()}
        arrays |= {name: np.asarray(array, np.float64) for name, array in context.stored_geometry.items()}
        write_arrays(self.path / "context.npz", arrays)

    def read_metrics(self) -> list[JsonDict]:
        """Reads the complete lines of `metrics.jsonl`."""
        return list(_complete_lines(self.metrics_log)) if self.metrics_log.exists() else []

    def append(self, log: Path, row: JsonDict) -> None:
        """Appends a line to one of the logs."""
        with naming_the_file(log), open(log, "a") as file:
            file.write(json.dumps(row) + "\n")

    def read_validation(self) -> list[JsonDict]:
        """Reads the complete lines of `validation.jsonl`."""
        return list(_complete_lines(self.validation_log)) if self.validation_log.exists() else []

    def truncate_metrics(self, step: int) -> list[JsonDict]:
        """Drops the lines of both logs after `step`, and incomplete ones, and returns the rest of `metrics.jsonl`."""
        kept = {}
        for path, rows in ((self.metrics_log, self.read_metrics()), (self.validation_log, self.read_validation())):
            kept[path] = [row for row in rows if row["step"] <= step]
            if rows or path == self.metrics_log:
                write_atomically(path, "".join(json.dumps(row) + "\n" for row in kept[path]))
        return kept[self.metrics_log]


def aside(path: Path) -> Path:
    """Returns where a run is made before it gets its name."""
    return path.with_name(f".{path.name}.new")


def check_new(path: Path) -> None:
    """Refuses to make a run in place of anything but an empty folder.

    Raises:
        ValueError: There is something.
    """
    if path.is_symlink() or (path.exists() and not (path.is_dir() and not any(path.iterdir()))):
        raise ValueError(f"{path} exists: --resume continues it, another --name starts a new run")


def check_same_config(stored: Mapping[str, Any], asked: Mapping[str, Any], *, path: str = "") -> None:
    """Refuses to continue a run under another configuration.

    Raises:
        ValueError: Two values differ; the message names the key and both values.
    """
    for key in [*stored, *(key for key in asked if key not in stored)]:
        old, new = stored.get(key), asked.get(key)
        name = f"{path}{key}"
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            check_same_config(old, new, path=f"{name}.")
        elif old != new:
            raise ValueError(f"the run was started with {name} = {old!r}, now it is {new!r}")


def _clear(folder: Path) -> None:
    """Removes what a process has left that died while it made a run."""
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != LOCK_FILE:
            path.unlink()


def _complete_lines(path: Path) -> Iterator[JsonDict]:
    """Yields the rows of a log, without lines that an early end or another hand has left."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):
            row = json.loads(line)
            if isinstance(row, dict) and is_number(row.get("step")) and all(map(_is_plain, row.values())):
                yield row


def _is_plain(value: Any) -> bool:
    return isinstance(value, float) or is_number(value)
