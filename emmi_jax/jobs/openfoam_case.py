"""An OpenFOAM case whose fields are to be predicted: its cells, its field files, and what the model sees of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.data.readers.openfoam import KNOWN_ARRAYS
from emmi_jax.deploy.surrogate import Encoded
from emmi_jax.inference.chunks import ChunkSize
from emmi_jax.inference.mesh_features import feature_sources, geometry_with_features, with_features
from emmi_jax.inference.meshes import geometry_points
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.progress import print_left_out, say, warn_few_anchors
from emmi_jax.meshes.branch_mesh import BranchMesh, geometry_mesh, query_mesh
from emmi_jax.meshes.mesh import Mesh
from emmi_jax.meshes.openfoam_fields import FieldFile, read_field_file
from emmi_jax.meshes.openfoam_times import case_roots
from emmi_jax.meshes.point_inputs import DISTANCE
from emmi_jax.points import Array, PointSet, take_points

VOLUME = "volume"
START, ORIGINAL = "0", "0.orig"


@dataclass(frozen=True, kw_only=True)
class FoamJob:
    """Options of writing fields into a case.

    Args:
        case: Folder of the case, decomposed or not.
        geometry: A surface that shows the geometry to the model; by default the run's context, or the patches.
        foam: The patches of the surface.
        time: The folder of the case that receives the fields.
        overwrite: Whether to replace fields that are there.
        chunk_size: Points per call of the model.
    """

    case: Path
    geometry: Path | None = None
    foam: FoamSelection = DEFAULT_SELECTION
    time: str = START
    overwrite: bool = False
    chunk_size: ChunkSize = "auto"


class SolverArray(NamedTuple):
    """The name of a field in the solver, and the factor from the solver's unit to that of the field."""

    array: str
    scale: float


class FoamPart(NamedTuple):
    """The case or one of its processors: its cells, and the files by field to take the boundaries from."""

    root: Path
    cells: BranchMesh
    templates: dict[str, FieldFile]

    @property
    def position(self) -> Array:
        """Centres [N, 3] of the cells."""
        return self.cells.position


def solver_arrays(surrogate: Surrogate, sources: Sources) -> dict[str, SolverArray]:
    """Returns the solver's array of each field; a mean in time starts the field itself."""
    fields = surrogate.model.config.fields
    if VOLUME not in fields:
        raise ValueError(f"a solver starts from fields of the volume; the model has the branches {list(fields)}")
    arrays = {}
    for field in fields[VOLUME]:
        source = sources.get(VOLUME, {}).get(field)
        known = KNOWN_ARRAYS[VOLUME].get(field, field)
        array = source.array if source is not None and isinstance(source.array, str) else known
        scale = 1.0 if source is None else source.scale
        arrays[field] = SolverArray(array.removesuffix("Trim").removesuffix("Mean"), scale)
    return arrays


def read_parts(
    job: FoamJob, surrogate: Surrogate, names: Mapping[str, SolverArray], sources: Sources
) -> tuple[list[FoamPart], Mesh | None]:
    """Reads a case, or each of its processors.

    Args:
        job: The case.
        surrogate: The model, which may take features of the cells.
        names: The solver's arrays by field.
        sources: The arrays that the run was trained on, by branch and name.

    Returns:
        The parts, and the surface that the model is shown, or that distances are measured to; None if neither is asked
        for.

    Raises:
        ValueError: The case is unusable, no predicted field has a file, or a feature is missing.
    """
    roots = case_roots(job.case)
    if not roots:
        raise ValueError(f"{job.case}: no OpenFOAM case: it has no constant/polyMesh")
    parts, shown, features = [], _shown_geometry(job, surrogate), surrogate.features
    for root in roots:
        files = {field: _template(root, source.array) for field, source in names.items()}
        templates = {field: read_field_file(file) for field, file in files.items() if file is not None}
        if not templates:
            arrays = ", ".join(source.array for source in names.values())
            raise ValueError(f"{root / START}: no file of the predicted fields {arrays}, to take boundaries from")
        cells = query_mesh(root, VOLUME, job.foam, in_cells=True, inputs=feature_sources(VOLUME, features, sources))
        parts.append(FoamPart(root, with_features({VOLUME: cells}, features, sources, shown)[VOLUME], templates))
    return parts, shown


