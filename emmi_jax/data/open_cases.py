"""Cases that were opened, whatever they lie in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from emmi_jax.config.conditions import ConditionSource
from emmi_jax.data.case_conditions import CaseConditions
from emmi_jax.data.case_split import CaseSplit, draw_split, read_split
from emmi_jax.data.cases import Cases, ReadOptions
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.mesh_dataset import Sources, sources_to_json
from emmi_jax.files.atomic import JsonDict

ADVICE = "; --skip-unusable leaves such cases out"
NOTHING: Mapping[str, str] = MappingProxyType({})


class OpenCases(ABC):
    """Cases that can be read.

    Attributes:
        names: Their names.
        cases: Reads them.
        sources: The arrays of mesh files that hold the fields.
        is_single: Whether the path is that of a case, not of a folder of cases.
    """

    names: list[str]
    cases: Cases
    sources: Sources
    is_single: bool = False

    @property
    def sources_json(self) -> JsonDict:
        """The sources as in a `fields.json`."""
        return sources_to_json(self.sources)

    @abstractmethod
    def reading(self, options: ReadOptions) -> OpenCases:
        """Returns the same cases with other options of reading, without looking for them again."""

    @abstractmethod
    def branches_of(self, name: str) -> tuple[str, ...]:
        """Returns the branches of a case."""

    @abstractmethod
    def forces_of(self, name: str) -> KnownForces | None:
        """Returns the forces that a solver wrote beside a case, if it did."""

    @abstractmethod
    def stored_split(self, *, skip_absent: bool = False) -> CaseSplit | None:
        """Returns the split beside the cases, if there is one."""

    @abstractmethod
    def conditions(self, source: ConditionSource) -> CaseConditions:
        """Returns the conditions of the cases; the source says where they are."""

    @abstractmethod
    def check(self, names: Sequence[str], known: Mapping[str, str] = NOTHING) -> None:
        """Refuses unusable cases among these names, all at once, with what is known to be wrong already."""

    def left_out(self, names: Sequence[str]) -> list[str]:
        """Returns what these cases have and no command reads: files of all of them, arrays of the first."""
        return []

    def describe(self) -> list[str]:
        """Says what is read of the first case, where there is a choice."""
        return []

    def num_geometry_points(self) -> int | None:
        """Returns how many points every case has for a geometry branch at least, if some have few."""
        return None

    def split(self, file: str | None, *, skip_unusable: bool = False) -> CaseSplit:
        """Returns a published split or that of a file, or else the one beside the cases, or else a random one.

        Args:
            file: The name or the file.
            skip_unusable: Whether to leave out names that no case has.
        """
        if file is not None:
            return read_split(file, self.names, skip_absent=skip_unusable)
        return self.stored_split(skip_absent=skip_unusable) or draw_split(self.names)

    def problems(self, names: Sequence[str], known: Mapping[str, str] = NOTHING) -> dict[str, str]:
        """Reads cases whole, one after another, and returns what is wrong with those that are unusable."""
        by_case = {name: known[name] for name in names if name in known}
        for name in names:
            if name in by_case:
                continue
            try:
                self.check([name])
                self.cases.read(name)
            except (OSError, ValueError) as error:
                by_case[name] = str(error).splitlines()[0].removesuffix(ADVICE)
        return by_case
