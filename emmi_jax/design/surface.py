"""A surface whose vertices may move: its polygons, and points that move with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

from emmi_jax.config import DEFAULT_SELECTION, FoamSelection
from emmi_jax.meshes.mesh import Mesh, read_mesh
from emmi_jax.meshes.surfaces import polygons, surface_dataset, surface_elements
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.ops.arrays import safe_norm

Vertices = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Surface:
    """A surface of polygons.

    Args:
        vertices: Positions [V, 3].
        corners: Indices [N, K] of the corners of each cell among the vertices, counter-clockwise seen from outside; a
            cell with fewer corners than K repeats its last one.
        num_corners: Corners [N] of each cell.
        num_open_edges: Edges that do not join exactly two cells.
        mesh: The mesh that it was read from, if any.
        side: How its outward side was told, in words.

    Example:
        >>> surface = read_surface(Path("car.vtp"))  # doctest: +SKIP
        >>> raised = surface.moved(surface.vertices + [0.0, 0.0, 0.01])  # doctest: +SKIP
    """

    vertices: Vertices
    corners: NDArray[np.int64]
    num_corners: NDArray[np.int64]
    num_open_edges: int = 0
    mesh: Mesh | None = None
    side: str = ""

    @classmethod
    def from_mesh(cls, mesh: Mesh, *, require_closed: bool = True) -> Surface:
        """Returns the surface of a mesh; see `read_surface`."""
        mesh = replace(mesh, dataset=surface_dataset(mesh))
        elements = surface_elements(mesh, require_closed=require_closed)
        connectivity, offsets = polygons(mesh)
        num_corners = np.diff(offsets)
        column = np.minimum(np.arange(num_corners.max()), num_corners[:, None] - 1)
        column = np.where(elements.is_turned[:, None], num_corners[:, None] - 1 - column, column)
        vertices = np.array(mesh.dataset.points, dtype=np.float64)
        corners = connectivity[offsets[:-1, None] + column]
        return cls(vertices, corners, num_corners, elements.num_open_edges, mesh, elements.side)

    @property
    def num_cells(self) -> int:
        """Number of cells."""
        return len(self.corners)

    def moved(self, vertices: ArrayLike) -> Surface:
        """Returns the surface with its vertices in other places [V, 3].

        Raises:
            ValueError: The shape is wrong, or a position is not finite.
        """
        array = np.array(vertices, dtype=np.float64)
        if array.shape != self.vertices.shape or not np.isfinite(array).all():
            raise ValueError(
                f"vertices must be finite numbers of shape {list(self.vertices.shape)}, got shape {list(array.shape)}"
            )
        return replace(self, vertices=array)

    def dataset(self) -> Any:
        """Returns the mesh that it was read from with its points moved, a `pyvista.PolyData` without arrays.

        Raises:
            ValueError: It was not read from a mesh.
        """
        if self.mesh is None:
            raise ValueError("the surface was not read from a mesh")
        dataset = self.mesh.dataset.copy(deep=False)
        dataset.clear_data()
        # Not `dataset.points`, which the copy shares.
        dataset.SetPoints(import_pyvista().vtk_points(self.vertices))
        return dataset

    def centers(self) -> Vertices:
        """Returns the centroid [N, 3] of each cell."""
        return self.at_centers(np.arange(self.num_cells)).position(self.vertices)

    def areas(self) -> NDArray[np.float64]:
        """Returns the area [N] of each cell."""
        corners = self.vertices[self.corners]
        return np.linalg.norm(_vector_area(np, corners - corners[:, :1]), axis=-1)

    def at_centers(self, cells: NDArray[np.int64]) -> MovingPoints:
        """Returns the centroids of cells [T] as points that move with the vertices."""
        corners = self.vertices[self.corners[cells]]
        weights, _ = _centroid_weights(np, corners - corners[:, :1], self.num_corners[cells])
        return MovingPoints(self.corners[cells], weights)

    def triangles(self) -> NDArray[np.int64]:
        """Cuts the cells into triangles; returns their corners [F, 3] among the vertices."""
        following = np.arange(1, self.corners.shape[1] - 1)
        fans = np.stack([self.corners[:, [0, i, i + 1]] for i in following], axis=1)
        return fans[following + 1 < self.num_corners[:, None]]


def read_surface(
    path: Path | str, *, require_closed: bool = True, selection: FoamSelection = DEFAULT_SELECTION
) -> Surface:
    """Reads a surface of polygons from a mesh file.

    Args:
        path: A `.vtp`, `.vtk`, `.stl`, `.ply` or `.obj` file, or one of several meshes.
        require_closed: Whether to refuse a surface with open edges, whose outward side is a guess.
        selection: The parts and the time of a file of several meshes.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is unusable, is not a surface of polygons, or must be closed but is not.
    """
    mesh = read_mesh(Path(path), branch="surface", selection=selection)
    return Surface.from_mesh(mesh, require_closed=require_closed)


class MovingPoints(NamedTuple):
    """Points that move with vertices: means of the vertices `idx` [T, K] with the weights [T, K]."""

    idx: NDArray[np.int64]
    weights: NDArray[np.float64]

    def position(self, vertices: Vertices) -> Vertices:
        """Returns the positions [T, 3]."""
        return np.einsum("tk,tkn->tn", self.weights, vertices[self.idx])

    def add_gradient(self, gradient: NDArray[Any], out: Vertices) -> None:
        """Adds the gradient with respect to the positions [T, 3] to that with respect to the vertices [V, 3]."""
        add_rows(out, self.idx, self.weights[..., None] * gradient[:, None])


def add_rows(out: Vertices, idx: NDArray[np.int64], rows: NDArray[Any]) -> None:
    """Adds rows [..., 3] to those of `out` [V, 3] at idx [...]; an index may repeat."""
    num_axes = out.shape[1]
    for axis in range(num_axes):
        np.add.at(out[:, axis], idx.reshape(-1), rows[..., axis].reshape(-1).astype(np.float64))


def cell_elements(offset: jax.Array, num_corners: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Computes what the corners of cells say about them; differentiable.

    Args:
        offset: Corners [N, K, 3] relative to any point of their cell, to keep the digits of small cells.
        num_corners: Corners [N] of each cell; the rest repeat the last one.

    Returns:
        The centroids [N, 3], relative to the same point; unit normals [N, 3], zero for a cell without area; and areas
        [N].
    """
    weights, spokes = _centroid_weights(jnp, offset, num_corners)
    centroid = (offset - spokes)[:, 0] + (weights[..., None] * spokes).sum(axis=1)
    vector_area = _vector_area(jnp, offset)
    area = safe_norm(vector_area)
    return centroid, vector_area / jnp.where(area > 0, area, 1)[:, None], area


