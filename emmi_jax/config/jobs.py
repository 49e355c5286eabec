"""Options of the commands, except `train` and those that change shapes."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from emmi_jax.config.base import Config
from emmi_jax.config.data import FoamOptions
from emmi_jax.config.setting import setting

Vector = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True)
class RunOptions(Config):
    """A run to read."""

    run: Path = setting(MISSING, "Folder of a run.", option="", metavar="RUN")


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions(Config):
    """Checkpoint of a run to read."""

    checkpoint: str = setting(
        "latest", "latest, or best: that with the lowest error on the validation cases.", metavar="NAME"
    )


@dataclass(frozen=True, kw_only=True)
class RunFoamOptions(Config):
    """Part of OpenFOAM cases to read, if not that of the run."""

    surface_patches: tuple[str, ...] | None = setting(
        None, "Patches of OpenFOAM cases; may be repeated; default: the run's.", metavar="REGEX"
    )
    time: str | None = setting(None, "Time of OpenFOAM cases; default: the run's, or the latest.")


@dataclass(frozen=True, kw_only=True)
class ReferenceOptions(Config):
    """Divisors of forces beside the speed."""

    area: float | None = setting(None, "Reference area in m2.")
    reference: Path | None = setting(None, "Read the area from the column aRef of this table.", metavar="FILE.csv")
    density: float | None = setting(None, "Free-stream density in kg/m3; default 1, for pressure over density.")


@dataclass(frozen=True, kw_only=True)
class ChunkOptions(Config):
    """Points that the model predicts at once."""

    chunk_size: int | None = setting(None, "Points per call of the model; default: by the memory of the device.", low=1)


@dataclass(frozen=True, kw_only=True)
class CaseSource(Config):
    """Cases, and how a store keeps them."""

    data: Path = setting(MISSING, "Folder of cases, as train --data takes it.", option="", metavar="DATA")
    out: str = setting(MISSING, "Folder of the store, or a URL that TensorStore opens.", metavar="STORE")
    split: str | None = setting(
        None, "Assigns cases to splits, as for train; kept in the store.", metavar="NAME|FILE.json"
    )
    dtype: str = setting("float32", "Type of the fields: float32 or float16.", metavar="NAME")
    workers: int = setting(1, "Processes; each holds one case in memory.", low=1)
    no_cell_sizes: bool = setting(False, "Leave out cell sizes, which only weighted draws need.")
    skip_unusable: bool = setting(False, "Leave out cases that are absent or cannot be read.")
    mask_nan: bool = setting(False, "Keep fields that are NaN at some points, for runs with mask_nan.")


@dataclass(frozen=True, kw_only=True)
class PrepareJob(FoamOptions, CaseSource):
    """A store to make."""

    feature: tuple[str, ...] = setting(
        (),
        "Array to keep beside the fields, as an input of models; surface/normal and volume/distance are computed where "
        "meshes have none; repeatable.",
        metavar="BRANCH/NAME",
    )


@dataclass(frozen=True, kw_only=True)
class ForceOptions(Config):
    """Divisors of forces, and the directions of drag and lift."""

    speed: float | None = setting(
        None, "Free-stream speed in m/s, for forces; default: that of forces.json.", positive=True
    )
    area: float | None = setting(
        None, "Reference area in m2; default: aRef of geo_ref_N.csv, or CdA and ClA in m2 are given.", positive=True
    )
    density: float | None = setting(
        None,
        "Free-stream density in kg/m3; default: that of forces.json, or 1 for pressure over density.",
        positive=True,
    )
    drag_direction: Vector = setting((1.0, 0.0, 0.0), "Direction of the stream.", metavar="X,Y,Z")
    lift_direction: Vector = setting((0.0, 0.0, 1.0), "Direction of the lift.", metavar="X,Y,Z")


@dataclass(frozen=True, kw_only=True)
class Comparison(RunOptions):
    """Known cases, and what to compute of them."""

    data: str | None = setting(None, "Folder of a case or of several, or a store; default: the run's.", metavar="PATH")
    split: str = setting(
        "test",
        "Which of several cases: train, validation, test, all.",
        choices=("train", "validation", "test", "all"),
        label="--split",
        metavar="NAME",
    )
    skip_unusable: bool = setting(False, "Leave out cases that are absent or cannot be read.")
    repeats: int = setting(1, "Draws of anchors to average the metrics over.", low=1)
    forces: ForceOptions = setting(ForceOptions, "What forces are divided by.")
    out: Path | None = setting(None, "Output; default: the run's folder.", metavar="FOLDER")


@dataclass(frozen=True, kw_only=True)
class EvaluationJob(CheckpointOptions, RunFoamOptions, Comparison):
    """Known cases to compare a run with."""


@dataclass(frozen=True, kw_only=True)
class CalibrationCases(RunOptions):
    """Known cases to calibrate a run with."""

    data: str | None = setting(None, "Folder of cases, or a store; default: the run's.", metavar="PATH")
    split: str = setting(
        "validation",
        "Which of the cases: validation, test, all; none that the run was trained on.",
        choices=("validation", "test", "train", "all"),
        label="--split",
        metavar="NAME",
    )
    skip_unusable: bool = setting(False, "Leave out cases that are absent or cannot be read.")
    repeats: int = setting(1, "Draws of anchors, whose deviation scales the intervals; 1: constant widths.", low=1)
    share: float = setting(0.9, "Share of the points of a case that the interval of a field covers.", positive=True)
    speed: float | None = setting(
        None, "Free-stream speed in m/s, for forces; default: that of forces.json.", positive=True
    )
    density: float | None = setting(
        None, "Free-stream density in kg/m3; default: that of forces.json, or 1.", positive=True
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationJob(CheckpointOptions, RunFoamOptions, CalibrationCases):
    """A run to calibrate."""


@dataclass(frozen=True, kw_only=True)
class EnsembleJob(CheckpointOptions):
    """Runs to join."""

    files: tuple[str, ...] = setting(MISSING, "Folders of runs.", option="", metavar="RUN...")
    out: Path = setting(MISSING, "Folder for the new run.", metavar="RUN")
    member: int | None = setting(None, "Take this member alone, counted from 0.", low=0)


@dataclass(frozen=True, kw_only=True)
class SpreadOptions(Config):
    """Uncertainty of a prediction."""

    repeats: int | None = setting(
        None, "Draws of anchors to average over, with their deviation; default: 1, or those of the calibration.", low=1
    )
    interval: float | None = setting(
        None, "Also write <field>_low and <field>_high at this level, as calibrated.", metavar="LEVEL"
    )


@dataclass(frozen=True, kw_only=True)
class PointOptions(RunOptions):
    """Points to predict at, and where to write."""

    out: Path | None = setting(None, "Output: a folder, or FILE.npz for points.", metavar="PATH")
    points: Path | None = setting(None, "Positions (N, 3): an .npz file or .npy files, see above.", metavar="PATH")


@dataclass(frozen=True, kw_only=True)
class MeshOptions(Config):
    """Meshes to predict on."""

    surface: Path | None = setting(None, "Mesh for the surface fields.", metavar="MESH")
    volume: Path | None = setting(None, "Mesh for the volume fields.", metavar="MESH")
    geometry: Path | None = setting(None, "Surface of the body; default: the run's, or --surface.", metavar="MESH")
    compare: bool = setting(False, "Compare with the arrays of the meshes.")
    fields: Path | None = setting(None, "Maps these arrays to fields; default: the run's mapping.", metavar="FILE.json")
    figures: str | None = setting(
        None, "Show the fields in OUT: .png pictures, or .html pages to turn.", metavar="[png|html]"
    )


@dataclass(frozen=True, kw_only=True)
class WriteOptions(Config):
    """An OpenFOAM case that receives fields."""

    write_openfoam: Path | None = setting(
        None, "Write the fields of all cells of a case, to start a solver.", metavar="CASE"
    )
    write_time: str = setting("0", "Folder of CASE that receives them.", metavar="TIME")
    overwrite: bool = setting(False, "Replace fields that are there.")


@dataclass(frozen=True, kw_only=True)
class ConditionOptions(Config):
    """The condition of a case."""

    condition: str | None = setting(
        None, "Condition of the case in the units of the run, such as speed=40,yaw=5.", metavar="NAME=VALUE,…"
    )


@dataclass(frozen=True, kw_only=True)
class SweepOptions(ConditionOptions):
    """The condition of a case, and a range of one of them."""

    condition_sweep: str | None = setting(
        None,
        "Coefficients of the surface at 21 values, as a table and a picture in OUT.",
        metavar="NAME=-10:10:21",
    )


@dataclass(frozen=True, kw_only=True)
class PredictionJob(
    SweepOptions,
    CheckpointOptions,
    ChunkOptions,
    ReferenceOptions,
    SpreadOptions,
    WriteOptions,
    RunFoamOptions,
    MeshOptions,
    PointOptions,
):
    """Prediction at points, on meshes or in the cells of a case."""

    speed: float | None = setting(None, "Free-stream speed in m/s; with an area, prints Cd (along x) and Cl (along z).")


@dataclass(frozen=True, kw_only=True)
class ConvertJob(Config):
    """Weights to make a run of."""

    file: Path = setting(MISSING, "PyTorch weights: .th, .pt, .pth or .safetensors.", option="", metavar="FILE")
    out: Path = setting(MISSING, "Folder for the new run.", metavar="RUN")
    preset: str | None = setting(None, "Name of a published model: drivaerml-tutorial.", metavar="NAME")
    config: Path | None = setting(None, "An AbUptConfig, or a run's config.json.", metavar="FILE.json")
    conditions: str | None = setting(
        None, "Names of the numbers of the model's condition, in order, such as speed,yaw.", metavar="NAME,…"
    )
    layout: str | None = setting(None, "1.x, 2026.4 or tutorial; default: recognised by the names.", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class InfoJob(Config):
    """A model to describe."""

    path: Path = setting(MISSING, "Folder of a run, or a file of PyTorch weights.", option="", metavar="RUN_OR_FILE")


@dataclass(frozen=True, kw_only=True)
class DataJob(Config):
    """A published data set to describe."""

    name: str | None = setting(None, "The data set; without it, all are listed.", option="", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class StatsSource(Config):
    """Arrays to describe."""

    files: tuple[str, ...] = setting(
        MISSING, ".npz, .npy or mesh files, OpenFOAM cases; or one store.", option="", metavar="FILE..."
    )
    out: Path | None = setting(None, "Also write the numbers as JSON.", metavar="FILE.json")


@dataclass(frozen=True, kw_only=True)
class StatsJob(FoamOptions, StatsSource):
    """Arrays to measure."""


@dataclass(frozen=True, kw_only=True)
class ExportJob(CheckpointOptions, RunOptions):
    """A run to write to one file."""

    out: Path = setting(MISSING, "The file.", metavar="FILE.emmi")
    platforms: str | None = setting(
        None, "Some of cpu,cuda,rocm,tpu; default: where JAX computes now.", metavar="NAMES"
    )
    unit: tuple[str, ...] = setting((), "Unit of position or <branch>/<field>; repeatable.", metavar="NAME=UNIT")
