"""`emmi-jax export`: a run in one file that runs without this package."""

from __future__ import annotations

from rich.console import Console

from emmi_jax.config.jobs import ExportJob
from emmi_jax.inference.exporting import Program, export_surrogate
from emmi_jax.jobs.progress import say
from emmi_jax.runs.calibration import is_calibrated, read_calibration
from emmi_jax.runs.load import load_run


def export_run(job: ExportJob, *, console: Console) -> None:
    """Writes a run to one file, and prints its programs.

    Raises:
        ValueError: The run, a platform or a unit is unusable; nothing is written.
        UnwritableFileError: The file cannot be written.
    """
    out = job.out
    if out.is_dir():
        raise ValueError(f"{out} is a folder, expected a file")
    named = dict(_name_and_unit(text) for text in job.unit)

    platforms = [] if job.platforms is None else [name.strip() for name in job.platforms.split(",")]

    def show(program: Program) -> None:
        sizes = "any number of points" if program.anchors is None else f"{sum(program.anchors.values())} anchors"
        queries = "" if program.num_queries is None else f", {program.num_queries} queries"
        where = ",".join(program.platforms)
        say(console, f"{program.function} for {where}: {sizes}{queries}, attention by {program.kernel}")

    surrogate = load_run(job.run, job.checkpoint)
    calibration = None
    if is_calibrated(job.run):
        try:
            calibration = read_calibration(job.run, surrogate).portable
        except ValueError as error:
            say(console, f"no intervals: {error}")
    export_surrogate(surrogate, out, platforms=platforms, units=named, calibration=calibration, advance=show)
    if calibration is not None:
        say(console, f"intervals: calibrated on {len(next(iter(calibration.scores.values())))} cases")
    say(console, f"{out}: {out.stat().st_size / 2**20:.1f} MiB")


def _name_and_unit(text: str) -> tuple[str, str]:
    name, is_given, unit = text.partition("=")
    if not is_given or not name or not unit:
        raise ValueError(f"--unit must be NAME=UNIT such as position=m, got {text!r}")
    return name, unit
