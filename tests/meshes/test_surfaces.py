from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.data.sampling import sample_triangles
from emmi_jax.meshes.forces import integrate_forces
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


def test_a_cell_that_runs_against_its_neighbours_is_turned():
    corners = np.asarray(box().points)
    faces = np.asarray(box().faces).reshape(6, 5).copy()
    faces[0, 1:] = faces[0, :0:-1]
    elements = surface_elements(mesh(pyvista.PolyData(corners, faces=faces.reshape(-1))))
    np.testing.assert_array_equal(elements.is_turned, [True, False, False, False, False, False])
    np.testing.assert_allclose(elements.normal, surface_elements(mesh(box())).normal, atol=1e-12)


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
        (pyvista.PolyData(np.ones((3, 3))), "got 0 polygons among 3 cells"),
        (pyvista.MultipleLines(np.eye(3)), "got 0 polygons among 1 cells, and a line of 3 points where each takes 2"),
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


def turned(dataset: Any) -> Any:
    return dataset.flip_faces()


def cube(size: float, middle: float = 0.0) -> Any:
    half = size / 2
    return pyvista.Box(bounds=(middle - half, middle + half, -half, half, -half, half), level=1)


def enclosed(dataset: Any) -> float:
    """The volume on the inner side of the normals, by the divergence theorem."""
    elements, centre = surface_elements(mesh(dataset), require_closed=False), np.asarray(dataset.cell_centers().points)
    return float((centre * elements.normal * elements.area[:, None]).sum() / 3)


@pytest.mark.parametrize("first", [lambda part: part, turned])
@pytest.mark.parametrize("second", [lambda part: part, turned])
def test_every_part_points_out_of_the_body_however_it_runs(first, second):
    beside = first(cube(3.0)).merge(second(cube(1.0, middle=5.0)))
    assert enclosed(beside) == pytest.approx(27 + 1)
    # The inner one is the wall of a cavity.
    assert enclosed(first(cube(3.0)).merge(second(cube(1.0)))) == pytest.approx(27 - 1)
    assert enclosed(first(cube(3.0)).merge(second(cube(2.0))).merge(cube(1.0))) == pytest.approx(27 - 8 + 1)


def other_diagonals(both: Any) -> Any:
    """Triangles; where parts share a face, some of its quadrilaterals are cut along different diagonals."""
    quads = np.asarray(both.faces).reshape(-1, 5)[:, 1:]
    first = np.random.default_rng(0).integers(0, 4, (len(quads), 1))
    quads = np.take_along_axis(quads, (first + np.arange(4)) % 4, axis=1)
    triangles = np.stack([quads[:, :3], quads[:, [0, 2, 3]]], axis=1).reshape(-1, 3)
    return pyvista.PolyData(both.points, faces=np.insert(triangles, 0, 3, axis=1).ravel())


@pytest.mark.parametrize("seed", [None, 0])
@pytest.mark.parametrize("cut", [lambda both: both, lambda both: both.triangulate(), other_diagonals])
@pytest.mark.parametrize("shift", [(1, 0, 0), (1, 0.5, 0), (1, 1, 0), (1, 1, 0.5), (1, 1, 1)])
def test_parts_that_touch_point_out_of_themselves_however_their_polygons_run(shift, cut, seed):
    """They share a face, a part of it, an edge, a part of that, or a corner; the second one is inverted."""
    other = turned(cube(1.0)).translate(shift)
    both = cut(cube(1.0).merge(other).clean())
    if seed is not None:
        rng = np.random.default_rng(seed)
        faces = rng.permutation(np.asarray(both.faces).reshape(both.n_cells, -1))
        is_turned = rng.random(len(faces)) < 0.5
        faces[is_turned, 1:] = faces[is_turned, :0:-1]
        both = pyvista.PolyData(both.points, faces=faces.ravel())
    assert enclosed(both) == pytest.approx(2)


def test_a_sheet_that_a_file_has_twice_keeps_its_sides():
    sheet = pyvista.Plane(i_resolution=3, j_resolution=3)
    for second, total in ((sheet, 2), (turned(sheet), 0)):
        twice = pyvista.PolyData(sheet.points, faces=np.concatenate([sheet.faces, second.faces]))
        elements = surface_elements(mesh(twice), require_closed=False)
        np.testing.assert_allclose((elements.normal * elements.area[:, None]).sum(axis=0), [0, 0, total], atol=1e-6)


