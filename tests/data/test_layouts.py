"""Small files with the names and arrays of the public data sets."""

from pathlib import Path

import numpy as np
import pytest

from emmi_jax.config import DEFAULT_SELECTION
from emmi_jax.data.case_folder import CaseFolder
from emmi_jax.data.cases import DEFAULT_OPTIONS
from emmi_jax.data.mesh_dataset import DRIVAERML, published_sources
from emmi_jax.data.open import OpenFolders, open_cases
from emmi_jax.data.readers import case_names
from emmi_jax.meshes.vtk import import_pyvista
from tests.data.case_folders import read_case_folder, surface_dataset, volume_dataset
from tests.data.test_case_folder import write_tensors

RNG = np.random.default_rng(0)
ARRAYS = {
    "drivaerml": (
        {"CpMeanTrim": 1, "pMeanTrim": 1, "pPrime2MeanTrim": 1, "wallShearStressMeanTrim": 3},
        {"UMeanTrim": 3, "pMeanTrim": 1, "CptMeanTrim": 1, "nutMeanTrim": 1, "UPrime2MeanTrim": 6},
    ),
    "ahmedml": (
        {"pMean": 1, "wallShearStressMean": 3},
        {"pMean": 1, "UMean": 3, "total(p)_coeffMean": 1, "vorticityMean": 3},
    ),
}
BOTH = ("surface", "volume")


def fill(dataset, arrays: dict[str, int]):
    """Numbers in cells and others on the points, as DrivAerML has them."""
    dataset.clear_data()
    for name, channels in arrays.items():
        dataset.cell_data[name] = RNG.normal(size=(dataset.n_cells, channels)).astype(np.float32)
        dataset.point_data[name] = RNG.normal(size=(dataset.n_points, channels)).astype(np.float32)
    return dataset


