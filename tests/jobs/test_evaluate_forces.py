"""Forces of whole cases: a run predicts them, the fields of the meshes give them, and a solver wrote them."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.config.jobs import ForceOptions
from emmi_jax.data.cases import ReadOptions
from emmi_jax.data.known_forces import KnownForces
from emmi_jax.data.open import open_cases
from emmi_jax.data.open_cases import OpenCases
from emmi_jax.jobs.evaluation_forces import ForceEvaluation, ForceMetrics, force_references
from emmi_jax.meshes.vtk import import_pyvista
from tests.data.case_folders import FIELDS, write_case_folder
from tests.jobs.tiny_runs import NO_GEOMETRY, run, tiny_settings
from tests.meshes.foam_cases import write_foam_case

SPLIT = {"train": ["run_0"], "test": ["run_1", "run_2", "run_3"]}
SURFACE = {"pressure": 1, "wallshearstress": 3}
SPEED, DENSITY, AREA = 20.0, 1.2, 0.8
SOLVER_CDA = {"run_1": 0.5, "run_2": 0.7, "run_3": 0.6}


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Boxes in a stream along x: the pressure is one number on the front and another one elsewhere; and shear."""
    folder = tmp_path_factory.mktemp("data") / "cases"
    first = write_case_folder(tmp_path_factory.mktemp("data") / "case")
    sources = {"pressure": "p", "wallshearstress": "tau"}
    for number in range(4):
        case = shutil.copytree(first, folder / f"run_{number}")
        box = import_pyvista().Box((0, 2, 0, 1 + number, 0, 0.5), level=3).triangulate()
        normal = np.asarray(box.compute_normals(auto_orient_normals=True).cell_data["Normals"])
        box.clear_data()
        box.cell_data["p"] = np.where(normal[:, 0] < -0.5, 10.0, -3.0)
        box.cell_data["tau"] = np.tile([-0.5, 0.0, 0.25], (box.n_cells, 1))
        box.save(case / "boundary_1.vtp")
        (case / "fields.json").write_text(json.dumps(FIELDS | {"surface": sources}))
        if (cda := SOLVER_CDA.get(case.name)) is not None:
            content = {"CdA": cda, "ClA": -cda, "speed": SPEED, "density": DENSITY}
            (case / "forces.json").write_text(json.dumps(content))
    (folder / "split.json").write_text(json.dumps(SPLIT))
    return folder


def exact_forces(number: int) -> tuple[float, float]:
    """Drag and lift of a box in N: pressure on the front and the back, and shear on all sides."""
    depth, area = 1 + number, 2 * (2 * (1 + number) + 2 * 0.5 + (1 + number) * 0.5)
    return 13.0 * depth * 0.5 + 0.5 * area, -0.25 * area


def opened(data: Path) -> OpenCases:
    found = open_cases(str(data), ReadOptions(with_area_vectors=True))
    assert found is not None
    return found


def forces_of(
    data: Path, options: ForceOptions, known: dict[str, KnownForces | None], *, factors: tuple[float, ...] = (1.0,)
) -> ForceMetrics:
    """What a run that predicts the known fields times each factor would get."""
    evaluation = ForceEvaluation(options, known, {"surface": SURFACE})
    for name in known:
        case = opened(data).cases.read(name)
        evaluation.begin(name, case)
        for factor in factors:
            fields = {field: factor * values for field, values in case.points["surface"].fields.items()}
            evaluation.add(name, {"surface": fields})
    found = evaluation.metrics()
    assert found is not None
    return found


NONE = dict.fromkeys(SOLVER_CDA)


def test_reference_coefficients_are_the_exact_integrals_over_each_surface(cases):
    options = ForceOptions(speed=SPEED, area=AREA, density=DENSITY)
    found = forces_of(cases, options, NONE).to_dict()
    scale = DENSITY * SPEED**2 / 2 * AREA
    for number in (1, 2, 3):
        case, (drag, lift) = found["cases"][f"run_{number}"], exact_forces(number)
        assert (case["area"], case["speed"], case["density"]) == (AREA, SPEED, DENSITY)
        assert case["cd"] == pytest.approx({"predicted": drag / scale, "reference": drag / scale}, rel=1e-5)
        assert case["cl"]["reference"] == pytest.approx(lift / scale, rel=1e-5)
    perfect = {"mae": 0, "mae_percent": 0, "r2": 1, "spearman": pytest.approx(1)}
    assert found["metrics"]["cd"] == {"predicted_against_reference": perfect}


