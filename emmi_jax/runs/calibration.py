"""The calibration of a run: the scores of cases that it was not trained on, kept beside its checkpoints."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from emmi_jax.data.familiarity import Familiarity
from emmi_jax.deploy.intervals import CalibrationScores, Intervals
from emmi_jax.files.atomic import JsonDict, atomic_path, read_sealed, sealed
from emmi_jax.files.npz import read_arrays, write_arrays
from emmi_jax.inference.cache import fingerprint
from emmi_jax.inference.surrogate import Surrogate

FILE = "calibration.json"


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Errors of the predictions of a run on known cases.

    Args:
        parameters: Fingerprint of the model and its parameters.
        data: Where the cases are.
        split: The split that they are in.
        cases: Their names.
        repeats: Draws of points that each prediction is the mean of.
        share: The share of the points of a case that the score of a field covers.
        known_forces: What the coefficients were compared with: `solver`, or `reference` for the sums over known fields;
            None without coefficients.
        familiarity: Checksum of the file that says which encodings are usual; None without.
        scores: Scores of the cases, in their order, by ``<branch>/<field>``; and by `cd` and `cl`, times the reference
            area where there is no deviation.
    """

    parameters: str
    data: str
    split: str
    cases: tuple[str, ...]
    repeats: int
    share: float
    known_forces: str | None
    familiarity: int | None
    scores: Mapping[str, tuple[float, ...]]

    def intervals(self, level: float) -> Intervals:
        """Returns the intervals at a level.

        Raises:
            ValueError: The level is out of range, or needs more cases.
        """
        return self.portable.intervals(level, len(self.parameters.split("-")) - 1)

    @property
    def portable(self) -> CalibrationScores:
        """The scores alone, as an exported file holds them."""
        return CalibrationScores(self.repeats, self.share, self.scores)


def is_calibrated(run: Path) -> bool:
    """Whether a run has a calibration, of whatever checkpoint."""
    return (run / FILE).is_file()


def parameters_of(surrogate: Surrogate) -> str:
    """Returns what changes if a model or its parameters do."""
    prints = [fingerprint(member.model.config, {"params": member.params}, None) for member in surrogate.members]
    return "-".join([f"{prints[0].model:x}", *(f"{of_member.parameters:x}" for of_member in prints)])


def write_calibration(run: Path, calibration: Calibration, familiarity: Familiarity | None) -> Path:
    """Writes the calibration of a run, with a checksum; infinite scores are null there.

    An earlier one is whole until this one is: what says which encodings are usual has its checksum in its name.
    """
    path = run / FILE
    earlier = None
    with suppress(OSError, ValueError):
        earlier = _read(path).familiarity
    with atomic_path(path) as partial:
        if familiarity is not None:
            calibration = replace(calibration, familiarity=_write_familiarity(run, familiarity))
        values: JsonDict = asdict(calibration) | calibration.portable.to_dict()
        values = sealed(json.loads(json.dumps(values)))  # tuples are lists there
        partial.write_text(json.dumps(values, indent=2) + "\n")
    if earlier not in (None, calibration.familiarity):
        _encodings(run, earlier).unlink(missing_ok=True)
    return path


def read_calibration(run: Path, surrogate: Surrogate) -> Calibration:
    """Reads the calibration of a run.

    Args:
        run: The run's folder.
        surrogate: What it was loaded as.

    Raises:
        ValueError: The run is not calibrated, or as it was before it was trained on, or the file is damaged.
    """
    path = run / FILE
    if not is_calibrated(run):
        raise ValueError(f"{run} is not calibrated: emmi-jax calibrate {run}")
    calibration = _read(path)
    if calibration.parameters != parameters_of(surrogate):
        raise ValueError(f"{path}: of another checkpoint, or the run was trained on since: calibrate it again")
    return calibration


def _read(path: Path) -> Calibration:
    try:
        values: dict[str, Any] = read_sealed(path)
    except ValueError:
        raise ValueError(f"{path}: damaged: calibrate the run again") from None
    try:
        scores = {
            name: tuple(math.inf if score is None else score for score in of_cases)
            for name, of_cases in values["scores"].items()
        }
        return Calibration(**values | {"cases": tuple(values["cases"]), "scores": scores})
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: of another version of emmi_jax: calibrate the run again") from None


def _encodings(run: Path, checksum: int) -> Path:
    return run / f"familiarity-{checksum:08x}.npz"


def _write_familiarity(run: Path, familiarity: Familiarity) -> int:
    new = run / "familiarity.npz"
    write_arrays(new, familiarity.to_arrays())
    checksum = zlib.crc32(new.read_bytes())
    new.rename(_encodings(run, checksum))
    return checksum


def read_familiarity(run: Path, surrogate: Surrogate) -> Familiarity | None:
    """Reads which encodings are usual for a run.

    Args:
        run: The run's folder.
        surrogate: What it was loaded as.

    Returns:
        None if the run is not calibrated, at another checkpoint, or without its training cases.

    Raises:
        ValueError: A file is damaged.
    """
    if not is_calibrated(run):
        return None
    calibration = _read(run / FILE)
    if calibration.familiarity is None or calibration.parameters != parameters_of(surrogate):
        return None
    path = _encodings(run, calibration.familiarity)
    if not path.is_file() or zlib.crc32(path.read_bytes()) != calibration.familiarity:
        raise ValueError(f"{path}: damaged: calibrate the run again")
    try:
        return Familiarity.from_arrays(read_arrays(path))
    except KeyError:
        raise ValueError(f"{path}: of another version of emmi_jax: calibrate the run again") from None
