import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emmi_jax.cli import main
from emmi_jax.config import TrainJob, TrainSettings
from emmi_jax.jobs.convert import preset_config
from emmi_jax.jobs.train import Outcome
from emmi_jax.runs.directory import RunDirectory
from tests.jobs.tiny_runs import run, tiny_settings, write_case


@pytest.fixture(scope="module")
def case(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_case(tmp_path_factory.mktemp("data") / "case.npz")


@pytest.fixture(scope="module")
def trained(case: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "tiny"
    run(tiny_settings(case, steps=1), path)
    return path


TINY_OPTIONS = ["--steps", "2", "--num-anchors", "6", "--num-queries", "4", "--dim", "24", "--batch-size", "1"]


COMMANDS = ["train", "predict", "evaluate", "sensitivity", "optimize", "convert", "info", "stats", "export", "doctor"]


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_help_fits_80_columns_and_shows_an_example(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert main([*command, "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    example = lines.index("  Example:")
    assert lines[example + 1].strip().startswith(" ".join(["emmi-jax", *command]))


def test_no_arguments_show_the_help(capsys):
    assert main([]) == 0
    assert "Example:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope"], "emmi-jax: error: No such command 'nope'."),
        (["train", "--stpes", "3"], "emmi-jax train: error: No such option: --stpes"),
        (["train", "--steps", "many"], "emmi-jax train: error: Invalid value for '--steps'"),
        (["train", "--steps", "0"], "emmi-jax train: error: steps must be an integer >= 1, got 0"),
        (["train", "--dim", "100"], "emmi-jax train: error: dim must be divisible by num_heads"),
        (["train", "--learning-rate", "-1"], "emmi-jax train: error: learning_rate must be positive, got -1.0"),
        (["train", "extra"], "emmi-jax train: error: Got unexpected extra argument"),
        (["train", "--resume"], "emmi-jax train: error: --resume needs the --name"),
        (["train", "--resume", "--name", "none"], "emmi-jax train: error: runs/none is not a run"),
        (["train", "--data", "none.npz"], "none.npz: no such file"),
        (
            [
                "optimize",
                "r",
                "--surface",
                "s.vtp",
                "--out",
                "o",
                "--speed",
                "3",
                "--area",
                "2",
                "--lattice",
                "6x4",
                "--max-displacement",
                "1",
            ],
            "emmi-jax optimize: error: --lattice must be three numbers such as 6x4x4, got '6x4'",
        ),
        (["sensitivity", "r"], "emmi-jax sensitivity: error: Missing option"),
        (
            ["sensitivity", "r", "--surface", "s.vtp", "--out", "o", "--speed", "3"],
            "emmi-jax sensitivity: error: forces need --speed and one of --area and --reference, got --speed",
        ),
        (
            ["sensitivity", "none", "--surface", "s.vtp", "--out", "o", "--speed", "3", "--area", "2"],
            "emmi-jax sensitivity: error: none is not a run",
        ),
        (["predict"], "emmi-jax predict: error: Missing argument"),
        (["predict", "none", "--points", "p.npz", "--out", "o.npz"], "emmi-jax predict: error: none is not a run"),
        (
            ["predict", "r", "--points", "p", "--out", "o", "--chunk-size", "0"],
            "emmi-jax predict: error: Invalid value",
        ),
        (
            ["predict", "r", "--out", "o"],
            "emmi-jax predict: error: expected either --points, or --surface and --volume",
        ),
        (["predict", "r", "--out", "o", "--points", "p", "--compare"], "error: expected either --points, or --surface"),
        (["predict", "r", "--out", "o", "--points", "p", "--figures"], "error: expected either --points, or --surface"),
        (["predict", "r", "--out", "o", "--geometry", "g.stl"], "error: expected either --points, or --surface"),
        (
            ["predict", "r", "--out", "o", "--surface", "s.vtp", "--area", "2"],
            "emmi-jax predict: error: forces need --speed and one of --area and --reference, got --area",
        ),
        (
            ["predict", "r", "--out", "o", "--surface", "s.vtp", "--speed", "2"],
            "forces need --speed and one of --area and --reference, got --speed",
        ),
        (
            ["predict", "r", "--out", "o", "--surface", "s.vtp", "--speed", "2", "--area", "1", "--reference", "a.csv"],
            "and one of --area and --reference, got --area, --reference, --speed",
        ),
        (["predict", "r", "--out", "o", "--surface", "s.vtp", "--density", "2"], "forces need --speed and one of"),
        (
            ["predict", "r", "--out", "o", "--surface", "s.vtp", "--speed", "2", "--reference", "a.csv"],
            "emmi-jax predict: error: a.csv: no such file",
        ),
        (
            ["predict", "r", "--out", "o", "--surface", "s.vtp", "--speed", "2", "--area", "0"],
            "emmi-jax predict: error: area must be positive, got 0.0",
        ),
        (["predict", "r", "--out", "o", "--surface", "s.vtp"], "emmi-jax predict: error: r is not a run"),
        (["stats", "none.npz"], "emmi-jax stats: error: none.npz: no such file"),
    ],
)
def test_mistakes_exit_2_with_one_line_and_write_nothing(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"velocity": np.ones((60, 3))}, "no array 'position'"),
        ({"position": np.ones((60, 3)), "p": np.full(60, np.nan)}, "60 of 60 values of 'p' are NaN or infinite"),
        ({"position": np.ones((60, 3)), "p": np.ones(60)}, "60 points are too few"),
        ({"position": np.ones((60, 3)), "p": np.array([None] * 60)}, "'p' cannot be read: it holds object"),
    ],
)
def test_unusable_data_is_refused_before_anything_is_written(arrays, message, capsys, tmp_path):
    np.savez(tmp_path / "case.npz", **arrays)
    assert main(["train", "--data", str(tmp_path / "case.npz"), "--out", str(tmp_path / "runs")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["case.npz"]


@pytest.fixture
def asked(monkeypatch) -> list[tuple[TrainSettings, Path]]:
    """What the command asks to train; nothing is trained."""
    calls = []

    def train(settings: TrainSettings, path: Path, job: TrainJob, cases: object, **options: object) -> Outcome:
        calls.append((settings, path))
        return Outcome(path, None)

    monkeypatch.setattr("emmi_jax.jobs.train.train", train)
    return calls


def test_settings_given_on_the_command_line_arrive(case, tmp_path, asked):
    assert main(["train", "--data", str(case), "--out", str(tmp_path), "--seed", "3", *TINY_OPTIONS]) == 0
    ((settings, path),) = asked
    assert (settings.data, settings.seed, settings.steps, settings.model["dim"]) == (str(case.resolve()), 3, 2, 24)
    assert path == tmp_path / "case-1"


def test_settings_come_from_the_recipe_then_the_file_then_the_options(case, tmp_path, asked):
    (config := tmp_path / "mine.toml").write_text("steps = 7\n[optimizer]\nlearning_rate = 1e-4\nclip_norm = 2.0\n")
    sources = ["--recipe", "drivaerml", "--config", str(config), "--learning-rate", "2e-4"]
    assert main(["train", "--data", str(case), "--out", str(tmp_path), *sources, "--set", "model.dim=48"]) == 0
    ((settings, _),) = asked
    optimizer = settings.optimizer
    assert (optimizer.name, optimizer.learning_rate, optimizer.clip_norm) == ("lion", 2e-4, 2.0)
    assert (settings.steps, settings.model["dim"], settings.model["mlp_ratio"]) == (7, 48, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--recipe", "drivaer"], "unknown recipe 'drivaer'; did you mean 'drivaerml'?"),
        (["--set", "model.dims=3"], "unknown key 'dims' for model; did you mean 'dim'?"),
        (["--set", "model.dim"], "expected NAME=VALUE such as model.dim=256, got 'model.dim'"),
        (["--config", "none.toml"], "none.toml"),
        (["--set", "data=3"], "data must be a path or none, got 3"),
        (["--dry-run", "--resume", "--name", "a"], "--dry-run plans a new run, --resume continues one"),
        (["--init-from", "b", "--resume", "--name", "a"], "--init-from starts a new run: leave out --resume"),
        (["--init-from", "b"], "b is not a run: it has no config.json"),
        (["--wandb", "cars"], "--wandb needs a package: pip install wandb"),
        (["--mesh", "data=2"], "the mesh data=2,tokens=1 needs 2 devices, there are 1"),
        (["--mesh", "rows=2"], "a mesh has the form data=4,tokens=2, got 'rows=2'"),
        (["--coordinator", "a:1"], "got no num_processes"),
    ],
)
def test_settings_that_do_not_exist_are_refused_in_one_line(options, message, tmp_path, capsys):
    assert main(["train", "--out", str(tmp_path), *options]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_dry_run_trains_nothing(case, tmp_path, asked, capsys):
    options = ["--data", str(case), "--out", str(tmp_path / "runs"), "--dry-run", *TINY_OPTIONS]
    assert main(["train", *options]) == 0
    assert not asked
    assert not (tmp_path / "runs").exists()
    assert "step " in capsys.readouterr().out


def test_runs_without_a_name_are_numbered(tmp_path, asked):
    (tmp_path / "ellipsoids-1").mkdir()
    assert main(["train", "--out", str(tmp_path)]) == 0
    assert [path for _, path in asked] == [tmp_path / "ellipsoids-2"]


@pytest.mark.parametrize("options", [[], ["--no-geometry"]])
def test_the_geometry_branch_is_left_out_on_request(options, asked):
    assert main(["train", *options]) == 0
    assert (asked[0][0].sampling.num_geometry_points > 0) == (options == [])


def test_a_name_that_exists_is_refused_and_its_run_kept(trained, capsys):
    before = sorted(trained.rglob("*"))
    assert main(["train", "--data", "x.npz", "--out", str(trained.parent), "--name", trained.name]) == 2
    assert sorted(trained.rglob("*")) == before
    assert capsys.readouterr().err.count("\n") == 1


def test_resume_takes_the_stored_settings_and_refuses_others(trained, capsys):
    resume = ["train", "--out", str(trained.parent), "--name", trained.name, "--resume"]
    assert main([*resume, "--learning-rate", "0.5"]) == 2
    assert "learning_rate = 0.004, now it is 0.5" in capsys.readouterr().err
    assert main(resume) == 0
    assert "Relative L2 error" in capsys.readouterr().out


def test_predict_writes_fields_at_the_points_of_a_case(trained, case, tmp_path, capsys):
    out = tmp_path / "fields.npz"
    assert main(["predict", str(trained), "--points", str(case), "--out", str(out), "--chunk-size", "7"]) == 0
    with np.load(out) as fields:
        assert {name: fields[name].shape for name in fields.files} == {"pressure": (60, 1), "velocity": (60, 3)}
        assert all(np.all(np.isfinite(fields[name])) for name in fields.files)
    assert "velocity [60, 3]" in capsys.readouterr().out


def test_predictions_do_not_depend_on_the_chunk_size(trained, case, tmp_path):
    fields = []
    for chunk_size in ("7", "100"):
        out = tmp_path / f"{chunk_size}.npz"
        assert (
            main(["predict", str(trained), "--points", str(case), "--out", str(out), "--chunk-size", chunk_size]) == 0
        )
        fields.append(np.load(out)["velocity"])
    np.testing.assert_allclose(*fields, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"points": np.ones((5, 3))}, "expected an array 'position'"),
        ({"position": np.ones((5, 2))}, r"'position' has shape (5, 2), expected (N, 3)"),
        ({"position": np.full((5, 3), np.inf)}, "15 of 15 values of 'position' are NaN or infinite"),
    ],
)
def test_unusable_points_are_refused_and_nothing_is_written(trained, arrays, message, tmp_path, capsys):
    points, out = tmp_path / "points.npz", tmp_path / "fields.npz"
    np.savez(points, **arrays)
    assert main(["predict", str(trained), "--points", str(points), "--out", str(out)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not out.exists()


def test_stats_fit_80_columns_and_go_to_json(case, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with np.load(case) as arrays:
        expected = {name: arrays[name] for name in arrays.files}
    expected["pressure"][3] = np.nan
    np.savez(tmp_path / "other.npz", **expected | {"a_name_that_is_" + "very_" * 12 + "long": 1e-30 * np.ones(60)})
    assert main(["stats", str(case), str(tmp_path / "other.npz"), "--out", str(tmp_path / "stats.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "pressure: 1 rows with NaN or infinite values are left out" in lines
    stored = json.loads((tmp_path / "stats.json").read_text())
    assert stored["velocity"]["count"] == 120
    assert (stored["pressure"]["count"], stored["pressure"]["num_not_finite"]) == (119, 1)
    np.testing.assert_allclose(stored["velocity"]["std"], expected["velocity"].std(axis=0), rtol=1e-12)


def test_training_in_a_pipe_prints_plain_lines(case, tmp_path):
    command = [sys.executable, "-c", "import sys; from emmi_jax.cli import main; sys.exit(main())", "train"]
    options = ["--data", str(case), "--out", str(tmp_path), "--name", "a", *TINY_OPTIONS]
    options += ["--set", "model.physics_blocks=['self']"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "80"}
    result = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0
    assert result.stderr == ""
    assert [line for line in result.stdout.splitlines() if line.startswith("2/2 steps  loss ")]
    assert "\x1b" not in result.stdout
    assert max(len(line) for line in result.stdout.splitlines() if str(tmp_path) not in line) <= 80


@pytest.mark.parametrize(("named", "expected"), [({}, "emmi_jax"), ({"JAX_COMPILATION_CACHE_DIR": "mine"}, "mine")])
def test_a_second_start_compiles_nothing(named, expected, case, tmp_path):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {name: str(tmp_path / folder) for name, folder in named.items()}
    script = f"from emmi_jax.cli import main; main(['stats', {str(case)!r}]); import jax; jax.jit(lambda x: 2 * x)(3.0)"
    found = []

    def start() -> str:
        command = [sys.executable, "-c", script]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stderr

    for _ in range(2):
        assert start() == ""
        found.append(sorted((tmp_path / expected).glob("*-cache")))
    assert found[0] == found[1] != []
    assert [path.name for path in tmp_path.iterdir()] == [expected]
    for program in found[1]:  # a kill leaves half of one
        os.truncate(program, program.stat().st_size // 2)
    assert start() == ""


def test_where_nothing_can_be_kept_everything_still_runs(case):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    environment |= {
        "XDG_CACHE_HOME": str(case),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }  # a file, where no folder fits
    script = f"from emmi_jax.cli import main; main(['stats', {str(case)!r}]); import jax; jax.jit(lambda x: 2 * x)(3.0)"
    done = subprocess.run([sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_data_named_in_a_file_are_found_from_anywhere_and_name_the_run(case, tmp_path, asked, monkeypatch):
    monkeypatch.chdir(case.parent)
    (config := tmp_path / "mine.toml").write_text(f'data = "{case.name}"\n')
    assert main(["train", "--out", str(tmp_path), "--config", str(config)]) == 0
    ((settings, path),) = asked
    assert settings.data == str(case.resolve())
    assert settings.model["physics_blocks"] == ("self",) * 4
    assert path == tmp_path / "case-1"


@pytest.mark.parametrize(
    "setting", ["model.implementation=cudnn", "model.physics_blocks=[]", "optimizer.b1=none", "sampling.num_anchors=99"]
)
def test_what_cannot_be_trained_leaves_no_run(setting, case, tmp_path, capsys):
    assert main(["train", "--data", str(case), "--out", str(tmp_path / "runs"), *TINY_OPTIONS, "--set", setting]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_converted_weights_take_all_of_a_recipe_but_their_own_model_and_scales(case, tmp_path, asked, capsys):
    RunDirectory.create(tmp_path / "published", preset_config("drivaerml-tutorial"))
    start = ["train", "--data", str(case), "--out", str(tmp_path), "--init-from", str(tmp_path / "published")]
    assert main([*start, "--recipe", "drivaerml"]) == 0
    ((settings, _),) = asked
    assert (settings.optimizer.name, settings.sampling.num_anchors, settings.statistics) == ("lion", 16_384, None)
    assert main([*start, "--set", "model.dim=48"]) == 2
    assert "published has a model of its own, got model.dim\n" in capsys.readouterr().err
