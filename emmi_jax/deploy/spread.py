"""Spread of the predictions of several members and draws."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MEMBERS, DRAWS = "_deviation_members", "_deviation_draws"
"""Added to the name of a field for its deviation between members, and between draws."""


class Spread(NamedTuple):
    """Statistics over members and draws, in the unit of the values.

    Attributes:
        mean: Mean over all of them.
        members: Standard deviation between the means of the members; None for a single member.
        draws: Standard deviation between the draws of a member, as a root mean square over them; None for one draw.
    """

    mean: NDArray[Any]
    members: NDArray[Any] | None
    draws: NDArray[Any] | None

    @classmethod
    def of(cls, values: NDArray[Any]) -> Spread:
        """Returns the statistics of values [members, draws, ...], computed in float64."""
        exact = np.asarray(values, np.float64)
        num_members, num_draws = exact.shape[:2]
        by_member = exact.mean(axis=1)
        members = by_member.std(axis=0, ddof=1) if num_members > 1 else None
        draws = np.sqrt(exact.var(axis=1, ddof=1).mean(axis=0)) if num_draws > 1 else None
        return cls(by_member.mean(axis=0), members, draws)

    @property
    def deviation(self) -> NDArray[Any] | None:
        """The root of both squared deviations; None if there is neither."""
        known = [part for part in (self.members, self.draws) if part is not None]
        return np.sqrt(sum(np.square(part) for part in known)) if known else None
