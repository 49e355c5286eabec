"""A path or URL, resolved once: one case, several in folders, or a store."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.case_conditions import CaseConditions, agreed, read_conditions
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.case_split import SPLIT_FILE, CaseSplit, parse_split, split_content
from emmi_jax.data.cases import DEFAULT_OPTIONS, ReadOptions
from emmi_jax.data.folder_cases import FolderCases
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.mesh_dataset import parse_sources, read_dataset
from emmi_jax.data.notes import MASK_ADVICE, gathered, masked, unknown_input
from emmi_jax.data.open_cases import ADVICE, NOTHING, OpenCases
from emmi_jax.data.readers import case_names
from emmi_jax.data.readers.openfoam import OpenFoamReader
from emmi_jax.data.store import Store
from emmi_jax.data.stored_case import STORE_FILE, is_store
from emmi_jax.files.atomic import JsonDict
from emmi_jax.meshes.openfoam import case_folder
from emmi_jax.meshes.parts import has_parts

_MOST_SHOWN = 5


class OpenFolders(OpenCases):
    """Cases in folders.

    Args:
        path: The folder of a case, or of cases.
        options: What of them to read.
        foam: The patches and the time of OpenFOAM cases.
    """

    cases: FolderCases

    def __init__(self, path: Path, options: ReadOptions, foam: FoamSelection) -> None:
        path = case_folder(path)
        case = CaseFolder.open(path, foam)
        self.foam = foam
        self.root, self.is_single = path, case.reader.owns(path) and _is_case(case)
        self.names = [path.name] if self.is_single else case_names(path, foam)
        folders = {name: case if self.is_single else CaseFolder.open(path / name, foam) for name in self.names}
        self._read(folders, options)

    def reading(self, options: ReadOptions) -> OpenFolders:
        """Returns the same cases with other options of reading."""
        other = copy.copy(self)
        other._read(self.cases.folders, options)
        return other

    def _read(self, folders: Mapping[str, CaseFolder], options: ReadOptions) -> None:
        folders = {
            name: folder._replace(inputs=options.inputs, mask_nan=options.mask_nan) for name, folder in folders.items()
        }
        if self.names:
            self.sources = folders[self.names[0]].sources(options.sources)
            if isinstance(folders[self.names[0]].reader, OpenFoamReader):  # the first case says which fields there are
                options = options._replace(sources=self.sources)
        self.cases = FolderCases(self.root, folders, options)

    def branches_of(self, name: str) -> tuple[str, ...]:
        """Returns the branches of a case."""
        return self.cases.folders[name].branches

    def forces_of(self, name: str) -> KnownForces | None:
        """Returns the forces that a solver wrote beside a case, if it did."""
        return self.cases.folders[name].forces

    def split_content(self) -> JsonDict | None:
        """Returns the split beside the cases, as a split file has it, if there is one."""
        return None if (stored := self._stored()) is None else stored[0]

    def stored_split(self, *, skip_absent: bool = False) -> CaseSplit | None:
        """Returns the split beside the cases, if there is one; messages name its file, or the lists of designs."""
        if (stored := self._stored()) is None:
            return None
        return parse_split(stored[0], self.names, stored[1], skip_absent=skip_absent)

    def conditions(self, source: ConditionSource) -> CaseConditions:
        """Returns the conditions that lie beside the cases, or where the source says."""
        root = self.root.parent if self.is_single else self.root
        return read_conditions(root, self.names, source, self.foam, self._published_conditions())

    def _published_conditions(self) -> ConditionSource | None:
        """Returns where the published data set that the first intact case is of has its conditions."""
        for folder in self.cases.folders.values():
            if folder.branches:
                with contextlib.suppress(OSError, ValueError):
                    return folder.reader.conditions(folder.path)
        return None

    def check(self, names: Sequence[str], known: Mapping[str, str] = NOTHING) -> None:
        """Refuses cases with missing or broken files, all at once; only names, sizes and headers are looked at.

        Raises:
            ValueError: At least one is unusable; the message names the first five and what is wrong with each.
        """
        folders, sources = self.cases.folders, self.cases.options.sources
        branches = {branch for name in names for branch in _branches(folders[name])}
        problems = {name: folders[name].problem(branches, sources) or known.get(name) for name in names}
        _refuse(str(self.root), problems)

    def left_out(self, names: Sequence[str]) -> list[str]:
        """Returns what these cases have and no command reads: files of all of them, arrays of the first."""
        notes = {name: self.cases.folders[name].left_out(self.sources, with_arrays=name == names[0]) for name in names}
        if self.is_single:
            return notes[self.names[0]]
        return gathered({name: [f"{name}/{line}" for line in lines] for name, lines in notes.items()})

    def describe(self) -> list[str]:
        """Says what is read of the first case, where there is a choice."""
        first = self.cases.folders[self.names[0]]
        return first.reader.describe(first.path)

    def num_geometry_points(self) -> int | None:
        """Returns how many points every case has for a geometry branch at least, if some have few."""
        rows = (folder.reader.num_surface_rows(folder.path) for folder in self.cases.folders.values())
        return min(filter(None, rows), default=None)

    def _stored(self) -> tuple[Any, Path | Mapping[str, Path]] | None:
        split = self.cases.folders[self.names[0]].reader.split(self.root)
        dataset = read_dataset(self.root / self.names[0])
        if split is not None or dataset is None or dataset.split is None:
            return split
        file = self.root / dataset.split
        return split_content(str(file) if file.is_file() else dataset.split), file


class OpenStore(OpenCases):
    """Cases of a store.

    Args:
        location: Its path or URL.
        options: What of them to read: which fields are inputs, and whether the others may have NaN at some points.
    """

    cases: Store

    def __init__(self, location: str, options: ReadOptions = DEFAULT_OPTIONS) -> None:
        self.location, self.cases, self._options = location, Store(location), options
        self.names = self.cases.names
        self.sources = parse_sources(self.cases.sources, f"{location}/{STORE_FILE}")

    def reading(self, options: ReadOptions) -> OpenStore:
        """Returns the same cases under other options."""
        other = copy.copy(self)
        other._options = options
        return other

    def branches_of(self, name: str) -> tuple[str, ...]:
        """Returns the branches of a case."""
        return tuple(self.cases.shapes(name))

    def forces_of(self, name: str) -> KnownForces | None:
        """Returns the forces that were stored with a case."""
        return self.cases.cases[name].forces

    def stored_split(self, *, skip_absent: bool = False) -> CaseSplit | None:
        """Returns the split that was stored with the cases."""
        content, file = self.cases.split, f"{self.location}/{SPLIT_FILE}"
        return None if content is None else parse_split(content, self.names, file, skip_absent=skip_absent)

    def conditions(self, source: ConditionSource) -> CaseConditions:
        """Returns those of the stored conditions that the source names."""
        return agreed({name: case.conditions for name, case in self.cases.cases.items()}, source.names)

    def check(self, names: Sequence[str], known: Mapping[str, str] = NOTHING) -> None:
        """Refuses what is known to be wrong, and NaN unless it is masked; the store was checked when it was opened."""
        problems = {name: known.get(name) for name in names}
        if not self._options.mask_nan:
            problems |= {n: f"{lines[0]}: {MASK_ADVICE}" for n in names if (lines := masked(self.cases.measure(n)))}
        elif self._options.inputs:
            problems |= {n: line for n in names if (line := self._unknown_input(n))}
        _refuse(self.location, problems)

    def _unknown_input(self, name: str) -> str | None:
        moments = self.cases.measure(name).fields
        for branch, inputs in self._options.inputs.items():
            for of_input in set(inputs) & set(moments.get(branch, {})):
                if number := moments[branch][of_input][0].num_not_finite:
                    return unknown_input(name, branch, of_input, number)
        return None


def open_cases(
    data: str, options: ReadOptions = DEFAULT_OPTIONS, foam: FoamSelection = DEFAULT_SELECTION
) -> OpenCases | None:
    """Opens cases.

    Args:
        data: Path of the folder of a case or of several, or path or URL of a store.
        options: What of them to read.
        foam: The patches and the time of OpenFOAM cases.

    Returns:
        The cases; None if the path is none of those.

    Raises:
        ValueError: The store, or what describes the cases, is unusable.
    """
    if is_store(data):
        return OpenStore(data, options)
    opened = OpenFolders(Path(data), options, foam)
    return opened if opened.names else None


def check_selection(data: str | Path | None, foam: FoamSelection, opened: OpenCases | None = None) -> None:
    """Refuses patches or a time for data without OpenFOAM cases or files of several meshes.

    The cases may have been opened already.

    Raises:
        ValueError: They are given, and there is no such case.
    """
    if foam == DEFAULT_SELECTION:
        return
    if opened is None and data is not None and not is_store(str(data)):
        opened = OpenFolders(Path(data), DEFAULT_OPTIONS, DEFAULT_SELECTION)
    folder = next(iter(opened.cases.folders.values()), None) if isinstance(opened, OpenFolders) else None
    is_file = data is not None and has_parts(Path(data))
    if not is_file and (folder is None or not folder.reader.has_choice(folder.path)):
        given = f"time {foam.time!r}" if not foam.patches else f"surface patches {', '.join(map(repr, foam.patches))}"
        raise ValueError(
            f"{given}: only OpenFOAM cases and files of several meshes have them, "
            f"{data or 'the built-in data set'} is none"
        )


def _refuse(where: str, problems: Mapping[str, str | None]) -> None:
    unusable = [f"{name}: {problem.splitlines()[0]}" for name, problem in problems.items() if problem is not None]
    if unusable:
        shown = "; ".join(unusable[:_MOST_SHOWN] + ["…"] * (len(unusable) > _MOST_SHOWN))
        raise ValueError(f"{where}: {len(unusable)} of {len(problems)} cases are unusable: {shown}{ADVICE}")


def _is_case(folder: CaseFolder) -> bool:
    try:
        return bool(folder.branches)
    except ValueError:  # of an unusable case; its check says what is wrong
        return True


def _branches(folder: CaseFolder) -> tuple[str, ...]:
    """Returns the branches of a case; none if they cannot be told, which is said with what is wrong with the case."""
    try:
        return folder.branches
    except ValueError:
        return ()
