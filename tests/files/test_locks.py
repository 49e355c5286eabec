import os
import signal
import subprocess
import sys

import pytest

from emmi_jax.files.locks import FolderInUseError, locked

HOLD = """
import sys, time
from pathlib import Path
from emmi_jax.files.locks import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_the_second_is_told_who_writes_and_a_dead_one_is_replaced(tmp_path):
    owner = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "held\n"
    with pytest.raises(FolderInUseError, match=rf"in use by process {owner.pid} on .* since 20\d\d-"), locked(tmp_path):
        pass
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_folder_stays_locked_when_it_is_renamed(tmp_path):
    (tmp_path / "a").mkdir()
    with locked(tmp_path / "a"):
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(FolderInUseError), locked(tmp_path / "b"):
            pass
    with locked(tmp_path / "b"):
        pass


def test_where_there_are_no_locks_a_line_says_so(tmp_path, monkeypatch, caplog):
    def no_locks(*args: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with locked(tmp_path):
        pass
    assert "this file system has no locks" in caplog.text
