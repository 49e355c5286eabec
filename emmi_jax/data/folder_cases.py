"""Cases in folders, as a collection reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.cases import Case, ReadOptions, WholeCases
from emmi_jax.data.measured import measure_folders, quick_folders
from emmi_jax.data.mesh_dataset import read_dataset
from emmi_jax.data.notes import moments_box, unlike_cases
from emmi_jax.data.open_cases import ADVICE
from emmi_jax.data.report import SILENT, Report
from emmi_jax.data.statistics import DataMoments


class FolderCases(WholeCases):
    """Cases in folders, which are read whole; the last 16 that were drawn from stay in memory.

    Args:
        root: The folder of the cases.
        folders: The cases by name.
        options: What of each to read.
    """

    def __init__(self, root: Path, folders: Mapping[str, CaseFolder], options: ReadOptions) -> None:
        self.root, self.folders, self.options = root, folders, options
        super().__init__(self._read, lambda name: folders[name].fingerprint(root))

    def __reduce__(self) -> tuple[Any, ...]:
        """Another process begins with no case in memory."""
        return FolderCases, (self.root, self.folders, self.options)

    def measure_all(self, names: Sequence[str], report: Report = SILENT) -> dict[str, DataMoments]:
        """Returns the statistics of cases; those that were measured before and have not changed are not read."""
        by_case = measure_folders(self.root, {name: self.folders[name] for name in names}, self.measure, report)
        report.warn(unlike_cases({name: moments_box(moments) for name, moments in by_case.items()}))
        return by_case

    def quick(self, names: Sequence[str]) -> list[str]:
        """Returns those of these cases that are known, and the first others up to a few hundred megabytes."""
        return quick_folders(self.root, {name: self.folders[name] for name in names})

    @property
    def statistics(self) -> str | None:
        """The statistics that the description of the data names: a file beside it, or published ones; None for none."""
        dataset = read_dataset(next(iter(self.folders.values())).path)
        if dataset is None or dataset.statistics is None:
            return None
        file = self.root / dataset.statistics
        return str(file) if file.is_file() else dataset.statistics

    def _read(self, name: str) -> Case:
        try:
            return self.folders[name].read(self.options)
        except ValueError as error:
            raise ValueError(f"{error}{ADVICE if len(self.folders) > 1 else ''}") from None
