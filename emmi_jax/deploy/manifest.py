"""The manifest of an exported file, parsed and checked; `inference/exporting.py` writes it."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from .conditions import Condition, condition_dim, parse_conditions
from .draws import Sampling
from .features import GEOMETRY
from .intervals import CalibrationScores, exact_share
from .parsing import finite_numbers
from .scales import CaseScales, ChannelScale

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
LARGEST_SIZE = 2**26
"""The most points that arrays are made for before any are given."""
_MOST_REPEATS = 10_000
"""The most draws of a calibration: each is a whole encoding."""


@dataclasses.dataclass(frozen=True)
class Scale(ChannelScale):
    """Scale of a field or feature, as the file has it."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_scale: bool
    limit: tuple[float, ...] | None


class Relative(NamedTuple):
    """Names of the conditions that fields are relative to."""

    speed: str
    density: str | None


@dataclasses.dataclass(frozen=True)
class FileScales(CaseScales):
    """Scales of a file: those of fields, and of what the model takes beside positions."""

    position_low: tuple[float, ...]
    position_scale: float
    fields: Mapping[str, Mapping[str, Scale]]
    features: Mapping[str, Mapping[str, Scale]]
    nondimensionalize: Relative | None


class Entry(NamedTuple):
    """Description of a program; `anchors` and `num_queries` are None where any number will do."""

    function: str
    platforms: tuple[str, ...]
    anchors: dict[str, int] | None
    num_queries: int | None
    kernel: str


class Manifest(NamedTuple):
    """Names, scales, sampling and sizes.

    `jax_version` is that which wrote the file. `condition_dim` is the size of the condition, or the sizes of named
    ones; `conditions` are the scales of its named numbers. `arrays` are dtypes and shapes by name. `geometry_sizes` are
    the numbers of points and supernodes that programs take; None without a geometry branch. `calibration` are the
    scores of the cases that the run was calibrated with; None where it was not.
    """

    jax_version: str
    scales: FileScales
    condition_dim: int | dict[str, int] | None
    conditions: dict[str, Condition]
    geometry_sizes: tuple[int, int] | None
    sampling: Sampling
    units: dict[str, str]
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    programs: tuple[Entry, ...]
    num_members: int
    calibration: CalibrationScores | None

    def newer_jax(self) -> str | None:
        """Says which jax wrote the file, and which this is, if that one is newer by more than a patch."""
        wrote, here = (tuple(map(int, version.split(".")[:2])) for version in (self.jax_version, jax.__version__))
        if wrote <= here:
            return None
        return f"jax {self.jax_version} exported it, whose programs for any sizes jax {jax.__version__} cannot run"


def parse_manifest(values: dict[str, Any]) -> Manifest:
    """Reads the JSON of a manifest; a KeyError, TypeError, ValueError or AttributeError says what is wrong."""
    channels, num_axes = values["model"]["fields"], _size(values["model"]["num_position_axes"])
    if {b: set(fields) for b, fields in channels.items()} != {b: set(f) for b, f in values["fields"].items()}:
        raise ValueError("its fields are not those of its model")
    scales = {
        branch: {name: _scale(f"{branch}/{name}", scale, channels[branch][name]) for name, scale in fields.items()}
        for branch, fields in values["fields"].items()
    }
    position_scale = finite_numbers("the scale of positions", [values["position"]["scale"]])[0]
    if not position_scale > 0:
        raise ValueError(f"the scale of positions must be positive, got {position_scale}")
    conditions = parse_conditions(values.get("conditions", {}))
    if conditions and condition_dim(conditions) != values["condition_dim"]:
        raise ValueError("its conditions are not those of its model")
    widths = _feature_channels(values["model"])
    features = {
        part: {name: _scale(f"{part}/{name}", scale, len(scale["mean"])) for name, scale in scales.items()}
        for part, scales in values.get("features", {}).items()  # files from before there were any
    }
    if {part: sum(len(scale.mean) for scale in of.values()) for part, of in features.items()} != widths:
        raise ValueError("its features are not those of its model")
    return Manifest(
        scales=FileScales(
            position_low=finite_numbers("the lowest corner", values["position"]["low"], num_axes),
            position_scale=position_scale,
            fields=scales,
            features=features,
            nondimensionalize=_law(values.get("nondimensionalize"), conditions),
        ),
        jax_version=_version(values["jax"]),
        condition_dim=_condition_dim(values["condition_dim"]),
        conditions=conditions,
        geometry_sizes=None if values["geometry"] is None else _geometry_sizes(**values["geometry"]),
        sampling=_sampling(**values["sampling"]),
        units={str(name): str(unit) for name, unit in values["units"].items()},
        arrays={
            str(name): (str(entry["dtype"]), tuple(map(_size, entry["shape"])))
            for name, entry in values["arrays"].items()
        },
        programs=tuple(_entry(**entry) for entry in values["programs"]),
        num_members=_num_members(values.get("num_members", 1), values["arrays"]),
        calibration=_calibration(values.get("calibration"), channels),
    )


