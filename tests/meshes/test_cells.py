"""Centroids and volumes of every kind of cell, against OpenFOAM (openfoam_cells.json) and by hand."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.meshes.cells import measure_cells, stream_faces
from emmi_jax.meshes.mesh import Mesh, read_mesh
from emmi_jax.meshes.openfoam_cells import foam_grid
from emmi_jax.meshes.polyhedra import cell_geometry, face_geometry
from emmi_jax.meshes.vtk import import_pyvista

pyvista = import_pyvista()
# Cells that OpenFOAM 1912 measured: postProcess -func writeCellCentres, writeCellVolumes.
CELLS = json.loads(Path(__file__).with_name("openfoam_cells.json").read_text())
CENTRES, VOLUMES = np.array([cell["centre"] for cell in CELLS]), np.array([cell["volume"] for cell in CELLS])
POLYHEDRON = 42


def grid_of_all(*, as_polyhedra: bool = False, shift: float = 0.0) -> Any:
    """All cells in one grid, without common faces."""
    points, faces, owner = [], [], []
    for number, cell in enumerate(CELLS):
        faces += [np.array(face) + len(points) for face in cell["faces"]]
        owner += [number] * len(cell["faces"])
        points += cell["points"]
    array = np.array(points) + shift
    if as_polyhedra:
        streams = [[face for face, own in zip(faces, owner, strict=True) if own == n] for n in range(len(CELLS))]
        flat = [np.concatenate([[len(s)], *([len(f), *f] for f in s)]) for s in streams]
        cells = np.concatenate([np.insert(stream, 0, len(stream)) for stream in flat])
        return pyvista.UnstructuredGrid(cells, np.full(len(CELLS), POLYHEDRON, np.uint8), array)
    offsets = np.concatenate([[0], np.cumsum([len(face) for face in faces])])
    none = np.zeros(0, np.int64)
    return foam_grid(array, np.concatenate(faces), offsets, np.array(owner), none, len(CELLS))


@pytest.mark.parametrize("as_polyhedra", [False, True])
@pytest.mark.parametrize("shift", [0.0, 5e6])
def test_warped_cells_of_every_shape_are_those_of_openfoam(as_polyhedra, shift):
    grid = grid_of_all(as_polyhedra=as_polyhedra, shift=shift)
    shapes = [12, 12, 13, 14, 10, 12] + [POLYHEDRON] * 4
    assert np.asarray(grid.celltypes).tolist() == ([POLYHEDRON] * 10 if as_polyhedra else shapes)
    found = measure_cells(grid)
    size = VOLUMES[:, None] ** (1 / 3)
    np.testing.assert_allclose((found.centre - shift - CENTRES) / size, 0, atol=1e-12 if not shift else 1e-7)
    np.testing.assert_allclose(found.size, VOLUMES, rtol=1e-12 if not shift else 1e-7)


@pytest.mark.parametrize("turned", ["one face", "all faces"])
def test_faces_of_a_polyhedron_may_turn_either_way(turned):
    cube = pyvista.Box(bounds=(0, 1, 0, 2, 0, 3))
    corners = np.asarray(cube.faces).reshape(-1, 5)[:, 1:].copy()
    rows = slice(0, 1) if turned == "one face" else slice(None)
    corners[rows] = corners[rows, ::-1]
    centre, vector = face_geometry(np.asarray(cube.points, float), corners.ravel(), np.arange(0, 25, 4))
    centroid, volume = cell_geometry(centre, vector, np.zeros(6, np.int64), 1)
    np.testing.assert_allclose(centroid, [[0.5, 1, 1.5]])
    np.testing.assert_allclose(volume, [6])


def test_streams_of_older_files_are_decoded():
    one, two = [4, 3, 0, 1, 2, 3, 0, 2, 3, 3, 0, 3, 1, 3, 1, 3, 2], [2, 4, 0, 1, 2, 3, 3, 4, 5, 6]
    corners, offsets, number = stream_faces(np.array([9, *one, *two]), np.array([1, 1 + len(one)]))
    np.testing.assert_array_equal(number, [4, 2])
    np.testing.assert_array_equal(offsets, [0, 3, 6, 9, 12, 16, 19])
    np.testing.assert_array_equal(corners[:6], [0, 1, 2, 0, 2, 3])
    np.testing.assert_array_equal(corners[12:], [0, 1, 2, 3, 4, 5, 6])


@pytest.mark.parametrize(("kind", "sides"), [(15, 5), (16, 6)])
def test_prisms_are_measured(kind, sides):
    angle = 2 * np.pi * np.arange(sides) / sides
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
    grid = pyvista.UnstructuredGrid(
        [2 * sides, *range(2 * sides)], [kind], np.concatenate([ring, ring + np.array([0, 0, 2])])
    )
    found = measure_cells(grid)
    np.testing.assert_allclose(found.centre, [[0, 0, 1]], atol=1e-15)
    np.testing.assert_allclose(found.size, [sides * np.sin(2 * np.pi / sides)])


def test_planar_cells_have_their_exact_centroids():
    square = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    middle = np.array([0.5, 0.5, 0])
    frustum = np.concatenate([2 * (square - middle), square - middle + np.array([0, 0, 1])])
    # Sections of a frustum shrink from 4 to 1 over its height of 1.
    for kind, points, centre, volume in (
        (14, [*square, [0.8, 0.5, 1]], [0.575, 0.5, 0.25], 1 / 3),
        (12, frustum, [0, 0, 11 / 28], 7 / 3),
        (13, [[x, y, z] for z in (0, 1) for x, y in ((0, 0), (0, 1), (1, 0))], [1 / 3, 1 / 3, 0.5], 0.5),
    ):
        found = measure_cells(
            pyvista.UnstructuredGrid([len(points), *range(len(points))], [kind], np.array(points, float))
        )
        np.testing.assert_allclose(found.centre, [centre], atol=1e-15)
        np.testing.assert_allclose(found.size, [volume])


@pytest.mark.parametrize("warped", [None, 3, 70])
@pytest.mark.parametrize("shift", [0.0, 5e6])
def test_sheared_boxes_and_warped_cells_among_them_are_measured_alike(warped, shift):
    """Boxes have a shorter way, which a block with one warped cell does not take."""
    lattice = np.stack(np.meshgrid(*map(np.arange, (6, 5, 5)), indexing="ij"), axis=-1).astype(float)
    edges = np.array([[0.5, 0, 0], [0.25, 1, 0], [0, -0.5, 2.0]])
    grid = pyvista.StructuredGrid(*np.moveaxis(lattice @ edges + shift, -1, 0)).cast_to_unstructured_grid()
    exact = measure_cells(grid)
    corners = np.asarray(grid.cells).reshape(-1, 9)[:, 1:]
    np.testing.assert_allclose(exact.centre, np.asarray(grid.points)[corners].mean(axis=1), rtol=1e-14)
    np.testing.assert_allclose(exact.size, 1.0, rtol=1e-13 if not shift else 1e-7)
    if warped is None:
        return
    grid.points[corners[warped, 6]] += [1e-3, 2e-3, -1e-3]
    found = measure_cells(grid)
    touched = (corners == corners[warped, 6]).any(axis=1)
    np.testing.assert_allclose(found.centre[~touched], exact.centre[~touched], rtol=1e-14)
    for cell in np.flatnonzero(touched):
        (centre,), (size,) = measure_cells(grid.extract_cells([cell]))
        np.testing.assert_allclose(found.centre[cell], centre, rtol=1e-14)
        np.testing.assert_allclose(found.size[cell], size, rtol=1e-13 if not shift else 1e-7)
    assert np.abs(found.size[touched] - 1).max() > 1e-5


@pytest.mark.parametrize("dimensions", [(3, 4, 5), (3, 4, 1), (3, 1, 1)])
def test_images_have_voxels_pixels_and_lines(dimensions):
    grid = pyvista.ImageData(dimensions=dimensions, spacing=(1.0, 0.5, 0.25), origin=(1, 2, 3))
    found = measure_cells(grid)
    np.testing.assert_allclose(found.centre[0], [1.5, 2 + 0.25 * (dimensions[1] > 1), 3 + 0.125 * (dimensions[2] > 1)])
    np.testing.assert_allclose(found.size, {5: 0.125, 1: 0.5}[dimensions[2]] if dimensions[1] > 1 else 1.0)


def test_surfaces_have_centroids_of_their_polygons():
    corners = np.array([[0, 0, 0], [4, 0, 0], [4, 1, 0], [0, 3, 0]], float)
    found = measure_cells(pyvista.PolyData(corners, faces=[4, 0, 1, 2, 3]))
    # Under the line from (0, 3) to (4, 1): the area is 8, and the moments are 40 / 3 and 26 / 3.
    np.testing.assert_allclose(found.size, [8.0])
    np.testing.assert_allclose(found.centre, [[5 / 3, 13 / 12, 0]])


def test_curved_cells_are_refused(tmp_path):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], float)
    middles = [(corners[a] + corners[b]) / 2 for a, b in ((0, 1), (1, 2), (2, 0), (0, 3), (1, 3), (2, 3))]
    grid = pyvista.UnstructuredGrid([10, *range(10)], [24], np.concatenate([corners, middles]))
    grid.save(tmp_path / "volume.vtu")
    with pytest.raises(ValueError, match=r"volume\.vtu: 1 cells are of the kind quadratic_tetra"):
        read_mesh(tmp_path / "volume.vtu").position("cells")


def test_positions_have_the_precision_of_the_points(tmp_path):
    grid = grid_of_all()
    grid.save(tmp_path / "a.vtu")
    mesh = read_mesh(tmp_path / "a.vtu")
    np.testing.assert_allclose(mesh.position("cells"), CENTRES, atol=1e-12)
    np.testing.assert_allclose(mesh.cell_sizes(), VOLUMES, rtol=1e-12)
    grid.points = np.asarray(grid.points, np.float32)
    assert Mesh(Path("b.vtu"), grid).position("cells").dtype == np.float32
