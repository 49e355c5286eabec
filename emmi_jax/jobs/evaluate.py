"""`emmi-jax evaluate`: how far a run is from known cases, at every point of their meshes."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from rich.console import Console

from emmi_jax.convert.files import load_torch_tensor
from emmi_jax.data.case_folder import case_branches, read_case_folder
from emmi_jax.data.case_split import SPLIT_FILE
from emmi_jax.data.cases import Case
from emmi_jax.data.metrics import Metrics, field_metrics, mean_metrics
from emmi_jax.files.atomic import write_atomically, write_json
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.cases import OpenCases, open_cases
from emmi_jax.jobs.progress import ProgressBar, metrics_table
from emmi_jax.runs.checkpoints import LATEST
from emmi_jax.runs.directory import RunConfig, RunDirectory
from emmi_jax.runs.load import load_run


@dataclass(frozen=True, kw_only=True)
class EvaluationJob:
    """What to compare a run with.

    Args:
        data: Folder of a case or of several, or a store; None for the data that the run was trained on.
        split: Which of several cases: `train`, `validation`, `test` or `all`. Splits are those of the run, or
            of `split.json` beside other data.
        repeats: How many draws of anchors, geometry points and supernodes to average the metrics over.
        out: Folder for `evaluation_<split>.json` and `.csv`, or `evaluation.json` and `.csv` of a single case; None for
            that of the run.
        checkpoint: ``latest`` or ``best``.
        surface_patches: Patches of OpenFOAM cases, as regular expressions; None for those of the run.
        time: Time of OpenFOAM cases; None for that of the run, or the latest.
    """

    data: str | None = None
    split: str = "test"
    repeats: int = 1
    out: Path | None = None
    checkpoint: str = LATEST
    surface_patches: tuple[str, ...] | None = None
    time: str | None = None


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
    surrogate, config = replace(load_run(path, job.checkpoint), context=None), RunDirectory.open(path).read_config()
    data, split, chosen = _chosen_cases(job, config, surrogate)
    by_case: dict[str, dict[str, Metrics]] = {}
    with ProgressBar(console, len(chosen) * job.repeats, unit="predictions") as progress:
        for name, read in chosen.items():
            case, repeats = _checked(name, read(), surrogate), []
            for seed in range(job.repeats):
                repeats.append(_case_metrics(surrogate, case, seed=seed))
                progress.advance(1, name)
            by_case[name] = mean_metrics(repeats)
    mean = mean_metrics(list(by_case.values()))
    out.mkdir(parents=True, exist_ok=True)
    stem = "evaluation" if split is None else f"evaluation_{split}"
    content = {"data": data, "split": split, "repeats": job.repeats, "mean": mean, "cases": by_case}
    write_json(out / f"{stem}.json", content)
    write_atomically(out / f"{stem}.csv", _csv(by_case))
    cases = "1 case" if len(chosen) == 1 else f"{len(chosen)} cases"
    console.print(metrics_table(f"Mean over {cases}", mean))
    console.print(f"{out / stem}.json and .csv have every case", highlight=False, soft_wrap=True)


def _chosen_cases(
    job: EvaluationJob, config: RunConfig, surrogate: Surrogate
) -> tuple[str, str | None, dict[str, Callable[[], Case]]]:
    """Returns the data, the split, and what reads each case to compare with; a single case is in no split."""
    trained_on = None if config.settings is None else config.settings["data"]
    data = trained_on if job.data is None else job.data
    if data is None:
        raise ValueError("the run was not trained on folders of cases: give them with --data")
    sources, is_weighted = config.field_sources() or None, surrogate.sampling.method == "weighted"
    foam = config.foam(job.surface_patches, job.time)
    opened = open_cases(data, with_cell_sizes=is_weighted, sources=sources, foam=foam)
    if opened is None:
        path = Path(data)
        if not path.is_dir():
            raise FileNotFoundError(f"{data} is no folder of cases")
        if not (branches := case_branches(path, foam)):
            raise ValueError(f"{data}: no cases in this folder")
        _check_branches({path.name: branches}, surrogate)
        read = partial(
            read_case_folder, path, load_torch_tensor, with_cell_sizes=is_weighted, sources=sources, foam=foam
        )
        return data, None, {path.name: read}
    is_own = trained_on is not None and Path(data).resolve() == Path(trained_on).resolve()
    names = _names_in_split(job.split, data, opened, config.split if is_own else None)
    _check_branches({name: opened.branches_of(name) for name in names}, surrogate)
    opened.check(names)
    return data, job.split, {name: partial(opened.cases.read, name) for name in names}


def _names_in_split(split: str, data: str, opened: OpenCases, own_split: Mapping[str, str] | None) -> list[str]:
    """Returns the names of the cases in a split: that of the run, if the data are its own, or of the data."""
    if split == "all":
        return opened.names
    split_of = own_split
    if split_of is None and opened.stored_split is not None:
        split_of = opened.stored_split.split_of
    if split_of is None:
        raise ValueError(f"{data} has no {SPLIT_FILE}, so no split {split!r}: use --split all")
    chosen = [name for name in opened.names if split_of.get(name) == split]
    if not chosen:
        raise ValueError(f"{data}: no case is in the split {split!r}")
    if absent := sorted(set(split_of) - set(opened.names)):
        raise ValueError(f"{data}: cases of the split do not exist: {', '.join(absent)}")
    return chosen


def _check_branches(branches: Mapping[str, Collection[str]], surrogate: Surrogate) -> None:
    """Refuses cases without a branch of the model, all at once."""
    needed = surrogate.model.config.branches
    if lacking := [name for name, found in branches.items() if not set(needed) <= set(found)]:
        raise ValueError(f"the model has the branches {list(needed)}; cases that lack one: {', '.join(lacking)}")


def _checked(name: str, case: Case, surrogate: Surrogate) -> Case:
    """Refuses a case without a field of the model."""
    for branch, names in surrogate.model.config.fields.items():
        found = {field: values.shape[-1] for field, values in case.points[branch].fields.items()}
        if not dict(names).items() <= found.items():
            raise ValueError(f"{name}: {branch} has the fields {found}, expected {dict(names)}")
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