def _shown_geometry(job: FoamJob, surrogate: Surrogate) -> Mesh | None:
    """Returns the surface that the model is shown, or that distances are measured to; None if neither is asked for."""
    is_asked = surrogate.model.config.has_geometry and surrogate.context is None
    if job.geometry is None and not is_asked and DISTANCE not in surrogate.features.get(VOLUME, {}):
        return None
    return geometry_mesh(job.geometry or job.case, job.foam)


def _template(root: Path, array: str) -> Path | None:
    if compressed := [path for folder in (ORIGINAL, START) if (path := root / folder / f"{array}.gz").is_file()]:
        raise ValueError(f"{compressed[0]}: is compressed, which would hide what is written beside it: gunzip it first")
    return next((path for folder in (ORIGINAL, START) if (path := root / folder / array).is_file()), None)


def encode_case(
    job: FoamJob,
    surrogate: Surrogate,
    sources: Sources,
    parts: Sequence[FoamPart],
    shown: Mesh | None,
    console: Console,
) -> Encoded:
    """Shows the case to the model; anchors are drawn inside the box of the training data."""
    points, is_outside = _volume_points(surrogate, parts)
    if not len(points[VOLUME].position):
        raise ValueError(f"{job.case}: all cells are outside the box of the training data: check unit and origin")
    config, features, geometry = surrogate.model.config, surrogate.features, None
    surface: dict[str, BranchMesh] = {}
    if surrogate.context is None and GEOMETRY_BRANCH in config.fields:
        inputs = feature_sources(GEOMETRY_BRANCH, features, sources)
        cells = {GEOMETRY_BRANCH: query_mesh(job.case, GEOMETRY_BRANCH, job.foam, in_cells=True, inputs=inputs)}
        surface = with_features(cells, features, sources, shown)
        points |= {b: mesh.points(with_cell_sizes=_is_weighted(surrogate)) for b, mesh in surface.items()}
    if shown is not None and config.has_geometry and (job.geometry is not None or surrogate.context is None):
        print_left_out(shown.left_out, console, shown.path)
        other = shown if job.geometry is not None else None
        described = geometry_with_features(surface, features, sources, other, surrogate.context is not None)
        geometry = geometry_points(shown) if described is None else described
    if surrogate.context is None:
        warn_few_anchors(surrogate.sampling, {b: of.position for b, of in points.items()}, console)
    if num := np.count_nonzero(is_outside):
        kept = (
            "keep the value in 0" if all(f.uniform is not None for f in parts[0].templates.values()) else "are guesses"
        )
        text = f"{num} of {len(is_outside)} cells are outside the box of the training data: they {kept}"
        say(console, f"{job.case}: {text}")
    return surrogate.encode(points=points, geometry=geometry)


def _volume_points(surrogate: Surrogate, parts: Sequence[FoamPart]) -> tuple[dict[str, PointSet], NDArray[np.bool_]]:
    """Returns the cells of all parts inside the box of the training data, and which are outside."""
    each = [part.cells.points(with_cell_sizes=_is_weighted(surrogate)) for part in parts]

    def joined(arrays: Sequence[Any]) -> Any:
        return None if arrays[0] is None else np.concatenate(arrays)

    position, sizes, features = (joined([getattr(of, n) for of in each]) for n in ("position", "cell_size", "features"))
    is_outside = surrogate.normalizer.is_outside(position)
    inside = np.flatnonzero(~is_outside)
    return {VOLUME: take_points(PointSet(position, {}, sizes, features=features), inside)}, is_outside


def _is_weighted(surrogate: Surrogate) -> bool:
    return surrogate.sampling.method == "weighted"
