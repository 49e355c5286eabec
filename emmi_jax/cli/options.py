"""Commands from configurations: every setting of a job is an argument or an option of its command."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer

from emmi_jax.config import Config, TrainJob
from emmi_jax.config.base import type_hints
from emmi_jax.config.jobs import EvaluationJob
from emmi_jax.config.setting import Setting, declared, kind_of
from emmi_jax.files.outputs import check_output

_INPUTS = ["run", "file", "config", "data", "split", "points", "surface", "volume", "geometry", "fields", "reference"]
_OUTPUTS = (
    "familiarity.json",
    "comparison.json",
    "forces.json",
    "sensitivity.json",
    "optimization.json",
    "history.csv",
)
"""Files of fixed names in output folders."""


class Option(NamedTuple):
    """A setting of a job as the command line has it.

    Attributes:
        path: Where it is in the job, with dots.
        kind: Its type.
        default: Its default; `dataclasses.MISSING` if it must be given.
        spec: What is declared of it.
        changes: Whether it changes settings, so that nothing changes where it is left out.
    """

    path: str
    kind: Any
    default: Any
    spec: Setting
    changes: bool

    @property
    def flag(self) -> str:
        """The option; empty for an argument."""
        name = self.path.rpartition(".")[2].replace("_", "-")
        return f"--{name}" if self.spec.option is None else self.spec.option

    @property
    def is_list(self) -> bool:
        """Whether it may be repeated."""
        return get_origin(self.kind) is tuple and get_args(self.kind)[-1] is Ellipsis

    @property
    def separator(self) -> str | None:
        """Separator of the numbers of a vector."""
        return None if self.is_list or get_origin(self.kind) is not tuple else (self.spec.metavar or "X,Y")[1]

    def parsed(self, given: Any) -> Any:
        """Returns what was given as the setting has it; None if it was left out.

        Raises:
            ValueError: A vector has not three numbers.
        """
        if self.is_list:
            return tuple(given) if given else None
        if self.separator is None or given is None:
            return given
        try:
            x, y, z = map(get_args(self.kind)[0], given.split(self.separator))
        except ValueError:
            between = "such as 6x4x4" if self.separator == "x" else "with commas between them"
            raise ValueError(f"{self.flag} must be three numbers {between}, got {given!r}") from None
        return x, y, z


def options(config: Any, parent: str = "", *, changes: bool = False) -> Iterator[Option]:
    """Yields the options of a configuration and of those in it; of settings to change, those with an option."""
    hints = type_hints(config)
    for field in dataclasses.fields(config):
        spec, (kind, _) = declared(field), kind_of(hints[field.name])
        if spec is None:
            continue
        nested = spec.of or (kind if isinstance(kind, type) and issubclass(kind, Config) else None)
        if nested is not None:
            yield from options(nested, f"{parent}{field.name}.", changes=changes or spec.of is not None)
        elif not changes or spec.option is not None:
            yield Option(parent + field.name, kind, field.default, spec, changes)


def command(run: Callable[..., int | None], defaults: Sequence[Config] = ()) -> Callable[..., int | None]:
    """Returns a function whose signature typer reads.

    Args:
        run: Takes a job; its docstring is the help.
        defaults: Settings without options: those of the built-in data, and those of other data.
    """
    job = get_type_hints(run).get("job")
    if job is None:
        return run
    named = {option.path.replace(".", "_"): option for option in options(job)}

    def call(**given: Any) -> int | None:
        values: dict[str, Any] = {}
        for name, option in named.items():
            value = option.parsed(given[name])
            if value is None and (option.changes or option.default is not dataclasses.MISSING):
                continue
            parent, _, key = option.path.partition(".")
            place = values.setdefault(parent, {}) if key else values
            place[key or parent] = value
        asked = job.from_dict(values)
        _check_output(asked)
        return run(asked)

    parameters = [_parameter(name, option, defaults) for name, option in named.items()]
    call.__doc__ = run.__doc__
    call.__annotations__ = {}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def _check_output(job: Config) -> None:
    """Refuses an output that is an input or lies inside one, for any command.

    An evaluation may go to its run, and `train` knows the folder of its run only after it has resolved its settings.
    """
    values = {field.name: getattr(job, field.name) for field in dataclasses.fields(job)}
    if values.get("out") is None or isinstance(job, TrainJob):
        return
    inputs = [values.get(name) for name in _INPUTS if not (name == "run" and isinstance(job, EvaluationJob))]
    check_output(values["out"], [*inputs, *values.get("files", ())], _OUTPUTS)


def _parameter(name: str, option: Option, defaults: Sequence[Config]) -> inspect.Parameter:
    spec, default = option.spec, None if option.changes else option.default
    is_required = default is dataclasses.MISSING
    kind: Any = str if spec.choices else option.kind
    if option.is_list:
        kind, default = list[str], None
    elif option.separator is not None:
        kind, default = str, None if is_required else option.separator.join(f"{number:g}" for number in option.default)
    make: Any = typer.Option if option.flag else typer.Argument
    info = make(
        *([option.flag] if option.flag else []),
        help=spec.help.removesuffix(".") + _default_text(option, defaults) + ".",
        metavar=spec.metavar,
        min=None if option.changes else spec.low,
    )
    hint = kind if is_required or default is not None else kind | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        annotation=Annotated[hint, info],
        default=inspect.Parameter.empty if is_required else default,
    )


def _default_text(option: Option, defaults: Sequence[Config]) -> str:
    """Returns the defaults of a setting that is left out, as "; default 3000, or 4500 with --data"."""
    values: list[Any] = []
    place: Any
    for place in (settings.to_dict() for settings in defaults if option.changes):
        for name in option.path.split(".")[1:]:
            place = place[name]
        values.append(f"{place:g}" if isinstance(place, float) else place)
    own, *others = values or [None]
    if own is None or own is False or own == []:
        return ""
    return f"; default {own}" + "".join(f", or {other} with --data" for other in others if other != own)
