"""The command `emmi-jax`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

try:
    import typer
except ModuleNotFoundError:
    raise SystemExit("emmi-jax: error: the command needs more packages: pip install 'emmi-jax[train]'") from None

from emmi_jax.config import AbUptConfig
from emmi_jax.training.settings import TrainSettings, default_settings

if TYPE_CHECKING:
    from emmi_jax.inference.mesh_forces import ForceReference

_DEFAULTS = default_settings(None)
_BUILT_IN_NAME = "ellipsoids"

_COMMANDS = ("train", "predict", "convert", "info", "stats")

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train transformer surrogates of physics fields, and predict with them.\n\n"
    "\b\nExample:\n  emmi-jax train\n  emmi-jax predict runs/ellipsoids-1 --points car.npz --out fields.npz\n"
    "  emmi-jax info runs/ellipsoids-1\n  emmi-jax stats car.npz\n"
    "  emmi-jax convert ab-upt.th --preset drivaerml-tutorial --out runs/car",
)


@app.callback()
def _commands() -> None:
    pass


@app.command()
def train(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="One case: an .npz file with an array 'position' (N, 3), every other array a field (N,) or (N, C); "
            "or a folder, as below. Default: exact potential flow past ellipsoids.",
        ),
    ] = None,
    split: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Which cases are for what, as below; default: split.json beside them."),
    ] = None,
    statistics: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE.json",
            help="Scales to use instead of measuring them: drivaerml-tutorial, or the config.json of another run.",
        ),
    ] = None,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs go.")] = Path("runs"),
    name: Annotated[str | None, typer.Option(help="The run's folder in --out; default: the next free number.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint of --name.")] = False,
    steps: Annotated[int | None, typer.Option(help=f"Optimiser steps; default {_DEFAULTS.steps}.")] = None,
    batch_size: Annotated[int | None, typer.Option(help=f"Cases a step; default {_DEFAULTS.batch_size}.")] = None,
    num_anchors: Annotated[int | None, typer.Option(help=f"Anchors a branch; default {_DEFAULTS.num_anchors}.")] = None,
    num_queries: Annotated[int | None, typer.Option(help=f"Queries a branch; default {_DEFAULTS.num_queries}.")] = None,
    sampling: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="How these are drawn: uniform, or weighted by the area or volume of cells."),
    ] = None,
    supernode_sampling: Annotated[
        str | None, typer.Option(metavar="NAME", help="How supernodes are drawn: uniform, or farthest from each other.")
    ] = None,
    no_geometry: Annotated[
        bool, typer.Option("--no-geometry", help="Leave out the geometry branch; without a surface there is none.")
    ] = False,
    divergence_free: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="A field of three channels that gets no divergence, such as velocity."),
    ] = None,
    dim: Annotated[int | None, typer.Option(help=f"Channels of the model; default {_DEFAULTS.dim}.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(help=f"Peak learning rate; default {_DEFAULTS.learning_rate:g}.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=f"Seed of weights and batches; default {_DEFAULTS.seed}.")] = None,
    checkpoint_every: Annotated[
        int | None, typer.Option(help=f"Steps between checkpoints; default {_DEFAULTS.checkpoint_every}.")
    ] = None,
) -> int:
    """Train a model and measure its errors on unseen data.

    The run's folder gets checkpoints, config.json, metrics.jsonl (each step),
    metrics.json (errors) and pictures. Ctrl-C saves a checkpoint and stops.

    \b
    A folder holds boundary*.vtp, volume*.vtu or both, and perhaps a .stl
    file of the body. Fields are the arrays of DrivAerML, or those that its
    fields.json says: {"surface": {"pressure": "p"}, "volume": {…}}. Or it
    holds tensors: surface_position_vtp.pt, surface_pressure.pt, ….
    Of a folder with such folders a fifth is kept to test on, or what its
    split.json says: {"train": ["run_1", "run_3"], "test": ["run_2"]}.

    \b
    Example:
      emmi-jax train --name first
      emmi-jax train --name first --resume
      emmi-jax train --data car.npz --steps 2000
      emmi-jax train --data run_1

    Defaults are those of the built-in data.
    """  # noqa: D301 - \b is the mark of an example
    from rich.console import Console

    from emmi_jax.convert import PRESETS
    from emmi_jax.training.main_job import train as run_training

    given: dict[str, Any] = {
        "data": None if data is None else str(data.resolve()),
        "split": None if split is None else str(split.resolve()),
        "statistics": statistics if statistics is None or statistics in PRESETS else str(Path(statistics).resolve()),
        "steps": steps,
        "batch_size": batch_size,
        "num_anchors": num_anchors,
        "num_queries": num_queries,
        "sampling": sampling,
        "supernode_sampling": supernode_sampling,
        "divergence_free": divergence_free or None,
        "dim": dim,
        "learning_rate": learning_rate,
        "seed": seed,
        "checkpoint_every": checkpoint_every,
    }
    given = {key: value for key, value in given.items() if value is not None}
    if no_geometry:
        given["num_geometry_points"] = 0
    if resume and name is None:
        raise ValueError("--resume needs the --name of the run to go on with")
    path = out / name if name is not None else _free_path(out, _BUILT_IN_NAME if data is None else data.stem)
    if resume:
        settings = _settings_to_resume(path, given)
    else:
        settings = replace(default_settings(given.pop("data", None), geometry=not no_geometry), **given)
    outcome = run_training(settings, path, resume=resume, console=Console(soft_wrap=False))
    if outcome.signal_number is None:
        return 0
    print(f"go on with: emmi-jax train --out {path.parent} --name {path.name} --resume")
    return 128 + outcome.signal_number


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.")],
    out: Annotated[Path, typer.Option(metavar="PATH", help="Where fields go: a folder, or FILE.npz for points.")],
    points: Annotated[
        Path | None, typer.Option(metavar="PATH", help="Positions (N, 3): an .npz file, or .npy files, as below.")
    ] = None,
    surface: Annotated[Path | None, typer.Option(metavar="MESH", help="Mesh of the branch surface.")] = None,
    volume: Annotated[Path | None, typer.Option(metavar="MESH", help="Mesh of the branch volume.")] = None,
    geometry: Annotated[
        Path | None, typer.Option(metavar="MESH", help="The body's surface; default: the run's, or --surface.")
    ] = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Measure errors against the arrays of the meshes.")
    ] = False,
    fields: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Which arrays these are; default: the fields' names.")
    ] = None,
    figures: Annotated[bool, typer.Option("--figures", help="Draw the fields into .png files in OUT.")] = False,
    area: Annotated[
        float | None, typer.Option(help="Reference area in m2: print Cd (along x) and Cl (along z); with --speed.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE.csv", help="Take the area from its column aRef instead of --area.")
    ] = None,
    speed: Annotated[float | None, typer.Option(help="Speed of the stream in m/s.")] = None,
    density: Annotated[
        float | None, typer.Option(help="Its density in kg/m3; default 1, for pressure over density.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(help="Points in one call of the model; default: by the device's memory.", min=1)
    ] = None,
) -> int:
    """Predict fields at any number of points, in physical units.

    \b
    RUN trained with --data: --points holds 'position'; OUT gets each field.
    RUN on the ellipsoids: --points holds, of one body,
      surface, volume    points to predict, either or both
      surface_anchors, volume_anchors, geometry
                         points that show the model the body and its
                         surroundings; each is drawn from the points to
                         predict where it is absent
    and OUT gets surface_pressure_coefficient, volume_velocity, ….
    In place of FILE.npz, --points takes a folder of .npy files called so, or
    one such file, and OUT may be a folder, which gets a .npy file a field;
    then neither positions nor fields need fit in memory.

    \b
    Meshes (.vtp, .vtu, .vtk, .stl, .ply, .obj) come back in the folder OUT
    with predicted_<field>, and with --compare error_<field> and
    comparison.json; --fields is like fields.json of emmi-jax train.

    \b
    Example:
      emmi-jax predict runs/first --points points.npz --out fields.npz
      emmi-jax predict runs/car --surface boundary.vtp --out fields
    """  # noqa: D301 - \b is the mark of an example
    meshes = {name: path for name, path in (("surface", surface), ("volume", volume)) if path is not None}
    forces = _force_reference(area, reference, speed, density)
    for_meshes = bool(meshes or geometry or compare or fields or figures or forces)
    if (points is None) == (not meshes) or (points is not None and for_meshes):
        raise ValueError("expected either --points, or --surface and --volume with the options of meshes")
    size: int | Literal["auto"] = "auto" if chunk_size is None else chunk_size
    from rich.console import Console

    from emmi_jax.inference.mesh_job import MeshJob, run_mesh_job
    from emmi_jax.inference.point_job import PointJob, run_point_job
    from emmi_jax.training.trained_run import load_run

    trained = load_run(run)
    parts = trained.model, trained.params, trained.normalizer, trained.fixed_points
    options: Any = {"sizes": trained.settings.sizes, "console": Console(soft_wrap=False)}
    if points is not None:
        run_point_job(PointJob(points=points, out=out, chunk_size=size), *parts, **options)
        return 0
    run_mesh_job(
        MeshJob(
            meshes=meshes,
            out=out,
            geometry=geometry,
            compare=compare,
            fields=fields,
            forces=forces,
            chunk_size=size,
            figures=figures,
        ),
        *parts,
        **options,
    )
    return 0


def _force_reference(
    area: float | None, file: Path | None, speed: float | None, density: float | None
) -> ForceReference | None:
    """What forces are divided by; None if they are not asked for."""
    given = {"--area": area, "--reference": file, "--speed": speed, "--density": density}
    given = {option: value for option, value in given.items() if value is not None}
    if not given:
        return None
    from emmi_jax.cfd.reference_values import read_reference_area
    from emmi_jax.inference.mesh_forces import ForceReference

    if speed is None or (area is None) == (file is None):
        raise ValueError(f"forces need --speed, and one of --area and --reference, got {', '.join(given)}")
    if area is None and file is not None:
        area = read_reference_area(file)
    return ForceReference(area=area or 0.0, speed=speed, density=1.0 if density is None else density)


@app.command()
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
    from emmi_jax.training.converted_run import convert_checkpoint, preset_architecture, read_architecture

    if (preset is None) == (config is None):
        raise ValueError("exactly one of --preset and --config says what the weights belong to")
    architecture = preset_architecture(preset) if preset is not None else read_architecture(config or Path())
    num_params = convert_checkpoint(file, out, architecture, layout=layout)
    print(f"{out}: {num_params:,} parameters")
    return 0


@app.command()
def info(
    path: Annotated[Path, typer.Argument(metavar="RUN_OR_FILE", help="Folder of a run, or PyTorch weights.")],
) -> int:
    """List blocks, shapes and numbers of parameters.

    \b
    Example:
      emmi-jax info runs/first
    """  # noqa: D301 - \b is the mark of an example
    from rich.console import Console

    from emmi_jax.training.summary import file_shapes, run_shapes, summary_table

    shapes = run_shapes(path) if path.is_dir() else file_shapes(path)
    Console(soft_wrap=False).print(summary_table(shapes, str(path)), highlight=False)
    return 0


@app.command()
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

    from emmi_jax.cfd.json_files import write_json
    from emmi_jax.cfd.statistics import file_statistics, statistics_json, statistics_table

    if out is not None and not out.parent.is_dir():
        raise FileNotFoundError(f"{out.parent}: no such folder")
    statistics = file_statistics(files)
    console = Console(soft_wrap=False)
    console.print(statistics_table(statistics, ", ".join(map(str, files))), highlight=False)
    for name, moments in statistics.items():
        if moments.num_not_finite:
            print(f"{name}: {moments.num_not_finite} rows with NaN or infinite values are left out")
    if out is not None:
        write_json(out, statistics_json(statistics))
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit status: 0, 2 after a user's mistake (one line on stderr), or 128 + the signal that stopped training.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    command = typer.main.get_command(app)
    where = " ".join(["emmi-jax", *(name for name in arguments[:1] if name in _COMMANDS)])
    try:
        return int(command.main(args=arguments or ["--help"], prog_name="emmi-jax", standalone_mode=False) or 0)
    except ImportError as error:
        return _fail(where, f"{error}: pip install 'emmi-jax[train,convert,cfd]'")
    except (ValueError, OSError) as error:
        return _fail(where, str(error))
    except Exception as error:
        # The parser's own errors; their class moved between the releases of typer.
        if not hasattr(error, "format_message"):
            raise
        return _fail(where, error.format_message())


def _fail(where: str, message: str) -> int:
    print(f"{where}: error: {message}", file=sys.stderr)
    return 2


def _free_path(out: Path, stem: str) -> Path:
    number = 1
    while (out / f"{stem}-{number}").exists():
        number += 1
    return out / f"{stem}-{number}"


def _settings_to_resume(path: Path, given: dict[str, Any]) -> TrainSettings:
    """The settings of an earlier run; what is given beside must agree with them."""
    from emmi_jax.training.run_directory import RunDirectory, check_same_config

    config = RunDirectory.open(path).read_config()
    stored = config["settings"]
    if stored is None:  # converted weights
        geometry = AbUptConfig.from_dict(config["model"]).has_geometry
        return replace(default_settings(given.pop("data", None), geometry=geometry), **given)
    check_same_config({key: stored.get(key) for key in given}, given)
    return TrainSettings.from_dict(stored)