def _num_members(value: Any, arrays: dict[str, Any]) -> int:
    """Returns the number of models; parameters of several have a leading axis for them."""
    number = _size(value, LARGEST_SIZE)
    stacked = [entry["shape"] for name, entry in arrays.items() if name.startswith("parameters/")]
    is_stacked = bool(stacked) and all(shape[:1] == [number] for shape in stacked)
    if number < 1 or (number > 1 and not is_stacked):
        raise ValueError(f"its parameters are not those of {number} members")
    return number


def _calibration(values: Any, channels: Mapping[str, Mapping[str, Any]]) -> CalibrationScores | None:
    """Returns the scores of a calibration, infinite where the file has null; there are some of each field."""
    if values is None:
        return None
    if not isinstance(values, dict) or not isinstance(values.get("scores"), dict):
        raise ValueError(f"its calibration must be a table with scores by name, got {values!r:.80}")
    scores = {}
    for name, of_cases in values["scores"].items():
        if not isinstance(of_cases, list) or not of_cases:
            raise ValueError(f"its calibration must list scores of {name!r}, got {of_cases!r:.80}")
        known = finite_numbers(f"the scores of {name}", [score for score in of_cases if score is not None])
        if min(known, default=0) < 0:
            raise ValueError(f"its calibration has the negative score {min(known)} of {name!r}")
        scores[str(name)] = (*known, *[math.inf] * (len(of_cases) - len(known)))
    fields = {f"{branch}/{name}" for branch, names in channels.items() for name in names}
    if missing := sorted(fields - set(scores)):
        raise ValueError(f"its calibration lacks scores of {missing!r}")
    if len(numbers := {*map(len, scores.values())}) != 1:
        raise ValueError(f"its calibration has {sorted(numbers)} cases, and not as many of each score")
    if not 1 <= (repeats := _size(values["repeats"])) <= _MOST_REPEATS:
        raise ValueError(f"its calibration must have 1 to {_MOST_REPEATS} repeats, got {repeats}")
    return CalibrationScores(repeats, float(exact_share("the share of its calibration", values["share"])), scores)


def _feature_channels(model: dict[str, Any]) -> dict[str, int]:
    """Returns the channels of a model's features by branch, and those of the geometry's points."""
    channels_of = {str(branch): _size(channels) for branch, channels in model.get("feature_dims", {}).items()}
    has_geometry = any(block.startswith("perceiver") for block in model["physics_blocks"])
    of_geometry = model["supernode_pooling"].get("input_features_dim") if has_geometry else None
    return channels_of if of_geometry is None else channels_of | {GEOMETRY: _size(of_geometry)}


def _scale(field: str, values: dict[str, Any], channels: int) -> Scale:
    mean, std = (finite_numbers(f"{name} of {field}", values[name], _size(channels)) for name in ("mean", "std"))
    limit = (
        values["limit"] if values["limit"] is None else finite_numbers(f"limit of {field}", values["limit"], channels)
    )
    if not (std and min(std) > 0 and min(limit or (0.0,)) >= 0):
        raise ValueError(f"{field} needs positive deviations and limits >= 0, got {std} and {limit}")
    return Scale(mean, std, bool(values["log_scale"]), limit)


def _law(values: Any, conditions: Any) -> Relative | None:
    if values is None:
        return None
    law = Relative(values["speed"], values["density"])
    if any(name is not None and name not in conditions for name in law):
        raise ValueError("its fields are relative to no condition of its own")
    return law


def _version(text: str) -> str:
    if re.match(r"\d+\.\d+", text) is None:
        raise ValueError(f"expected a version of jax, got {text!r:.40}")
    return text


def _condition_dim(value: Any) -> int | dict[str, int] | None:
    if isinstance(value, dict):
        return {str(name): _size(size) for name, size in value.items()}
    return None if value is None else _size(value)


def _geometry_sizes(*, num_points: int, num_supernodes: int) -> tuple[int, int]:
    return _size(num_points, LARGEST_SIZE), _size(num_supernodes, LARGEST_SIZE)


def _sampling(*, method: str, supernode_method: str, **numbers: Any) -> Sampling:
    for name in (method, supernode_method):
        if name not in ("uniform", "weighted", "farthest"):
            raise TypeError(f"unknown method {name!r:.40}")
    sizes = {name: _size(number, LARGEST_SIZE) for name, number in numbers.items()}
    return Sampling(**sizes, method=method, supernode_method=supernode_method)


def _entry(
    *, function: str, platforms: list[str], anchors: dict[str, int] | None, num_queries: int | None, kernel: str
) -> Entry:
    return Entry(
        function=str(function),
        platforms=tuple(map(str, platforms)),
        anchors=None if anchors is None else {str(b): _size(number) for b, number in anchors.items()},
        num_queries=None if num_queries is None else _size(num_queries, LARGEST_SIZE),
        kernel=str(kernel),
    )


def _size(value: Any, largest: float = math.inf) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= largest:
        raise TypeError(f"expected a size, got {value!r:.40}")
    return value
