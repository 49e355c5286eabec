"""Settings of data: which cases and fields, their scales and weights in the loss, and draws of points from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

from emmi_jax.config.base import Config, FrozenMapping, as_mapping
from emmi_jax.config.checks import as_names, check_between
from emmi_jax.config.setting import setting

Method: TypeAlias = Literal["uniform", "weighted", "farthest"]
LOSSES = ("mse", "rmse")


class FoamSelection(NamedTuple):
    """Part of a case to read.

    Args:
        patches: Regular expressions; the surface consists of the patches whose whole name matches one of them. None at
            all means the walls.
        time: Name of a time; None means the latest.
    """

    patches: tuple[str, ...] = ()
    time: str | None = None


DEFAULT_SELECTION = FoamSelection()


@dataclass(frozen=True, kw_only=True)
class DataSettings(Config):
    """Data to train on."""

    data: str | None = setting(
        None,
        "An .npz file with an array 'position' (N, 3) and fields (N,) or (N, C), or a folder, see above; default: "
        "exact potential flow past ellipsoids.",
        noun="a path",
        option="--data",
        metavar="PATH",
    )
    split: str | None = setting(
        None,
        "Assigns cases to splits, see above: a file, or ahmedml, drivaerml, shapenet-car; default: split.json beside "
        "them.",
        noun="a path",
        option="--split",
        metavar="NAME|FILE.json",
    )
    statistics: str | None = setting(
        None,
        "Statistics to use instead of measured ones: drivaerml-tutorial, drivaerml-2026-04, ahmedml, shapenet-car, "
        "drivaernet, or the config.json of a run.",
        noun="a path",
        option="--statistics",
        metavar="NAME|FILE.json",
    )

    stream_angle: float = setting(
        0.0,
        "Largest yaw and pitch of the stream of the built-in data in degrees, which are conditions then.",
        low=0,
        high=45,
    )
    skip_unusable: bool = setting(
        False, "Leave out cases that are absent or cannot be read; reads each once.", option="--skip-unusable"
    )

    mask_nan: bool = setting(
        False,
        "Leave points where a field is NaN out of its statistics, loss and errors, instead of refusing them.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("split", "statistics"):
            if self.data is None and getattr(self, name) is not None:
                raise ValueError(f"{name} needs data of your own, got {getattr(self, name)!r} without --data")
        if self.data is not None and self.stream_angle:
            raise ValueError(f"stream_angle is of the built-in data, got {self.stream_angle:g} with --data {self.data}")


@dataclass(frozen=True, kw_only=True)
class FoamOptions(Config):
    """Part of OpenFOAM cases to read."""

    surface_patches: tuple[str, ...] = setting(
        (),
        "Patches of OpenFOAM cases; may be repeated; default: all walls.",
        option="--surface-patches",
        metavar="REGEX",
    )
    time: str | None = setting(None, "Time of OpenFOAM cases; default: the latest.", option="--time")

    def __post_init__(self) -> None:
        self._set(time=None if self.time is None else str(self.time))  # a file may have a number
        super().__post_init__()

    @property
    def foam(self) -> FoamSelection:
        """The part of OpenFOAM cases that is read."""
        return FoamSelection(self.surface_patches, self.time)


@dataclass(frozen=True, kw_only=True)
class FieldSettings(Config):
    """Scaling of positions and fields, and the loss."""

    position_range: float = setting(
        100.0, "Longest side of the data's box in model units, unless statistics are given.", positive=True
    )
    divergence_free: tuple[str, ...] = setting(
        (),
        "A field of three channels to make divergence-free, such as velocity.",
        option="--divergence-free",
        metavar="FIELD",
    )
    features: Mapping[str, tuple[str, ...]] = setting(
        dict,
        'By branch, or for "geometry", arrays of the data that the model takes beside the positions instead of '
        "predicting them.",
    )
    loss: str = setting(
        "mse",
        "Error of a normalized field of a case, averaged over the cases: the mean square (mse) or its root (rmse).",
        choices=LOSSES,
    )
    loss_weights: Mapping[str, float] = setting(
        dict, 'Weights of the fields in the loss, by "branch/field"; those left out have 1.'
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set(loss_weights=as_mapping("loss_weights", self.loss_weights))
        for name, weight in self.loss_weights.items():
            check_between(f"the loss weight of {name!r}", weight, 0, float("inf"))
        features = as_mapping("features", self.features).items()
        self._set(features=FrozenMapping({part: as_names(f"features of {part!r}", names) for part, names in features}))


@dataclass(frozen=True, kw_only=True)
class Sampling(Config):
    """Numbers of points of a case that the model sees, and their draws.

    Raises:
        ValueError: A value is out of range; the message quotes it.
    """

    num_anchors: int = setting(dataclasses.MISSING, "Anchors per branch in training.", low=1, option="--num-anchors")
    num_queries: int = setting(
        dataclasses.MISSING, "Queries per branch in training, beside the anchors.", low=0, option="--num-queries"
    )
    num_test_anchors: int = setting(dataclasses.MISSING, "Anchors per branch after training.", low=1)
    num_geometry_points: int = setting(0, "Points P of the geometry; 0 for a model without a geometry branch.", low=0)
    num_supernodes: int = setting(0, "Supernodes M among the geometry points in training.", low=0)
    num_test_supernodes: int = setting(0, "Supernodes among the geometry points after training.", low=0)
    method: Method = setting(
        "uniform",
        "How to draw anchors and queries: uniform, or weighted by cell size.",
        choices=("uniform", "weighted"),
        option="--sampling",
        metavar="NAME",
    )
    supernode_method: Method = setting(
        "uniform",
        "How to draw supernodes: uniform, or farthest from one another.",
        choices=("uniform", "farthest"),
        option="--supernode-sampling",
        metavar="NAME",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if max(self.num_supernodes, self.num_test_supernodes) > self.num_geometry_points:
            raise ValueError(
                f"supernodes are geometry points: expected at most {self.num_geometry_points}, "
                f"got {self.num_supernodes} in training and {self.num_test_supernodes} after"
            )
