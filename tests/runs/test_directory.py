import json

import pytest

from emmi_jax.files.atomic import write_json
from emmi_jax.runs.directory import RunDirectory, check_same_config
from emmi_jax.training.settings import TrainSettings


def test_a_run_that_exists_is_not_touched(tmp_path):
    run = RunDirectory.create(tmp_path / "runs" / "a", {"steps": 1})
    with pytest.raises(ValueError, match="--resume goes on with it"):
        RunDirectory.create(run.path, {"steps": 2})
    assert run.read_config() == {"steps": 1}


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json"):
        RunDirectory.open(tmp_path)


def test_metrics_are_cut_after_the_checkpoint(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {})
    run.metrics_log.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1, 6)) + '{"step": 6, "lo')
    assert [row["step"] for row in run.truncate_metrics(3)] == [1, 2, 3]
    assert run.metrics_log.read_text() == '{"step": 1}\n{"step": 2}\n{"step": 3}\n'


def test_a_new_run_has_no_metrics(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {})
    assert run.read_metrics() == run.truncate_metrics(0) == []


@pytest.mark.parametrize(
    ("stored", "asked", "message"),
    [
        ({"settings": {"steps": 5}}, {"settings": {"steps": 6}}, r"settings\.steps = 5, now it is 6"),
        ({"a": 1, "b": 2}, {"a": 1}, "b = 2, now it is None"),
        ({"a": 1}, {"a": 1, "b": 2}, "b = None, now it is 2"),
        ({"mean": [1.0, 2.0]}, {"mean": [1.0, 2.5]}, "mean"),
    ],
)
def test_the_first_difference_of_configurations_is_named(stored, asked, message):
    with pytest.raises(ValueError, match=message):
        check_same_config(stored, asked)


def test_settings_younger_than_the_run_are_at_their_defaults(tmp_path):
    run = RunDirectory.create(tmp_path / "a", {"settings": {"steps": 5}})
    assert run.read_config()["settings"] == TrainSettings(steps=5).to_dict()


def test_equal_configurations_pass():
    assert check_same_config({"a": {"b": [1]}}, {"a": {"b": [1]}}) is None


def test_json_is_replaced_whole(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.json"]
