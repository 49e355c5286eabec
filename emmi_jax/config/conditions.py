"""Sources of the conditions of cases."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import MISSING, dataclass, replace

from emmi_jax.config.base import Config, as_mapping
from emmi_jax.config.checks import check_choice, check_name
from emmi_jax.config.setting import setting

KINDS = ("plain", "logarithmic", "angle")
"""Kinds of conditions, as `emmi_jax.deploy.conditions` knows them."""


@dataclass(frozen=True, kw_only=True)
class ScalingLaw(Config):
    """The conditions that fields are relative to."""

    speed: str = setting(MISSING, "Condition with the speed U: velocities are learned as u/U.")
    density: str | None = setting(
        None, "Condition with the density ρ, 1 by default: pressures and shear stresses are learned over ρU²/2."
    )

    def check(self, conditions: Collection[str]) -> None:
        """Refuses conditions that a run has not.

        Raises:
            ValueError: One is missing; the message names it.
        """
        for name in filter(None, (self.speed, self.density)):
            if name not in conditions:
                known = ", ".join(conditions) or "none"
                raise ValueError(f"nondimensionalize names the condition {name!r}, the conditions are {known}")


@dataclass(frozen=True, kw_only=True)
class ConditionSource(Config):
    """Source of the conditions of cases, and those of them that a model takes.

    Raises:
        ValueError: A kind is unknown, a table has no columns, or the pattern has no named groups.
    """

    names: tuple[str, ...] | None = setting(None, "Conditions that the model takes; none for all that are found.")
    file: str | None = setting(
        None,
        "A .csv file with a row for each case, beside the cases; or the name of a .json, .npz, .npy or .pt file in "
        "each of them. By default conditions.json.",
    )
    key: str | None = setting(None, "Column of the table with the names or numbers of the cases; default: the first.")
    columns: Mapping[str, str] = setting(
        dict, "By condition its column of the table, key of the JSON, array, or number of the value in an array."
    )
    pattern: str | None = setting(
        None,
        "Regular expression that finds conditions in the name of a case: its named groups, as in "
        "`AoA_(?P<angle_of_attack>[0-9]+)`.",
    )
    inlet: str | None = setting(
        None, "Patch of OpenFOAM cases whose velocity gives the conditions speed, yaw and pitch."
    )
    units: Mapping[str, str] = setting(dict, "Units by condition, such as m/s; deg and rad make it an angle.")
    kinds: Mapping[str, str] = setting(dict, "Kinds by condition: plain, logarithmic or angle.")

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("columns", "units", "kinds"):
            given = as_mapping(name, getattr(self, name))
            for condition, value in given.items():
                check_name("a condition's name", condition, "/,=")
                if not isinstance(value, str):
                    raise ValueError(f"{name} must be texts by condition, got {value!r} for {condition!r}")
            self._set(**{name: given})
        for condition, kind in self.kinds.items():
            check_choice(f"the kind of {condition!r}", kind, KINDS)
        if self.pattern is not None:
            _check_pattern(self.pattern)
        if self.is_table and not self.columns:
            raise ValueError(f"{self.file}: columns must say which column is which condition, such as speed = 'U_inf'")

    def with_names(self, names: tuple[str, ...] | None) -> ConditionSource:
        """Returns the source of these conditions alone; None leaves its own."""
        return self if names is None else replace(self, names=names)

    @property
    def is_table(self) -> bool:
        """Whether the file has a row for each case."""
        return self.file is not None and self.file.lower().endswith(".csv")


def _check_pattern(pattern: str) -> None:
    try:
        names = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"pattern must be a regular expression, got {pattern!r}: {error}") from None
    if not names:
        raise ValueError(
            f"pattern must have a named group for each condition, such as (?P<speed>[0-9.]+), got {pattern!r}"
        )