@pytest.mark.parametrize("how", [lambda part: part, turned])
def test_the_ground_goes_with_the_body_on_it(how):
    ground = pyvista.Plane(center=(0, 0, -2), i_size=9, j_size=9)
    elements = surface_elements(mesh(how(cube(3.0).merge(ground))), require_closed=False)
    upwards = (elements.normal[:, 2] * elements.area)[-ground.n_cells :]
    np.testing.assert_allclose(upwards.sum(), 81, rtol=1e-6)
    assert "1 closed part, 1 open part, open ones like most others" in elements.side


@pytest.mark.parametrize("how", [lambda part: part, turned])
def test_half_a_body_and_one_with_a_gap_point_out_of_their_volume(how):
    half = pyvista.Sphere().clip("y", origin=(0, 0, 0)).extract_surface(algorithm=None)
    assert enclosed(how(half)) == pytest.approx(np.pi / 12, rel=0.02)
    with_gap = pyvista.Sphere(start_theta=0, end_theta=350)
    elements = surface_elements(mesh(how(with_gap)), require_closed=False)
    assert np.einsum("ni,ni->n", elements.normal, with_gap.cell_centers().points).min() > 0


def test_a_duct_keeps_its_side():
    duct = pyvista.Cylinder(radius=0.2, height=3, capping=False)
    for dataset in (duct, turned(duct)):
        elements = surface_elements(mesh(dataset), require_closed=False)
        assert not elements.is_turned.any()
        assert elements.side.startswith("the side of the polygons in the file: 1 open part")


def test_thick_walls_of_a_nozzle_point_into_its_stream():
    angles = np.arange(8) * np.pi / 4
    rings = [np.stack([0 * angles + x, r * np.cos(angles), r * np.sin(angles)], 1) for r in (0.5, 0.4) for x in (0, 3)]
    ring = np.arange(8)
    quads = [
        np.stack([8 * a + ring, 8 * b + ring, 8 * b + (ring + 1) % 8, 8 * a + (ring + 1) % 8], axis=1)
        for a, b in ((0, 1), (1, 3), (3, 2), (2, 0))
    ]
    faces = np.concatenate([np.full((32, 1), 4), np.concatenate(quads)], axis=1)
    nozzle = pyvista.PolyData(np.concatenate(rings), faces=faces.ravel())
    for dataset in (nozzle, turned(nozzle)):
        elements = surface_elements(mesh(dataset))
        outwards = np.einsum("ni,ni->n", elements.normal[:, 1:], np.asarray(dataset.cell_centers().points)[:, 1:])
        assert (outwards[:8] > 0).all()
        assert (outwards[16:24] < 0).all()


def test_a_moebius_strip_is_said_to_have_no_outside():
    along = np.linspace(0, np.pi, 12, endpoint=False)
    middle = np.stack([np.cos(2 * along), np.sin(2 * along), 0 * along], axis=1)
    across = 0.3 * (np.cos(along)[:, None] * middle + np.sin(along)[:, None] * [0, 0, 1])
    corner = np.arange(24).reshape(12, 2)
    quads = np.concatenate([corner, np.concatenate([corner[1:], corner[:1, ::-1]])[:, ::-1]], axis=1)
    faces = np.insert(quads, 0, 4, axis=1).ravel()
    strip = pyvista.PolyData(np.stack([middle - across, middle + across], axis=1).reshape(-1, 3), faces=faces)
    elements = surface_elements(mesh(strip), require_closed=False)
    assert "1 one-sided part, which cannot have an outside" in elements.side


def test_polygons_without_area_are_no_parts():
    faces = np.concatenate([box().faces, [3, 0, 0, 1, 3, 2, 2, 2]])
    assert surface_elements(mesh(pyvista.PolyData(box().points, faces=faces))).side.endswith(": 1 closed part")


@pytest.mark.parametrize("kept", [slice(0, 2), slice(0, 6)])
def test_polygons_on_top_of_others_are_counted(kept):
    polygons = np.asarray(box().faces).reshape(-1, 5)
    doubled = pyvista.PolyData(np.asarray(box().points), faces=np.concatenate([polygons, polygons[kept]]).ravel())
    elements = surface_elements(mesh(doubled), require_closed=False)
    assert elements.side.endswith(f"{kept.stop} polygons on top of others, so counted twice")
    assert "on top of" not in surface_elements(mesh(box().merge(box().translate((9, 0, 0))))).side


