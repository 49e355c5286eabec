import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.meshes.openfoam import foam_files, foam_patches, read_foam
from emmi_jax.meshes.surfaces import surface_elements
from tests.meshes.foam_cases import FIELDS, SPACING, body_centres, cell_centres, write_foam_case, write_head

BODY = FoamSelection(("body",))
# A warped, graded block and its values on patches, as foamToVTK of OpenFOAM 1912 wrote them in float32.
GOLDEN = json.loads(Path(__file__).with_name("openfoam_patches.json").read_text())


@pytest.mark.parametrize("processors", [0, 1, 2])
@pytest.mark.parametrize("with_background", [False, True])
def test_the_mesh_is_that_of_the_latest_time_not_after_the_one_read(processors, with_background, tmp_path):
    case = write_foam_case(tmp_path / "case", processors=processors, mesh_at="2", times=("100",))
    roots = sorted(case.glob("processor*")) or [case]
    other = write_foam_case(tmp_path / "other", times=())
    for root in roots:
        if with_background:
            shutil.copytree(other / "constant/polyMesh", root / "constant/polyMesh")
            boundary = root / "constant/polyMesh/boundary"
            boundary.write_text(boundary.read_text().replace("body", "box"))
        shutil.copytree(root / "2/polyMesh", root / "200/polyMesh")
        (root / "200/polyMesh/faces").write_text("not read")
    meshes = read_foam(case, ["surface", "volume"], FoamSelection(("body",), "100"))
    assert foam_patches(case, FoamSelection(("body",), "100"))["body"].num_faces == 6
    assert {file.parent.parent.name for file in foam_files(case, FoamSelection(("body",), "100"))} <= {"2", "100"} | {
        root.name for root in (*roots, case)
    }
    assert meshes["volume"].dataset.n_cells == len(cell_centres())
    np.testing.assert_allclose(meshes["surface"].position("cells").mean(axis=0), body_centres().mean(axis=0))


def test_points_may_be_newer_than_faces(tmp_path):
    case = write_foam_case(tmp_path / "case", times=("0", "100"))
    moved = write_foam_case(tmp_path / "moved", times=(), origin=(5.0, 0.0, 0.0))
    (case / "50/polyMesh").mkdir(parents=True)
    shutil.copy(moved / "constant/polyMesh/points", case / "50/polyMesh/points")
    for time, shift in (("0", 0.0), ("100", 5.0)):
        position = read_foam(case, ["volume"], FoamSelection((), time))["volume"].position("cells")
        np.testing.assert_allclose(position, cell_centres() + np.array([shift, 0, 0]), atol=1e-12)


def test_a_case_far_from_the_origin_keeps_its_digits(tmp_path):
    origin = (512345.678, 5412345.678, 431.2)
    meshes = read_foam(write_foam_case(tmp_path / "case", origin=origin), ["surface", "volume"], BODY)
    np.testing.assert_allclose(meshes["volume"].position("cells") - origin, cell_centres(), atol=1e-8)
    x, y, z = SPACING
    np.testing.assert_allclose(
        surface_elements(meshes["surface"], require_closed=False).area.sum(), 2 * (x * y + y * z + x * z), rtol=1e-8
    )


def test_boundary_may_have_dictionaries_comments_macros_and_kinds_of_walls(tmp_path):
    case = write_foam_case(tmp_path / "case")
    file = case / "constant/polyMesh/boundary"
    text = re.sub(
        r"\bbody\n\{ type wall;",
        "body\n{ sample { a { b 1; } } // }\n type mappedWall; inGroups 1(car);",
        file.read_text(),
    )
    text = text.replace(
        "ground\n{ type wall;", 'ground\n{ kind wall; /* type patch; */ type $kind; "a.*" 3; coupled (1 {x 2;} 3);'
    )
    file.write_text(text)
    chosen = {name: patch for name, patch in foam_patches(case).items() if patch.is_chosen}
    assert {name: (patch.kind, patch.num_faces) for name, patch in chosen.items()} == {
        "ground": ("wall", 12),
        "body": ("mappedWall", 6),
    }


