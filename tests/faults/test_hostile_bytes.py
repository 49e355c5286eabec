"""Files from elsewhere are read right, or refused in one line within bounded memory."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from emmi_jax.convert.files import load_torch_file
from emmi_jax.files.atomic import read_json, read_toml
from emmi_jax.files.npy import map_array
from emmi_jax.files.npz import read_arrays
from emmi_jax.files.pt import load_torch_tensor, map_torch_tensor
from emmi_jax.jobs.stats import file_statistics

VALUES = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
FUZZ = settings(
    max_examples=60, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def npy(values: np.ndarray = VALUES) -> bytes:
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


def npz(save: Callable[..., None] = np.savez, **arrays: np.ndarray) -> bytes:
    file = io.BytesIO()
    save(file, **(arrays or {"position": VALUES, "p": VALUES[:, 0]}))
    return file.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def torch_file(content: object) -> bytes:
    torch = pytest.importorskip("torch")
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def weights() -> bytes:
    torch = pytest.importorskip("torch")
    return torch_file({"a": torch.tensor(VALUES), "b": torch.ones(7, dtype=torch.bfloat16)})


def safetensors(header: dict[str, object] | bytes | None = None, data: bytes = VALUES.tobytes()) -> bytes:
    whole = {"a": {"dtype": "F32", "shape": [200, 3], "data_offsets": [0, 2400]}}
    content = header if isinstance(header, bytes) else json.dumps(header or whole).encode()
    return struct.pack("<Q", len(content)) + content + data


def header(text: str, version: int = 1) -> bytes:
    return b"\x93NUMPY" + bytes([version, 0]) + struct.pack("<H" if version == 1 else "<I", len(text)) + text.encode()


def array_header(shape: str, descr: str = "'<f8'") -> bytes:
    return header(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}")


READ: dict[str, Callable[[Path], object]] = {
    "a.npz": read_arrays,
    "a.npy": map_array,
    "a.json": read_json,
    "a.toml": read_toml,
    "a.pt": load_torch_file,
    "a.safetensors": load_torch_file,
}
SOUND: dict[str, Callable[[], bytes]] = {
    "a.npz": npz,
    "a.npy": npy,
    "a.json": lambda: json.dumps({"a": [1.5, {"b": "c"}], "d": None}).encode(),
    "a.toml": lambda: b'a = 1\n[b]\nc = [1.5, "x"]\nd = { e = true }\n',
    "a.pt": weights,
    "a.safetensors": safetensors,
}
HEADERS = {
    "22 TiB": array_header(f"({10**12}, 3)"),
    "overflow": array_header(f"({2**62}, {2**62})"),
    "negative": array_header("(-1, 3)"),
    "no tuple": array_header("7"),
    "a float": array_header("(2.0, 3)"),
    "unfinished": header("{'descr': '<f8'"),
    "nested": header("(" * 60000),
    "signs": header("{'descr':'<f8','fortran_order':False,'shape':(" + "-" * 3000 + "1,3)}"),
    "long": header("{'descr':'<f8','fortran_order':False,'shape':(4,3)}" + " " * 20000),
    "4 GiB of header": b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + bytes(100),
    "version 9": b"\x93NUMPY\x09\x00" + bytes(100),
    "objects": array_header("(2,)", "'|O'"),
    "records": array_header("(2,)", "[('a', '<f8')]"),
    "text": npy(np.array(["x"])),
    "dates": npy(np.array(["2020-01-01"], "datetime64[D]")),
    "complex": npy(np.ones(3, complex)),
    "no number": array_header("(2,)", "'<q9'"),
    "nothing": b"",
}


def setting_every_flag(content: bytes) -> bytes:
    changed = bytearray(content)
    for start, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        place = -1
        while (place := changed.find(start, place + 1)) >= 0:
            changed[place + offset] |= 1
    return bytes(changed)


def overwritten(content: bytes, place: int, value: bytes) -> bytes:
    return content[:place] + value + content[place + len(value) :]


HOSTILE: list[tuple[str, str, Callable[[], bytes]]] = [
    *(("a.npy", name, lambda content=content: content) for name, content in HEADERS.items()),
    *(("a.npz", name, lambda content=content: zipped({"position.npy": content})) for name, content in HEADERS.items()),
    ("a.npz", "zlib", lambda: overwritten(npz(np.savez_compressed), 1000, b"\xff" * 40)),
    ("a.npz", "lzma", lambda: zipped({"p.npy": npy()}, zipfile.ZIP_LZMA)),
    ("a.npz", "bzip2", lambda: zipped({"p.npy": npy()}, zipfile.ZIP_BZIP2)),
    ("a.npz", "encrypted", lambda: setting_every_flag(npz())),
    ("a.npz", "zip version", lambda: overwritten(npz(), npz().find(b"PK\1\2") + 6, b"\x73")),
    ("a.npz", "directory", lambda: overwritten(npz(), npz().find(b"PK\1\2") + 1, b"\0")),
    ("a.npz", "twice", lambda: zipped({"p.npy": npy(), "q.npy": npy()}).replace(b"q.npy", b"p.npy")),
    ("a.npz", "no array", lambda: zipped({"readme.txt": b"hello"})),
    *(
        ("a.json", name, lambda content=content: content)
        for name, content in {
            "nested lists": b"[" * 100_000,
            "nested objects": b'{"a":' * 100_000,
            "closed": b"[" * 500 + b"]" * 500,
            "twice": b'{"a": 1, "a": 2}',
            "NaN": b'{"a": NaN}',
            "infinite": b"[-Infinity]",
            "too large": b"[1e999]",
            "5000 digits": b"1" * 5000,
            "no text": b"\xff\xfe\xfd",
            "nothing": b"",
        }.items()
    ),
    *(
        ("a.toml", name, lambda content=content: content)
        for name, content in {
            "nested lists": b"x=" + b"[" * 100_000,
            "nested tables": b"x=" + b"{a=" * 100_000,
            "dots": b".".join([b"a"] * 3000) + b"=1",
            "twice": b"a=1\na=2",
            "NaN": b"a = nan",
            "infinite": b"a = [-inf]",
            "5000 digits": b"a = " + b"1" * 5000,
            "no text": b"\xff\xfe",
        }.items()
    ),
    *(
        ("a.safetensors", name, lambda content=content: safetensors(content))
        for name, content in {
            "float8": {"a": {"dtype": "F8_E4M3", "shape": [2400], "data_offsets": [0, 2400]}},
            "complex": {"a": {"dtype": "C64", "shape": [300], "data_offsets": [0, 2400]}},
            "22 TiB": {"a": {"dtype": "F32", "shape": [10**12, 3], "data_offsets": [0, 2400]}},
            "overflow": {"a": {"dtype": "F32", "shape": [2**63, 2**63], "data_offsets": [0, 2400]}},
            "nested": b'{"a":' * 100_000,
        }.items()
    ),
    ("a.safetensors", "length", lambda: struct.pack("<Q", 2**62) + b"{}"),
    ("a.pt", "compressed", lambda: recompressed(weights())),
    ("a.pt", "claims more", lambda: torch_file({"a": torch().ones(1).expand(10**12)})),
    ("a.pt", "float8", lambda: torch_file({"a": torch().ones(2).to(torch().float8_e5m2)})),
    ("a.pt", "complex", lambda: torch_file({"a": torch().ones(2, dtype=torch().complex64)})),
    ("a.pt", "sparse", lambda: torch_file({"a": torch().eye(2).to_sparse()})),
    ("a.pt", "meta", lambda: torch_file({"a": torch().ones(2, device="meta")})),
    ("a.pt", "number", lambda: torch_file({3: torch().ones(2)})),
    ("a.pt", "flipped", lambda: overwritten(weights(), weights().find(VALUES.tobytes()) + 100, b"\xff")),
]


def torch() -> object:
    return pytest.importorskip("torch")


def recompressed(content: bytes) -> bytes:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return zipped({name: archive.read(name) for name in archive.namelist()}, zipfile.ZIP_DEFLATED)


def refusal(read: Callable[[Path], object], path: Path) -> str:
    with pytest.raises(ValueError, match=r"a\.\w+") as error:
        read(path)
    return str(error.value)


@pytest.mark.parametrize(
    ("name", "content"), [(name, content) for name, _, content in HOSTILE], ids=[f"{n}-{w}" for n, w, _ in HOSTILE]
)
def test_hostile_files_are_refused_in_one_line_that_names_them(
    name: str, content: Callable[[], bytes], tmp_path: Path
) -> None:
    (path := tmp_path / name).write_bytes(content())
    message = refusal(READ[name], path)
    assert "\n" not in message
    assert len(message) < 400 + len(str(path))


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
@pytest.mark.parametrize("what", HEADERS)
def test_statistics_refuse_the_same_headers(name: str, what: str, tmp_path: Path) -> None:
    content = HEADERS[what]
    (path := tmp_path / name).write_bytes(zipped({"p.npy": content}) if name == "a.npz" else content)
    assert "\n" not in refusal(lambda path: file_statistics([path]), path)


def test_an_archive_beyond_the_memory_is_refused_before_it_is_decompressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "a.npz").write_bytes(npz(np.savez_compressed, position=np.zeros((100_000, 3))))
    monkeypatch.setattr("os.sysconf", lambda name: 1024)
    assert "its arrays need 2.3 MiB, this machine has 1.0 MiB" in refusal(read_arrays, path)


@pytest.mark.parametrize("dtype", [">f8", ">f4", "<f2", ">i2", "<u8", np.longdouble])
@pytest.mark.parametrize("order", ["C", "F"])
def test_every_kind_of_number_is_read_right(dtype: str, order: str, tmp_path: Path) -> None:
    expected = np.arange(6).reshape(2, 3)
    np.save(tmp_path / "a.npy", expected.astype(dtype, order=order))
    np.savez(tmp_path / "a.npz", p=expected.astype(dtype, order=order), q=np.asarray(3, dtype))
    np.testing.assert_array_equal(map_array(tmp_path / "a.npy"), expected)
    found = read_arrays(tmp_path / "a.npz")
    np.testing.assert_array_equal(found["p"], expected)
    assert found["q"] == 3
    assert file_statistics([tmp_path / "a.npz"])["p"].mean.tolist() == [1.5, 2.5, 3.5]


def test_float8_is_refused_by_tensor_and_kind(tmp_path: Path) -> None:
    (path := tmp_path / "a.pt").write_bytes(torch_file({"blocks.0.w": torch().ones(2).to(torch().float8_e4m3fn)}))
    assert "'blocks.0.w' is a tensor of float8_e4m3fn" in refusal(load_torch_file, path)
    path.write_bytes(torch_file(torch().ones(2).to(torch().float8_e4m3fn)))
    assert "is a tensor of float8_e4m3fn" in refusal(load_torch_tensor, path)


@pytest.mark.parametrize("place", [0.3, 0.5, 0.7])
def test_a_flipped_bit_in_training_data_is_refused(place: float, tmp_path: Path) -> None:
    (path := tmp_path / "a.pt").write_bytes(content := torch_file(torch().tensor(VALUES)))
    np.testing.assert_array_equal(load_torch_tensor(path), VALUES)
    start = content.index(VALUES.tobytes())
    where = start + int(place * VALUES.nbytes)
    path.write_bytes(overwritten(content, where, bytes([content[where] ^ 8])))
    assert "Bad CRC-32 for file 'archive/data/0'" in refusal(load_torch_tensor, path)
    assert map_torch_tensor(path).shape == VALUES.shape


def fuzzed(content: bytes, data: st.DataObject) -> bytes:
    """Bits flipped, bytes cut out or repeated, or the end cut off."""
    place = data.draw(st.integers(0, len(content) - 1))
    length = data.draw(st.integers(0, 60))
    match data.draw(st.sampled_from(("flip", "cut", "repeat", "end"))):
        case "flip":
            return overwritten(content, place, bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]))
        case "cut":
            return content[:place] + content[place + length :]
        case "repeat":
            return content[:place] + content[place : place + length] + content[place:]
    return content[:place]


def read_or_refused(name: str, path: Path) -> object:
    """What the file holds; None if it is refused, which one line must say."""
    message = ""
    try:
        return READ[name](path)
    except ValueError as error:
        message = str(error)
    assert str(path) in message
    assert "\n" not in message
    return None


@pytest.mark.parametrize("name", SOUND)
@seed(0)
@FUZZ
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_line(name: str, tmp_path: Path, data: st.DataObject) -> None:
    (path := tmp_path / name).write_bytes(fuzzed(SOUND[name](), data))
    found = read_or_refused(name, path)
    if found is not None and name in ("a.npz", "a.pt"):
        # Their checksums cover every number.
        arrays = found if isinstance(found, dict) else found.state_dict  # type: ignore[attr-defined]
        for array in arrays.values():
            assert any(array.shape == known.shape for known in (VALUES, VALUES[:, 0], VALUES[:7, 0]))
            if array.shape == VALUES.shape:
                np.testing.assert_array_equal(array, VALUES)


@seed(0)
@FUZZ
@given(text=st.binary(max_size=300))
@pytest.mark.parametrize("name", READ)
def test_noise_is_read_or_refused_in_one_line(name: str, tmp_path: Path, text: bytes) -> None:
    (path := tmp_path / name).write_bytes(text)
    read_or_refused(name, path)
