"""`emmi-jax convert`, `info` and `stats`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def convert(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="PyTorch weights: .th, .pt, .pth or .safetensors.")],
    out: Annotated[Path, typer.Option(metavar="RUN", help="Folder for the new run.")],
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="Name of a published model: drivaerml-tutorial.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="An AbUptConfig, or a run's config.json.")
    ] = None,
    layout: Annotated[
        str | None, typer.Option(metavar="NAME", help="1.x, 2026.4 or tutorial; default: recognised by the names.")
    ] = None,
) -> int:
    """Convert PyTorch weights of AB-UPT into a run.

    Pass the architecture with --preset or --config. The run works with
    predict, info and train --init-from.

    \b
    Example:
      emmi-jax convert ab-upt.th --preset drivaerml-tutorial --out runs/car
    """  # noqa: D301 - \b keeps the lines of the example
    from emmi_jax.jobs import convert as job

    if (preset is None) == (config is None):
        raise ValueError("expected exactly one of --preset and --config")
    run_config = job.preset_config(preset) if preset is not None else job.read_config(config or Path())
    num_params = job.convert(file, out, run_config, layout=layout)
    print(f"{out}: {num_params:,} parameters")
    return 0


def info(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="Folder of a run, or a file of PyTorch weights.")],
) -> int:
    """List blocks, shapes and parameter counts.

    \b
    Example:
      emmi-jax info runs/first
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.jobs.info import file_shapes, run_shapes, summary_table

    shapes = run_shapes(path) if path.is_dir() else file_shapes(path)
    Console(soft_wrap=False).print(summary_table(shapes, str(path)), highlight=False)
    return 0


def stats(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help=".npz, .npy or mesh files, OpenFOAM cases; or one store.")
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Also write the numbers as JSON.")] = None,
    surface_patches: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX", help="Patches of OpenFOAM cases; may be repeated; default: all walls."),
    ] = None,
    time: Annotated[str | None, typer.Option(help="Time of OpenFOAM cases; default: the latest.")] = None,
) -> int:
    """List count, min, max, mean and deviation of every array.

    Arrays of the same name in several files count as one. Files are read in
    chunks. Rows with NaN or infinite values are left out and reported. A store
    has its statistics in itself, so nothing is read.

    \b
    Example:
      emmi-jax stats car.npz --out stats.json
    """  # noqa: D301 - \b keeps the lines of the example
    from rich.console import Console

    from emmi_jax.config import FoamSelection
    from emmi_jax.data.stored_case import is_store
    from emmi_jax.files.atomic import write_json
    from emmi_jax.jobs.cases import check_selection
    from emmi_jax.jobs.progress import print_sides
    from emmi_jax.jobs.stats import file_statistics, statistics_json, statistics_table, store_statistics

    foam, sides = FoamSelection(tuple(surface_patches or ()), time), dict[str, str]()
    if len(files) == 1 and is_store(files[0]):
        check_selection(files[0], foam)
        statistics = store_statistics(files[0])
    else:
        statistics = file_statistics([Path(file) for file in files], foam, on_side=sides.__setitem__)
    console = Console(soft_wrap=False)
    console.print(statistics_table(statistics, ", ".join(files)), highlight=False)
    for name, moments in statistics.items():
        if moments.num_not_finite:
            print(f"{name}: {moments.num_not_finite} rows with NaN or infinite values are left out")
    print_sides(sides, console)
    if out is not None:
        write_json(out, statistics_json(statistics))
    return 0
