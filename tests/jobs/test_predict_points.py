import io
import re
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from emmi_jax.data.normalization import Normalizer
from emmi_jax.data.samples import Context
from emmi_jax.inference.surrogate import Surrogate
from emmi_jax.jobs.predict_points import PointJob, point_names, predict_points
from emmi_jax.layers.supernode_pooling import Geometry
from tests.inference.test_surrogate import ANCHORS, GEOMETRY, POINTS, TWO_BRANCHES, build

NUM_POINTS = 500


@pytest.fixture(scope="module")
def trained() -> Surrogate:
    context = Context(ANCHORS, Geometry(GEOMETRY, np.arange(4, dtype=np.int32)))
    return replace(build(TWO_BRANCHES, ("perceiver", "joint")), context=context)


@pytest.fixture
def volume(tmp_path: Path) -> np.ndarray:
    """Positions in a file of their own."""
    position = np.random.default_rng(1).uniform(size=(NUM_POINTS, 3)).astype(np.float32)
    np.save(tmp_path / "volume.npy", position)
    return position


def predict(trained: Surrogate, points: Path, out: Path) -> str:
    printed = io.StringIO()
    job = PointJob(points=points, out=out, chunk_size=64)
    predict_points(job, trained, console=Console(file=printed, width=80))
    return printed.getvalue()


def test_mapped_points_get_the_fields_that_they_get_in_memory(trained, volume, tmp_path):
    printed = predict(trained, tmp_path / "volume.npy", tmp_path / "fields")
    expected = trained.encode().predict({"volume": volume}, chunk_size=64)
    assert sorted(p.stem for p in (tmp_path / "fields").iterdir()) == sorted(expected)
    for name, values in expected.items():
        mapped = np.load(tmp_path / "fields" / f"{name}.npy", mmap_mode="r")
        assert (mapped.shape, mapped.dtype) == (values.shape, np.float32)
        np.testing.assert_allclose(mapped, values, rtol=1e-6, atol=1e-6)
    assert f"volume_velocity [{NUM_POINTS}, 3]" in printed
    assert "500/500 points" in printed


def test_a_folder_of_arrays_is_an_archive_unpacked(trained, tmp_path):
    arrays = POINTS | {"volume_anchors": POINTS["volume"][:7], "geometry": POINTS["surface"][:9]}
    (tmp_path / "points").mkdir()
    for name, array in (arrays | {"notes": np.zeros(3)}).items():
        np.save(tmp_path / "points" / f"{name}.npy", array)
    np.savez(tmp_path / "points.npz", **arrays)
    predict(trained, tmp_path / "points", tmp_path / "folder.npz")
    predict(trained, tmp_path / "points.npz", tmp_path / "archive.npz")
    folder, archive = np.load(tmp_path / "folder.npz"), np.load(tmp_path / "archive.npz")
    assert set(folder.files) == set(archive.files) == {"surface_pressure", "volume_velocity", "volume_pressure"}
    for name in folder.files:
        np.testing.assert_array_equal(folder[name], archive[name])


def test_points_outside_the_training_box_are_counted_file_by_file(trained, volume, tmp_path):
    small = Normalizer.from_box([0] * 3, [0.5] * 3, position_range=50.0, fields=trained.normalizer.fields)
    printed = predict(replace(trained, normalizer=small), tmp_path / "volume.npy", tmp_path / "fields")
    assert f"volume.npy: volume: {small.num_outside(volume)} of 500 points are outside the box" in printed


def test_a_full_disk_is_said_with_the_name_of_the_file_and_leaves_no_half_of_it(trained, volume, tmp_path):
    predict(trained, tmp_path / "volume.npy", tmp_path / "before")  # leaves no module or program to be written below
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"fields/volume_velocity\.npy cannot be written: File too large"):
            predict(trained, tmp_path / "volume.npy", tmp_path / "fields")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "fields").iterdir()) == []


@pytest.mark.parametrize("out", ["fields", "fields.npz"])
def test_a_disk_too_small_for_the_fields_is_said_before_predicting(out, trained, volume, tmp_path, monkeypatch):
    size = 2 * 128 + 4 * NUM_POINTS * (3 + 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size - 1))
    with pytest.raises(OSError, match=f"{out}: up to 0.0 MiB will be written and 0.0 MiB are free: make room"):
        predict(trained, tmp_path / "volume.npy", tmp_path / out)
    assert not (tmp_path / out).exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=size))
    predict(trained, tmp_path / "volume.npy", tmp_path / "fields")
    assert sum(path.stat().st_size for path in (tmp_path / "fields").iterdir()) == size


@pytest.mark.parametrize("out", ["fields", "fields.npz"])
def test_interrupted_it_leaves_no_half_of_a_file(out, trained, volume, tmp_path, monkeypatch):
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("emmi_jax.jobs.progress.ProgressBar.advance", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict(trained, tmp_path / "volume.npy", tmp_path / out)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["volume.npy"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("wing.npy", np.zeros((5, 3)), "expected .npy files named surface, volume, surface_anchors"),
        ("volume.npy", np.zeros((5, 2)), "array 'volume' has shape (5, 2), expected (N, 3)"),
        ("volume.npy", np.full((5, 3), np.nan), "15 of 15 values of 'volume' are NaN or infinite"),
        ("volume.npy", np.array(["a"]), "holds <U1, expected real numbers"),
        ("volume.npy", None, "no such file"),
        ("volume.npy", b"garbage", "not an .npy file of numbers, or a damaged one"),
        ("geometry.npy", np.zeros((5, 3)), "expected an array 'surface' or 'volume'"),
    ],
)
def test_unusable_points_are_refused_before_anything_is_written(name, content, message, trained, tmp_path):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        np.save(path, content)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        predict(trained, path, tmp_path / "fields")
    assert not (tmp_path / "fields").exists()


def test_fields_go_to_an_archive_or_a_folder(trained, volume, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    for out in ("file", "fields.npy", "folder.npz"):
        with pytest.raises(
            ValueError, match=f"{out}: fields are written to an .npz file, or to a folder as .npy files"
        ):
            predict(trained, tmp_path / "volume.npy", tmp_path / out)


@pytest.mark.parametrize("out", ["a/b", "a/b.npz"])
def test_missing_parents_of_the_output_are_made(out, trained, volume, tmp_path):
    predict(trained, tmp_path / "volume.npy", tmp_path / out)
    assert (tmp_path / out).exists()


def test_a_model_of_one_branch_takes_positions_and_names_fields_alone(tmp_path):
    surrogate = build({"volume": {"velocity": 3}}, ("self",))
    np.savez(tmp_path / "points.npz", position=POINTS["volume"], volume_anchors=ANCHORS["volume"])
    predict(surrogate, tmp_path / "points.npz", tmp_path / "fields.npz")
    fields = np.load(tmp_path / "fields.npz")
    assert {name: fields[name].shape for name in fields.files} == {"velocity": (30, 3)}
    assert point_names(["volume"]) == ["position", "volume_anchors", "geometry"]


def test_fewer_points_than_the_anchors_of_training_are_warned_about(tmp_path):
    surrogate = build({"volume": {"velocity": 3}}, ("self",))
    np.save(tmp_path / "position.npy", POINTS["volume"][:3])
    assert "warning: volume: 3 anchors, the model was trained with 4" in predict(
        surrogate, tmp_path / "position.npy", tmp_path / "fields"
    )
