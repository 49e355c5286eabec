import io
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from emmi_jax import AnchoredBranchedUPT
from emmi_jax.config import FoamSelection
from emmi_jax.data.normalization import Normalizer
from emmi_jax.inference.meshes import geometry_points
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.openfoam_case import FoamJob
from emmi_jax.jobs.predict_meshes import MeshJob, predict_meshes
from emmi_jax.jobs.predict_openfoam import write_openfoam
from emmi_jax.meshes.branch_mesh import geometry_mesh
from emmi_jax.meshes.mesh import FieldSource, read_mesh
from emmi_jax.meshes.openfoam import read_foam
from emmi_jax.meshes.openfoam_fields import read_field_file
from tests.jobs.tiny_runs import untrained_surrogate
from tests.meshes.foam_cases import cell_centres, write_foam_case, write_head

BODY = FoamSelection(("body",))
FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1, "k": 1, "vorticity": 3}}
SOURCES = {"volume": {"velocity": FieldSource("UMean", 10.0), "pressure": FieldSource("pMeanTrim")}}
UNIFORM = {
    "U": ("volVectorField", "[0 1 -1 0 0 0 0]", "(1 0 0)", "fixedValue"),
    "p": ("volScalarField", "[0 2 -2 0 0 0 0]", "0", "zeroGradient"),
    "k": ("volScalarField", "[0 2 -2 0 0 0 0]", "0.5", "fixedValue"),
    "omega": ("volScalarField", "[0 0 -1 0 0 0 0]", "7", "fixedValue"),
}


@pytest.fixture(scope="module")
def surrogate() -> Surrogate:
    return untrained_surrogate(FIELDS, 0.0, 2.0)


def case_to_start(path: Path, **options: Any) -> Path:
    """A case with uniform fields in `0`, written by hand as users do: comments, several entries in a line, macros."""
    write_foam_case(path, times=("0",), fields=(), **options)
    roots = sorted(path.glob("processor*")) or [path]
    for root in roots:
        for name, (kind, dimensions, value, how) in UNIFORM.items():
            patches = "".join(
                f"{patch} {{ type {how}; value $internalField; }}\n" for patch in ("inlet", "outlet", "ground", "body")
            )
            text = (
                f"// internalField uniform 9;\n/* internalField uniform 8; */ dimensions {dimensions}; internalField  "
                f"uniform {value};\nboundaryField {{ {patches} sides {{ type slip; }}\n"
                '"proc.*" { type processor; value $internalField; } }\n'
            )
            write_head(root / "0" / name, kind, text, options.get("binary", False))
    return path


def write(surrogate: Surrogate, case: Path, **changes: Any) -> str:
    printed = io.StringIO()
    job = FoamJob(**{"case": case, "foam": BODY, "chunk_size": 16} | changes)
    write_openfoam(job, surrogate, SOURCES, console=Console(file=printed, width=200))
    return printed.getvalue()


def expected(surrogate: Surrogate, case: Path) -> dict[str, np.ndarray]:
    surface = read_foam(case, ["surface"], BODY)["surface"].position("cells")
    volume = read_foam(case, ["volume"])["volume"].position("cells")
    encoded = surrogate.encode(
        points={"surface": surface, "volume": volume}, geometry=geometry_points(geometry_mesh(case, BODY))
    )
    return encoded.predict({"volume": volume}, chunk_size=16)


