"""An exported file that is damaged is refused, in one line."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import deploy


def edited(path: Path, folder: Path, change: Callable[[dict[str, bytes]], None], **options: Any) -> Path:
    """The file with other members."""
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    change(members)
    damaged = folder / "damaged.emmi"
    with zipfile.ZipFile(damaged, "w", **options) as target:
        for name, content in members.items():
            target.writestr(name, content)
    return damaged


def manifest(**changes: Any) -> Callable[[dict[str, bytes]], None]:
    def change(members: dict[str, bytes]) -> None:
        members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | changes).encode()

    return change


def scaled(**changes: object) -> Callable[[dict[str, bytes]], None]:
    """Changes the scale of the pressure."""

    def change(members: dict[str, bytes]) -> None:
        values = json.loads(members["manifest.json"])
        values["fields"]["surface"]["pressure"] |= changes
        members["manifest.json"] = json.dumps(values).encode()

    return change


def calibrated(cd: object = (1.0,), *, of_fields: bool = True, **changes: object) -> Callable[[dict[str, bytes]], None]:
    """Adds scores of a case for each field, and those of the drag coefficient."""

    def change(members: dict[str, bytes]) -> None:
        values = json.loads(members["manifest.json"])
        names = [f"{branch}/{name}" for branch, fields in values["fields"].items() for name in fields]
        scores = {name: [1.0] for name in names if of_fields} | {"cd": cd}
        values["calibration"] = {"repeats": 1, "share": 0.9, "scores": scores} | changes
        members["manifest.json"] = json.dumps(values).encode()

    return change


def test_an_older_jax_runs_the_own_sizes_alone_and_says_so(file: Path, tmp_path: Path) -> None:
    newer = edited(file, tmp_path, manifest(jax="99.1.0"))
    surrogate = deploy.load(newer)
    assert set(surrogate.kernels) == {title for title in deploy.load(file).kernels if "any number" not in title}
    anchors = {branch: np.random.default_rng(0).uniform(-1, 1, (5, 3)) for branch in surrogate.fields}
    with pytest.raises(ValueError, match=rf"no program 'encode' .* jax 99\.1\.0 exported it, .* jax {jax.__version__}"):
        surrogate.encode(anchors=anchors)


def pickled(members: dict[str, bytes]) -> None:
    file = io.BytesIO()
    np.save(file, np.array([print], dtype=object), allow_pickle=True)
    members["arrays/0.npy"] = file.getvalue()


def bare_pickle(members: dict[str, bytes]) -> None:
    members["arrays/0.npy"] = pickle.dumps(print)


def larger_header(members: dict[str, bytes]) -> None:
    content = members["arrays/0.npy"]
    members["arrays/0.npy"] = content[:10] + content[10:].replace(b"(", b"(1000000, ", 1)[: len(content) - 10]


def unrecorded_dtype(members: dict[str, bytes]) -> None:
    values = json.loads(members["manifest.json"])
    next(iter(values["arrays"].values()))["dtype"] = "object"
    members["manifest.json"] = json.dumps(values).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("manifest.json"), "'manifest.json' is missing"),
        (lambda m: m.pop("arrays/0.npy"), "'arrays/0.npy' is missing"),
        (lambda m: m.pop("programs/1"), "'programs/1' is missing"),
        (lambda m: m.update({"../evil": b""}), "'../evil' is not in its manifest"),
        (lambda m: m.update({"manifest.json": b"[1]"}), "not that of an exported model"),
        (lambda m: m.update({"manifest.json": b"{"}), "manifest.json: Expecting"),
        (lambda m: m.update({"manifest.json": b"[" * 200_000}), "manifest.json: it is nested"),
        (manifest(version=2), "format version 2, expected 1"),
        (manifest(format="other"), "not that of an exported model"),
        (manifest(fields={"surface": 3}), "manifest.json: TypeError"),
        (manifest(arrays={"parameters/a": {"dtype": "float32", "shape": [10**12]}}), "the manifest says float32"),
        (manifest(position={"low": ["x", 0, 0], "scale": 1}), "lowest corner must hold finite numbers, got 'x'"),
        (manifest(position={"low": [0, 0], "scale": 1}), "lowest corner must be a list of 3 numbers"),
        (manifest(position={"low": [0, 0, 0], "scale": 0}), "scale of positions must be positive, got 0"),
        (manifest(num_members=2), "its parameters are not those of 2 members"),
        (manifest(num_members=10**7, arrays={}), "its parameters are not those of 10000000 members"),
        (manifest(num_members=0), "not those of 0 members"),
        (manifest(calibration=[1]), "its calibration must be a table with scores by name, got"),
        (calibrated(of_fields=False), "its calibration lacks scores of .'surface/pressure"),
        (calibrated(cd=[]), "its calibration must list scores of 'cd', got .."),
        (calibrated(cd=[-1.0]), "has the negative score -1.0 of 'cd'"),
        (calibrated(cd=[1.0, 2.0]), "its calibration has .1, 2. cases"),
        (calibrated(repeats=10**12), "1 to 10000 repeats, got 1000000000000"),
        (calibrated(share=2), "the share of its calibration must be above 0 and at most 1"),
        (manifest(calibration={"repeats": 1, "share": 0.9, "scores": {"cd": ["x"]}}), "scores of cd must hold finite"),
        (manifest(jax="new"), "expected a version of jax, got 'new'"),
        (scaled(std=[0.0]), "surface/pressure needs positive deviations"),
        (scaled(std=[1.0, 1.0]), "std of surface/pressure must be a list of 1 numbers"),
        (scaled(mean=[float("nan")]), "NaN is not a finite number"),
        (scaled(mean=[1e300]), "mean of surface/pressure must hold finite numbers"),
        (scaled(limit=[-1.0]), "limits >= 0"),
        (lambda m: m.update({"manifest.json": b"1" * 5000}), "manifest.json: Exceeds the limit"),
        (manifest(arrays={"parameters/a": {"dtype": "float32", "shape": [-1]}}), "expected a size, got -1"),
        (manifest(programs=[]), "is not in its manifest"),
        (manifest(programs=[{"function": "encode"}]), "manifest.json: TypeError"),
        (manifest(sampling={"method": "all", "supernode_method": "uniform"}), "unknown method 'all'"),
        (manifest(sampling={"method": "uniform", "supernode_method": "uniform", "num_anchors": "9"}), "got '9'"),
        (manifest(geometry={"num_points": 10**9, "num_supernodes": 1}), "got 1000000000"),
        (unrecorded_dtype, "holds"),
        (pickled, "arrays/0.npy"),
        (bare_pickle, "arrays/0.npy"),
        (larger_header, "arrays/0.npy"),
        (lambda m: m.update({"arrays/0.npy": m["arrays/0.npy"][:-1]}), "does not fit the"),
        (lambda m: m.update({"programs/0": m["programs/0"][:500]}), "programs/0 is no program"),
        (lambda m: m.update({"programs/0": b"\x00" * 64}), "programs/0 is no program"),
        (lambda m: m.update({"programs/0": b""}), "programs/0 is no program"),
    ],
)
def test_a_damaged_file_is_refused_in_one_line(
    file: Path, tmp_path: Path, change: Callable[[dict[str, bytes]], None], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as error:
        deploy.load(edited(file, tmp_path, change))
    assert "\n" not in str(error.value)
    assert "damaged.emmi" in str(error.value)


def test_a_zip_bomb_is_refused_before_it_is_read(file: Path, tmp_path: Path) -> None:
    bomb = edited(file, tmp_path, lambda m: m.update({"a": bytes(10**7)}), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed in an unexpected way"):
        deploy.load(bomb)


def test_a_declared_size_beyond_the_file_is_refused(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    entry = content.rindex(b"PK\x01\x02")
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    (tmp_path / "model.emmi").write_bytes(content)
    with pytest.raises(ValueError, match=f"declares {2**31} bytes, beyond the file's {len(content)}"):
        deploy.load(tmp_path / "model.emmi")


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_refused(file: Path, tmp_path: Path, share: float) -> None:
    content = file.read_bytes()
    (tmp_path / "model.emmi").write_bytes(content[: int(share * len(content))])
    with pytest.raises(ValueError, match="not an exported model, or a damaged one"):
        deploy.load(tmp_path / "model.emmi")


def test_flipped_bits_are_refused(file: Path, tmp_path: Path) -> None:
    content = bytearray(file.read_bytes())
    content[content.index(b"NUMPY") + 200] ^= 1
    (tmp_path / "model.emmi").write_bytes(content)
    with pytest.raises(ValueError, match=r"0\.npy: Bad CRC-32"):
        deploy.load(tmp_path / "model.emmi")
