import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from emmi_jax.files.atomic import UnwritableFileError, check_space, make_folder, whole_file


def test_a_file_appears_when_it_is_complete_and_replaces_an_older_one(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
        assert partial.suffix == ".txt"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_after_an_exception_the_older_file_stays_and_nothing_else(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(partial: Path) -> None:
        partial.write_text("half")
        raise error

    with pytest.raises(error), whole_file(path) as partial:
        write(partial)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_write_names_the_file_that_was_meant_once(tmp_path):
    with (
        pytest.raises(UnwritableFileError, match=r"^.*b\.txt cannot be written: No such file or directory$"),
        whole_file(tmp_path / "a.txt"),
        whole_file(tmp_path / "no" / "b.txt") as partial,
    ):
        partial.write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nothing_can_be_written_in_is_refused(tmp_path):
    make_folder(tmp_path / "new")
    make_folder(tmp_path / "new")
    assert list((tmp_path / "new").iterdir()) == []
    with pytest.raises(UnwritableFileError, match="/proc/new cannot be written"):
        make_folder(Path("/proc/new"))
    with pytest.raises(UnwritableFileError, match="/proc cannot be written"):
        make_folder(Path("/proc"))


@pytest.mark.parametrize("name", ["", "new folder", "fields.npz"])
def test_what_the_disk_has_no_room_for_is_refused_with_both_sizes(name, tmp_path, monkeypatch):
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
