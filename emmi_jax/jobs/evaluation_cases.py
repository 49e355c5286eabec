"""The known cases that a run is compared with."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from emmi_jax.config import FoamSelection
from emmi_jax.config.jobs import EvaluationJob
from emmi_jax.data.case_conditions import BESIDE_CASES, CaseConditions
from emmi_jax.data.case_split import SPLIT_FILE
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.conditions import ConditionScale, condition_values
from emmi_jax.data.features import with_features
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.open import check_selection, open_cases
from emmi_jax.data.open_cases import OpenCases
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.meshes.point_inputs import input_names
from emmi_jax.points import PointSet
from emmi_jax.runs.directory import RunConfig


class ChosenCases(NamedTuple):
    """The cases to compare with.

    Args:
        data: Where they are.
        split: The split that they are in; None for a single case.
        read: What reads each case, by name.
        known_forces: What a solver wrote beside each case.
        left_out: What is not read of their folders.
        unusable: Cases that were left out, and why.
        opened: The folder or store that they are in.
    """

    data: str
    split: str | None
    read: Mapping[str, Callable[[], Case]]
    known_forces: Mapping[str, KnownForces | None]
    left_out: list[str]
    opened: OpenCases
    unusable: Mapping[str, str] = MappingProxyType({})


def chosen_cases(job: EvaluationJob, config: RunConfig, surrogate: Surrogate) -> ChosenCases:
    """Finds the cases to compare with."""
    trained_on = None if config.settings is None else config.settings.data
    data = trained_on if job.data is None else job.data
    if data is None:
        raise ValueError("the run was not trained on folders of cases: give them with --data")
    sources, is_weighted = config.field_sources() or None, surrogate.sampling.method == "weighted"
    check_selection(data, FoamSelection(job.surface_patches or (), job.time))
    foam, scales, source = config.foam(job.surface_patches, job.time), config.normalizer.conditions, BESIDE_CASES
    source = (source if config.settings is None else config.settings.conditions).with_names(tuple(scales))
    options = ReadOptions(
        with_cell_sizes=is_weighted or None,
        with_area_vectors=True,
        sources=sources,
        inputs=input_names(surrogate.features),
        mask_nan=config.mask_nan,
    )
    if (opened := open_cases(data, options, foam)) is None:
        if not Path(data).is_dir():
            raise FileNotFoundError(f"{data} is no folder of cases")
        raise ValueError(f"{data}: no cases in this folder")
    conditions = opened.conditions(source)
    names, unusable, split = opened.names, dict[str, str](), None if opened.is_single else job.split
    if split is not None:
        is_own = trained_on is not None and Path(data).resolve() == Path(trained_on).resolve()
        own_split, skip = config.split if is_own else None, job.skip_unusable
        names = _names_in_split(split, data, opened, own_split, skip_unusable=skip)
        unusable = opened.problems(names, conditions.problems) if skip else {}
    if not (names := [name for name in names if name not in unusable]):
        raise ValueError(f"{data}: no case is usable; {'; '.join(': '.join(item) for item in unusable.items())}")
    _check_branches({name: opened.branches_of(name) for name in names}, surrogate)
    if not opened.is_single or conditions.problems:
        opened.check(names, conditions.problems)
    reads = _under_conditions({name: partial(opened.cases.read, name) for name in names}, conditions, scales)
    forces = {name: opened.forces_of(name) for name in names}
    return ChosenCases(data, split, reads, forces, opened.left_out(names), opened, unusable)


def _under_conditions(
    reads: Mapping[str, Callable[[], Case]], conditions: CaseConditions, scales: Mapping[str, ConditionScale]
) -> dict[str, Callable[[], Case]]:
    """Returns what reads cases with the conditions that the run takes.

    Raises:
        ValueError: A condition has another unit than in training.
    """

    def under(name: str, read: Callable[[], Case]) -> Callable[[], Case]:
        try:
            condition = condition_values(conditions.by_case[name], scales)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        return lambda: read()._replace(condition=condition)

    return {name: under(name, read) for name, read in reads.items()}


def _names_in_split(
    split: str, data: str, opened: OpenCases, own_split: Mapping[str, str] | None, *, skip_unusable: bool
) -> list[str]:
    """Returns the names of the cases in a split: that of the run, if the data are its own, or of the data."""
    if split == "all":
        return opened.names
    split_of = own_split
    if split_of is None and (stored := opened.stored_split(skip_absent=skip_unusable)) is not None:
        split_of = stored.split_of
    if split_of is None:
        raise ValueError(f"{data} has no {SPLIT_FILE}, so no split {split!r}: use --split all")
    chosen = [name for name in opened.names if split_of.get(name) == split]
    if not chosen:
        raise ValueError(f"{data}: no case is in the split {split!r}")
    if (absent := sorted(set(split_of) - set(opened.names))) and not skip_unusable:
        raise ValueError(
            f"{data}: cases of the split do not exist: {', '.join(absent)}; --skip-unusable leaves them out"
        )
    return chosen


def _check_branches(branches: Mapping[str, Collection[str]], surrogate: Surrogate) -> None:
    """Refuses cases without a branch of the model, all at once."""
    needed = surrogate.model.config.branches
    if lacking := [name for name, present in branches.items() if not set(needed) <= set(present)]:
        raise ValueError(f"the model has the branches {list(needed)}; cases that lack one: {', '.join(lacking)}")


def checked_case(name: str, case: Case, surrogate: Surrogate) -> Case:
    """Returns a case with its features apart; refuses one without a field or a feature of the model."""
    case = with_features(name, case, surrogate.features)
    for branch, names in surrogate.model.config.fields.items():
        fields = {name: values.shape[-1] for name, values in case.points[branch].fields.items()}
        if not dict(names).items() <= fields.items():
            raise ValueError(f"{name}: {branch} has the fields {fields}, expected {dict(names)}")
    return case


def case_arguments(surrogate: Surrogate, case: Case) -> dict[str, Any]:
    """Returns what `Surrogate.encode` takes of a case to draw from."""
    geometry = None
    if surrogate.model.config.has_geometry and case.geometry is not None:
        geometry = PointSet(case.geometry, {}, features=case.geometry_features)
    points = {branch: case.points[branch] for branch in surrogate.model.config.fields}
    return {"points": points, "geometry": geometry, "condition": case.condition}


def query_features(surrogate: Surrogate, case: Case) -> dict[str, Any]:
    """Returns the features of all points of a case."""
    return {branch: case.points[branch].features for branch in surrogate.model.config.feature_dims}
