"""`emmi-jax evaluate`: how far a run is from known cases, at every point of their meshes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from rich.console import Console

from emmi_jax.config import FoamSelection
from emmi_jax.config.jobs import EvaluationJob
from emmi_jax.data.case_conditions import BESIDE_CASES, CaseConditions
from emmi_jax.data.case_split import SPLIT_FILE
from emmi_jax.data.cases import Case, ReadOptions
from emmi_jax.data.conditions import ConditionScale, condition_values
from emmi_jax.data.features import with_features
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.metrics import Metrics, field_metrics, mean_metrics
from emmi_jax.data.notes import box_warnings, case_boxes, gathered
from emmi_jax.data.open import check_selection, open_cases
from emmi_jax.data.open_cases import OpenCases
from emmi_jax.files.atomic import JsonDict, write_atomically, write_json
from emmi_jax.files.outputs import check_output
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.evaluation_details import CaseDetails
from emmi_jax.jobs.evaluation_forces import ForceEvaluation, ForceMetrics
from emmi_jax.jobs.evaluation_pictures import ParityPoints, draw_forces
from emmi_jax.jobs.progress import (
    ProgressBar,
    metrics_table,
    print_left_out,
    print_paths,
    print_sides,
    print_unusable,
    print_warnings,
    say,
)
from emmi_jax.meshes.point_inputs import input_names
from emmi_jax.points import Fields, PointSet
from emmi_jax.runs.directory import RunConfig, RunDirectory
from emmi_jax.runs.load import load_run

_Lines: TypeAlias = Mapping[str, Sequence[str]]


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


def evaluate_run(job: EvaluationJob, *, console: Console) -> None:
    """Compares the predictions of a run with the fields and the forces of known cases; prints and writes the metrics.

    The files are `evaluation_<split>.json` and `.csv`, `evaluation_<split>_<branch>_<field>.png`, and where forces are
    known `evaluation_<split>_forces.csv` and `.png`; a single case is in no split.

    Args:
        job: The run, and what to compare it with.
        console: Where progress and the tables are printed.

    Raises:
        FileNotFoundError: There are no such data.
        ValueError: The run or a case is unusable, or has other fields, or no case is in the split; or the options ask
            for forces that cannot be integrated. Nothing is written.
    """
    path, out = job.run, job.run if job.out is None else job.out
    if out.is_file():
        raise ValueError(f"{out} is a file, expected a folder")
    # Anchors come from each case, even if the run has a context: that of another case, perhaps.
    surrogate, config = replace(load_run(path, job.checkpoint), context=None), RunDirectory.open(path).read_config()
    if job.out is not None:
        check_output(job.out, [job.data, None if config.settings is None else config.settings.data])
    chosen = chosen_cases(job, config, surrogate)
    forces = ForceEvaluation(job.forces, chosen.known_forces, surrogate.model.config.fields)
    by_case: dict[str, dict[str, Metrics]] = {}
    parity, details = ParityPoints(len(chosen.read)), CaseDetails(config.normalizer.conditions)
    left_out, warnings, sides = {"": chosen.left_out}, dict[str, list[str]](), dict[str, str]()
    with ProgressBar(console, len(chosen.read) * job.repeats, unit="predictions") as progress:
        for name, read in chosen.read.items():
            case = checked_case(name, read(), surrogate)
            left_out[name] = [f"{name}: {line}" for line in case.left_out]
            warnings[name] = [f"{name}: {line}" for line in box_warnings(case_boxes(case))]
            if forces.begin(name, case):
                sides[name] = case.side
            repeats = []
            for seed in range(job.repeats):
                predicted = _predict(surrogate, case, seed=seed)
                repeats.append(_case_metrics(predicted, case))
                details.add(name, predicted, case)
                forces.add(name, predicted)
                if not seed:
                    parity.add(predicted, case)
                progress.advance(1, name)
            by_case[name] = mean_metrics(repeats)
    for name, of_case in details.masked.items():
        warnings[name] += [f"{name}: {field} is NaN at {number:,} points" for field, number in of_case.items()]
    _print_notes(chosen.unusable, left_out, warnings, console)
    mean, found = mean_metrics(list(by_case.values())), forces.metrics()
    stem = "evaluation" if chosen.split is None else f"evaluation_{chosen.split}"
    content = {"data": chosen.data, "split": chosen.split, "repeats": job.repeats, "mean": mean, "cases": by_case}
    more = details.to_dict(by_case)
    cases = "1 case" if len(by_case) == 1 else f"{len(by_case)} cases"
    content |= more | ({} if found is None else {"forces": found.to_dict()})
    paths = [*_write_metrics(out, stem, content, by_case), *parity.draw(out / stem, cases)]
    console.print(metrics_table(f"Mean over {cases}", mean))
    for table in details.tables(more):
        console.print(table)
    if found is not None:
        paths += _report_forces(found, out / f"{stem}_forces", sides, console)
    elif forces.problem is not None:
        say(console, f"no forces: {forces.problem}")
    print_paths(paths, console)


def _write_metrics(out: Path, stem: str, content: JsonDict, by_case: Mapping[str, dict[str, Metrics]]) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{stem}.json", content)
    write_atomically(out / f"{stem}.csv", _csv(_metric_rows(by_case)))
    return [out / f"{stem}.json", out / f"{stem}.csv"]


def _print_notes(unusable: Mapping[str, str], left_out: _Lines, warnings: _Lines, console: Console) -> None:
    print_unusable(unusable, console)
    print_left_out(gathered(left_out), console)
    print_warnings(gathered(warnings), console)


def _report_forces(found: ForceMetrics, stem: Path, sides: Mapping[str, str], console: Console) -> list[Path]:
    """Writes and prints coefficients; returns the files."""
    table = stem.with_name(f"{stem.name}.csv")
    write_atomically(table, _csv(found.rows()))
    print_sides(sides, console)
    print_warnings(found.notes, console)
    console.print(found.table())
    return [table, draw_forces(stem.with_name(f"{stem.name}.png"), found)]


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
    if lacking := [name for name, found in branches.items() if not set(needed) <= set(found)]:
        raise ValueError(f"the model has the branches {list(needed)}; cases that lack one: {', '.join(lacking)}")


def checked_case(name: str, case: Case, surrogate: Surrogate) -> Case:
    """Returns a case with its features apart; refuses one without a field or a feature of the model."""
    case = with_features(name, case, surrogate.features)
    for branch, names in surrogate.model.config.fields.items():
        found = {name: values.shape[-1] for name, values in case.points[branch].fields.items()}
        if not dict(names).items() <= found.items():
            raise ValueError(f"{name}: {branch} has the fields {found}, expected {dict(names)}")
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


def _predict(surrogate: Surrogate, case: Case, *, seed: int) -> Fields:
    """Predicts all points of a case, anchors among them."""
    fields = surrogate.model.config.fields
    encoded = surrogate.encode(**case_arguments(surrogate, case), seed=seed)
    predicted = encoded.predict(
        {branch: case.points[branch].position for branch in fields}, query_features=query_features(surrogate, case)
    )
    return {branch: {name: predicted[f"{branch}_{name}"] for name in names} for branch, names in fields.items()}


def _case_metrics(predicted: Fields, case: Case) -> dict[str, Metrics]:
    return {
        f"{branch}/{name}": field_metrics(values, case.points[branch].fields[name])
        for branch, fields in predicted.items()
        for name, values in fields.items()
    }


def _metric_rows(by_case: Mapping[str, Mapping[str, Metrics]]) -> list[list[object]]:
    """Returns a table of the metrics by case and field, its head first."""
    first = next(iter(next(iter(by_case.values())).values()))
    rows: list[list[object]] = [["case", "field", *first]]
    for case, metrics in by_case.items():
        rows += [[case, name, *values.values()] for name, values in metrics.items()]
    return rows


def _csv(rows: Iterable[Iterable[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
