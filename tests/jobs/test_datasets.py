import io
import json
import shutil
from pathlib import Path
from typing import Any

import cloudpickle
import jax
import numpy as np
import pytest
from rich.console import Console

from emmi_jax.cli import main
from emmi_jax.config import TrainSettings
from emmi_jax.data.load import branches_of, load_dataset, make_normalizer
from emmi_jax.data.open import open_cases
from emmi_jax.data.published import read_statistics
from emmi_jax.jobs.notes import print_notes
from emmi_jax.meshes.vtk import import_pyvista
from emmi_jax.runs.directory import RunConfig, RunDirectory
from emmi_jax.runs.load import load_run
from emmi_jax.training.plan import default_settings
from emmi_jax.training.settings import model_config
from tests.data.case_folders import write_case_folder
from tests.data.test_layouts import write_published
from tests.data.test_store import make_store
from tests.jobs.tiny_runs import GEOMETRY, tiny_settings, write_case
from tests.meshes.foam_cases import write_foam_case

TINY_OPTIONS = ["--steps", "1", "--num-anchors", "6", "--num-queries", "4", "--dim", "24", "--batch-size", "1"]
TINY_OPTIONS += ["--set", "model.physics_blocks=['self']"]


def _write(kind: str, path: Path) -> Path | None:
    """Writes data of a kind, None for the built-in ones."""
    match kind:
        case "built-in":
            return None
        case "arrays":
            return write_case(path / "case.npz")
        case "meshes":
            return write_case_folder(path / "case")
        case "openfoam":
            return write_foam_case(path / "case")
        case "store":
            return Path(make_store(path / "store").location)
    for number in range(3):
        write_case_folder(path / f"run_{number}")
    return path


@pytest.mark.parametrize("kind", ["built-in", "arrays", "meshes", "openfoam", "cases", "store"])
def test_data_of_every_kind_can_be_handed_to_another_process_which_draws_the_same(kind, tmp_path):
    options: dict[str, Any] = {"num_anchors": 3, "num_queries": 2, "num_test_anchors": 2}
    if kind != "arrays":
        options |= {"physics_blocks": ("perceiver",), **GEOMETRY}
    dataset = load_dataset(tiny_settings(_write(kind, tmp_path), **options))
    drawn = dataset.train_sample(0, 5)
    copy = cloudpickle.loads(cloudpickle.dumps(dataset))
    jax.tree.map(np.testing.assert_array_equal, copy.train_sample(0, 5), drawn)


def test_published_statistics_have_a_name():
    normalizer = read_statistics("drivaerml-tutorial")
    np.testing.assert_allclose(normalizer.normalize_position([[-40, 20, 80.0]]), [[0, 500, 1000]], rtol=1e-6)
    assert normalizer.fields["volume"]["vorticity"].log_scale


