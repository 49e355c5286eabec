"""The cases that a path names, and what lies beside them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.convert.files import load_torch_tensor, map_torch_tensor
from emmi_jax.data.case_checks import case_left_out, case_problem
from emmi_jax.data.case_folder import case_branches, case_fingerprint, case_names, find_sources, is_foam_case
from emmi_jax.data.case_reading import read_case_folder
from emmi_jax.data.case_split import SPLIT_FILE, CaseSplit, draw_split, parse_split, read_split
from emmi_jax.data.cases import Case, Cases, WholeCases
from emmi_jax.data.drivaernet import design_lists, design_split
from emmi_jax.data.field_sources import Sources, parse_sources
from emmi_jax.data.known_forces import KnownForces, read_known_forces
from emmi_jax.data.notes import gathered
from emmi_jax.data.store import Store
from emmi_jax.data.stored_case import STORE_FILE, is_store
from emmi_jax.files.atomic import read_json

_MOST_SHOWN = 5
_ADVICE = "; --skip-unusable leaves such cases out"


class OpenCases(NamedTuple):
    """Cases that can be read.

    Args:
        names: Their names.
        cases: Reads them.
        branches_of: Returns the branches of a case.
        forces_of: Returns the forces that a solver wrote beside a case, if it did.
        check: Refuses unusable cases among these names, all at once; a store was checked when it was opened.
        sources: The arrays of mesh files that hold the fields.
        parse_stored: Returns the split beside the cases, if there is one.
    """

    names: list[str]
    cases: Cases
    branches_of: Callable[[str], tuple[str, ...]]
    forces_of: Callable[[str], KnownForces | None]
    check: Callable[[Sequence[str]], None]
    sources: Sources
    parse_stored: Callable[..., CaseSplit | None]

    def stored_split(self, *, skip_absent: bool = False) -> CaseSplit | None:
        """Returns the split beside the cases, if there is one."""
        return self.parse_stored(skip_absent=skip_absent)

    def split(self, file: str | None, *, skip_unusable: bool = False) -> CaseSplit:
        """Returns a published split or that of a file, or else the one beside the cases, or else a random one.

        Args:
            file: The name or the file.
            skip_unusable: Whether to leave out names that no case has.
        """
        if file is not None:
            return read_split(file, self.names, skip_absent=skip_unusable)
        return self.stored_split(skip_absent=skip_unusable) or draw_split(self.names)

    def problems(self, names: Sequence[str]) -> dict[str, str]:
        """Reads cases whole, one after another, and returns what is wrong with those that are unusable."""
        found = {}
        for name in names:
            try:
                self.check([name])
                self.cases.read(name)
            except (OSError, ValueError) as error:
                found[name] = str(error).splitlines()[0].removesuffix(_ADVICE)
        return found


def open_cases(
    data: str,
    *,
    with_cell_sizes: bool = False,
    with_area_vectors: bool = False,
    sources: Sources | None = None,
    foam: FoamSelection = DEFAULT_SELECTION,
) -> OpenCases | None:
    """Opens several cases.

    Args:
        data: Path of their folder, or path or URL of a store.
        with_cell_sizes: Whether to measure the cells of meshes.
        with_area_vectors: Whether to measure the area vectors of surface meshes, too.
        sources: The arrays of meshes that hold the fields, unless a `fields.json` names them; None for those of
            DrivAerML or AhmedML, or of OpenFOAM.
        foam: The patches and the time of OpenFOAM cases.

    Returns:
        The cases; None if the path is a single case or none.

    Raises:
        ValueError: The store or the split beside the cases is unusable.
    """
    if is_store(data):
        return _open_store(data)
    path = Path(data)
    names = [] if case_branches(path) else case_names(path)
    if not names:
        return None
    found = find_sources(path / names[0], sources, foam)
    if is_foam_case(path / names[0]):  # the first case says which fields there are
        sources = found
    load = partial(
        _load,
        path,
        with_cell_sizes=with_cell_sizes,
        with_area_vectors=with_area_vectors,
        sources=sources,
        foam=foam,
    )
    return OpenCases(
        names,
        WholeCases(load, lambda name: case_fingerprint(path / name, path, foam)),
        lambda name: case_branches(path / name, foam),
        lambda name: read_known_forces(path / name),
        partial(check_cases, path, sources=sources, foam=foam),
        found,
        partial(parse_stored_split, path, names),
    )


def check_selection(data: str | Path | None, foam: FoamSelection) -> None:
    """Refuses patches or a time for data without OpenFOAM cases.

    Raises:
        ValueError: They are given, and there is no such case.
    """
    if foam == DEFAULT_SELECTION:
        return
    path = None if data is None or is_store(str(data)) else Path(data)
    names = [] if path is None or case_branches(path) else case_names(path)
    if path is None or not is_foam_case(path / names[0] if names else path):
        given = f"time {foam.time!r}" if not foam.patches else f"surface patches {', '.join(map(repr, foam.patches))}"
        raise ValueError(f"{given}: only OpenFOAM cases have them, {data or 'the built-in data set'} is none")


def parse_stored_split(root: Path, names: Sequence[str], *, skip_absent: bool = False) -> CaseSplit | None:
    """Returns the split beside cases, if there is one; messages name its file, or the lists of DrivAerNet++."""
    content = stored_split(root)
    if content is None:
        return None
    file = root / SPLIT_FILE
    return parse_split(content, names, file if file.is_file() else design_lists(root), skip_absent=skip_absent)


def stored_split(root: Path) -> Any:
    """Returns the split beside cases, as a split file or the lists of designs of DrivAerNet++ have it, if any."""
    file = root / SPLIT_FILE
    return read_json(file) if file.is_file() else design_split(root)


def check_cases(
    root: Path, names: Sequence[str], sources: Sources | None = None, foam: FoamSelection = DEFAULT_SELECTION
) -> None:
    """Refuses cases with missing or broken files, all at once; only names, sizes and headers are looked at.

    Args:
        root: The folder of the cases.
        names: Their names; each must have the branches that any has.
        sources: See `open_cases`.
        foam: See `open_cases`.

    Raises:
        ValueError: At least one is unusable; the message names the first five and what is wrong with each.
    """
    branches = {branch for name in names for branch in _branches(root / name, foam)}
    problems = {name: case_problem(root / name, map_torch_tensor, branches, sources, foam) for name in names}
    found = [f"{name}: {problem.splitlines()[0]}" for name, problem in problems.items() if problem is not None]
    if found:
        shown = "; ".join(found[:_MOST_SHOWN] + ["…"] * (len(found) > _MOST_SHOWN))
        raise ValueError(f"{root}: {len(found)} of {len(names)} cases are unusable: {shown}{_ADVICE}")


def folder_left_out(
    root: Path, names: Sequence[str], sources: Sources, foam: FoamSelection = DEFAULT_SELECTION
) -> list[str]:
    """Returns what these cases have and no command reads: files of all of them, arrays of the first."""
    found = {
        name: [f"{name}/{line}" for line in case_left_out(root / name, sources, foam, with_arrays=name == names[0])]
        for name in names
    }
    return gathered(found)


def _open_store(location: str) -> OpenCases:
    store = Store(location)
    content = store.split

    def parse(*, skip_absent: bool) -> CaseSplit | None:
        file = f"{location}/{SPLIT_FILE}"
        return None if content is None else parse_split(content, store.names, file, skip_absent=skip_absent)

    return OpenCases(
        store.names,
        store,
        lambda name: tuple(store.shapes(name)),
        lambda name: store.cases[name].forces,
        lambda _: None,
        parse_sources(store.sources, f"{location}/{STORE_FILE}"),
        parse,
    )


def _branches(path: Path, foam: FoamSelection) -> tuple[str, ...]:
    """Returns the branches of a case; none if they cannot be told, which is said with what is wrong with the case."""
    try:
        return case_branches(path, foam)
    except ValueError:
        return ()


def _load(
    root: Path,
    name: str,
    *,
    with_cell_sizes: bool,
    with_area_vectors: bool,
    sources: Sources | None,
    foam: FoamSelection,
) -> Case:
    try:
        return read_case_folder(
            root / name,
            load_torch_tensor,
            with_cell_sizes=with_cell_sizes,
            with_area_vectors=with_area_vectors,
            sources=sources,
            foam=foam,
        )
    except ValueError as error:
        raise ValueError(f"{error}{_ADVICE}") from None
