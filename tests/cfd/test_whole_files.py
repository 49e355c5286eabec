from pathlib import Path

import pytest

from emmi_jax.cfd.whole_files import UnwritableFileError, make_folder, whole_file


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
