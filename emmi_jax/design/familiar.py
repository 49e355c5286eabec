"""How far a shape is from the training cases, with derivatives, and a penalty that keeps it near them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import numpy as np

from emmi_jax.data.familiarity import Familiarity
from emmi_jax.design.encoding import floats, merged, vjp_encoding
from emmi_jax.design.functionals import Functional
from emmi_jax.design.morphed import MorphedCase
from emmi_jax.design.morphs import Parameters
from emmi_jax.design.penalties import check_weight
from emmi_jax.design.problem import CaseInputs, Problem, Sensitivity
from emmi_jax.design.surface import Surface
from emmi_jax.inference.case_encoding import flat_condition, pooled
from emmi_jax.inference.streaming import encode_inputs
from emmi_jax.inference.surrogate import Surrogate

CasePenalty: TypeAlias = Callable[[MorphedCase, Parameters], tuple[float, Parameters]]
"""From a case and its parameters to a value and its gradient."""


def shape_distance(
    surrogate: Surrogate, surface: Surface, functional: Functional, familiarity: Familiarity, **options: Any
) -> Sensitivity:
    """Returns how far a shape is from the training cases, and the gradient of that as `sensitivity` gives it.

    Args:
        surrogate: The surrogate; of an ensemble the first member encodes, as in the calibration.
        surface: The surface.
        functional: Which branches take part.
        familiarity: What is usual.
        **options: The arguments of `sensitivity`.

    Raises:
        ValueError: See `sensitivity`.
    """
    member = surrogate.members[0]
    problem = Problem(CaseInputs(surrogate=member, **options), surface, functional)
    variables, inputs = problem.streams.variables, problem.streams.inputs
    cache, condition = encode_inputs(member.model, variables, inputs), flat_condition(inputs["condition"])

    def distance(entries: Any) -> jax.Array:
        return familiarity.distance(pooled(merged(entries, cache), condition))

    value, d_cache = jax.value_and_grad(distance)(floats(cache))
    gradient = vjp_encoding(member.model, variables, inputs, d_cache)
    return problem.finish(float(value), np.zeros_like(surface.vertices), gradient)


def keep_familiar(familiarity: Familiarity, weight: float = 1.0) -> CasePenalty:
    """Returns weight · (distance / the median distance of the calibration cases - 1)², above that distance.

    Raises:
        ValueError: The weight is not positive.
    """
    check_weight(weight)
    limit = familiarity.limit

    def penalty(case: MorphedCase, parameters: Parameters) -> tuple[float, Parameters]:
        result = case.under_one_condition().apply(shape_distance, parameters, familiarity)
        excess = max(0.0, result.value / limit - 1)
        slope = 2 * weight * excess / limit
        pulled = case.pull_back(parameters, result)
        return weight * excess**2, jax.tree.map(lambda leaf: slope * np.asarray(leaf), pulled)

    return penalty
