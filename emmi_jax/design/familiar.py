"""Distance of a shape from the training cases, with derivatives, and a penalty that keeps it near them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.data.familiarity import Description, Familiarity
from emmi_jax.design.encoding import floats, merged, vjp_encoding
from emmi_jax.design.functionals import Functional
from emmi_jax.design.morphed import MorphedCase
from emmi_jax.design.morphs import Parameters
from emmi_jax.design.penalties import check_weight
from emmi_jax.design.problem import CaseInputs, Problem, Sensitivity
from emmi_jax.design.surface import Surface
from emmi_jax.inference.case_encoding import case_traits, flat_condition, pooled, shape_points
from emmi_jax.inference.streaming import encode_inputs
from emmi_jax.inference.surrogate import Surrogate

CasePenalty: TypeAlias = Callable[[MorphedCase, Parameters], tuple[float, Parameters]]
"""From a case and its parameters to a value and its gradient."""


def strangeness(
    surrogate: Surrogate, surface: Surface, functional: Functional, familiarity: Familiarity, **options: Any
) -> Sensitivity:
    """Returns how far a shape is beyond usual cases, and the gradient of that as `sensitivity` gives it.

    That is the sum of (distance / the median distance of the calibration cases - 1)² of both distances, by traits and
    by encoding, where they are above their medians.

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
    shape = shape_points(inputs["anchors"], inputs["geometry"])

    def excess(entries: Any, shape: Any) -> jax.Array:
        traits = case_traits(None if shape is None else shape[0], condition)
        distances = familiarity.distances(Description(traits, pooled(merged(entries, cache))))
        ratios = [distance / limit for distance, limit in zip(distances, familiarity.limits, strict=True)]
        return jnp.square(jnp.maximum(jnp.stack(ratios) - 1, 0)).sum()

    value, (d_cache, d_shape) = jax.value_and_grad(excess, argnums=(0, 1))(floats(cache), shape)
    gradient = vjp_encoding(member.model, variables, inputs, d_cache)
    if inputs["geometry"] is not None:
        gradient["geometry"] += d_shape
    elif shape is not None:
        gradient["anchors"][GEOMETRY_BRANCH] += d_shape
    return problem.finish(float(value), np.zeros_like(surface.vertices), gradient)


def keep_familiar(familiarity: Familiarity, weight: float = 1.0) -> CasePenalty:
    """Returns weight · `strangeness`.

    Raises:
        ValueError: The weight is not positive.
    """
    check_weight(weight)

    def penalty(case: MorphedCase, parameters: Parameters) -> tuple[float, Parameters]:
        result = case.under_one_condition().apply(strangeness, parameters, familiarity)
        pulled = case.pull_back(parameters, result)
        return weight * result.value, jax.tree.map(lambda leaf: weight * np.asarray(leaf), pulled)

    return penalty