def _centroid_weights(xp: Any, corners: Any, num_corners: Any) -> tuple[Any, Any]:
    """Returns weights [N, K] of the corners, with which their sum is the centroid, and corners relative to their mean.

    As for meshes, a cell is a fan of triangles around the mean of its corners, each weighted by its area. A corner has
    a third of its share in the mean, and two thirds of the two triangles that it belongs to.
    """
    number = num_corners[:, None].astype(corners.dtype)
    in_mean = (xp.arange(corners.shape[1]) < num_corners[:, None]).astype(corners.dtype) / number
    spokes = corners - (in_mean[..., None] * corners).sum(axis=1, keepdims=True)
    area = safe_norm(xp.cross(spokes, xp.roll(spokes, -1, axis=1)), xp)
    total = area.sum(axis=1, keepdims=True)
    in_fan = (area + xp.roll(area, 1, axis=1)) / xp.where(total > 0, total, 1)
    return xp.where(total > 0, (in_mean + in_fan) / 3, in_mean), spokes


def _vector_area(xp: Any, corners: Any) -> Any:
    """Returns area times normal [N, 3]; a repeated corner adds nothing."""
    edges = corners[:, 1:] - corners[:, :1]
    return xp.cross(edges[:, :-1], edges[:, 1:]).sum(axis=1) / 2
