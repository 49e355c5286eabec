"""Changes of settings as people write them: recipes by name, TOML files, and single values."""

from __future__ import annotations

import difflib
import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

_FOLDER = files("emmi_jax.training") / "recipes"
RECIPES = sorted(file.name.removesuffix(".toml") for file in _FOLDER.iterdir())


def read_recipe(name: str) -> dict[str, Any]:
    """Returns the settings for a public data set, for `TrainSettings.updated`.

    Raises:
        ValueError: There is no such recipe; the message names the nearest.
    """
    if name not in RECIPES:
        nearest = difflib.get_close_matches(name, RECIPES, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown recipe {name!r}; did you mean {nearest!r}?")
    return tomllib.loads((_FOLDER / f"{name}.toml").read_text())


def read_settings(path: Path) -> dict[str, Any]:
    """Reads a TOML file of settings, for `TrainSettings.updated`.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not TOML.
    """
    try:
        return tomllib.loads(path.read_text())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None


def parse_assignment(text: str) -> tuple[str, Any]:
    """Parses "model.dim=256" into a name and a value; values are those of TOML, and words without quotes, and none.

    Raises:
        ValueError: There is no "=", no name, or more than one value.
    """
    name, equals, value = (part.strip() for part in text.partition("="))
    if not equals or not name:
        raise ValueError(f"expected NAME=VALUE such as model.dim=256, got {text!r}")
    try:
        parsed = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return name, None if value == "none" else value
    if len(parsed) > 1:
        raise ValueError(f"expected one value, got {text!r}")
    return name, parsed["value"]
