"""What an installed copy consists of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
FILES = [
    path for path in sorted((REPOSITORY / "emmi_jax").rglob("*")) if path.is_file() and "__pycache__" not in path.parts
]


@pytest.mark.skipif(not (REPOSITORY / ".git").exists(), reason="not a checkout")
def test_no_file_of_the_package_is_ignored_as_wheels_would_leave_it_out():
    names = "\n".join(str(path.relative_to(REPOSITORY)) for path in FILES)
    command = ["git", "-c", "safe.directory=*", "check-ignore", "--no-index", "--stdin"]
    ignored = subprocess.run(command, cwd=REPOSITORY, input=names, capture_output=True, text=True, check=False)
    assert (ignored.stdout, ignored.stderr) == ("", "")


def test_every_folder_with_code_is_a_package():
    folders = {path.parent for path in FILES if path.suffix == ".py"}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
