"""Vectors that files hold as one array per component."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TypeAlias

ArrayName: TypeAlias = str | tuple[str, ...]
"""The array of a field, or the arrays of its components in their order."""

_AXES = (("x", "y", "z"), ("X", "Y", "Z"), ("0", "1", "2"))
_JOINTS = ("", "_", ":", ".", "-", " ")


def found_arrays(name: ArrayName, present: Collection[str]) -> tuple[str, ...] | None:
    """Returns the arrays that hold a field, if all of them are present.

    Args:
        name: The array, or those of the components. If an array is absent, its three components count for it: `Ux`,
            `U_x`, `U:0`, `U_0`, `x-U` and the like, with any of the axes x, y, z or 0, 1, 2.
        present: Names of arrays.
    """
    if not isinstance(name, str):
        return name if set(name) <= set(present) else None
    if name in present:
        return (name,)
    for axes in _AXES:
        for joint in _JOINTS:
            candidates = [tuple(f"{name}{joint}{axis}" for axis in axes)]
            if axes[0] != "0" and joint:
                candidates.append(tuple(f"{axis}{joint}{name}" for axis in axes))
            for names in candidates:
                if set(names) <= set(present):
                    return names
    return None


def all_found(names: Iterable[ArrayName], present: Collection[str]) -> set[str] | None:
    """Returns all arrays that hold fields; None if one of them is not present."""
    arrays_of = [found_arrays(name, present) for name in names]
    return None if None in arrays_of else {array for arrays in arrays_of if arrays is not None for array in arrays}


def quoted(name: ArrayName) -> str:
    """Returns a name for messages."""
    return repr(name) if isinstance(name, str) else ", ".join(map(repr, name))
