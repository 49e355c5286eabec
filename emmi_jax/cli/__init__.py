"""The command `emmi-jax`."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

try:
    import typer
    from typer.core import TyperCommand
except ModuleNotFoundError:
    raise SystemExit("emmi-jax: error: the command needs more packages: pip install 'emmi-jax[train]'") from None

from emmi_jax.cli.deployment import doctor, export
from emmi_jax.cli.design import optimize, sensitivity
from emmi_jax.cli.evaluation import evaluate
from emmi_jax.cli.files import convert, info, stats
from emmi_jax.cli.options import command
from emmi_jax.cli.prediction import predict
from emmi_jax.cli.preparation import prepare
from emmi_jax.cli.training import train
from emmi_jax.training.plan import default_settings

_COMMANDS: dict[str, Callable[..., int | None]] = {
    "prepare": prepare,
    "train": train,
    "predict": predict,
    "evaluate": evaluate,
    "sensitivity": sensitivity,
    "optimize": optimize,
    "convert": convert,
    "info": info,
    "stats": stats,
    "export": export,
    "doctor": doctor,
}
_DEFAULTS = (default_settings(None), default_settings("data"))
"""Settings for the built-in data, and for other data."""


class _Command(TyperCommand):
    """A command where `--figures` alone means pictures; the parser knows no option whose value may be left out."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words: list[str] = []
        for number, word in enumerate(args):
            is_alone = number + 1 == len(args) or args[number + 1].startswith("-")
            words += [word, "png"] if word == "--figures" and is_alone else [word]
        return super().parse_args(ctx, words)


app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Train transformer surrogates of physics fields, predict and design with them.\n\n"
    "\b\nExample:\n  emmi-jax train\n  emmi-jax predict runs/ellipsoids-1 --points car.npz --out fields.npz\n"
    "  emmi-jax prepare DrivAerML --out store\n  emmi-jax info runs/ellipsoids-1\n  emmi-jax stats car.npz\n"
    "  emmi-jax convert ab-upt.th --preset drivaerml-tutorial --out runs/car",
)
for _name, _command in _COMMANDS.items():
    app.command(_name, cls=_Command)(command(_command, _DEFAULTS))


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name; by default that of the process.

    Returns:
        The exit status: 0, 2 after a user's mistake (one line on stderr), or 128 + the signal that stopped training.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    _keep_compiled_programs()
    group = typer.main.get_command(app)
    where = " ".join(["emmi-jax", *(name for name in arguments[:1] if name in _COMMANDS)])
    try:
        return int(group.main(args=arguments or ["--help"], prog_name="emmi-jax", standalone_mode=False) or 0)
    except ImportError as error:
        return _fail(where, f"{error}: pip install 'emmi-jax[train,convert,cfd]'")
    except (ValueError, OSError, NotImplementedError) as error:
        return _fail(where, str(error))
    except Exception as error:
        # The parser's own errors; their class moved between releases of typer.
        if not hasattr(error, "format_message"):
            raise
        return _fail(where, error.format_message())


def _keep_compiled_programs() -> None:
    """Lets a second start compile nothing; JAX_COMPILATION_CACHE_DIR names another folder, or none if it is empty."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "emmi_jax"
        with contextlib.suppress(OSError):  # a home that is read-only: every start compiles
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))


def _fail(where: str, message: str) -> int:
    print(f"{where}: error: {message}", file=sys.stderr)
    return 2