def test_lists_may_lack_their_length_and_patches_faces(tmp_path):
    case = write_foam_case(tmp_path / "case")
    for name in ("points", "faces", "owner", "neighbour", "boundary"):
        file = case / "constant/polyMesh" / name
        file.write_text(re.sub(r"\n\d+\n\(\n", "\n(\n", file.read_text(), count=1))
    for start in (-1, 0, 10**6):
        file.write_text(
            file.read_text().replace("(\n", f"(\nempty{start} {{ type wall; nFaces 0; startFace {start}; }}\n")
        )
    file = case / "100/p"
    file.write_text(re.sub(r"(List<scalar>) \d+\n", r"\1 ", file.read_text()))
    meshes = read_foam(case, ["surface", "volume"])
    for mesh in meshes.values():
        expected = 1.1 * FIELDS["p"](mesh.position("cells"))
        np.testing.assert_allclose(mesh.dataset.cell_data["p"], expected, rtol=1e-12, atol=1e-12)
    assert {branch: mesh.dataset.n_cells for branch, mesh in meshes.items()} == {"surface": 18, "volume": 35}
    file.write_text(file.read_text().split("boundaryField")[0].rstrip(") ;\n"))
    with pytest.raises(ValueError, match="damaged: its list has no end"):
        read_foam(case, ["volume"], arrays={"volume": ["p"]})


def test_names_of_patches_and_fields_may_have_brackets(tmp_path):
    case = write_foam_case(tmp_path / "case", times=("100",))
    boundary = case / "constant/polyMesh/boundary"
    boundary.write_text(boundary.read_text().replace("body\n{", "body(1)\n{ inGroups 1(car);"))
    for file in (case / "100").iterdir():
        file.write_bytes(file.read_bytes().replace(b"body {", b"body(1) {"))
    (case / "100/p").rename(case / "100/total(p)_coeff")
    selection = FoamSelection((r"body\(1\)",))
    assert [name for name, patch in foam_patches(case, selection).items() if patch.is_chosen] == ["body(1)"]
    found = read_foam(case, ["surface"], selection, {"surface": ["total(p)_coeff"]})["surface"]
    expected = 1.1 * FIELDS["p"](found.position("cells"))
    np.testing.assert_allclose(found.dataset.cell_data["total(p)_coeff"], expected, rtol=1e-12)


def rewritten(case: Path, name: str, internal: str, conditions: str, extra: str = "") -> None:
    kind = "volVectorField" if name == "U" else "volScalarField"
    body = f"dimensions [0 1 -1 0 0 0 0];\n{extra}\ninternalField {internal};\nboundaryField\n{{\n{conditions}\n}}\n"
    write_head(case / "100" / name, kind, body, False)


CONDITIONS = {
    "zeroGradient": ("type zeroGradient;", lambda p, u, n, d: (p, u)),
    "slip": ("type slip;", lambda p, u, n, d: (p, u - (u * n).sum(1, keepdims=True) * n)),
    "symmetry with another value": (
        "type symmetry; value uniform 9;",
        lambda p, u, n, d: (p, u - (u * n).sum(1, keepdims=True) * n),
    ),
    "noSlip": ("type noSlip;", lambda p, u, n, d: (0 * p, 0 * u)),
    "macro": ("type fixedValue; value uniform $..free;", lambda p, u, n, d: (0 * p + 2, 0 * u + [2, 3, 4])),
    "inner": ("type inletOutlet; value $internalField;", lambda p, u, n, d: (0 * p + 7, 0 * u + 7)),
}


