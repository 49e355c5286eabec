from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.meshes.mesh import Mesh, read_mesh
from emmi_jax.meshes.surfaces import surface_elements, surface_triangles
from emmi_jax.meshes.vtk import import_pyvista

pyvista = import_pyvista()


def mesh(dataset: Any) -> Mesh:
    return Mesh(Path("body.vtp"), dataset)


def box() -> Any:
    """A box of six quadrilaterals, 2 × 3 × 4, far from the origin."""
    return pyvista.Box(bounds=(10, 12, -3, 0, 100, 104))


@pytest.mark.parametrize("flipped", [False, True])
def test_areas_and_outward_normals_of_a_box(flipped):
    elements = surface_elements(mesh(box().flip_faces() if flipped else box()))
    centre = np.asarray(box().cell_centers().points)
    outward = centre - [11, -1.5, 102]
    np.testing.assert_allclose(elements.normal, outward / np.linalg.norm(outward, axis=1, keepdims=True), atol=1e-12)
    np.testing.assert_allclose(sorted(elements.area), [6, 6, 8, 8, 12, 12], rtol=1e-12)
    assert elements.num_open_edges == 0


@pytest.mark.parametrize("make", [lambda: pyvista.Sphere(), lambda: pyvista.Sphere().decimate(0.5)])
def test_normals_of_a_sphere_point_away_from_its_centre(make):
    surface = mesh(make())
    elements = surface_elements(surface)
    radial = surface.position("cells") / np.linalg.norm(surface.position("cells"), axis=1, keepdims=True)
    assert np.einsum("ni,ni->n", elements.normal, radial).min() > 0.9
    np.testing.assert_allclose(elements.area, surface.cell_sizes(), rtol=1e-4)


def test_area_and_normal_of_a_polygon_that_is_not_convex():
    arrow = np.array([[0, 0, 0], [2, 0, 0], [2, 2, 0], [1, 0.5, 0], [0, 2, 0]], float)
    elements = surface_elements(mesh(pyvista.PolyData(arrow, faces=[5, 0, 1, 2, 3, 4])), require_closed=False)
    np.testing.assert_allclose(elements.area, [2.5])
    np.testing.assert_allclose(elements.normal, [[0, 0, 1]])


def test_surfaces_read_from_triangle_files_close(tmp_path):
    for suffix in ("stl", "ply", "obj"):
        pyvista.Sphere().save(tmp_path / f"body.{suffix}")
        assert surface_elements(read_mesh(tmp_path / f"body.{suffix}")).num_open_edges == 0


def test_repeated_corners_do_not_open_a_surface():
    triangles = surface_triangles(mesh(box()))
    faces = np.concatenate([np.full((12, 1), 3), np.arange(36).reshape(12, 3)], axis=1)
    repeated = pyvista.PolyData(triangles.reshape(-1, 3), faces=faces.reshape(-1))
    assert surface_elements(mesh(repeated)).num_open_edges == 0


def test_an_open_surface_is_refused_with_its_open_edges():
    open_box = pyvista.PolyData(np.asarray(box().points), faces=np.asarray(box().faces).reshape(6, 5)[:5].reshape(-1))
    with pytest.raises(ValueError, match=r"body\.vtp: the surface is not closed: 4 edges"):
        surface_elements(mesh(open_box))
    elements = surface_elements(mesh(open_box), require_closed=False)
    assert elements.num_open_edges == 4
    outward = np.asarray(open_box.cell_centers().points) - [11, -1.5, 102]
    assert (np.einsum("ni,ni->n", elements.normal, outward) > 0).all()


def test_cells_that_run_round_differently_are_refused():
    corners = np.asarray(box().points)
    faces = np.asarray(box().faces).reshape(6, 5).copy()
    faces[0, 1:] = faces[0, :0:-1]
    with pytest.raises(ValueError, match="not closed: 4 edges"):
        surface_elements(mesh(pyvista.PolyData(corners, faces=faces.reshape(-1))))


def test_an_edge_of_three_cells_is_refused():
    fin = pyvista.PolyData(np.array([[10, 0, 100], [10, -3, 100], [11, 0, 90]], float), faces=[3, 0, 1, 2])
    with pytest.raises(ValueError, match="not closed"):
        surface_elements(mesh(box().merge(fin)))


def test_a_sheet_keeps_the_side_it_runs_round():
    sheet = pyvista.Plane(center=(5, 5, 5), direction=(0, 0, 1), i_resolution=3, j_resolution=2)
    elements = surface_elements(mesh(sheet), require_closed=False)
    np.testing.assert_allclose(elements.normal, np.tile([[0, 0, 1]], (6, 1)), atol=1e-6)
    np.testing.assert_allclose(elements.area.sum(), 1.0, rtol=1e-6)


def test_a_cell_without_area_has_a_zero_normal():
    points = np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0], [0, 1, 0]], float)
    surface = pyvista.PolyData(points, faces=[3, 0, 1, 2, 3, 0, 1, 3])
    elements = surface_elements(mesh(surface), require_closed=False)
    np.testing.assert_array_equal(elements.normal[0], 0.0)
    np.testing.assert_array_equal(elements.area, [0.0, 0.5])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            pyvista.ImageData(dimensions=(2, 2, 2)),
            "expected a surface of polygons and no other cells, got a vtkImageData",
        ),
        (pyvista.Line(), "got 0 polygons among 1 cells"),
        (pyvista.PolyData(np.ones((3, 3))), "got 0 polygons among 3 cells"),
    ],
)
def test_what_is_no_surface_is_refused(dataset, message):
    for function in (surface_elements, surface_triangles):
        with pytest.raises(ValueError, match=message):
            function(mesh(dataset))


def test_triangles_cover_the_surface():
    corners = surface_triangles(mesh(box()))
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    assert corners.shape == (12, 3, 3)
    np.testing.assert_allclose(area.sum(), 2 * (6 + 8 + 12), rtol=1e-12)