def test_a_run_with_the_statistics_of_another_has_its_normalizer_and_can_be_resumed_and_used(tmp_path, capsys):
    data, other = write_case(tmp_path / "case.npz"), write_case(tmp_path / "other.npz", num_points=80)
    settings = tiny_settings(other)
    dataset = load_dataset(settings)
    normalizer = make_normalizer(settings, dataset)
    model = model_config(settings, dataset.fields)
    RunDirectory.create(
        tmp_path / "first", RunConfig(model=model, normalizer=normalizer, sampling=settings.sampling, sources={})
    )
    options = ["train", "--out", str(tmp_path), "--name", "second", *TINY_OPTIONS]
    statistics = ["--statistics", str(tmp_path / "first" / "config.json")]
    assert main([*options, "--data", str(data), *statistics]) == 0
    assert load_run(tmp_path / "second").normalizer == normalizer
    stored = json.loads((tmp_path / "second" / "config.json").read_text())["settings"]["statistics"]
    assert stored == str((tmp_path / "first" / "config.json").resolve())
    assert main(["train", "--out", str(tmp_path), "--name", "second", "--resume"]) == 0
    assert main(["predict", str(tmp_path / "second"), "--points", str(data), "--out", str(tmp_path / "o.npz")]) == 0
    assert main([*options, "--resume", "--statistics", "drivaerml-tutorial"]) == 2
    assert "the run was started with settings.statistics = " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("scale", "message"),
    [
        ({"velocity": {"mean": [0] * 3, "std": [1] * 3}}, "the statistics lack volume/pressure, they are those of "),
        (
            {"velocity": {"mean": [0], "std": [1]}, "pressure": {"mean": [0], "std": [1]}},
            "the statistics of volume/velocity have 1 channels, the data have 3",
        ),
        (
            {"velocity": {"mean": [0] * 3, "std": [1, 2, 1]}, "pressure": {"mean": [0], "std": [1]}},
            "volume/velocity cannot be divergence-free under statistics with the deviations [1.0, 2.0, 1.0]",
        ),
    ],
)
def test_statistics_that_do_not_fit_the_data_are_refused_in_one_line(scale, message, tmp_path, capsys):
    data, statistics = write_case(tmp_path / "case.npz"), tmp_path / "scales.json"
    values = {"position_low": [0, 0, 0], "position_scale": 1, "fields": {"volume": scale}}
    statistics.write_text(json.dumps(values))
    options = ["--data", str(data), "--statistics", str(statistics), "--divergence-free", "velocity"]
    assert main(["train", *options, "--out", str(tmp_path / "runs"), *TINY_OPTIONS]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("text", ["{", "[1]", "{}", '{"fields": {}}', '{"position_lo": 1}'])
def test_a_file_without_statistics_is_named(text, tmp_path: Path):
    path = tmp_path / "scales.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"scales\.json: not the statistics of a run: "):
        read_statistics(str(path))


def test_what_is_neither_a_name_nor_a_file_is_refused_with_the_names():
    with pytest.raises(FileNotFoundError, match="drivaer: no such file; published statistics are drivaerml-tut"):
        read_statistics("drivaer")


@pytest.mark.parametrize("option", ["split", "statistics"])
def test_the_built_in_data_take_neither_a_split_nor_statistics(option):
    with pytest.raises(ValueError, match=f"{option} needs data of your own, got 'x'"):
        TrainSettings(**{option: "x"})


def test_the_geometry_branch_draws_no_more_points_than_the_smallest_surface_has(tmp_path):
    pyvista = import_pyvista()
    for number, num_points in enumerate((150, 120)):
        folder = tmp_path / f"run_{number}"
        folder.mkdir()
        line = pyvista.PolyData()
        angle = np.linspace(0, 2 * np.pi, num_points, endpoint=False)
        line.points = np.stack([np.cos(angle), np.sin(angle), 0 * angle], axis=1)
        start = np.arange(num_points)
        line.lines = np.stack([np.full(num_points, 2), start, (start + 1) % num_points], axis=1).ravel()
        line.point_data["p"] = np.cos(angle)
        line.save(folder / "boundary.vtp")
    (tmp_path / "fields.json").write_text('{"surface": {"pressure": "p"}}')
    sampling = default_settings(str(tmp_path), branches_of(open_cases(str(tmp_path)))).sampling
    assert (sampling.num_geometry_points, sampling.num_supernodes, sampling.num_test_supernodes) == (120, 120, 120)
    settings = default_settings(str(tmp_path), branches_of(open_cases(str(tmp_path)))).updated(
        {"sampling": {"num_geometry_points": 121, "num_anchors": 8}}
    )
    with pytest.raises(ValueError, match=r"draws 121 points, found 120: --set sampling\.num_geometry_points"):
        load_dataset(settings)
    run = str(tmp_path / "run_0")
    assert default_settings(run, branches_of(open_cases(run))).sampling.num_geometry_points == 120


def test_units_that_differ_and_what_is_left_out_are_printed(tmp_path):
    for number in range(2):
        folder = write_case_folder(tmp_path / f"run_{number}")
        body = import_pyvista().read(folder / "body_1.stl")
        body.points *= 1000
        body.save(folder / "body_1.stl")
        shutil.copy(folder / "volume_1.vtu", folder / "probe_1.vtu")
    settings = default_settings(str(tmp_path), branches_of(open_cases(str(tmp_path))))
    printed = io.StringIO()
    print_notes(load_dataset(settings), Console(file=printed))
    lines = printed.getvalue().splitlines()
    assert lines[0] == "left out: run_0/probe_1.vtu (and the like 1 more times)"
    assert "warning: the box of the geometry is 1,026 times as large as that of the surface" in printed.getvalue()


def test_unusable_cases_are_left_out_when_told_and_their_number_is_printed(tmp_path):
    names = write_published(tmp_path, "nan")
    (tmp_path / "test_design_ids.txt").write_text("\n".join([*names[2:], "absent"]))
    (tmp_path / "val_design_ids.txt").write_text("")
    settings = default_settings(str(tmp_path), branches_of(open_cases(str(tmp_path))), geometry=False).updated(
        {"skip_unusable": True}
    )
    dataset, printed = load_dataset(settings), io.StringIO()
    assert dataset.split.split_of == {names[0]: "train", names[1]: "train", names[2]: "test"}
    print_notes(dataset, Console(file=printed, width=500))
    lines = printed.getvalue().splitlines()
    assert lines[:2] == ["left out: 2 unusable cases", "left out: absent: does not exist"]
    assert lines[2].startswith(f"left out: {names[3]}: ")
    assert lines[2].endswith("are NaN or infinite, or beyond 1e+38")
