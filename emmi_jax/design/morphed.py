"""Functionals of a shape that follows parameters, and their derivatives by the chain rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray

from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.deploy.encoded_set import EncodedSet, field_columns
from emmi_jax.design.derivatives import (
    directional_derivative,
    evaluate,
    hessian_vector_product,
    sensitivity,
)
from emmi_jax.design.draws import Draws, draw_case
from emmi_jax.design.functionals import Functional
from emmi_jax.design.morphs import (
    Morph,
    Parameters,
    displacements,
    displacements_along,
    parameter_gradient,
    parameter_gradient_along,
)
from emmi_jax.design.problem import CaseInputs, Sensitivity
from emmi_jax.design.surface import Surface, Vertices
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.points import Array


@dataclass(frozen=True, eq=False)
class MorphedCase:
    """A case whose shape is a function of parameters; points are drawn once, on the shape before it is morphed.

    The morph moves the vertices of the surface and of the geometry's mesh, the points drawn on them, and the anchors of
    the other branches. Points that functionals sum over in other branches stay where they are.

    Args:
        surrogate: The surrogate.
        surface: The surface before it is morphed.
        functional: What to compute.
        morph: The morph.
        geometry: The surface that shows the geometry to the model, if it is another mesh.
        options: Other arguments of `CaseInputs`: points, anchors, condition, features, seed, chunk_size, devices.

    Example:
        >>> lattice = Lattice.around(surface, (6, 4, 4))  # doctest: +SKIP
        >>> case = MorphedCase(surrogate, surface, drag(speed=38.889, area=2.17), lattice)  # doctest: +SKIP
        >>> value, gradient = case.gradient(lattice.zeros())  # doctest: +SKIP
    """

    surrogate: Surrogate
    surface: Surface
    functional: Functional
    morph: Morph
    geometry: Surface | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    draws: Draws | None = None

    def __post_init__(self) -> None:
        if self.draws is None:
            chosen = {
                name: self.options[name] for name in ("points", "anchors", "features", "seed") if name in self.options
            }
            drawn = draw_case(self.surrogate, self.surface, geometry=self.geometry, **chosen)
            object.__setattr__(self, "draws", drawn)

    def moved(self, parameters: Parameters) -> Surface:
        """Returns the surface at these parameters."""
        return _moved(self.surface, self.morph, parameters)

    def moved_geometry(self, parameters: Parameters) -> Surface | None:
        """Returns the mesh of the geometry at these parameters, if it is another one."""
        return None if self.geometry is None else _moved(self.geometry, self.morph, parameters)

    def value(self, parameters: Parameters) -> float:
        """Returns the functional at these parameters."""
        return evaluate(self.surrogate, self.moved(parameters), self.functional, **self._at(parameters))

    def fields(self, parameters: Parameters) -> dict[str, NDArray[np.float32]]:
        """Returns the predicted fields [N, F] in the cells of the surface at these parameters."""
        case = CaseInputs(surrogate=self.surrogate, **self._at(parameters))
        predicted = self.encoded(parameters).predict(
            {GEOMETRY_BRANCH: self.moved(parameters).centers()},
            query_features={b: given for b, given in case.features.items() if b == GEOMETRY_BRANCH},
            chunk_size=case.chunk_size,
            devices=case.devices,
        )
        prefix = f"{GEOMETRY_BRANCH}_"
        return {name.removeprefix(prefix): predicted[name] for name in field_columns(predicted)}

    def encoded(self, parameters: Parameters) -> EncodedSet:
        """Returns the case at these parameters as the model encodes it, under its only or first condition."""
        case = self.under_one_condition()
        options = case._at(parameters)
        shown = options["draws"].positions(case.moved(parameters), options["geometry"])
        return self.surrogate.encode_draws(1, **shown, condition=options.get("condition"))

    def gradient(self, parameters: Parameters) -> tuple[float, Parameters]:
        """Returns the functional and its gradient with respect to the parameters, a tree like these."""
        result = self.sensitivity(parameters)
        return result.value, self.pull_back(parameters, result)

    def sensitivity(self, parameters: Parameters) -> Sensitivity:
        """Returns the functional at these parameters and its gradient with respect to the moved vertices."""
        return self.apply(sensitivity, parameters)

    def under_one_condition(self) -> MorphedCase:
        """Returns the case under its only or first condition."""
        return self

    def apply(self, function: Callable[..., Sensitivity], parameters: Parameters, *arguments: Any) -> Sensitivity:
        """Returns what a function of surrogate, surface, functional and more arguments gives at these parameters."""
        return function(self.surrogate, self.moved(parameters), self.functional, *arguments, **self._at(parameters))

    def pull_back(self, parameters: Parameters, result: Sensitivity) -> Parameters:
        """Takes a sensitivity at these parameters back to them."""
        return parameter_gradient(self.morph, parameters, *self._stacked(result))

    def _stacked(self, result: Sensitivity) -> tuple[Vertices, Vertices]:
        """Returns the positions [N, 3] of all that moves before it is morphed, and the gradients there."""
        position, gradient = [self.surface.vertices], [result.vertices]
        if self.geometry is not None and result.geometry is not None:
            position.append(self.geometry.vertices)
            gradient.append(result.geometry)
        for branch, anchors in self._anchors.items():
            position.append(np.asarray(anchors, np.float64))
            gradient.append(result.anchors[branch])
        return np.concatenate(position), np.concatenate(gradient)

    def _apply_along(self, function: Callable[..., Any], parameters: Parameters, direction: Parameters) -> Any:
        """Returns what a function gives for the displacements of vertices and anchors along a direction."""
        if self.geometry is not None:
            raise ValueError("the geometry is another mesh, which moves in `gradient` only")
        along, *others = (
            displacements_along(self.morph, parameters, direction, np.asarray(position, np.float64))
            for position in (self.surface.vertices, *self._anchors.values())
        )
        options = {"anchor_direction": dict(zip(self._anchors, others, strict=True)), **self._at(parameters)}
        return function(self.surrogate, self.moved(parameters), self.functional, along, **options)

    def derivative(self, parameters: Parameters, direction: Parameters) -> tuple[float, float]:
        """Returns the functional and its derivative along one direction of the parameters, in forward mode.

        Raises:
            ValueError: The geometry is another mesh: use `gradient`.
        """
        return self._apply_along(directional_derivative, parameters, direction)

    def hessian_vector_product(self, parameters: Parameters, direction: Parameters) -> tuple[Parameters, Parameters]:
        """Returns the gradient with respect to the parameters, and the Hessian times a direction of them.

        Raises:
            ValueError: The geometry is another mesh: use differences of `gradient`.
        """
        result, second = self._apply_along(hessian_vector_product, parameters, direction)
        bent = parameter_gradient_along(self.morph, parameters, direction, *self._stacked(result))
        product = jax.tree.map(np.add, self.pull_back(parameters, second), bent)
        return self.pull_back(parameters, result), product

    @property
    def _anchors(self) -> Mapping[str, Array]:
        return {} if self.draws is None else self.draws.anchors

    def _at(self, parameters: Parameters) -> dict[str, Any]:
        """Returns the arguments of `CaseInputs` at these parameters."""
        moved = {
            branch: position + displacements(self.morph, parameters, np.asarray(position, np.float64))
            for branch, position in self._anchors.items()
        }
        draws = None if self.draws is None else replace(self.draws, anchors=moved)
        return {**self.options, "draws": draws, "geometry": self.moved_geometry(parameters)}


def _moved(surface: Surface, morph: Morph, parameters: Parameters) -> Surface:
    return surface.moved(surface.vertices + displacements(morph, parameters, surface.vertices))
