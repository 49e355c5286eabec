"""Features of points: what a model takes beside positions, checked and joined."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .draws import check_unmasked

FeaturesLike: TypeAlias = ArrayLike | Mapping[str, ArrayLike]
"""Features [N, C] in the order that a run declares, or an array [N] or [N, channels] for each of their names."""
FeatureNames: TypeAlias = Mapping[str, Mapping[str, int]]
"""Numbers of channels by branch, or ``geometry``, and name."""

GEOMETRY = "geometry"
"""Name of the branch in features of geometry points."""


def join_features(what: str, given: Any, channels: Mapping[str, int], num_points: int) -> NDArray[np.float32]:
    """Returns features [N, C] of points, joined in the order of their names.

    Args:
        what: The points, for messages.
        given: Features; None if there are none.
        channels: Numbers of channels by name.
        num_points: Number of points N.

    Raises:
        ValueError: An array is missing, superfluous or of another shape, or a value is not finite.
    """
    if given is None:
        listed = ", ".join(f"{name} ({number})" for name, number in channels.items())
        raise ValueError(f"the model takes features of {what}: {listed}, got none")
    if not isinstance(given, Mapping):
        return _checked(what, given, num_points, sum(channels.values()))
    if missing := [name for name in channels if name not in given]:
        raise ValueError(f"features of {what}: the array {missing[0]!r} is missing, found {sorted(given)!r}")
    if unknown := sorted(set(given) - set(channels)):
        raise ValueError(f"features of {what}: the model takes {list(channels)!r}, got {unknown[0]!r}")
    return np.concatenate(
        [_checked(f"{what}: {name}", given[name], num_points, number) for name, number in channels.items()], axis=1
    )


def chosen_features(
    channels: FeatureNames, given: Mapping[str, Any], sizes: Mapping[str, int], what: str
) -> dict[str, NDArray[np.float32]]:
    """Returns the features of every branch that has some, and refuses those of others.

    Args:
        channels: What the model takes; features of the geometry are left out.
        given: Features by branch.
        sizes: Numbers of points by branch; those of other branches are not asked for.
        what: The points, for messages.

    Raises:
        ValueError: Features are missing, superfluous or of another shape.
    """
    check_taken(channels, given, sizes, what)
    return {
        branch: join_features(f"the {what} {branch}", given.get(branch), names, sizes[branch])
        for branch, names in channels.items()
        if branch in sizes
    }


def check_taken(channels: FeatureNames, given: Mapping[str, Any], asked: Container[str], what: str = "query") -> None:
    """Refuses features that the model does not take, and the lack of those that it does.

    Args:
        channels: What the model takes.
        given: Features by branch.
        asked: The branches that have points.
        what: The points, for messages.

    Raises:
        ValueError: Features are missing or superfluous.
    """
    taken = [branch for branch in channels if branch in asked]
    if unknown := sorted(set(given) - set(taken)):
        raise ValueError(f"{what}_features of {unknown!r} are given, but the model takes those of {taken!r}")
    for branch in taken:
        if given.get(branch) is None:
            join_features(f"the {what} {branch}", None, channels[branch], 0)


def _checked(what: str, given: Any, num_points: int, channels: int) -> NDArray[np.float32]:
    check_unmasked(f"features of {what}", given)
    array = np.asarray(given)
    if array.ndim == 1 and channels == 1:
        array = array[:, None]
    if array.shape != (num_points, channels) or array.dtype.kind not in "fiub":
        raise ValueError(
            f"features of {what} must be numbers of shape [{num_points}, {channels}], got {array.dtype} of shape "
            f"{list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise ValueError(f"features of {what} must hold finite numbers, got NaN or infinity")
    return array.astype(np.float32)
