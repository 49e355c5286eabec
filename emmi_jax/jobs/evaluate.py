"""`emmi-jax evaluate`: how far a run is from known cases, at every point of their meshes."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from emmi_jax.convert.files import load_torch_tensor
from emmi_jax.data.case_collection import case_folders
from emmi_jax.data.case_folder import DRIVAERML, Case, Sources, case_branches, read_case_folder
from emmi_jax.data.case_split import SPLIT_FILE, read_split
from emmi_jax.data.metrics import Metrics, field_metrics, mean_metrics
from emmi_jax.files.atomic import write_atomically, write_json
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.progress import ProgressBar, metrics_table
from emmi_jax.runs.directory import RunConfig, RunDirectory
from emmi_jax.runs.load import load_run


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What to compare a run with.

    Args:
        data: Folder of a case, or of several; None for the data that the run was trained on.
        split: Which of several cases: `train`, `validation`, `test` or `all`. Splits are those of the run, or
            of `split.json` beside other data.
        repeats: How many draws of anchors, geometry points and supernodes to average the metrics over.
        out: Folder for `evaluation_<split>.json` and `.csv`, or `evaluation.json` and `.csv` of a single case; None for
            that of the run.
    """

    data: Path | None = None
    split: str = "test"
    repeats: int = 1
    out: Path | None = None


def evaluate_run(path: Path, job: EvaluationJob, *, console: Console) -> None:
    """Compares the predictions of a run with the fields of known cases, and writes and prints the metrics.

    Args:
        path: The run's folder.
        job: What to compare with.
        console: Where progress and the table are printed.

    Raises:
        FileNotFoundError: There are no such data.
        ValueError: The run or a case is unusable, or has other fields, or no case is in the split; nothing is written.
    """
    out = path if job.out is None else job.out
    if out.is_file():
        raise ValueError(f"{out} is a file, expected a folder")
    # Anchors come from each case, even if the run has a context: that of another case, perhaps.
    surrogate, config = replace(load_run(path), context=None), RunDirectory.open(path).read_config()
    data, split, folders = _chosen_cases(job, config)
    _check_cases(folders, surrogate)
    by_case: dict[str, dict[str, Metrics]] = {}
    with ProgressBar(console, len(folders) * job.repeats, unit="predictions") as progress:
        for folder in folders:
            case, repeats = _read(folder, surrogate, config.field_sources() or DRIVAERML), []
            for seed in range(job.repeats):
                repeats.append(_case_metrics(surrogate, case, seed=seed))
                progress.advance(1, folder.name)
            by_case[folder.name] = mean_metrics(repeats)
    mean = mean_metrics(list(by_case.values()))
    out.mkdir(parents=True, exist_ok=True)
    name = "evaluation" if split is None else f"evaluation_{split}"
    content = {"data": str(data), "split": split, "repeats": job.repeats, "mean": mean, "cases": by_case}
    write_json(out / f"{name}.json", content)
    write_atomically(out / f"{name}.csv", _csv(by_case))
    cases = "1 case" if len(folders) == 1 else f"{len(folders)} cases"
    console.print(metrics_table(f"Mean over {cases}", mean))
    console.print(f"{out / name}.json and .csv have every case", highlight=False, soft_wrap=True)


def _chosen_cases(job: EvaluationJob, config: RunConfig) -> tuple[Path, str | None, list[Path]]:
    """Returns the data, the split, and the folders of the cases to compare with; a single case is in no split."""
    trained_on = None if config.settings is None else config.settings["data"]
    if job.data is None and trained_on is None:
        raise ValueError("the run was not trained on folders of cases: give them with --data")
    data = job.data or Path(trained_on or "")
    if not data.is_dir():
        raise FileNotFoundError(f"{data} is no folder of cases")
    if case_branches(data):
        return data, None, [data]
    folders = case_folders(data)
    if not folders:
        raise ValueError(f"{data}: no cases in this folder")
    if job.split == "all":
        return data, job.split, folders
    is_own = trained_on is not None and data.resolve() == Path(trained_on).resolve()
    if is_own and config.split is not None:
        split_of: Mapping[str, str] = config.split
    elif (file := data / SPLIT_FILE).is_file():
        split_of = read_split(file, folders).split_of
    else:
        raise ValueError(f"{data} has no {SPLIT_FILE}, so no split {job.split!r}: use --split all")
    chosen = [folder for folder in folders if split_of.get(folder.name) == job.split]
    if not chosen:
        raise ValueError(f"{data}: no case is in the split {job.split!r}")
    if absent := sorted(set(split_of) - {folder.name for folder in folders}):
        raise ValueError(f"{data}: cases of the split do not exist: {', '.join(absent)}")
    return data, job.split, chosen


def _check_cases(folders: Sequence[Path], surrogate: Surrogate) -> None:
    """Refuses cases without a branch of the model, all at once."""
    needed = surrogate.model.config.branches
    lacking = [folder.name for folder in folders if not set(needed) <= set(case_branches(folder))]
    if lacking:
        raise ValueError(f"the model has the branches {list(needed)}; cases that lack one: {', '.join(lacking)}")


def _read(folder: Path, surrogate: Surrogate, sources: Sources) -> Case:
    is_weighted = surrogate.sampling.method == "weighted"
    case = read_case_folder(folder, load_torch_tensor, with_cell_sizes=is_weighted, sources=sources)
    for branch, names in surrogate.model.config.fields.items():
        found = {name: values.shape[-1] for name, values in case.points[branch].fields.items()}
        if not dict(names).items() <= found.items():
            raise ValueError(f"{folder}: {branch} has the fields {found}, expected {dict(names)}")
    return case


def _case_metrics(surrogate: Surrogate, case: Case, *, seed: int) -> dict[str, Metrics]:
    """Compares all points of a case, anchors among them."""
    fields = surrogate.model.config.fields
    points = {branch: case.points[branch] for branch in fields}
    geometry = case.geometry if surrogate.model.config.has_geometry else None
    encoded = surrogate.encode(points=points, geometry=geometry, seed=seed)
    predicted = encoded.predict({branch: part.position for branch, part in points.items()})
    return {
        f"{branch}/{name}": field_metrics(predicted[f"{branch}_{name}"], points[branch].fields[name])
        for branch, names in fields.items()
        for name in names
    }


def _csv(by_case: Mapping[str, Mapping[str, Metrics]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    first = next(iter(next(iter(by_case.values())).values()))
    writer.writerow(["case", "field", *first])
    for case, metrics in by_case.items():
        writer.writerows([case, field, *values.values()] for field, values in metrics.items())
    return text.getvalue()