def write_raw(path: Path, kind: str, number: int) -> tuple:
    """Writes a case of DrivAerML, whose volume comes in parts, or of AhmedML."""
    path.mkdir(parents=True)
    surface, volume = (fill(d, of) for d, of in zip((surface_dataset(), volume_dataset()), ARRAYS[kind], strict=True))
    surface.save(path / f"boundary_{number}.vtp")
    file = path / f"volume_{number}.vtu"
    volume.save(file)
    surface.save(path / f"{'drivaer' if kind == 'drivaerml' else 'ahmed'}_{number}.stl")
    (path / f"force_mom_{number}.csv").write_text("Cd, Cl\n0.3, 0.1\n")
    if kind == "drivaerml":
        content = file.read_bytes()
        file.unlink()
        for part, start in enumerate(range(0, len(content), len(content) // 2 + 1)):
            file.with_name(f"{file.name}.{part:02}.part").write_bytes(content[start : start + len(content) // 2 + 1])
    return surface, volume


def write_shapenet_car(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A cube whose mesh has two points that no polygon uses; the volume touches it. Returns what must be read."""
    path.mkdir(parents=True)
    pyvista = import_pyvista()
    cube = pyvista.Cube().clean()
    points = np.concatenate([cube.points[:3], np.full((2, 3), 9.0), cube.points[3:]]).astype(np.float32)
    corners = cube.regular_faces
    faces = np.c_[np.full(6, 4), np.where(corners < 3, corners, corners + 2)]
    pyvista.PolyData(points, faces).save(path / "quadpress_smpl.vtk")
    pressure = np.arange(10, dtype=np.float32)
    np.save(path / "press.npy", pressure)
    around = np.concatenate([points[:2], RNG.normal(size=(20, 3)).astype(np.float32) + 4])
    grid = pyvista.PolyData(around).cast_to_unstructured_grid()
    grid.point_data["velo"] = velocity = np.arange(66, dtype=np.float32).reshape(22, 3)
    grid.save(path / "hexvelo_smpl.vtk")
    return cube.points, np.delete(pressure, [3, 4]), velocity[2:]


@pytest.mark.parametrize("kind", ARRAYS)
def test_raw_meshes_of_drivaerml_and_ahmedml_are_read_by_the_names_of_their_arrays(kind, tmp_path):
    surface, volume = write_raw(tmp_path / "run_7", kind, 7)
    case, sources = (
        read_case_folder(tmp_path / "run_7"),
        {"drivaerml": DRIVAERML, "ahmedml": published_sources("ahmedml")}[kind],
    )
    for branch, dataset in zip(BOTH, (surface, volume), strict=True):
        assert list(case.points[branch].fields) == list(sources[branch])
        for name, source in sources[branch].items():
            found = case.points[branch].fields[name]
            np.testing.assert_array_equal(found, np.asarray(dataset.cell_data[source.array]).reshape(found.shape))
    assert case.geometry.shape == (65_536, 3)
    assert CaseFolder.open(tmp_path / "run_7").sources() == sources
    assert CaseFolder.open(tmp_path / "run_7").problem(BOTH) is None
    names = {file.suffix for file in CaseFolder.open(tmp_path / "run_7").files}
    assert names == {".vtp", ".stl", ".part" if kind == "drivaerml" else ".vtu"}


def test_a_part_that_is_missing_is_named(tmp_path):
    write_raw(tmp_path / "run_1", "drivaerml", 1)
    (tmp_path / "run_1" / "volume_1.vtu.00.part").unlink()
    message = "expected parts from 00 on without a gap, found volume_1.vtu.01.part"
    assert message in CaseFolder.open(tmp_path / "run_1").problem(BOTH)
    with pytest.raises(ValueError, match=message):
        read_case_folder(tmp_path / "run_1")


def test_tensors_of_drivaerml_and_ahmedml_may_have_points_of_the_geometry(tmp_path):
    write_tensors(tmp_path)
    assert read_case_folder(tmp_path).geometry is None
    for name, num_points in (("surface_position_stl", 30), ("surface_position_stl_resampled100k", 20)):
        write_tensors(tmp_path, **{name: RNG.normal(size=(num_points, 3)).astype(np.float32)})
        assert len(read_case_folder(tmp_path).geometry) == num_points


def test_shapenet_car_leaves_out_unused_points_and_those_on_the_surface(tmp_path):
    path = tmp_path / "param1" / "1dc58be2"
    position, pressure, velocity = write_shapenet_car(path)
    assert case_names(tmp_path) == ["param1/1dc58be2"]
    assert CaseFolder.open(path).branches == BOTH
    case = read_case_folder(path)
    np.testing.assert_array_equal(case.points["surface"].position, position)
    np.testing.assert_array_equal(case.points["surface"].fields["pressure"][:, 0], pressure)
    np.testing.assert_array_equal(case.points["volume"].fields["velocity"], velocity)
    np.save(path / "press.npy", pressure)
    np.testing.assert_array_equal(read_case_folder(path).points["surface"].fields["pressure"][:, 0], pressure)
    np.save(path / "press.npy", pressure[1:])
    with pytest.raises(ValueError, match=r"press\.npy: expected a finite value for each of 10 points .* got 7 values"):
        read_case_folder(path)
    (path / "press.npy").unlink()
    assert "expected 3 files, found quadpress_smpl.vtk, hexvelo_smpl.vtk" in CaseFolder.open(path).problem(BOTH)


def test_tensors_of_shapenet_car(tmp_path):
    names = {"surface_points": 3, "surface_pressure": 1, "surface_normals": 3}
    names |= {"volume_points": 3, "volume_velocity": 3, "volume_normals": 3, "volume_sdf": 1}
    arrays = {name: RNG.normal(size=(20, channels)).astype(np.float32) for name, channels in names.items()}
    for name, array in arrays.items():
        (tmp_path / f"{name}.pt").write_text("the array lies beside")
        np.save(tmp_path / f"{name}.pt.npy", array)
    case = read_case_folder(tmp_path)
    assert {branch: list(part.fields) for branch, part in case.points.items()} == {
        "surface": ["pressure"],
        "volume": ["velocity"],
    }
    np.testing.assert_array_equal(case.points["volume"].fields["velocity"], arrays["volume_velocity"])


def write_design(root: Path, design: str, part: str) -> None:
    """Points whose fields tell where they are, in another order in each file."""
    pyvista, points = import_pyvista(), RNG.normal(size=(30, 3)).astype(np.float32)
    for folder, name, values in (
        ("PressureVTK", "p", lambda x: x[:, 0]),
        ("WallShearStressVTK_Updated", "wallShearStress", lambda x: x * 2),
    ):
        cloud = pyvista.PolyData(RNG.permutation(points))
        cloud.point_data[name] = values(np.asarray(cloud.points))
        (root / folder).mkdir(parents=True, exist_ok=True)
        cloud.save(root / folder / f"{design}.vtk")
    grid = pyvista.PolyData(points).cast_to_unstructured_grid()
    grid.point_data["U"], grid.point_data["p"] = points * 3, points[:, 1]
    (root / "CFD" / part).mkdir(parents=True, exist_ok=True)
    grid.save(root / "CFD" / part / f"{design}.vtk")


def test_drivaernet_has_designs_whose_files_are_in_another_order(tmp_path):
    for number, part in enumerate(("F_D_WM_WW_part1", "F_D_WM_WW_part2", "F_D_WM_WW_part2")):
        write_design(tmp_path, f"F_D_WM_WW_{number:04}", part)
    names = case_names(tmp_path)
    assert names == ["F_D_WM_WW_0000", "F_D_WM_WW_0001", "F_D_WM_WW_0002"]
    for name in names:
        assert CaseFolder.open(tmp_path / name).branches == BOTH
        assert len(CaseFolder.open(tmp_path / name).files) == 3
        assert CaseFolder.open(tmp_path / name).problem(BOTH) is None
        case = read_case_folder(tmp_path / name)
        surface, volume = case.points["surface"], case.points["volume"]
        np.testing.assert_array_equal(surface.fields["pressure"][:, 0], surface.position[:, 0])
        np.testing.assert_array_equal(surface.fields["wallshearstress"], surface.position * 2)
        np.testing.assert_array_equal(volume.fields["velocity"], volume.position * 3)
        np.testing.assert_array_equal(volume.fields["pressure"][:, 0], volume.position[:, 1])
    assert OpenFolders(tmp_path, DEFAULT_OPTIONS, DEFAULT_SELECTION).split_content() is None
    for part, name in zip(("train", "val", "test"), names, strict=True):
        (tmp_path / f"{part}_design_ids.txt").write_text(f"{name}\n")
    assert open_cases(str(tmp_path)).split(None).split_of == {
        names[0]: "train",
        names[1]: "validation",
        names[2]: "test",
    }


def test_surfaces_of_drivaernet_that_differ_or_lack_the_shear_are_named(tmp_path):
    for design in ("a", "b"):
        write_design(tmp_path / "differ", design, "part1")
    shear = tmp_path / "differ" / "WallShearStressVTK_Updated"
    (shear / "a.vtk").write_bytes((shear / "b.vtk").read_bytes())
    with pytest.raises(ValueError, match=r"a\.vtk: 30 of 30 points of the pressure are not among its 30 points"):
        read_case_folder(tmp_path / "differ" / "a")
    write_design(tmp_path / "lack", "a", "part1")
    (tmp_path / "lack" / "WallShearStressVTK_Updated" / "a.vtk").unlink()
    assert CaseFolder.open(tmp_path / "lack" / "a").problem(BOTH) == "no file in WallShearStressVTK_Updated"


def write_published(root: Path, kind: str) -> list[str]:
    """Designs with pressure on the points of a ball, the last with an irregularity that users of the data report."""
    names = [f"F_D_WM_WW_000{number}" for number in range(1, 5)]
    for folder in ("PressureVTK", "WallShearStressVTK_Updated"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        ball, odd = import_pyvista().Sphere(theta_resolution=8, phi_resolution=8), number == 3
        ball.clear_data()
        x, centre = np.array(ball.points), np.asarray(ball.cell_centers().points)
        ball.point_data["p"] = x[:, 0]
        ball.save(root / "PressureVTK" / f"{name}.vtk")
        del ball.point_data["p"]
        if not (odd and kind == "cells"):
            ball.point_data["wallShearStress"] = x * 2
        if odd and kind in ("cells", "both"):
            ball.cell_data["wallShearStress"] = centre * 2
        if odd and kind == "nan":
            ball.point_data["wallShearStress"][5:9] = np.nan
        ball.save(root / "WallShearStressVTK_Updated" / f"{name}.vtk")
    lists = {"train": names[:2], "val": names[2:3], "test": names[3:] + ["E_S_640"] * (kind == "absent")}
    for part, listed in lists.items():
        (root / f"{part}_design_ids.txt").write_text("\n".join(listed) + "\n")
    return names


def test_the_shear_of_drivaernet_is_taken_where_the_pressure_is(tmp_path):
    names = write_published(tmp_path, "both")
    assert CaseFolder.open(tmp_path / names[3]).problem(["surface"]) is None
    surface = read_case_folder(tmp_path / names[3]).points["surface"]
    np.testing.assert_allclose(surface.fields["wallshearstress"], 2 * surface.position, rtol=1e-6)


def test_shear_of_drivaernet_in_cells_alone_is_said_before_it_is_read(tmp_path):
    names = write_published(tmp_path, "cells")
    problem = CaseFolder.open(tmp_path / names[3]).problem(["surface"]) or ""
    assert problem.endswith("'wallShearStress' is in cells, the pressure of the design on points")
    with pytest.raises(ValueError, match="is in cells"):
        read_case_folder(tmp_path / names[3])


def test_absent_designs_are_named_with_their_list_and_left_out_when_told(tmp_path):
    names = write_published(tmp_path, "absent")
    opened = open_cases(str(tmp_path))
    with pytest.raises(ValueError, match=r"test_design_ids\.txt: 1 of 2 cases do not exist: 'E_S_640'"):
        opened.split(None)
    split = opened.split(None, skip_unusable=True)
    assert (split.test, split.unusable) == ([names[3]], {"E_S_640": "does not exist"})
    assert "1 unusable" in split.summary


def test_cases_that_cannot_be_read_are_found_by_reading(tmp_path):
    names = write_published(tmp_path, "nan")
    opened = open_cases(str(tmp_path))
    problems = opened.problems(names)
    assert list(problems) == names[3:]
    assert "12 of" in problems[names[3]]
    with pytest.raises(ValueError, match=r"no case of 'test' is usable; F_D_WM_WW_0004: .* are NaN or infinite"):
        opened.split(None).without(problems)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: (p / "volume_1.vtu").unlink(), "no volume"),
        (lambda p: (p / "ahmed_1.stl").write_bytes(b""), "ahmed_1.stl: empty"),
        (lambda p: (p / "volume_1.vtu").write_text("garbage"), "volume_1.vtu: not a .vtu file, or a damaged one"),
        (lambda p: (p / "volume_1.vtu").write_bytes((p / "volume_1.vtu").read_bytes()[:-99]), "its end is missing"),
        (lambda p: fill(surface_dataset(), {"p": 1}).save(p / "boundary_1.vtp"), "boundary_1.vtp: no array 'pMean'"),
        (lambda p: surface_dataset().save(p / "boundary_2.vtp"), "a case has one such file, found boundary_1.vtp, "),
    ],
)
def test_a_broken_case_is_noticed_before_it_is_read(damage, message, tmp_path):
    write_raw(tmp_path / "run_1", "ahmedml", 1)
    damage(tmp_path / "run_1")
    assert message in CaseFolder.open(tmp_path / "run_1").problem(BOTH, published_sources("ahmedml"))


def test_tensors_of_different_lengths_are_noticed(tmp_path):
    write_tensors(tmp_path, surface_pressure=np.ones(39, np.float32))
    assert "the numbers of rows differ" in CaseFolder.open(tmp_path).problem(BOTH)