@pytest.mark.parametrize("processors", [0, 2])
def test_forces_of_a_case_whose_ground_is_a_wall_are_the_exact_integrals(processors, tmp_path):
    """With p = x - 2 z and wallShearStress = (x, y, 0) - 1, times 1.1, on a body of 0.5 by 0.4 by 0.3 and the ground.

    The body: -grad(p) times its volume of 0.06, and minus the shear over its area of 0.94 around (0.75, 0.6, 0.45). The
    ground of 2 by 1.2: the mean pressure of 1 pushes it down, and the shear of -1 along z drags it up.
    """
    write_foam_case(tmp_path / "cars/run_1", processors=processors)
    body, ground = [-0.06 + 0.25 * 0.94, 0.12 + 0.94], [0.0, -2.4 + 2.4]
    found = forces_of(tmp_path / "cars", ForceOptions(speed=2.0, area=0.5), {"run_1": None})
    drag, lift = 1.1 * (np.array(body) + ground)
    assert found.to_dict()["cases"]["run_1"]["cd"]["reference"] == pytest.approx(drag, rel=1e-6)
    assert found.to_dict()["cases"]["run_1"]["cl"]["reference"] == pytest.approx(lift, rel=1e-6)
    assert found.notes == []


def test_metrics_of_forces_are_means_over_the_draws(cases):
    found = forces_of(cases, ForceOptions(speed=SPEED), NONE, factors=(1.5, 0.9))
    metrics = found.metrics["cd"]["predicted_against_reference"]
    assert metrics["mae_percent"] == pytest.approx((50 + 10) / 2)
    drag = np.array([exact_forces(number)[0] for number in (1, 2, 3)])
    errors = np.array([0.5, 0.1])[:, None] * drag
    assert metrics["r2"] == pytest.approx(np.mean(1 - (errors**2).sum(axis=1) / ((drag - drag.mean()) ** 2).sum()))
    assert found.to_dict()["cases"]["run_2"]["cd"]["predicted"] == pytest.approx(1.2 * drag[1] / 200, rel=1e-5)


def test_directions_turn_the_axes(cases):
    options = ForceOptions(speed=SPEED, drag_direction=(0, 0, 2), lift_direction=(-1, 0, 0))
    found = forces_of(cases, options, {"run_1": None}).to_dict()["cases"]["run_1"]
    drag, lift = exact_forces(1)
    assert found["cd"]["reference"] == pytest.approx(lift / 200, rel=1e-5)
    assert found["cl"]["reference"] == pytest.approx(-drag / 200, rel=1e-5)


@pytest.mark.parametrize(("area", "expected", "label"), [(None, (2.0, 0.3), "Cd"), (0.5, (0.5, 1.2), "Cd")])
def test_coefficients_of_a_solver_are_scaled_from_its_reference_area_to_the_given_one(area, expected, label, cases):
    known = {"run_1": KnownForces(0.3, 0.0, 2.0)}
    found = forces_of(cases, ForceOptions(speed=SPEED, area=area), known)
    case = found.to_dict()["cases"]["run_1"]
    assert (case["area"], case["cd"]["solver"]) == pytest.approx(expected)
    assert found.labels["cd"] == label


def test_what_is_undefined_for_a_single_case_is_none(cases):
    metrics = forces_of(cases, ForceOptions(speed=SPEED), {"run_1": None}).metrics["cl"]["predicted_against_reference"]
    assert (metrics["r2"], metrics["spearman"]) == (None, None)


