import os
import shutil
from pathlib import Path

import pytest

from emmi_jax.files.fingerprint import fingerprint


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "data"
    folder.mkdir()
    for name, size in (("small", 3), ("large", 300_000)):
        (folder / name).write_bytes(bytes(i % 251 for i in range(size)))
    return [folder / "small", folder / "large"]


def test_copies_have_the_same_and_times_count_only_on_demand(files, tmp_path):
    root = files[0].parent
    copy = shutil.copytree(root, tmp_path / "copy")
    copies = [copy / file.name for file in files]
    os.utime(copies[0], (1, 1))
    assert fingerprint(copies, copy) == fingerprint(files, root)
    assert fingerprint(copies, copy, with_times=True) != fingerprint(files, root, with_times=True)


@pytest.mark.parametrize(("name", "offset"), [("small", 1), ("large", 5), ("large", 299_999)])
def test_either_end_the_name_and_the_size_count(files, name, offset):
    root = files[0].parent
    before = fingerprint(files, root)
    content = bytearray((root / name).read_bytes())
    content[offset] ^= 1
    (root / name).write_bytes(content)
    assert fingerprint(files, root) != before
    content[offset] ^= 1
    (root / name).write_bytes(content)
    assert fingerprint(files, root) == before
    (root / name).write_bytes(content + b"x")
    assert fingerprint(files, root) != before
    assert fingerprint(files[:1], root) != fingerprint(files, root)