@pytest.mark.parametrize("options", [{}, {"binary": True}, {"processors": 2}, {"processors": 2, "binary": True}])
def test_the_solver_reads_the_fields_that_the_model_predicts(options, surrogate, tmp_path):
    case = case_to_start(tmp_path / "case", **options)
    wanted = expected(surrogate, case)
    printed = write(surrogate, case)
    cells = read_foam(case, ["volume"])["volume"].dataset.cell_data
    np.testing.assert_allclose(cells["U"], wanted["volume_velocity"] / 10, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cells["p"], wanted["volume_pressure"][:, 0], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cells["k"], np.maximum(wanted["volume_k"][:, 0], 5e-4), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(cells["omega"], 7)
    assert "not written, as no file has boundary conditions for it: vorticity (vorticity)" in printed


@pytest.mark.parametrize("processors", [0, 2])
def test_features_of_a_case_are_computed_or_read_as_they_are_for_its_meshes(processors, tmp_path):
    model = untrained_surrogate(
        {"surface": {"pressure": 1}, "volume": {"velocity": 3}},
        0.0,
        2.0,
        {"surface": {"normal": 3}, "volume": {"distance": 1, "k": 1}, "geometry": {"normal": 3}},
    )
    model = replace(model, sampling=replace(model.sampling, method="weighted"))
    case = case_to_start(tmp_path / "case", processors=processors)
    job = MeshJob(meshes={"surface": case, "volume": case}, out=tmp_path / "out", foam=BODY)
    predict_meshes(job, model, SOURCES, console=Console(file=io.StringIO()))
    wanted = read_mesh(tmp_path / "out/case_volume.vtu").dataset.cell_data["predicted_velocity"]
    write(model, case)
    cells = read_foam(case, ["volume"])["volume"].dataset.cell_data
    np.testing.assert_allclose(cells["U"], wanted / 10, rtol=1e-5, atol=1e-6)


def test_all_but_the_internal_field_stays_and_the_folder_is_kept(surrogate, tmp_path):
    case = case_to_start(tmp_path / "case")
    before = {name: (case / "0" / name).read_bytes() for name in UNIFORM}
    printed = write(surrogate, case)
    assert {name: (case / "0.orig" / name).read_bytes() for name in UNIFORM} == before
    assert f"{case / '0'} is kept as {case / '0.orig'}" in printed
    assert (case / "0/omega").read_bytes() == before["omega"]
    for name in ("U", "p"):
        value = f"uniform {UNIFORM[name][2]}".encode()
        head, _, tail = before[name].rpartition(value)
        written = (case / "0" / name).read_bytes()
        assert written.startswith(head.rstrip())
        assert written.endswith(tail.replace(b"$internalField", value))
    assert not list(case.rglob(".*"))


def test_a_second_prediction_replaces_the_first_only_if_told_and_is_the_same(surrogate, tmp_path):
    case = case_to_start(tmp_path / "case")
    write(surrogate, case)
    first = (case / "0/U").read_bytes()
    with pytest.raises(ValueError, match=r"0/U exists: --overwrite replaces it, --write-time names another folder"):
        write(surrogate, case)
    write(surrogate, case, overwrite=True)
    assert (case / "0/U").read_bytes() == first


def test_a_named_time_receives_all_fields_that_the_solver_needs(surrogate, tmp_path):
    case = case_to_start(tmp_path / "case")
    before = (case / "0/U").read_bytes()
    write(surrogate, case, time="5")
    assert sorted(path.name for path in (case / "5").iterdir()) == sorted(UNIFORM)
    assert (case / "0/U").read_bytes() == before
    assert not (case / "0.orig").exists()


def test_cells_outside_the_training_data_keep_their_value(surrogate, tmp_path):
    case = case_to_start(tmp_path / "case")
    small = Normalizer.from_box([0.0] * 3, [1.0, 2.0, 2.0], position_range=100.0, fields=surrogate.normalizer.fields)
    is_outside = small.is_outside(cell_centres())
    printed = write(replace(surrogate, normalizer=small), case)
    velocity = np.asarray(read_foam(case, ["volume"])["volume"].dataset.cell_data["U"])
    assert 0 < is_outside.sum() < len(is_outside)
    np.testing.assert_array_equal((velocity == [1, 0, 0]).all(axis=1), is_outside)
    assert f"{is_outside.sum()} of {len(is_outside)} cells are outside the box of the training data" in printed


def test_what_cannot_start_a_solver_is_refused_before_anything_is_written(surrogate, tmp_path):
    def changed(name: str, old: str, new: str) -> Path:
        case = case_to_start(tmp_path / f"case{len(list(tmp_path.iterdir()))}")
        file = case / "0" / name
        file.write_text(file.read_text().replace(old, new))
        return case

    surface_model = AnchoredBranchedUPT(
        replace(surrogate.model.config, fields={"surface": {"pressure": 1}}, physics_blocks=("perceiver",))
    )
    only_surface = replace(surrogate, model=surface_model)
    far = Normalizer.from_box([50.0] * 3, [60.0] * 3, position_range=100.0, fields=surrogate.normalizer.fields)
    no_files = changed("p", "", "")
    shutil.rmtree(no_files / "0")
    for case, changes, message in (
        (
            changed("p", "[0 2 -2 0 0 0 0]", "[1 -1 -2 0 0 0 0]"),
            {},
            r"with dimensions \[0 2 -2 0 0 0 0\], got \[1 -1 -2 0 0 0 0\]",
        ),
        (changed("p", "volScalarField", "volVectorField"), {}, "p: has 3 channels, pressure has 1"),
        (changed("U", "internalField  uniform", "internalField  #calc"), {}, "internalField is b'#calc"),
        (changed("U", "internalField", "outside"), {}, "U: has no internalField"),
        (changed("p", "FoamFile", "nothing"), {}, "got no header"),
        (no_files, {}, "no file of the predicted fields U, p, k, vorticity"),
        (tmp_path, {}, "no OpenFOAM case: it has no constant/polyMesh"),
        (changed("p", "", ""), {"time": "late"}, "the time to write must be a number, got 'late'"),
        (changed("p", "", ""), {"foam": FoamSelection(("wing",))}, "no patch matches 'wing'"),
        (changed("p", "", ""), {"surrogate": only_surface}, "a solver starts from fields of the volume"),
        (changed("p", "", ""), {"surrogate": replace(surrogate, normalizer=far)}, "all cells are outside"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=message):
            write(changes.pop("surrogate", surrogate), case, **changes)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_failed_prediction_leaves_the_case_as_it_was(surrogate, tmp_path, monkeypatch):
    case = case_to_start(tmp_path / "case", processors=2)
    before = {path: path.read_bytes() for path in case.rglob("*") if path.is_file()}
    calls = iter(range(100))

    def fails(self: Any, values: Any) -> None:
        if next(calls) > 4:
            raise OSError("disk full")

    monkeypatch.setattr("emmi_jax.meshes.openfoam_fields.FieldWriter.write", fails)
    with pytest.raises(OSError, match="cannot be written"):
        write(surrogate, case)
    assert {path: path.read_bytes() for path in case.rglob("*") if path.is_file()} == before


def test_a_binary_field_that_is_not_uniform_is_replaced(tmp_path):
    case = write_foam_case(tmp_path / "case", binary=True)
    file = read_field_file(case / "100/U")
    assert file.uniform is None
    assert file.tail.startswith(b";\nboundaryField")
    assert (case / "100/U").read_bytes().startswith(file.head)


def test_a_case_is_predicted_on_as_it_lies_on_disk(surrogate, tmp_path):
    case = write_foam_case(tmp_path / "case")
    job = MeshJob(meshes={"surface": case, "volume": case}, out=tmp_path / "out", foam=BODY, compare=True)
    sources = {"surface": {"pressure": FieldSource("p")}, "volume": {"velocity": FieldSource("U")}}
    printed = io.StringIO()
    predict_meshes(job, surrogate, sources, console=Console(file=printed, width=200))
    assert printed.getvalue().count(f"{case}: time 100, surface: body (6 faces)") == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "case_surface.vtp",
        "case_volume.vtu",
        "comparison.json",
    ]
    cells = read_mesh(tmp_path / "out/case_volume.vtu").dataset.cell_data
    np.testing.assert_allclose(
        cells["predicted_velocity"], expected(surrogate, case)["volume_velocity"], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_allclose(cells["error_velocity"], cells["predicted_velocity"] - cells["U"], atol=1e-5)


INITIAL = {
    "variable": '#include "initial"\ninternalField uniform $start;\n'
    'boundaryField { ".*" { type fixedValue; value $here; } }',
    "constraints": 'internalField uniform 1;\nboundaryField { #includeEtc "caseDicts/setConstraintTypes" }',
    "computed": 'internalField #calc "1 + $x";\nboundaryField { ".*" { type calculated; value $internalField; } }',
    "group": "internalField uniform 1;\nboundaryField { wall { type fixedValue; value uniform $:absent; } }",
}


@pytest.mark.parametrize("kind", INITIAL)
def test_a_case_is_predicted_on_before_it_is_solved_whatever_its_fields_say(kind, surrogate, tmp_path):
    case = write_foam_case(tmp_path / "case", times=("0",))
    for name, field in {"p": "volScalarField", "U": "volVectorField"}.items():
        write_head(case / "0" / name, field, INITIAL[kind], False)
    job = MeshJob(meshes={"surface": case, "volume": case}, out=tmp_path / "out", foam=BODY)
    predict_meshes(job, surrogate, {}, console=Console(file=io.StringIO()))
    cells = read_mesh(tmp_path / "out/case_volume.vtu").dataset.cell_data
    np.testing.assert_allclose(
        cells["predicted_velocity"], expected(surrogate, case)["volume_velocity"], rtol=1e-4, atol=1e-5
    )


BASHRC = Path("/usr/share/openfoam/etc/bashrc")
SOLVER = """application potentialFoam; startFrom startTime; startTime 0; stopAt endTime; endTime 1; deltaT 1;
writeControl timeStep; writeInterval 1; writeFormat ascii;
"""


@pytest.mark.skipif(shutil.which("simpleFoam") is None, reason="OpenFOAM is not installed")
@pytest.mark.parametrize("binary", [False, True])
def test_a_solver_starts_from_a_prediction(binary, surrogate, tmp_path):
    case = case_to_start(tmp_path / "case", binary=binary)
    write_head(case / "system/controlDict", "dictionary", SOLVER.replace("potentialFoam", "simpleFoam"), False)
    write_head(
        case / "system/fvSchemes",
        "dictionary",
        "ddtSchemes { default steadyState; } gradSchemes { default Gauss linear; } divSchemes { default Gauss upwind; "
        "div((nuEff*dev2(T(grad(U))))) Gauss linear; } laplacianSchemes { default Gauss linear corrected; } "
        "interpolationSchemes { default linear; } snGradSchemes { default corrected; }\n",
        False,
    )
    write_head(
        case / "system/fvSolution",
        "dictionary",
        'solvers { "(p|U)" { solver PBiCGStab; preconditioner none; tolerance 1e-8; relTol 0.1; } } '
        "SIMPLE { pRefCell 0; pRefValue 0; } relaxationFactors { fields { p 0.3; } equations { U 0.5; } }\n",
        False,
    )
    write_head(case / "constant/transportProperties", "dictionary", "transportModel Newtonian; nu 0.1;\n", False)
    write_head(case / "constant/turbulenceProperties", "dictionary", "simulationType laminar;\n", False)
    write(surrogate, case)
    command = f". {BASHRC}; simpleFoam" if BASHRC.is_file() else "simpleFoam"
    done = subprocess.run(["bash", "-c", command], cwd=case, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (case / "1/U").is_file()


def test_pages_of_a_case_are_written_in_place_of_pictures(surrogate, tmp_path):
    case = write_foam_case(tmp_path / "case")
    job = MeshJob(meshes={"surface": case, "volume": case}, out=tmp_path / "out", foam=BODY, figures="html")
    predict_meshes(job, surrogate, {}, console=Console(file=io.StringIO()))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.*ml")) == ["surface.html", "volume.html"]
