import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from emmi_jax.files.atomic import UnwritableFileError, atomic_path, check_space, make_folder, read_json, write_json


def test_a_file_is_replaced_only_when_it_is_complete(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with atomic_path(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.suffix == ".txt"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_leaves_the_older_file_and_no_other(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(error), atomic_path(path) as partial:
        write(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_of_two_that_write_one_file_the_second_is_refused_and_the_first_is_whole(tmp_path):
    path = tmp_path / "a.txt"
    with atomic_path(path) as partial:
        partial.write_text("first")
        with pytest.raises(UnwritableFileError, match=r"a\.txt cannot be written: another process"), atomic_path(path):
            pass
        assert partial.read_text() == "first"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_has_left_is_replaced(tmp_path):
    path = tmp_path / "a.txt"
    path.with_name(".a.partial.txt").write_text("much that was left")
    with atomic_path(path) as partial:
        partial.write_text("new")
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_names_its_own_file_and_only_once(tmp_path):
    with (
        pytest.raises(UnwritableFileError, match=r"^/proc/b\.txt cannot be written: No such file or directory$"),
        atomic_path(tmp_path / "a.txt"),
        atomic_path(Path("/proc/b.txt")) as partial,
    ):
        partial.write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_missing_folders_are_made_for_files_and_folders(tmp_path):
    write_json(tmp_path / "a" / "b" / "c.json", {"x": 1})
    assert read_json(tmp_path / "a" / "b" / "c.json") == {"x": 1}
    for _ in range(2):
        make_folder(tmp_path / "d" / "e")
    assert list((tmp_path / "d" / "e").iterdir()) == []


def test_json_that_cannot_be_written_leaves_the_older_file(tmp_path):
    path = tmp_path / "metrics.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_not_json_is_refused(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"a\.json: not JSON: Expecting"):
        read_json(tmp_path / "a.json")
    with pytest.raises(FileNotFoundError, match=r"none\.json: no such file"):
        read_json(tmp_path / "none.json")


def test_an_unwritable_folder_is_refused():
    with pytest.raises(UnwritableFileError, match="/proc/new cannot be written"):
        make_folder(Path("/proc/new"))
    with pytest.raises(UnwritableFileError, match="/proc cannot be written"):
        make_folder(Path("/proc"))


@pytest.mark.parametrize("name", ["", "new folder", "fields.npz", "new/folder"])
def test_output_too_large_for_the_disk_is_refused_with_both_sizes(name, tmp_path, monkeypatch):
    asked = []

    def disk_usage(path):
        asked.append(path)
        return SimpleNamespace(free=3 * 2**20)

    monkeypatch.setattr(shutil, "disk_usage", disk_usage)
    check_space(tmp_path / name, 3 * 2**20)
    with pytest.raises(
        UnwritableFileError, match=r": up to 1,500\.0 GiB will be written and 3\.0 MiB are free: make room"
    ):
        check_space(tmp_path / name, 1500 * 2**30)
    assert asked == [tmp_path] * 2
    assert list(tmp_path.iterdir()) == []
