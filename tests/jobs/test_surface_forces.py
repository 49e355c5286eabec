"""Forces integrated from the fields of a surface: signs, patches, shear, and what is refused."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.config import FoamSelection
from emmi_jax.inference.meshes import surface_forces
from emmi_jax.jobs.force_report import report_forces
from emmi_jax.meshes.branch_mesh import BranchMesh, query_mesh, reference_mesh
from emmi_jax.meshes.forces import ForceReference
from emmi_jax.meshes.mesh import FieldSource
from tests.data.case_folders import surface_dataset
from tests.meshes.foam_cases import write_foam_case


def surface_mesh(tmp_path: Path, dataset: Any, *fields: str) -> BranchMesh:
    dataset.save(tmp_path / "boundary.vtp")
    sources = {name: FieldSource(name) for name in fields}
    path = tmp_path / "boundary.vtp"
    return reference_mesh(path, dict.fromkeys(fields, 1), sources) if fields else query_mesh(path)


def test_forces_are_those_of_the_fields(tmp_path):
    dataset = surface_dataset(40)
    centre = np.asarray(dataset.cell_centers().points)
    dataset.cell_data["pressure"] = 5.0 - 3.0 * centre[:, 0]
    mesh = surface_mesh(tmp_path, dataset, "pressure")
    lift = {"pressure": (1.0 - 2.0 * centre[:, 2:]).astype(np.float32)}
    forces = surface_forces(lift, mesh, ForceReference(area=2.0, speed=3.0, density=0.5))
    assert forces.side == "outward by the volume that each part encloses: 1 closed part"
    scale = dataset.volume / (2.0 * 0.5 * 3.0**2 / 2)
    assert forces.coefficients["predicted"] == pytest.approx({"cd": 0.0, "cl": 2 * scale}, rel=1e-4, abs=1e-6)
    assert forces.coefficients["reference"] == pytest.approx({"cd": 3 * scale, "cl": 0.0}, rel=1e-4, abs=1e-6)
    mesh.reference["pressure"][:2] = np.nan
    partly = surface_forces(lift, mesh, ForceReference(area=2.0, speed=3.0, density=0.5))
    assert partly.coefficients == {"predicted": forces.coefficients["predicted"]}
    assert "no forces of the known fields: pressure is NaN in 2 cells" in partly.notes


@pytest.mark.parametrize(("name", "sign"), [("wallshearstress", -1), ("wall_shear_stress", 1)])
def test_shear_drags_with_the_sign_of_its_convention(name, sign, tmp_path):
    mesh = surface_mesh(tmp_path, surface_dataset())
    num = len(mesh.position)
    fields = {"pressure": np.zeros((num, 1), np.float32), name: np.tile(np.float32([0.5, 0, 0]), (num, 1))}
    forces = surface_forces(fields, mesh, ForceReference(area=1.0, speed=1.0))
    assert forces.coefficients["predicted"]["cd"] == pytest.approx(sign * 0.5 * mesh.mesh.dataset.area / 0.5, rel=1e-5)


def test_shear_in_three_arrays_drags_by_its_area(tmp_path):
    dataset = surface_dataset()
    dataset.cell_data["p"] = np.zeros(dataset.n_cells)
    for axis, value in zip("xyz", (0.5, 0.0, 0.25), strict=True):
        dataset.cell_data[f"{axis}-wall-shear"] = np.full(dataset.n_cells, value)
    dataset.save(tmp_path / "boundary.vtp")
    shear = tuple(f"{axis}-wall-shear" for axis in "xyz")
    sources = {"pressure": FieldSource("p"), "wall_shear_stress": FieldSource(shear)}
    mesh = reference_mesh(tmp_path / "boundary.vtp", {"pressure": 1, "wall_shear_stress": 3}, sources)
    fields = {name: values.astype(np.float32) for name, values in mesh.reference.items()}
    forces = surface_forces(fields, mesh, ForceReference(area=1.0, speed=1.0))
    exact = {"cd": 0.5 * dataset.area / 0.5, "cl": 0.25 * dataset.area / 0.5}
    assert forces.coefficients["reference"] == pytest.approx(exact, rel=1e-5)
    assert forces.has_shear


def test_each_patch_has_its_share_of_the_forces(tmp_path):
    case, reference = write_foam_case(tmp_path / "case", processors=2), ForceReference(area=1.0, speed=1.0)
    sources = {"pressure": FieldSource("p"), "wallshearstress": FieldSource("wallShearStress")}

    def forces(*patches: str) -> Any:
        mesh = reference_mesh(case, {"pressure": 1, "wallshearstress": 3}, sources, foam=FoamSelection(patches))
        return surface_forces(mesh.reference, mesh, reference)

    both, printed = forces("ground", "body"), io.StringIO()
    alone = {patch: forces(patch).coefficients["predicted"] for patch in ("ground", "body")}
    assert alone["ground"] != alone["body"]
    assert forces("body").patches == {"predicted": {}, "reference": {}}
    report_forces(tmp_path, both, reference, None, Console(file=printed))
    written = json.loads((tmp_path / "forces.json").read_text())
    for kind in ("predicted", "reference"):
        assert {name: pytest.approx(of_patch) for name, of_patch in alone.items()} == written["patches"][kind]
        total = {name: alone["ground"][name] + alone["body"][name] for name in ("cd", "cl")}
        assert written[kind] == pytest.approx(total)
    assert f"  body: Cd {alone['body']['cd']:.4f}  Cl {alone['body']['cl']:.4f}" in printed.getvalue()


def test_a_pressure_coefficient_needs_no_density(tmp_path):
    mesh = surface_mesh(tmp_path, surface_dataset())
    fields = {"pressure_coefficient": -mesh.position[:, :1].astype(np.float32)}
    found = [
        surface_forces(fields, mesh, ForceReference(area=1.0, speed=v, density=rho)).coefficients["predicted"]
        for v, rho in ((1.0, 1.0), (30.0, 1.2))
    ]
    assert found[0] == pytest.approx(found[1])
    assert found[0]["cd"] == pytest.approx(mesh.mesh.dataset.volume, rel=1e-4)


def test_unusable_forces_are_refused(tmp_path):
    mesh = surface_mesh(tmp_path, surface_dataset())
    reference = ForceReference(area=1.0, speed=1.0)
    with pytest.raises(ValueError, match=r"forces need a field pressure or pressure_coefficient; .* has \['speed'\]"):
        surface_forces({"speed": np.ones((3, 1), np.float32)}, mesh, reference)
    with pytest.raises(ValueError, match="forces need fields in the cells"):
        surface_forces({}, mesh._replace(location="points"), reference)
    with pytest.raises(ValueError, match=r"speed must be positive, got -1\.0"):
        ForceReference(area=1.0, speed=-1.0)
