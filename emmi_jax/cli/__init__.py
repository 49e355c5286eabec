"""The command `emmi-jax`: its subcommands, and the errors that end it in one line."""

from __future__ import annotations

from emmi_jax.cli import process

# isort: split
import sys
from collections.abc import Callable, Sequence
from typing import Any

try:
    import typer
    from typer.core import TyperCommand
except ModuleNotFoundError:
    raise SystemExit("emmi-jax: error: the command needs more packages: pip install 'emmi-jax[train]'") from None

from emmi_jax.cli.deployment import doctor, export
from emmi_jax.cli.design import optimize, sensitivity
from emmi_jax.cli.evaluation import calibrate, evaluate
from emmi_jax.cli.files import convert, data, info, stats
from emmi_jax.cli.options import command
from emmi_jax.cli.prediction import predict
from emmi_jax.cli.preparation import prepare
from emmi_jax.cli.training import ensemble, train
from emmi_jax.files.names import printable
from emmi_jax.jobs.platforms import keep_compiled_programs, missing_platform
from emmi_jax.training.plan import default_settings

_ON_RUNS = (prepare, train, ensemble, predict, evaluate, calibrate, sensitivity, optimize)
_ON_FILES = (convert, data, info, stats, export, doctor)
_COMMANDS: dict[str, Callable[..., int | None]] = {run.__name__: run for run in (*_ON_RUNS, *_ON_FILES)}
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


_LONGEST = 20_000
"""Letters of an error; some quote a name from a file, which may be of any length."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command.

    Args:
        arguments: The command line without the program's name; by default that of the process, whose streams and
            signals are then taken over.

    Returns:
        The exit status: 0, 2 after an expected failure (one line on stderr), or 128 + the signal that ended the work.
    """
    is_process = arguments is None
    if is_process:
        process.take_over()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    where = " ".join(["emmi-jax", *(name for name in arguments[:1] if name in _COMMANDS)])
    try:
        keep_compiled_programs()
        with typer.main.get_command(app).make_context("emmi-jax", arguments or ["--help"]) as context:
            status = int(context.command.invoke(context) or 0)
        if is_process and (lost := process.flush()) is not None:
            return _fail(where, f"what was printed is lost: {lost.strerror}")
        return status
    except (KeyboardInterrupt, Exception) as error:
        is_interrupted = is_process and process.ignore_interrupts()
        if is_interrupted or isinstance(error, KeyboardInterrupt):
            print(f"{where}: interrupted", file=sys.stderr)
            status = process.INTERRUPTED
        elif hasattr(error, "exit_code") and not hasattr(error, "format_message"):  # after --help
            return int(error.exit_code)
        elif (message := _expected(error)) is None:
            raise
        else:
            status = _fail(where, message)
        if is_process:
            process.leave(status)
        return status
    finally:
        if is_process:
            process.ignore_interrupts()


def _expected(error: Exception) -> str | None:
    """Returns what to say of an expected failure; None for a defect."""
    if hasattr(error, "format_message"):  # the parser's own errors; their class moved between releases of typer
        return str(error.format_message())
    match error:
        case ImportError():
            return f"{error}: pip install 'emmi-jax[train,convert,cfd]'"
        case ValueError() | OSError() | NotImplementedError():
            return str(error)
        case MemoryError():
            return f"out of memory: {error}"
        case RecursionError():
            return "values are nested too deep"
        case RuntimeError() if any(words in str(error) for words in ("RESOURCE_EXHAUSTED", "Symlink loop")):
            return str(error).partition("\n")[0]
        case RuntimeError() | AssertionError():
            return missing_platform()
    return None


def _fail(where: str, message: str) -> int:
    line = printable(" ".join(map(str.strip, message.splitlines())))
    print(f"{where}: error: {line if len(line) <= _LONGEST else line[:_LONGEST] + '…'}", file=sys.stderr)
    return 2


process.end_of_imports()
