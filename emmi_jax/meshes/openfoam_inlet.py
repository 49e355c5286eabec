"""The velocity that an OpenFOAM case prescribes on a patch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.meshes.openfoam_entries import FoamDict, numbers
from emmi_jax.meshes.openfoam_files import FoamFile
from emmi_jax.meshes.openfoam_mesh import existing
from emmi_jax.meshes.openfoam_times import foam_time, roots_at

_VALUES = ("value", "freestreamValue", "inletValue", "flowVelocity")


def patch_velocity(path: Path, patch: str, selection: FoamSelection = DEFAULT_SELECTION) -> NDArray[np.float64]:
    """Returns the uniform velocity [3] on a patch: at the time that is read, or else at the start.

    Raises:
        ValueError: There is no such patch, or no uniform velocity on it.
    """
    roots, time = roots_at(path, selection) or [path], foam_time(path, selection)
    problem = f"{path}: no velocity U at time {time}"
    for folder in [roots[0] / name for name in (time, "0", "0.orig") if name is not None]:
        if (file := existing(folder / "U")) is None:
            continue
        patches = FoamFile(file).dictionary().get("boundaryField")
        entry = patches.get(patch) if isinstance(patches, FoamDict) else None
        if not isinstance(entry, FoamDict):
            known = ", ".join(patches) if isinstance(patches, FoamDict) else "none"
            raise ValueError(f"{file}: no patch {patch!r}, it has {known}")
        for key in _VALUES:
            tokens = entry.tokens(key) or []
            if tokens[:1] == ["uniform"]:
                tokens = tokens[1:]
            try:
                value = np.fromiter(numbers(tokens), np.float64)
            except (TypeError, ValueError):
                continue
            if value.shape == (3,):
                return value
        problem = f"{file}: patch {patch!r} has no uniform velocity"
    raise ValueError(problem)