def test_a_store_gives_the_same_forces_as_its_raw_cases(cases, tmp_path):
    assert main(["prepare", str(cases), "--out", str(tmp_path / "store"), "--no-cell-sizes"]) == 0
    raw, stored = (
        forces_of(data, ForceOptions(), {name: opened(data).forces_of(name) for name in SOLVER_CDA}).to_dict()
        for data in (cases, tmp_path / "store")
    )
    for name in SOLVER_CDA:
        assert stored["cases"][name]["cd"] == pytest.approx(raw["cases"][name]["cd"], rel=1e-5)


def test_an_evaluated_run_has_forces_in_json_csv_a_table_and_a_picture(cases, tmp_path, capsys):
    settings = tiny_settings(cases, steps=1, **NO_GEOMETRY)
    run(settings, tmp_path / "run")
    assert main(["evaluate", str(tmp_path / "run"), "--repeats", "2", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "evaluation_test.json").read_text())["forces"]
    pairs = ["predicted_against_reference", "predicted_against_solver", "reference_against_solver"]
    assert list(found["metrics"]["cl"]) == pairs
    with open(tmp_path / "evaluation_test_forces.csv") as file:
        rows = [row for row in csv.DictReader(file) if row["coefficient"] == "cd"]
    assert [float(row["solver"]) for row in rows] == list(SOLVER_CDA.values())
    error = np.abs(np.array([float(row["reference"]) for row in rows]) - list(SOLVER_CDA.values()))
    metrics = found["metrics"]["cd"]["reference_against_solver"]
    assert metrics["mae"] == pytest.approx(error.mean())
    assert metrics["mae_percent"] == pytest.approx(100 * error.mean() / 0.6)
    assert metrics["spearman"] == pytest.approx(0.5)
    printed = capsys.readouterr().out.splitlines()
    table = printed[printed.index(next(line for line in printed if line.startswith("Force coefficients"))) :][:8]
    assert max(map(len, table)) <= 80
    assert table[2].startswith("CdA, m²")
    assert (tmp_path / "evaluation_test_forces.png").stat().st_size > 1000
    for options, message in (
        (["--speed", "0"], "speed must be positive, got 0.0"),
        (["--speed", "20", "--drag-direction", "1,0"], "--drag-direction must be three numbers with commas"),
        (["--speed", "20", "--lift-direction", "0,0,0"], "lift_direction is zero"),
    ):
        assert main(["evaluate", str(tmp_path / "run"), "--out", str(tmp_path / "out"), *options]) == 2
        error_line = capsys.readouterr().err
        assert message in error_line
        assert error_line.count("\n") == 1
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "known", "message"),
    [
        (ForceOptions(area=2.0), None, "forces need --speed, the speed of the stream"),
        (ForceOptions(density=2.0), KnownForces(1, 1, 1.0), "forces need --speed, the speed of the stream"),
        (
            ForceOptions(speed=2.0),
            KnownForces(1, 1, None),
            "run_1: the solver's coefficients have an unknown",
        ),
    ],
)
def test_what_forces_are_divided_by_must_be_known(options, known, message):
    with pytest.raises(ValueError, match=message):
        force_references(options, {"run_1": known})


def test_a_surface_without_cells_is_refused_if_forces_were_asked_for_and_skipped_otherwise(cases):
    case = opened(cases).cases.read("run_1")
    points = {"surface": case.points["surface"]._replace(area_vector=None)}
    message = "run_1: forces need a surface of polygons with fields in its cells"
    known = {"run_1": KnownForces(1, 1, 1.0, SPEED)}
    asked = ForceEvaluation(ForceOptions(speed=SPEED), known, {"surface": SURFACE})
    with pytest.raises(ValueError, match=message):
        asked.begin("run_1", case._replace(points=points))
    evaluation = ForceEvaluation(ForceOptions(), known, {"surface": SURFACE})
    evaluation.begin("run_1", case._replace(points=points))
    assert evaluation.metrics() is None
    assert str(evaluation.problem).startswith(message)
    no_pressure = ForceEvaluation(ForceOptions(), known, {"surface": {"temperature": 1}})
    no_pressure.begin("run_1", case)
    assert "forces need a field pressure or pressure_coefficient" in str(no_pressure.problem)
