"""A case in physical units as the streams take it, and their gradients back in physical units."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.data.draws import GEOMETRY_BRANCH
from emmi_jax.deploy.conditions import condition_slopes
from emmi_jax.deploy.features import GEOMETRY, FeaturesLike, chosen_features
from emmi_jax.deploy.surrogate import ConditionLike
from emmi_jax.design.adjoint import Streams
from emmi_jax.design.chunks import Chunks, point_chunks, scaled, surface_chunks
from emmi_jax.design.draws import Draws, draw_case
from emmi_jax.design.features import cell_features, scaled_features
from emmi_jax.design.functionals import Functional
from emmi_jax.design.program import ChunkProgram
from emmi_jax.design.surface import Surface, Vertices
from emmi_jax.inference.chunks import ChunkSize, resolve_chunk_size
from emmi_jax.inference.inputs import condition_input
from emmi_jax.inference.streaming import encode_inputs, on_devices
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.models.inputs import Tokens, check_inputs
from emmi_jax.points import Array, PointSet, as_points


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """A functional and its gradient.

    Args:
        value: The functional.
        vertices: Gradient [V, 3] with respect to the vertices of the surface, per unit of length.
        geometry: The same for the mesh that shows the geometry, if that is another one.
        condition: Derivative by each condition of the run, per unit of it, but those that its fields are relative to.
            Where the condition is an array in model units, the gradient [condition_dim], or a gradient for each of the
            model's named conditions.
        anchors: Gradient [T, 3] with respect to the anchors of the other branches, which do not move with the surface.
        draws: The points that the model saw; pass them on to compare with another shape.
    """

    value: float
    vertices: Vertices
    geometry: Vertices | None
    condition: NDArray[np.float64] | Mapping[str, Any] | None
    anchors: dict[str, NDArray[np.float64]]
    draws: Draws


@dataclass(frozen=True, kw_only=True, eq=False)
class CaseInputs:
    """Everything beside the surface that a functional depends on.

    Args:
        surrogate: The surrogate; its positions and fields are in physical units.
        geometry: The surface that shows the geometry to the model, if it is another mesh.
        points: Points [N, 3] of the other branches: anchors are drawn from them, and functionals sum over them. As a
            `PointSet` with cell sizes they can be integrated over; they bring the features that the model takes.
        anchors: Anchors [T, 3] of the other branches; by default those of the run's context, or drawn.
        condition: What `Surrogate.encode` takes; by default that of the surrogate.
        features: Features of the cells of the surface that stay with them, for ``surface``, and for ``geometry`` where
            the model takes some: an array [N, C], or an array for each name.
        draws: Anchors and geometry points to use again; by default they are drawn as `Surrogate.encode` draws them.
        seed: Seed of the draws.
        chunk_size: Points per call of the model; by default as many as the memory of the devices allows.
        devices: The devices that share each chunk; by default all local ones.
        advance: Called with the number of points of each chunk that is done, forward and backward.
    """

    surrogate: Surrogate
    geometry: Surface | None = None
    points: Mapping[str, PointSet | Array] | None = None
    anchors: Mapping[str, Array] | None = None
    condition: ConditionLike | None = None
    features: Mapping[str, FeaturesLike] = field(default_factory=dict)
    draws: Draws | None = None
    seed: int = 0
    chunk_size: ChunkSize = "auto"
    devices: Sequence[jax.Device] | None = None
    advance: Callable[[int], object] = lambda num_points: None


class Problem:
    """A case with its points drawn, as the streams take it."""

    def __init__(self, case: CaseInputs, surface: Surface, functional: Functional) -> None:
        self.law = case.surrogate.normalizer.nondimensionalize
        case = replace(case, surrogate=case.surrogate.under(case.condition))
        surrogate = case.surrogate
        surrogate.refuse_ensemble("this derivative")
        config = surrogate.model.config
        functional.check(config)
        self.case, self.surface = case, surface
        self.draws = case.draws or draw_case(
            surrogate,
            surface,
            geometry=case.geometry,
            points=case.points,
            anchors=case.anchors,
            features=case.features,
            seed=case.seed,
        )
        is_double = any(leaf.dtype == np.float64 for leaf in jax.tree.leaves(surrogate.params))
        self.dtype = np.dtype(np.float64 if is_double else np.float32)
        devices = jax.local_devices() if case.devices is None else list(case.devices)
        self.program = ChunkProgram.on_devices(surrogate.model, surrogate.normalizer, functional, devices)
        variables, inputs = on_devices({"params": surrogate.params}, devices[:1]), self._inputs()
        chunks = {branch: self._chunks(branch) for branch in functional.branches}
        for sums in functional.sums:
            if sums.box is not None:
                sums.check_box(self._position(sums.branch))
        size = self._chunk_size(variables, inputs, devices)
        self.streams = Streams(variables, inputs, chunks, size, case.advance)

    @property
    def _points(self) -> dict[str, PointSet]:
        return {branch: as_points(branch, given) for branch, given in (self.case.points or {}).items()}

    @property
    def _shape(self) -> Surface:
        """The mesh that the geometry points lie on."""
        return self.surface if self.case.geometry is None else self.case.geometry

    def _inputs(self) -> dict[str, Any]:
        draws, normalizer = self.draws, self.case.surrogate.normalizer

        def in_model_units(position: Array) -> NDArray[Any]:
            values = scaled(normalizer, np.asarray(position, np.float64), self.dtype)
            if not np.isfinite(values).all():
                raise ValueError("a position is not finite, or too large for float32")
            return values

        def features_of(part: str, features: Array | None) -> NDArray[Any] | None:
            return None if features is None else scaled_features(normalizer, part, features, self.dtype)

        anchors = {**draws.anchors, GEOMETRY_BRANCH: draws.surface_anchors.position(self.surface.vertices)}
        geometry = None
        if draws.geometry is not None:
            geometry = draws.model_geometry(
                in_model_units(draws.geometry.position(self._shape.vertices)),
                features_of(GEOMETRY, draws.geometry_features),
            )
        inputs: dict[str, Any] = {
            "anchors": {branch: in_model_units(position)[None] for branch, position in anchors.items()},
            "geometry": geometry,
            "condition": self._condition(),
            "anchor_masks": {},
            "anchor_features": {
                branch: scaled_features(normalizer, branch, features, self.dtype)[None]
                for branch, features in draws.anchor_features.items()
            },
        }
        tokens = Tokens(inputs["anchors"], {}, inputs["anchor_features"], {})
        check_inputs(self.case.surrogate.model.config, tokens, geometry, inputs["condition"], {})
        return inputs

    @property
    def _given_condition(self) -> ConditionLike | None:
        return self.case.surrogate.condition if self.case.condition is None else self.case.condition

    def _condition(self) -> Any:
        condition: Any = self.case.surrogate.in_model_units(self.case.condition)
        condition_input(condition)  # refuses what is not finite
        if isinstance(condition, Mapping):
            return {name: np.asarray(values, self.dtype)[None] for name, values in condition.items()}
        return None if condition is None else np.asarray(condition, self.dtype)[None]

    def _chunk_size(self, variables: Any, inputs: Mapping[str, Any], devices: Sequence[jax.Device]) -> int:
        model = self.case.surrogate.model
        config = model.config
        depth = 1 + len(config.physics_blocks) + max(config.decoder_depths.values(), default=0)
        cache = jax.eval_shape(partial(encode_inputs, model), variables, inputs)
        # The backward pass of a chunk needs the activations of all layers.
        size = resolve_chunk_size(self.case.chunk_size, config, cache, devices, num_layers=1 if config.remat else depth)
        most = max([self.surface.num_cells, *(len(points.position) for points in self._points.values())])
        return min(size, -(-most // len(devices)) * len(devices))

    def _chunks(self, branch: str) -> Chunks:
        normalizer, taken = self.case.surrogate.normalizer, self.case.surrogate.features
        if branch == GEOMETRY_BRANCH:
            has_own = self.case.geometry is not None
            of_cells = cell_features(taken, self.surface, self.case.features, has_own_geometry=has_own).get(branch)
            own = None if of_cells is None else scaled_features(normalizer, branch, of_cells, self.dtype)
            return surface_chunks(self.surface, normalizer, self.dtype, own)
        points = self._points.get(branch)
        if points is None or not len(points.position):
            raise ValueError(f"the functional reads the branch {branch!r}: give its points")
        given = {} if points.features is None else {branch: points.features}
        joined = chosen_features(taken, given, {branch: len(points.position)}, "query")
        of_points = scaled_features(normalizer, branch, joined[branch], self.dtype) if branch in joined else None
        return point_chunks(points, normalizer, self.dtype, of_points)

    def _position(self, branch: str) -> NDArray[Any]:
        """Returns the places of the points that a functional reads, [N, 3]."""
        return self.surface.centers() if branch == GEOMETRY_BRANCH else self._points[branch].position

    def finish(self, value: float, vertices: Vertices, gradient: Mapping[str, Any]) -> Sensitivity:
        """Takes the gradient of the encoding back to the vertices."""
        scale = self.case.surrogate.normalizer.position_scale

        def in_physical_units(leaf: Any) -> NDArray[np.float64]:
            return scale * np.asarray(leaf[0], np.float64)

        anchors = {branch: in_physical_units(leaf) for branch, leaf in gradient["anchors"].items()}
        self.draws.surface_anchors.add_gradient(anchors.pop(GEOMETRY_BRANCH), vertices)
        geometry = None if self.case.geometry is None else np.zeros_like(self.case.geometry.vertices)
        if self.draws.geometry is not None:
            out = vertices if geometry is None else geometry
            self.draws.geometry.add_gradient(in_physical_units(gradient["geometry"]), out)
        condition = gradient["condition"]
        condition = jax.tree.map(lambda leaf: np.asarray(leaf[0], np.float64), condition)
        given, scales = self._given_condition, self.case.surrogate.normalizer.conditions
        if scales and isinstance(given, Mapping):
            slopes = condition_slopes(scales, given)
            # Those that fields are relative to change their scales, too.
            reference = () if self.law is None else (self.law.speed, self.law.density)
            condition = {name: float(slope @ condition) for name, slope in slopes.items() if name not in reference}
        return Sensitivity(value, vertices, geometry, condition, anchors, self.draws)

    def directions(
        self, direction: ArrayLike, anchor_direction: Mapping[str, Array]
    ) -> tuple[dict[str, Any], Callable[[str, int], Any]]:
        """Returns the directions of the inputs and of the offsets of each chunk as the vertices move along [V, 3]."""
        surface, inputs = self.surface, self.streams.inputs
        along = surface.moved(direction)
        scale = self.case.surrogate.normalizer.position_scale

        def in_model_units(direction: Array) -> NDArray[Any]:
            return (scale * np.asarray(direction, np.float64)).astype(self.dtype)[None]

        anchors = {branch: np.zeros_like(position) for branch, position in inputs["anchors"].items()}
        anchors |= {branch: in_model_units(given) for branch, given in anchor_direction.items()}
        anchors[GEOMETRY_BRANCH] = in_model_units(self.draws.surface_anchors.position(along.vertices))
        geometry, condition = inputs["geometry"], inputs["condition"]
        tangent = None if geometry is None else np.zeros_like(geometry.position)
        if self.draws.geometry is not None and self.case.geometry is None:
            tangent = in_model_units(self.draws.geometry.position(along.vertices))
        d_condition = jax.tree.map(np.zeros_like, condition)

        def moved(branch: str, start: int) -> NDArray[Any]:
            rows = np.minimum(np.arange(start, start + self.streams.chunk_size), surface.num_cells - 1)
            return along.vertices[surface.corners[rows]].astype(self.dtype)

        return {"anchors": anchors, "geometry": tangent, "condition": d_condition}, moved
