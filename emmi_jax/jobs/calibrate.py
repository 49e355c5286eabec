"""`emmi-jax calibrate`: how far a run is from cases that it was not trained on, so that intervals hold."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from emmi_jax.config.jobs import CalibrationJob, EvaluationJob, ForceOptions
from emmi_jax.data.cases import ReadOptions
from emmi_jax.data.conformal import conformal_quantile, coverage_law
from emmi_jax.data.familiarity import MIN_CASES, Description, Familiarity, fit_familiarity
from emmi_jax.data.open import open_cases
from emmi_jax.deploy.spread import Spread
from emmi_jax.files.atomic import make_folder
from emmi_jax.inference.case_encoding import describe, flat_condition, least_reach
from emmi_jax.inference.intervals import number_score
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.evaluation_cases import ChosenCases, case_arguments, checked_case, chosen_cases
from emmi_jax.jobs.evaluation_coverage import LEVELS, field_coverage
from emmi_jax.jobs.evaluation_forces import NAMES, ForceEvaluation
from emmi_jax.jobs.progress import ProgressBar, new_table, print_paths, print_unusable, say
from emmi_jax.meshes.point_inputs import input_names
from emmi_jax.runs.calibration import Calibration, parameters_of, write_calibration
from emmi_jax.runs.directory import RunConfig, RunDirectory
from emmi_jax.runs.load import load_run


def calibrate_run(job: CalibrationJob, *, console: Console) -> None:
    """Compares a run with known cases, and stores the scores in the run.

    Args:
        job: The run, and the cases.
        console: Where progress and a table of the quantiles are printed.

    Raises:
        FileNotFoundError: There are no such data.
        ValueError: The run or a case is unusable, a case is one to train on, or there is none. Nothing is written.
    """
    surrogate, config = (
        replace(load_run(job.run, job.checkpoint), context=None),
        RunDirectory.open(job.run).read_config(),
    )
    asked = EvaluationJob(
        run=job.run,
        data=job.data,
        split=job.split,
        skip_unusable=job.skip_unusable,
        surface_patches=job.surface_patches,
        time=job.time,
    )
    chosen = chosen_cases(asked, config, surrogate)
    _refuse_training_cases(job, chosen, config)
    make_folder(job.run)  # which says at once if it cannot be written to
    forces = ForceEvaluation(_force_options(job, chosen), chosen.known_forces, surrogate.model.config.fields)
    scores, known, described = _scores(job, chosen, surrogate, forces, console)
    familiarity = _familiarity(asked, config, surrogate, described, console)
    calibration = Calibration(
        parameters=parameters_of(surrogate),
        data=chosen.data,
        split=job.split,
        cases=tuple(chosen.read),
        repeats=job.repeats,
        share=job.share,
        known_forces=known,
        familiarity=None,
        scores={name: tuple(values) for name, values in scores.items()},
    )
    path = write_calibration(job.run, calibration, familiarity)
    print_unusable(chosen.unusable, console)
    if forces.problem is not None:
        say(console, f"no forces: {forces.problem}")
    _print(calibration, len(surrogate.members), console)
    print_paths([path], console)


def _scores(
    job: CalibrationJob, chosen: ChosenCases, surrogate: Surrogate, forces: ForceEvaluation, console: Console
) -> tuple[dict[str, list[float]], str | None, list[Description]]:
    """Returns the scores of the cases, what coefficients were compared with, and what the cases are in numbers."""
    described: list[Description] = []
    scores: dict[str, list[float]] = {}
    predicted: dict[str, dict[str, Spread]] = {}
    with ProgressBar(console, len(chosen.read), unit="cases") as progress:
        for name, read in chosen.read.items():
            case = checked_case(name, read(), surrogate)
            forces.begin(name, case)
            of_case = forces.cases.get(name)
            encoded = surrogate.encode_draws(job.repeats, **case_arguments(surrogate, case))
            described.append(describe(encoded))
            by_quantity, predicted[name] = field_coverage(encoded, surrogate, case, of_case, share=job.share)
            for quantity, of_field in by_quantity.items():
                scores.setdefault(quantity, []).append(of_field.score)
            progress.advance(1, name)
    if not forces.cases:
        return scores, None, described
    has_area = [known is not None and known.area is not None for known in chosen.known_forces.values()]
    known = "solver" if all(has_area) else "reference"
    for coefficient in NAMES:
        scores[coefficient] = [
            number_score(predicted[name][coefficient], of_case.known[known][coefficient])
            for name, of_case in forces.cases.items()
        ]
    return scores, known, described


def _familiarity(
    asked: EvaluationJob,
    config: RunConfig,
    surrogate: Surrogate,
    described: Sequence[Description],
    console: Console,
) -> Familiarity | None:
    """Encodes the training cases, and returns what is usual; None, and a line, if they are gone or too few."""
    try:
        train = chosen_cases(replace(asked, data=None, split="train"), config, surrogate)
        if len(train.read) < MIN_CASES:
            raise ValueError(f"it takes {MIN_CASES} training cases, there are {len(train.read)}")
        known = []
        with ProgressBar(console, len(train.read), unit="training cases") as progress:
            for name, read in train.read.items():
                encoded = surrogate.encode_draws(1, **case_arguments(surrogate, checked_case(name, read(), surrogate)))
                known.append(describe(encoded))
                progress.advance(1, name)
        return fit_familiarity(
            known, described, least_reach(known, len(flat_condition(encoded.variants[0][0].condition)))
        )
    except (OSError, ValueError) as error:
        say(console, f"no distances from the training cases: {str(error).splitlines()[0]}")
        return None


def _force_options(job: CalibrationJob, chosen: ChosenCases) -> ForceOptions:
    """Returns how to get coefficients times their area, if the speed is known."""
    has_speed = job.speed is not None or all(
        known is not None and known.speed is not None for known in chosen.known_forces.values()
    )
    return ForceOptions(speed=job.speed, density=job.density, area=1.0 if has_speed else None)


def _options(config: RunConfig) -> ReadOptions:
    """The computation on cases is a part of their fingerprints."""
    return ReadOptions(inputs=input_names(config.normalizer.features), mask_nan=config.mask_nan)


def _refuse_training_cases(job: CalibrationJob, chosen: ChosenCases, config: RunConfig) -> None:
    """Refuses cases that the run was trained on, also where they are copies of such."""
    if chosen.split is None:
        raise ValueError(f"{chosen.data} is a single case: a calibration needs several")
    train = [name for name, part in (config.split or {}).items() if part == "train"]
    trained_on = None if config.settings is None else config.settings.data
    if trained_on is None or not train:
        return
    known: Sequence[str] = []
    if Path(chosen.data).resolve() == Path(trained_on).resolve():
        known = [name for name in chosen.read if name in train]
    elif (own := open_cases(trained_on, _options(config), config.foam(job.surface_patches, job.time))) is not None:
        prints = {own.cases.fingerprint(name) for name in train if name in own.names}
        known = [name for name in chosen.read if chosen.opened.cases.fingerprint(name) in prints]
    if known:
        raise ValueError(
            f"{chosen.data}: the run was trained on {', '.join(known[:3])}{' …' if len(known) > 3 else ''}: errors "
            f"there are too small to calibrate with; expected cases that it has not seen, got --split {job.split}"
        )


def unit_of_widths(num_members: int, num_draws: int) -> str:
    """Says what the half widths of intervals are multiples of."""
    sources = {"members": num_members, "draws": num_draws}
    several = [f"{number} {name}" for name, number in sources.items() if number > 1]
    if several:
        return f"deviations of {' and '.join(several)}"
    return "deviations of the training data; those of coefficients are in m²"


def _print(calibration: Calibration, num_members: int, console: Console) -> None:
    num_cases = len(calibration.cases)
    levels = [level for level in LEVELS if level <= num_cases / (num_cases + 1)]
    rows = [
        [name, *(f"{conformal_quantile(scores, level):#.4g}" for level in levels)]
        for name, scores in calibration.scores.items()
    ]
    unit = unit_of_widths(num_members, calibration.repeats)
    columns = ["quantity", *(f"{100 * level:g} %" for level in levels)]
    console.print(new_table(f"Half widths of intervals, in {unit}", columns, rows))
    cases = "1 case" if num_cases == 1 else f"{num_cases} cases"
    say(console, f"{cases}: the finest level is {100 * num_cases / (num_cases + 1):.4g} %")
    for level in levels:
        law = coverage_law(num_cases, level)
        low, high = law.range(0.9)
        say(
            console,
            f"at {100 * level:g} %: covers {100 * law.mean:.1f} % of new cases on average over calibrations, "
            f"{100 * low:.0f} to {100 * high:.0f} % in nine of ten",
        )
