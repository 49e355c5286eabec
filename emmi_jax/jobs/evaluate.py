"""`emmi-jax evaluate`: how far a run is from known cases, at every point of their meshes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeAlias

from rich.console import Console

from emmi_jax.config.jobs import EvaluationJob
from emmi_jax.data.cases import Case
from emmi_jax.data.metrics import Metrics, field_metrics, mean_metrics
from emmi_jax.data.notes import box_warnings, case_boxes, gathered
from emmi_jax.files.atomic import JsonDict, write_csv, write_json
from emmi_jax.files.outputs import check_output
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.evaluation_cases import case_arguments, checked_case, chosen_cases, query_features
from emmi_jax.jobs.evaluation_coverage import Coverage
from emmi_jax.jobs.evaluation_details import CaseDetails
from emmi_jax.jobs.evaluation_forces import ForceEvaluation
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
from emmi_jax.points import Fields
from emmi_jax.runs.directory import RunDirectory
from emmi_jax.runs.load import load_run

_Lines: TypeAlias = Mapping[str, Sequence[str]]


def evaluate_run(job: EvaluationJob, *, console: Console) -> None:
    """Compares the predictions of a run with the fields and the forces of known cases; prints and writes the metrics.

    The files are `evaluation_<split>.json` and `.csv`, `evaluation_<split>_<branch>_<field>.png`, and where forces are
    known `evaluation_<split>_forces.csv` and `.png`; of a calibrated run `evaluation_<split>_coverage.png`. A single
    case is in no split.

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
    coverage = Coverage(path, surrogate, chosen.data)
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
            warnings[name] += details.notes(name)
            coverage.add(name, case, forces.cases.get(name))
    _print_notes(chosen.unusable, left_out, warnings, console)
    mean, force_metrics = mean_metrics(list(by_case.values())), forces.metrics()
    stem = "evaluation" if chosen.split is None else f"evaluation_{chosen.split}"
    content = {"data": chosen.data, "split": chosen.split, "repeats": job.repeats, "mean": mean, "cases": by_case}
    more = details.to_dict(by_case)
    cases = "1 case" if len(by_case) == 1 else f"{len(by_case)} cases"
    covered, pictures = coverage.report(out / stem, console)
    content |= more | covered | ({} if force_metrics is None else {"forces": force_metrics.to_dict()})
    paths = [*_write_metrics(out, stem, content, by_case), *parity.draw(out / stem, cases), *pictures]
    for table in (metrics_table(f"Mean over {cases}", mean), *details.tables(more)):
        console.print(table)
    print_paths([*paths, *_report_forces(forces, out / f"{stem}_forces", sides, console)], console)


def _write_metrics(out: Path, stem: str, content: JsonDict, by_case: Mapping[str, dict[str, Metrics]]) -> list[Path]:
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{stem}.json", content)
    write_csv(out / f"{stem}.csv", _metric_rows(by_case))
    return [out / f"{stem}.json", out / f"{stem}.csv"]


def _print_notes(unusable: Mapping[str, str], left_out: _Lines, warnings: _Lines, console: Console) -> None:
    print_unusable(unusable, console)
    print_left_out(gathered(left_out), console)
    print_warnings(gathered(warnings), console)


def _report_forces(forces: ForceEvaluation, stem: Path, sides: Mapping[str, str], console: Console) -> list[Path]:
    """Writes and prints coefficients, or why there are none; returns the files."""
    if (metrics := forces.metrics()) is None:
        if forces.problem is not None:
            say(console, f"no forces: {forces.problem}")
        return []
    table = stem.with_name(f"{stem.name}.csv")
    write_csv(table, metrics.rows())
    print_sides(sides, console)
    print_warnings(metrics.notes, console)
    console.print(metrics.table())
    return [table, draw_forces(stem.with_name(f"{stem.name}.png"), metrics)]


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