@pytest.mark.parametrize("kind", CONDITIONS)
@pytest.mark.parametrize("key", ["body", '"bo.*"', "car"])
def test_patches_have_the_values_of_the_solver(kind, key, tmp_path):
    case = write_foam_case(tmp_path / "case", times=("100",))
    boundary = case / "constant/polyMesh/boundary"
    boundary.write_text(boundary.read_text().replace("body\n{", "body\n{ inGroups List<word> 2(solid car);"))
    inside = cell_centres()
    p, u = FIELDS["p"](inside), FIELDS["U"](inside)
    text, expected = CONDITIONS[kind]
    is_uniform = kind == "inner"
    lists = (
        "nonuniform List<scalar> 35(" + " ".join(map(repr, p.tolist())) + ")",
        "nonuniform List<vector> 35(" + " ".join(f"({a!r} {b!r} {c!r})" for a, b, c in u.tolist()) + ")",
    )
    condition = f"{key} {{ {text} }}"
    rewritten(case, "p", "uniform 7" if is_uniform else lists[0], condition, "free 2;")
    rewritten(case, "U", "uniform (7 7 7)" if is_uniform else lists[1], condition, "free (2 3 4);")
    mesh = read_foam(case, ["surface"], BODY, {"surface": ["p", "U"]})["surface"]
    centre = mesh.position("cells")
    direction = centre - (np.array([1, 1, 1]) + 0.5) * SPACING
    unit = direction / np.linalg.norm(direction, axis=1, keepdims=True)
    owner = np.linalg.norm(inside[None] - (centre + direction)[:, None], axis=-1).argmin(axis=1)
    found = expected(p[owner], u[owner], unit, None)
    np.testing.assert_allclose(mesh.dataset.cell_data["p"], found[0], atol=1e-12)
    np.testing.assert_allclose(mesh.dataset.cell_data["U"], found[1], atol=1e-12)


@pytest.mark.parametrize("patch", GOLDEN["values"])
def test_conditions_on_warped_cells_give_the_values_of_openfoam(patch, tmp_path):
    for name, content in GOLDEN["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    mesh = read_foam(tmp_path, ["surface"], FoamSelection((patch,), "0"), {"surface": ["p", "U"]})["surface"]
    for name, values in GOLDEN["values"][patch].items():
        np.testing.assert_allclose(mesh.dataset.cell_data[name], values, rtol=2e-7, atol=2e-7)


def test_a_fixed_gradient_reaches_from_the_centre_of_the_cell_to_the_face(tmp_path):
    case = write_foam_case(tmp_path / "case", times=("100",))
    rewritten(case, "p", "uniform 1", '".*" { type fixedGradient; gradient uniform 10; }')
    mesh = read_foam(case, ["surface"], BODY, {"surface": ["p"]})["surface"]
    half = np.abs(mesh.position("cells") - (np.array([1, 1, 1]) + 0.5) * SPACING).max(axis=1)
    np.testing.assert_allclose(mesh.dataset.cell_data["p"], 1 + 10 * half, rtol=1e-12)


@pytest.mark.parametrize(
    "condition",
    [
        "body { type codedFixedValue; }",
        "",
        "body { type empty; value uniform 3; }",
        "body { type cyclic; }",
        "body { type wedge; }",
    ],
)
def test_a_patch_whose_values_are_unknown_is_named(condition, tmp_path):
    case = write_foam_case(tmp_path / "case", times=("100",))
    rewritten(case, "p", "uniform 1", condition)
    with pytest.raises(ValueError, match=r"100/p: patch 'body': its condition '\w+' has no value in the file"):
        read_foam(case, ["surface"], BODY, {"surface": ["p"]})
    mesh = read_foam(case, ["surface"], BODY)["surface"]
    assert "p" not in mesh.dataset.cell_data
    assert "patch 'body'" in " ".join(mesh.left_out)
    assert set(read_foam(case, ["volume"])["volume"].dataset.cell_data) == {"U", "p", "wallShearStress"}


def test_an_array_that_is_not_needed_may_be_computed_by_code(tmp_path):
    case = write_foam_case(tmp_path / "case", times=("100",))
    rewritten(case, "k", '#calc "1.5 * $x"', '#includeEtc "caseDicts/setConstraintTypes"\n".*" { type calculated; }')
    (case / "100/speed").write_text("(1 2 3)")
    rewritten(case, "p", "uniform $..free", '#include "speed"\n".*" { type zeroGradient; }', "free 2;")
    (case / "100/speed").write_text("inlet { type noSlip; }")
    found = read_foam(case, ["volume", "surface"], BODY, {"volume": ["p"], "surface": ["p"]})
    np.testing.assert_array_equal(found["volume"].dataset.cell_data["p"], np.full(35, 2.0))
    mesh = read_foam(case, ["volume"])["volume"]
    assert any("k: internalField is computed by #calc" in line for line in mesh.left_out)
