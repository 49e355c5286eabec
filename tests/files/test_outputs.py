import os

import pytest

from emmi_jax.files.outputs import check_output


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    for name in ("a.npz", "run/config.json"):
        (tmp_path / name).write_text("x")
    os.link("a.npz", "hard.npz")
    os.symlink("a.npz", "soft.npz")
    os.symlink("run", "also")
    return tmp_path


@pytest.mark.parametrize("out", ["a.npz", "./a.npz", "run/../a.npz", "hard.npz", "soft.npz", "run", "also"])
def test_an_input_is_not_replaced_by_any_name(out, place):
    with pytest.raises(ValueError, match="would replace"):
        check_output(out, [None, "s3://bucket/a", "a.npz", place / "run"])


@pytest.mark.parametrize("out", ["run/config.json", "run/new/fields", "also/x.npz"])
def test_an_output_does_not_lie_inside_an_input(out, place):
    with pytest.raises(ValueError, match="lies inside"):
        check_output(out, ["run"])


def test_files_of_an_output_folder_do_not_replace_an_input_in_it(place):
    with pytest.raises(ValueError, match="would replace"):
        check_output(".", ["a.npz"], ["b.json", "a.npz"])
    check_output(".", ["a.npz"], ["b.json"])


@pytest.mark.parametrize("out", ["b.npz", "runs/x", "run2", "s3://bucket/a"])
def test_other_outputs_pass(out, place):
    assert check_output(out, ["a.npz", "run"]) is None
