"""A functional of a morphed shape, averaged over several conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.deploy.surrogate import ConditionLike
from emmi_jax.design.derivatives import evaluate, mean_sensitivity, sensitivity
from emmi_jax.design.morphed import MorphedCase
from emmi_jax.design.morphs import Parameters
from emmi_jax.design.problem import Sensitivity


@dataclass(frozen=True, eq=False)
class MultiPointCase(MorphedCase):
    """A morphed case whose functional is a weighted mean over conditions; all see the same points.

    Args:
        conditions: Pairs of a weight and a condition, as `Surrogate.encode` takes it. Weights are positive, and are
            divided by their sum.

    Raises:
        ValueError: There is no condition, or a weight is not positive.

    Example:
        >>> conditions = (0.7, {"yaw": 0.0}), (0.3, {"yaw": 5.0})  # doctest: +SKIP
        >>> case = MultiPointCase(surrogate, surface, functional, lattice, conditions=conditions)  # doctest: +SKIP
    """

    conditions: tuple[tuple[float, ConditionLike], ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.conditions or not all(0 < weight < np.inf for weight, _ in self.conditions):
            raise ValueError(f"expected conditions with positive weights, got {self.conditions!r:.80}")

    def value(self, parameters: Parameters) -> float:
        """Returns the mean of the functional at these parameters."""
        surface = self.moved(parameters)
        values = [
            weight * evaluate(self.surrogate, surface, self.functional, **options)
            for weight, options in self._under_each(parameters)
        ]
        return float(sum(values))

    def sensitivity(self, parameters: Parameters) -> Sensitivity:
        """Returns the mean of the functional and of its gradient; there is none by the conditions."""
        surface = self.moved(parameters)
        weights, options = zip(*self._under_each(parameters), strict=True)
        results = [sensitivity(self.surrogate, surface, self.functional, **given) for given in options]
        mean = mean_sensitivity(
            results, lambda leaves: np.sum([w * leaf for w, leaf in zip(weights, leaves, strict=True)], axis=0)
        )
        return replace(mean, condition=None)

    def fields(self, parameters: Parameters) -> dict[str, NDArray[np.float32]]:
        """Returns the predicted fields [N, F] under the first condition."""
        return self.under_one_condition().fields(parameters)

    def derivative(self, parameters: Parameters, direction: Parameters) -> tuple[float, float]:
        """Refuses: only `gradient` averages over conditions."""
        raise ValueError("several conditions have no derivative in forward mode: use `gradient`")

    def hessian_vector_product(self, parameters: Parameters, direction: Parameters) -> tuple[Parameters, Parameters]:
        """Refuses: only `gradient` averages over conditions."""
        raise ValueError("several conditions have no product with a Hessian: use differences of `gradient`")

    def under_one_condition(self) -> MorphedCase:
        """Returns the case under its first condition."""
        options = {**self.options, "condition": self.conditions[0][1]}
        return MorphedCase(
            self.surrogate, self.surface, self.functional, self.morph, self.geometry, options, self.draws
        )

    def _under_each(self, parameters: Parameters) -> list[tuple[float, Mapping[str, Any]]]:
        """Returns the share of each condition, and the arguments of `CaseInputs` under it."""
        total, options = sum(weight for weight, _ in self.conditions), self._at(parameters)
        return [(weight / total, {**options, "condition": condition}) for weight, condition in self.conditions]
