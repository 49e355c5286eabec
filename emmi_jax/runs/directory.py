"""The files of a run: configuration, metrics, checkpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from emmi_jax.files.atomic import JsonDict, write_atomically, write_json
from emmi_jax.training.settings import TrainSettings


class RunDirectory:
    """A run's folder: `config.json`, `metrics.jsonl`, `metrics.json`, `checkpoints/` and pictures.

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
        """One JSON line a step."""
        return self.path / "metrics.jsonl"

    @property
    def fixed_points(self) -> Path:
        """Anchors and geometry of all predictions, for a model of a single case."""
        return self.path / "anchors.npz"

    @classmethod
    def create(cls, path: Path, config: JsonDict) -> RunDirectory:
        """Makes the folder of a new run.

        Raises:
            ValueError: The run exists.
        """
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise ValueError(f"{path} exists: --resume goes on with it, another --name starts a new run") from None
        run = cls(path)
        write_json(path / "config.json", config)
        return run

    @classmethod
    def open(cls, path: Path) -> RunDirectory:
        """Opens the folder of an earlier run.

        Raises:
            ValueError: There is no such run.
        """
        if not (path / "config.json").is_file():
            raise ValueError(f"{path} is not a run: it has no config.json")
        return cls(path)

    def read_config(self) -> JsonDict:
        """Reads `config.json`.

        Raises:
            ValueError: It is not JSON.
        """
        path = self.path / "config.json"
        try:
            config: JsonDict = json.loads(path.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}: {error}") from None
        if config.get("settings") is not None:
            # Settings that are younger than the run are at their defaults.
            config["settings"] = TrainSettings.from_dict(config["settings"]).to_dict()
        return config

    def read_metrics(self) -> list[JsonDict]:
        """Reads the complete lines of `metrics.jsonl`."""
        return list(_complete_lines(self.metrics_log)) if self.metrics_log.exists() else []

    def truncate_metrics(self, step: int) -> list[JsonDict]:
        """Drops the lines after `step`, and a torn one, and returns the rest."""
        rows = [row for row in self.read_metrics() if row["step"] <= step]
        write_atomically(self.metrics_log, "".join(json.dumps(row) + "\n" for row in rows))
        return rows


def is_converted(config: JsonDict) -> bool:
    """Whether a run's weights came from elsewhere, trained on since or not."""
    return config["settings"] is None or config.get("converted", False)


def check_same_config(stored: Mapping[str, Any], asked: Mapping[str, Any], *, path: str = "") -> None:
    """Refuses to go on with a run under another configuration.

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


def _complete_lines(path: Path) -> Iterator[JsonDict]:
    for line in path.read_text().splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
