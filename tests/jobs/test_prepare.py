import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.data.load import branches_of, load_dataset, make_normalizer
from emmi_jax.data.open import open_cases
from emmi_jax.data.statistics import merge
from emmi_jax.data.store import Store
from emmi_jax.data.stored_case import CASE_FILE
from emmi_jax.files.locks import locked
from emmi_jax.meshes.mesh import read_mesh
from emmi_jax.meshes.vtk import import_pyvista
from tests.data.case_folders import read_case_folder, volume_dataset, write_case_folder
from tests.jobs import tiny_runs
from tests.jobs.tiny_runs import run, tiny_settings

GEOMETRY = tiny_runs.GEOMETRY | {"physics_blocks": ("perceiver", "cross")}
SPLIT = {"train": ["run_0", "run_2"], "test": ["run_1"]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three cases that differ in their volumes."""
    path = tmp_path_factory.mktemp("data") / "cars"
    path.mkdir()
    for number in range(3):
        write_case_folder(path / f"run_{number}")
        volume_dataset(10 + number).save(path / f"run_{number}" / "volume_1.vtu")
    (path / "split.json").write_text(json.dumps(SPLIT))
    return path


@pytest.fixture(scope="module")
def prepared(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "store"
    assert main(["prepare", str(data), "--out", str(path)]) == 0
    return path


def assert_same_rows(found: np.ndarray, expected: np.ndarray) -> None:
    """In whatever order."""
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), rtol=1e-6, atol=1e-7)


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_a_store_has_the_cases_their_split_and_their_field_mapping(data, prepared):
    raw, stored = (load_dataset(tiny_settings(path, **GEOMETRY)) for path in (data, prepared))
    assert stored.split == raw.split
    assert stored.fields == raw.fields
    assert stored.opened.sources == raw.opened.sources
    for name in ("run_0", "run_2"):
        expected = read_case_folder(data / name, with_cell_sizes=True, with_area_vectors=True)
        found = stored.cases.read(name)
        assert found.geometry.shape == expected.geometry.shape
        for branch, points in found.points.items():
            jax.tree.map(assert_same_rows, points, expected.points[branch])


def test_statistics_are_exactly_those_of_the_raw_cases_and_never_measured_again(data, prepared, monkeypatch, capsys):
    raw = make_normalizer(tiny_settings(data), load_dataset(tiny_settings(data)))
    monkeypatch.delattr("emmi_jax.data.store.measure")
    assert make_normalizer(tiny_settings(prepared), load_dataset(tiny_settings(prepared))) == raw
    assert main(["stats", str(prepared)]) == 0
    store = Store(str(prepared))
    count = merge(map(store.measure, store.names)).fields["volume"]["velocity"][0].count
    row = next(line for line in capsys.readouterr().out.splitlines() if "volume/velocity[0]" in line)
    assert row.split()[1] == f"{count:,}"


def test_more_workers_make_the_same_store(data, prepared, tmp_path):
    assert main(["prepare", str(data), "--out", str(tmp_path / "store"), "--workers", "2"]) == 0
    assert contents(tmp_path / "store") == contents(prepared)


def test_an_interrupted_store_is_completed_and_only_changed_or_damaged_cases_are_made_again(data, tmp_path, capsys):
    cars, store = shutil.copytree(data, tmp_path / "cars"), tmp_path / "store"
    (volume := cars / "run_2" / "volume_1.vtu").rename(tmp_path / "volume.vtu")
    broken = volume_dataset()
    broken.cell_data["U"][0] = np.nan
    broken.save(volume)
    command = ["prepare", str(cars), "--out", str(store)]
    assert main(command) == 2
    assert "values of 'U' are NaN or infinite" in capsys.readouterr().err
    assert main(["train", "--data", str(store), "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert "1 of 3 cases are not in the store, 'run_2' is the first" in error
    assert error.count("\n") == 1
    (tmp_path / "volume.vtu").replace(volume)
    finished = {name: (store / name / CASE_FILE).stat().st_mtime_ns for name in ("run_0", "run_1")}
    assert main(command) == 0
    assert "3 cases, 2 of them in" in capsys.readouterr().out
    assert {name: (store / name / CASE_FILE).stat().st_mtime_ns for name in finished} == finished
    before = contents(store)
    (store / "run_0" / "surface" / "position" / "c" / "0" / "0").unlink()
    (store / "run_1" / CASE_FILE).write_text("{}")
    assert main(command) == 0
    assert "3 cases, 1 of them in" in capsys.readouterr().out
    assert contents(store) == before
    volume_dataset(8).save(volume)
    assert main(command) == 0
    assert "3 cases, 2 of them in" in capsys.readouterr().out
    assert contents(store) != before


def test_a_second_time_writes_nothing(data, prepared):
    before = {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.is_file()}
    assert main(["prepare", str(data), "--out", str(prepared)]) == 0
    assert {path: path.stat().st_mtime_ns for path in prepared.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("change", ["other names", "fewer cases", "the same names"])
def test_a_store_keeps_its_cases_when_it_is_made_of_other_data(change, data, prepared, tmp_path, capsys):
    cars, before = shutil.copytree(data, tmp_path / "cars"), contents(prepared)
    (cars / "split.json").unlink()
    if change == "other names":
        for number in range(3):
            (cars / f"run_{number}").rename(cars / f"car_{number}")
    elif change == "fewer cases":
        shutil.rmtree(cars / "run_1")
    else:
        for number in range(3):
            volume_dataset(8 + number).save(cars / f"run_{number}" / "volume_1.vtu")
    assert main(["prepare", str(cars), "--out", str(prepared)]) == 2
    assert "a store of other data" in capsys.readouterr().err
    assert contents(prepared) == before


def test_a_store_in_use_is_not_written(data, prepared, capsys):
    with locked(prepared):
        assert main(["prepare", str(data), "--out", str(prepared)]) == 2
    assert "is in use by process" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["prepare", "train"])
def test_broken_cases_are_reported_together_before_anything_is_written(command, data, tmp_path, capsys):
    cars = shutil.copytree(data, tmp_path / "cars")
    (cars / "run_0" / "volume_1.vtu").unlink()
    (cars / "run_2" / "boundary_1.vtp").write_text("garbage")
    options = ["prepare", str(cars)] if command == "prepare" else ["train", "--data", str(cars)]
    assert main([*options, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "2 of 3 cases are unusable: run_0: no volume; run_2: " in error
    assert "boundary_1.vtp: not a .vtp file, or a damaged one" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("workers", [1, 2])
def test_unusable_cases_are_left_out_of_a_store_when_told(workers, data, tmp_path, capsys):
    cars = shutil.copytree(data, tmp_path / "cars")
    shutil.copytree(cars / "run_0", cars / "run_3")
    (cars / "run_0" / "volume_1.vtu").unlink()
    volume = volume_dataset(9)
    volume.cell_data["U"][3, 1] = np.nan
    volume.save(cars / "run_3" / "volume_1.vtu")
    (cars / "split.json").write_text(json.dumps({"train": ["run_0", "run_2", "run_3", "absent"], "test": ["run_1"]}))
    command = ["prepare", str(cars), "--out", str(tmp_path / "store"), "--workers", str(workers)]
    assert main(command) == 2
    assert "absent" in capsys.readouterr().err
    assert main([*command, "--skip-unusable"]) == 0
    printed = "".join(capsys.readouterr())
    for line in ("2 unusable cases", "run_0: ", "run_3: "):
        assert f"left out: {line}" in printed
    store = Store(str(tmp_path / "store"))
    assert store.names == ["run_1", "run_2"]
    assert store.split == {"train": ["run_2"], "test": ["run_1"]}
    before = contents(tmp_path / "store")
    assert main([*command, "--skip-unusable"]) == 0
    assert contents(tmp_path / "store") == before


def test_cases_of_which_none_is_usable_make_no_store(data, tmp_path, capsys):
    cars = shutil.copytree(data, tmp_path / "cars")
    for case in cars.glob("run_*"):
        (case / "conditions.json").write_text("[]")
    assert main(["prepare", str(cars), "--out", str(tmp_path / "store"), "--skip-unusable"]) == 2
    assert "3 of 3 cases are unusable: run_0: conditions.json: expected numbers" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()
    volume = volume_dataset(9)
    volume.cell_data["U"][3, 1] = np.nan
    for case in cars.glob("run_*"):
        (case / "conditions.json").unlink()
        volume.save(case / "volume_1.vtu")
    assert main(["prepare", str(cars), "--out", str(tmp_path / "store"), "--skip-unusable"]) == 2
    assert "no case is usable: run_" in capsys.readouterr().err


def test_a_run_on_a_store_trains_resumes_and_is_evaluated(prepared, data, tmp_path):
    settings = tiny_settings(prepared, steps=1, **GEOMETRY)
    run(settings, tmp_path / "run")
    run(settings, tmp_path / "run", resume=True)
    options = ["evaluate", str(tmp_path / "run"), "--out", str(tmp_path)]
    assert main(options) == 0
    found = json.loads((tmp_path / "evaluation_test.json").read_text())
    assert list(found["cases"]) == ["run_1"]
    assert main([*options, "--data", f"file://{prepared}", "--split", "train"]) == 0
    assert list(json.loads((tmp_path / "evaluation_train.json").read_text())["cases"]) == SPLIT["train"]
    assert branches_of(open_cases(str(prepared))) == branches_of(open_cases(str(data)))


def test_half_precision_another_split_and_no_cell_sizes(data, tmp_path, capsys):
    (tmp_path / "split.json").write_text(json.dumps({"train": ["run_1"], "test": ["run_0"]}))
    options = ["--dtype", "float16", "--split", str(tmp_path / "split.json"), "--no-cell-sizes"]
    store = f"file://{tmp_path}/store"
    assert main(["prepare", str(data), "--out", store, *options]) == 0
    assert "a URL has no lock: let no other process write there" in " ".join(capsys.readouterr().out.split())
    dataset = load_dataset(tiny_settings(None).updated({"data": store}))
    assert dataset.split.split_of == {"run_1": "train", "run_0": "test"}
    assert dataset.cases.dtype == "float16"
    points = dataset.cases.read("run_0").points
    assert {part.cell_size for part in points.values()} == {None}
    raw = load_dataset(tiny_settings(data)).cases.read("run_0").points["volume"].fields["velocity"]
    found = points["volume"].fields["velocity"]
    np.testing.assert_allclose(np.sort(found, axis=0), np.sort(raw, axis=0), rtol=1e-3, atol=1e-3)


def test_points_of_a_store_can_be_weighted_by_cell_size(prepared):
    dataset = load_dataset(tiny_settings(prepared, method="weighted", **GEOMETRY))
    assert dataset.train_sample(0, 0).anchors["volume"].position.shape == (6, 3)


def test_only_the_arrays_that_are_needed_are_read(tmp_path):
    dataset = volume_dataset()
    dataset.cell_data["huge"] = np.zeros(dataset.n_cells)
    dataset.point_data["U"] = np.zeros((dataset.n_points, 3))
    dataset.save(tmp_path / "a.vtu")
    found = read_mesh(tmp_path / "a.vtu", {"U"}).dataset
    assert (found.cell_data.keys(), found.point_data.keys()) == (["U"], [])
    assert len(read_mesh(tmp_path / "a.vtu", {"nope"}).dataset.cell_data) == 3


def test_vertices_have_no_cell_sizes_to_keep(tmp_path):
    pyvista = import_pyvista()
    for number in range(2):
        (tmp_path / "cars" / f"run_{number}").mkdir(parents=True)
        cloud = pyvista.PolyData(np.random.default_rng(number).normal(size=(40, 3)))
        cloud.cell_data["p"] = np.arange(40.0)
        cloud.cast_to_unstructured_grid().save(tmp_path / "cars" / f"run_{number}" / "volume_1.vtu")
    (tmp_path / "cars" / "fields.json").write_text(json.dumps({"volume": {"p": "p"}}))
    assert main(["prepare", str(tmp_path / "cars"), "--out", str(tmp_path / "store")]) == 0
    assert Store(str(tmp_path / "store")).cases["run_0"].with_cell_sizes == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--dtype", "int8"], "the dtype must be one of float32, float16, got 'int8'"),
        (["--out", "{other}"], "the folder is neither empty nor a store"),
        (
            ["--out", "{store}", "--dtype", "float16"],
            "made with the dtype 'float32', now it is 'float16'",
        ),
        (["--split", "{other}/bad.json"], "1 of 2 cases do not exist: 'run_9'"),
        (["--out", "nope://x"], "nope"),
    ],
)
def test_mistakes_cost_one_line_before_anything_is_written(options, message, data, prepared, tmp_path, capsys):
    other = tmp_path / "other"
    other.mkdir()
    (other / "bad.json").write_text(json.dumps({"train": ["run_0"], "test": ["run_9"]}))
    before = contents(prepared)
    options = [option.format(other=other, store=prepared) for option in options]
    assert main(["prepare", str(data), "--out", str(tmp_path / "new"), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "new").exists()
    assert contents(prepared) == before
    assert main(["prepare", str(other), "--out", str(tmp_path / "new")]) == 2
    assert "no cases in the folders of this folder" in capsys.readouterr().err
