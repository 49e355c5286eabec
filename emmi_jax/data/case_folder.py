"""The folder of a case with the reader of its layout."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.data.cases import DEFAULT_OPTIONS, Case, ReadOptions
from emmi_jax.data.features import NO_INPUTS, Names
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.mesh_dataset import Sources
from emmi_jax.data.notes import unknown_input
from emmi_jax.data.readers import reader_of
from emmi_jax.data.readers.reader import Reader
from emmi_jax.files.fingerprint import fingerprint
from emmi_jax.meshes.cells import POSITIONS
from emmi_jax.meshes.mesh import FieldSource
from emmi_jax.points import is_unknown


class CaseFolder(NamedTuple):
    """A case: its folder, or for DrivAerNet++ the name of a design in that of the data set, and what reads it."""

    path: Path
    reader: Reader
    inputs: Names = NO_INPUTS
    mask_nan: bool = False

    @classmethod
    def open(
        cls, path: Path, foam: FoamSelection = DEFAULT_SELECTION, options: ReadOptions = DEFAULT_OPTIONS
    ) -> CaseFolder:
        """Looks at a folder; `foam` is the part of an OpenFOAM case to read, the options have inputs and `mask_nan`."""
        return cls(path, reader_of(path, foam), options.inputs, options.mask_nan)

    @property
    def branches(self) -> tuple[str, ...]:
        """The branches that it has positions of; none if it is no case."""
        return self.reader.branches(self.path)

    @property
    def files(self) -> list[Path]:
        """The files that are read."""
        return self.reader.files(self.path)

    @property
    def forces(self) -> KnownForces | None:
        """The forces that a solver wrote."""
        return self.reader.forces(self.path)

    def sources(self, default: Sources | None = None) -> Sources:
        """Returns the arrays that hold the fields; see `Reader.sources`."""
        return self.reader.sources(self.path, default)

    def fingerprint(self, root: Path, *, with_times: bool = False) -> str:
        """Returns the fingerprint of the files, of what is read of them, and of how cells are measured."""
        files = [*self.files, *self.reader.input_files(self.path, self.inputs)]
        selected = POSITIONS + self.reader.selected + (repr(sorted(self.inputs.items())) if self.inputs else "")
        selected += "mask_nan" * self.mask_nan
        return fingerprint(files, root, with_times=with_times, selected=selected)

    def read(self, options: ReadOptions = DEFAULT_OPTIONS) -> Case:
        """Reads the case; raises as `Reader.read`, and where an input is NaN: only fields may be unknown."""
        case = self.reader.read(self.path, options._replace(inputs=self.inputs, mask_nan=self.mask_nan))
        if self.mask_nan:
            for branch, names in self.inputs.items():
                fields = case.points[branch].fields if branch in case.points else {}
                for name in set(names) & set(fields):
                    if num := int(is_unknown(fields[name]).sum()):
                        raise ValueError(unknown_input(str(self.path), branch, name, num))
        return case

    def left_out(self, sources: Sources, *, with_arrays: bool = True) -> list[str]:
        """Returns what `read` leaves out, one line each."""
        if not self.path.is_dir():
            return []
        taken = {b: {**{n: FieldSource(n) for n in self.inputs.get(b, ())}, **of} for b, of in sources.items()}
        return self.reader.left_out(self.path, taken, with_arrays=with_arrays)

    def problem(self, branches: Collection[str], sources: Sources | None = None) -> str | None:
        """Says why it cannot be read, as far as names, sizes and headers of its files tell; None if nothing is wrong.

        Args:
            branches: The branches that it must have.
            sources: See `ReadOptions`.
        """
        try:
            if missing := sorted(set(branches) - set(self.branches)):
                return f"no {' and no '.join(missing)}"
            if empty := [file.name for file in self.files if not file.stat().st_size]:
                return f"{', '.join(empty)}: empty"
            return self.reader.problem(self.path, sources)
        except (OSError, ValueError) as error:
            return str(error)
