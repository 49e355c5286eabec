import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorstore as ts

from emmi_jax.files import zarr
from emmi_jax.files.zarr import ArrayFolder, read_rows

ROWS = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
ORDER = np.arange(23)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(zarr, "CHUNK_ROWS", 4)
    monkeypatch.setattr(zarr, "SHARD_CHUNKS", 2)


@pytest.mark.parametrize("num_rows", [1, 4, 7, 8, 9, 23])
@pytest.mark.parametrize("columns", [slice(None), 0])
def test_arrays_come_back_and_their_files_have_the_expected_sizes(num_rows, columns, tmp_path):
    folder, values = ArrayFolder(str(tmp_path)), ROWS[:num_rows, columns]
    folder.write_array("a/b", values, ORDER[:num_rows], "float32")
    folder.check_size("a/b", values.shape, "float32")
    array = folder.open_array("a/b", values.shape, "float32")
    np.testing.assert_array_equal(read_rows(array, 0, num_rows)(), values)


def test_rows_are_written_in_the_given_order_and_read_around_the_end(tmp_path):
    folder = ArrayFolder(str(tmp_path))
    folder.write_array("a", ROWS, ORDER[::-1], "float32")
    array = folder.open_array("a", ROWS.shape, "float32")
    np.testing.assert_array_equal(read_rows(array, 20, 6)(), np.roll(ROWS[::-1], -20, axis=0)[:6])


def test_zeros_are_stored_like_any_other_value(tmp_path):
    folder = ArrayFolder(str(tmp_path))
    folder.write_array("a", np.zeros((23, 3)), ORDER, "float16")
    folder.check_size("a", (23, 3), "float16")
    assert not read_rows(folder.open_array("a", (23, 3), "float16"), 0, 23)().any()


def damage(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    file.unlink()
    if how == "truncated":
        file.write_bytes(content[:-3])
    elif how == "flipped":
        content[5] ^= 1
        file.write_bytes(content)


@pytest.mark.parametrize("how", ["missing", "truncated", "flipped"])
def test_a_damaged_file_is_an_error_and_never_zeros(how, tmp_path):
    folder = ArrayFolder(str(tmp_path))
    folder.write_array("a", ROWS, ORDER, "float32")
    damage(tmp_path / "a" / "c" / "1" / "0", how)
    if how != "flipped":
        with pytest.raises(ValueError, match=r"a/c/1/0: has \d+ bytes, expected 140: the store is damaged"):
            folder.check_size("a", ROWS.shape, "float32")
    with pytest.raises(ValueError, match="a/c/1/0"):
        read_rows(folder.open_array("a", ROWS.shape, "float32"), 0, 23)()


def test_an_array_of_another_shape_or_type_is_refused(tmp_path):
    folder = ArrayFolder(str(tmp_path))
    folder.write_array("a", ROWS, ORDER, "float32")
    for shape, dtype in (((24, 3), "float32"), ((23, 3), "float16")):
        with pytest.raises(ValueError, match="Expected"):
            folder.open_array("a", shape, dtype)


@pytest.mark.parametrize("location", ["{}", "file://{}"])
def test_json_is_written_read_and_deleted_with_all_that_lies_beside_it(location, tmp_path):
    folder = ArrayFolder(location.format(tmp_path / "store"))
    assert folder.read_json("a/b.json") is None
    folder.write_json("a/b.json", {"x": 1})
    folder.write_json("aa/b.json", {"x": 2})
    assert folder.read_json("a/b.json") == {"x": 1}
    folder.delete("a")
    assert folder.read_json("a/b.json") is None
    assert folder.read_json("aa/b.json") == {"x": 2}


def test_unknown_urls_and_other_content_are_refused(tmp_path):
    with pytest.raises(ValueError, match="nope"):
        ArrayFolder("nope://bucket")
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json: not JSON"):
        ArrayFolder(str(tmp_path)).read_json("x.json")


ASK = """
import sys
from emmi_jax.files import zarr
zarr._RETRIES = {"max_retries": 0}
try:
    zarr.ArrayFolder(sys.argv[1]).read_json("store.json")
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize(("is_there", "reason"), [(False, "Could not connect"), (True, "Operation too slow")])
def test_a_server_that_does_not_answer_ends_with_a_line(is_there, reason):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if is_there:
            server.listen()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/store"
        environment = os.environ | {
            "TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS": "1", "PYTHONPATH": os.pathsep.join(sys.path)
        }  # fmt: skip
        ended = subprocess.run(
            [sys.executable, "-c", ASK, url], env=environment, capture_output=True, text=True, check=True, timeout=300
        )
    assert ended.stdout.startswith(f"{url}/store.json: cannot be read: ")
    assert reason in ended.stdout
    assert ended.stdout.count("\n") == 1


def test_what_a_killed_writer_leaves_is_no_content(tmp_path):
    assert ArrayFolder(str(tmp_path / "new")).is_empty
    for name in (".lock", "store.json.__lock"):
        (tmp_path / name).touch()
    assert ArrayFolder(str(tmp_path)).is_empty
    (tmp_path / "notes.txt").touch()
    assert not ArrayFolder(str(tmp_path)).is_empty


def test_a_name_that_tensorstore_reads_as_another_is_refused(tmp_path):
    with pytest.raises(ValueError, match="takes a backslash for a slash"):
        ArrayFolder(str(tmp_path / "a\\b"))


def test_what_a_library_prints_when_it_meets_a_server_is_dropped(monkeypatch, capfd):
    def open_store(*args, **named):
        os.write(2, b"no credentials\n")
        return ts.KvStore.open(*args, **named)

    loud = SimpleNamespace(Context=ts.Context, KvStore=SimpleNamespace(open=open_store))
    monkeypatch.setattr(zarr, "ts", loud)
    assert ArrayFolder("memory://a").read_json("b") is None
    os.write(2, b"kept\n")
    assert capfd.readouterr().err == "kept\n"
