"""Options of `emmi-jax train` beside the settings of the run: devices, logging, where settings come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emmi_jax.config.base import Config
from emmi_jax.config.setting import setting
from emmi_jax.config.training import TrainSettings


@dataclass(frozen=True, kw_only=True)
class DeviceOptions(Config):
    """The devices and processes that share a run."""

    mesh: str | None = setting(
        None,
        "Devices that share the cases of a batch, times devices that share the tokens of each case; default: data, as "
        "many as divide the batch.",
        metavar="data=N,tokens=M",
    )
    fsdp: bool = setting(False, "Shard parameters and optimiser over all devices.")
    workers: int = setting(
        0, "Processes that draw batches and find neighbours ahead of time; 0: a thread draws, the devices find.", low=0
    )
    coordinator: str | None = setting(
        None,
        "Address of process 0, for a run of several processes; found by itself under SLURM, Open MPI and Kubernetes "
        "and on TPU pods.",
        metavar="HOST:PORT",
    )
    num_processes: int | None = setting(None, "Number of processes, with --coordinator.")
    process_id: int | None = setting(None, "Number of this process, with --coordinator.")


@dataclass(frozen=True, kw_only=True)
class LoggingOptions(Config):
    """Optional output of a run."""

    profile: bool = setting(False, "Write a trace of the steps 11 to 15 into the run's profile/.")
    wandb: str | None = setting(None, "Log to this project of Weights & Biases too.", metavar="PROJECT")


@dataclass(frozen=True, kw_only=True)
class SettingSources(Config):
    """Sources of the settings of a run, later ones over earlier ones."""

    settings: Mapping[str, Any] = setting(dict, "Single settings by name.", of=TrainSettings)
    no_geometry: bool = setting(False, "Leave out the geometry branch.")
    recipe: str | None = setting(
        None,
        "Settings for a data set: ahmedml, bodies, drivaerml, drivaerml-2026-04, drivaerml-2026-04-muon, "
        "ellipsoids-stream, shapenet-car.",
        metavar="NAME",
    )
    config: Path | None = setting(None, "Settings of your own, over those of --recipe.", metavar="FILE.toml")
    assignments: tuple[str, ...] = setting(
        (), "One setting, such as model.dim=256; may be repeated.", option="--set", metavar="NAME=VALUE"
    )


@dataclass(frozen=True, kw_only=True)
class TrainJob(SettingSources):
    """Training of a run: its settings, start and folder."""

    out: Path = setting(Path("runs"), "Folder of all runs.", metavar="FOLDER")
    name: str | None = setting(None, "Folder of the run in --out; default: the next free number.")
    resume: bool = setting(False, "Continue from the last checkpoint of --name.")
    init_from: Path | None = setting(
        None, "Start from a trained or converted run: weights, model and statistics.", metavar="RUN"
    )
    dry_run: bool = setting(False, "Print settings, data, model and the cost of a step; write nothing.")
    devices: DeviceOptions = setting(DeviceOptions, "The devices and processes that share the run.")
    logging: LoggingOptions = setting(LoggingOptions, "What to write beside the run.")
