"""`emmi-jax convert`, `info` and `stats`: what is done to a file at once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="PyTorch weights: .th, .pt, .pth or .safetensors.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder of the run to make.")],
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="A published architecture: drivaerml-tutorial.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="An AbUptConfig, or a run's config.json.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(metavar="NAME", help="1.x, 2026.4 or tutorial; default: by the names.")
    ] = None,
) -> int:
    """Turn PyTorch weights of AB-UPT into a run.

    The architecture comes from --preset drivaerml-tutorial or from --config.
    The run is ready for predict, info and train --resume.

    \b
    Example:
      emmi-jax convert ab-upt.th --preset drivaerml-tutorial --out runs/car
    """  # noqa: D301 - \b is the mark of an example
    from emmi_jax.jobs import convert as job

    if (preset is None) == (config is None):
        raise ValueError("exactly one of --preset and --config says what the weights belong to")
    run_config = job.preset_config(preset) if preset is not None else job.read_config(config or Path())
    num_params = job.convert(file, out, run_config, layout=layout)
    print(f"{out}: {num_params:,} parameters")
    return 0


def info(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="Folder of a run, or PyTorch weights.")],
) -> int:
    """List blocks, shapes and numbers of parameters.

    \b
    Example:
      emmi-jax info runs/first
    """  # noqa: D301 - \b is the mark of an example
    from rich.console import Console

    from emmi_jax.jobs.info import file_shapes, run_shapes, summary_table

    shapes = run_shapes(path) if path.is_dir() else file_shapes(path)
    Console(soft_wrap=False).print(summary_table(shapes, str(path)), highlight=False)
    return 0


def stats(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help=".npz, .npy or mesh files.")],
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Where the numbers go as JSON.")] = None,
) -> int:
    """List count, extremes, mean and deviation of every array.

    Arrays of the same name in several files count as one. Files are read in
    pieces; rows with a value that is NaN or infinite are left out, and said.

    \b
    Example:
      emmi-jax stats car.npz --out stats.json
    """  # noqa: D301 - \b is the mark of an example
    from rich.console import Console

    from emmi_jax.files.atomic import write_json
    from emmi_jax.jobs.stats import file_statistics, statistics_json, statistics_table

    statistics = file_statistics(files)
    console = Console(soft_wrap=False)
    console.print(statistics_table(statistics, ", ".join(map(str, files))), highlight=False)
    for name, moments in statistics.items():
        if moments.num_not_finite:
            print(f"{name}: {moments.num_not_finite} rows with NaN or infinite values are left out")
    if out is not None:
        write_json(out, statistics_json(statistics))
    return 0
