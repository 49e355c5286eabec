"""Changes of settings as people write them: recipes by name, and single values."""

from __future__ import annotations

import difflib
import tomllib
from importlib.resources import files
from typing import Any

from emmi_jax.files.atomic import parse_toml

_FOLDER = files("emmi_jax.training")
RECIPES = sorted(file.name.removesuffix(".toml") for file in (_FOLDER / "recipes").iterdir())


def read_recipe(name: str) -> dict[str, Any]:
    """Returns the settings for a public data set, for `TrainSettings.updated`.

    Raises:
        ValueError: There is no such recipe; the message names the nearest.
    """
    if name not in RECIPES:
        nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown recipe {name!r}; did you mean {nearest!r}?")
    return parse_toml((_FOLDER / "recipes" / f"{name}.toml").read_bytes())


def read_defaults(name: str) -> dict[str, Any]:
    """Returns the settings that differ from those of `TrainSettings` for ``ellipsoids`` or ``own_data``."""
    return parse_toml((_FOLDER / "defaults" / f"{name}.toml").read_bytes())


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parses "model.dim=256" into a name and a value; values are those of TOML, and words without quotes, and none.

    Raises:
        ValueError: There is no "=", no name, more than one value, or one that no setting takes.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise ValueError(f"expected NAME=VALUE such as model.dim=256, got {text!r}")
    try:
        parsed = parse_toml(f"value = {value}".encode())
    except tomllib.TOMLDecodeError:
        return name, None if value == "none" else value
    except ValueError as error:
        raise ValueError(f"{text:.80}: {error}") from None
    if len(parsed) > 1:
        raise ValueError(f"expected one value, got {text!r}")
    return name, parsed["value"]
