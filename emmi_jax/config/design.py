"""Options of the commands that change shapes: `sensitivity` and `optimize`."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from emmi_jax.config.base import Config
from emmi_jax.config.jobs import CheckpointOptions, ChunkOptions, ConditionOptions, ReferenceOptions, RunOptions, Vector
from emmi_jax.config.setting import setting


@dataclass(frozen=True, kw_only=True)
class SurfaceOptions(RunOptions):
    """A surface, and what to compute on it."""

    surface: Path = setting(MISSING, "The surface, a closed mesh of polygons.", metavar="MESH")
    out: Path = setting(MISSING, "Output.", metavar="FOLDER")
    speed: float = setting(MISSING, "Free-stream speed in m/s.")
    functional: str = setting("drag", "drag, lift, side_force or moment.", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class MomentOptions(Config):
    """Length and axis of a moment."""

    length: float | None = setting(None, "Reference length in m, for the moment about y.")
    about: Vector = setting((0.0, 0.0, 0.0), "A point on the axis of the moment, in m.", metavar="X,Y,Z")


@dataclass(frozen=True, kw_only=True)
class CaseOptions(Config):
    """Inputs that show the case to the model."""

    geometry: Path | None = setting(None, "Surface that the model sees; default: --surface.", metavar="MESH")
    volume: Path | None = setting(None, "Mesh to draw volume anchors from; default: the run's.", metavar="MESH")
    allow_open: bool = setting(False, "Guess the outside of an open surface.")
    seed: int = setting(0, "Seed of the drawn anchors.")


@dataclass(frozen=True, kw_only=True)
class DesignJob(ChunkOptions, CaseOptions, MomentOptions, ReferenceOptions, SurfaceOptions):
    """A surface and what to compute on it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(functional=self.functional.replace("-", "_"))


@dataclass(frozen=True, kw_only=True)
class SensitivityJob(ConditionOptions, CheckpointOptions, DesignJob):
    """Functional to differentiate."""

    figures: str = setting("png", "Show where to push: a .png picture, or an .html page to turn.", metavar="[png|html]")
    smoothing: float | None = setting(None, "Length to smooth over; default: 2% of the longest side.")


@dataclass(frozen=True, kw_only=True)
class OptimizationJob(DesignJob):
    """Functional to lower, and bounds."""

    lattice: tuple[int, int, int] = setting(MISSING, "Control points along x, y and z.", metavar="NxNxN")
    max_displacement: float = setting(MISSING, "How far a point may move, in the unit of the mesh.")
    steps: int = setting(50, "Number of steps.", low=1)
    keep: tuple[str, ...] = setting(
        (),
        "What stays: volume, clearance of the ground, or familiar, near the training cases; may be repeated.",
        metavar="NAME",
    )
    condition: tuple[str, ...] = setting(
        (),
        "Condition of the case, such as speed=40,yaw=5; repeated, the mean over them, with weights such as 0.3*yaw=5.",
        metavar="NAME=VALUE,…",
    )
    symmetry: str | None = setting(None, "Axis to stay symmetric along; y for a car.", metavar="AXIS")