@pytest.mark.parametrize("shift", [0.0, 1e-7])
def test_a_copy_of_a_body_is_counted_and_no_cavity(shift):
    """Solids that a file has twice share no corners; each alone has the volume 24."""
    copied = box().merge(box().translate((shift, 0, 0)), merge_points=False)
    elements = surface_elements(mesh(copied))
    outward = np.asarray(copied.cell_centers().points) - [11, -1.5, 102]
    assert ((elements.normal * outward).sum(axis=1) > 0).all()
    assert elements.side.endswith("2 closed parts; 6 polygons on top of others, so counted twice")


def test_a_body_on_the_floor_of_a_tunnel_is_no_cavity_and_a_hole_in_it_is_one():
    def normals(bounds: tuple[float, ...]) -> Any:
        both = box().merge(pyvista.Box(bounds=bounds), merge_points=False)
        return surface_elements(mesh(both)).normal[6:, 2]

    on_floor, floating = normals((10.5, 11.5, -2, -1, 100, 101)), normals((10.5, 11.5, -2, -1, 101, 102))
    np.testing.assert_array_equal(on_floor, -floating)


def ring(axis: int, num: int = 7) -> Any:
    """A body in a plane and one beside it, of lines in any order and direction, whose ends are points of their own."""
    angle = 2 * np.pi * np.arange(num) / num
    loop = np.stack([np.cos(angle), 0.5 * np.sin(angle)], axis=1)
    loops = [loop, 3 * loop[::-1] + [9, 0]]
    ends = np.concatenate([np.stack([one, np.roll(one, -1, axis=0)], axis=1) for one in loops])
    ends[::2] = ends[::2, ::-1]
    points = np.insert(ends.reshape(-1, 2), axis, 0.5, axis=1)
    shuffled = np.random.default_rng(0).permutation(2 * num)
    lines = np.c_[np.full(2 * num, 2), np.arange(4 * num).reshape(-1, 2)][shuffled]
    return pyvista.PolyData(points, lines=lines.reshape(-1))


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("as_grid", [False, True])
def test_lines_in_a_plane_are_a_surface_whose_forces_per_span_are_exact(axis, as_grid):
    dataset = ring(axis)
    surface = mesh(dataset.cast_to_unstructured_grid() if as_grid else dataset)
    elements, (u, v) = surface_elements(surface), [a for a in range(3) if a != axis]
    centre, num = surface.position("cells"), 7
    np.testing.assert_allclose(elements.area, surface.cell_sizes(), rtol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(elements.normal, axis=1), 1.0, rtol=1e-12)
    body = np.where(centre[:, u] > 4, 9.0, 0.0)
    outward = (centre[:, u] - body) * elements.normal[:, u] + centre[:, v] * elements.normal[:, v]
    assert outward.min() > 0
    # By the theorem of Gauss, a pressure that is linear in u pushes by its slope times the area of both bodies.
    enclosed = (1 + 9) * 0.5 * 0.5 * num * np.sin(2 * np.pi / num)
    force = integrate_forces(elements.normal, elements.area, 2.0 + 3.0 * centre[:, u])
    expected = np.zeros(3)
    expected[u] = -3.0 * enclosed
    np.testing.assert_allclose(force, expected, atol=1e-12)
    assert elements.num_open_edges == 0
    assert elements.side == f"lines in the plane {'xyz'[u]}-{'xyz'[v]} around the body; forces are per unit of span"


def test_lines_that_have_no_outward_side_are_refused():
    dataset = ring(2)
    with pytest.raises(ValueError, match="4 points do not join exactly two lines"):
        surface_elements(mesh(dataset.extract_cells(np.arange(12))))
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [-1, 0, 0]], float)
    star = pyvista.PolyData(points, lines=[2, 0, 1, 2, 0, 2, 2, 0, 3])
    with pytest.raises(ValueError, match="1 points join more than two lines"):
        surface_elements(mesh(star), require_closed=False)
    for points in (np.eye(3), np.array([[0, 0, 0], [1, 0, 0], [2, 0, 0]], float)):
        with pytest.raises(ValueError, match="planes x-y, x-z and y-z alone"):
            surface_elements(mesh(pyvista.PolyData(points, lines=[2, 0, 1, 2, 1, 2])), require_closed=False)


def test_points_on_lines_are_uniform_in_length():
    points = np.array([[0, 0, 5], [0, 1, 5], [0, 0.5, 5]])
    triangles = surface_triangles(mesh(pyvista.PolyData(points, lines=[2, 0, 2, 2, 2, 1])))
    points = sample_triangles(0, triangles, 4000)
    np.testing.assert_array_equal(points[:, [0, 2]], np.tile([0, 5], (4000, 1)))
    np.testing.assert_allclose(np.histogram(points[:, 1], 4, (0, 1))[0], 1000, atol=100)
