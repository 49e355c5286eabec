import math
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.runs.checkpoints import Checkpoints, DamagedCheckpointError

ERRORS = {2: 0.5, 4: 0.2, 5: 0.4}
"""Mean errors of the validated steps."""


def tree(value: float) -> dict:
    return {"params": {"kernel": jnp.full(8, value)}}


@pytest.fixture(scope="module")
def seven(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seven")
    with Checkpoints(folder) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, tree(step), {"mean": ERRORS[step]} if step in ERRORS else None)
    return folder


@pytest.fixture
def directory(seven: Path, tmp_path: Path) -> Path:
    return shutil.copytree(seven, tmp_path, dirs_exist_ok=True)


def test_the_last_two_and_the_best_are_kept(directory):
    assert sorted(path.name for path in directory.iterdir()) == ["4", "6", "7"]


@pytest.mark.parametrize(("which", "step"), [("latest", 7), ("best", 4)])
def test_either_is_restored(which, step, directory):
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.step(which) == step
        assert float(checkpoints.restore(tree(0), which=which).items["params"]["kernel"][0]) == step


def test_a_better_one_replaces_the_best(directory):
    with Checkpoints(directory) as checkpoints:
        checkpoints.save(8, tree(8), {"mean": 0.1})
        checkpoints.save(9, tree(9))
        checkpoints.save(10, tree(10))
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.step("best") == 8
    assert sorted(path.name for path in directory.iterdir()) == ["10", "8", "9"]


def test_without_validation_there_is_no_best_one(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1))
        assert checkpoints.step("best") is None
        with pytest.raises(ValueError, match="no best checkpoint yet"):
            checkpoints.restore(tree(0), which="best")


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_the_best(score, tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, tree(1), {"mean": 0.5})
        checkpoints.save(2, tree(2), {"mean": score})
        for step in (3, 4, 5):
            checkpoints.save(step, tree(step))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step("best") == 1
        checkpoints.save(6, tree(6), {"mean": score})
    assert (tmp_path / "1").is_dir()


def flip(path: Path, place: float) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 4
    path.write_bytes(content)


def damage_arrays(checkpoint: Path) -> None:
    """Flips a bit of the largest file that is read: parts of several processes are copied into `d`."""
    flip(max((checkpoint / "params").rglob("d/*"), key=lambda path: path.stat().st_size), 0.5)


DAMAGES = {
    "a flipped bit": damage_arrays,
    "a flipped record": lambda checkpoint: flip(checkpoint / "record" / "metadata", 0.5),
    "an empty record": lambda checkpoint: (checkpoint / "record" / "metadata").write_text("{}"),
    "no item": lambda checkpoint: shutil.rmtree(checkpoint / "params"),
    "no index": lambda checkpoint: (checkpoint / "params" / "manifest.ocdbt").unlink(),
    "nested": lambda checkpoint: (checkpoint / "record" / "metadata").write_text("[" * 100_000),
}


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2):
            checkpoints.save(step, noise(step), {"mean": 1 / step})
    return folder


@pytest.fixture
def noisy(two: Path, tmp_path: Path) -> Path:
    return shutil.copytree(two, tmp_path, dirs_exist_ok=True)


def noise(seed: int) -> dict:
    return {"params": {"kernel": jax.random.normal(jax.random.key(seed), (64, 64))}}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one_and_a_line_says_so(damage, noisy, caplog):
    damage(noisy / "2")
    with Checkpoints(noisy) as checkpoints:
        step, items = checkpoints.restore(noise(0))
    assert step == 1
    np.testing.assert_array_equal(items["params"]["kernel"], noise(1)["params"]["kernel"])
    (line,) = [record.getMessage() for record in caplog.records if record.name.startswith("emmi_jax")]
    assert f"{noisy / '2'}: the checkpoint is damaged" in line
    assert "using that of step 1" in line
    assert "\n" not in line


def test_a_run_that_goes_on_before_a_damaged_checkpoint_saves_another_in_its_place(noisy):
    damage_arrays(noisy / "2")
    with Checkpoints(noisy) as checkpoints:
        assert checkpoints.restore(noise(0)).step == 1
        checkpoints.save(2, noise(3))
    with Checkpoints(noisy) as checkpoints:
        assert checkpoints.restore(noise(0)).step == 2
    assert (noisy / "2.damaged-0").is_dir()


@pytest.mark.parametrize("which", ["latest", "best"])
def test_a_reader_gets_no_numbers_of_another_checkpoint_than_it_asked_for(which, noisy):
    damage_arrays(noisy / "2")
    advice = f"wrong checksum.*; remove that folder to use {noisy / '1'}"
    with Checkpoints(noisy, read_only=True) as checkpoints, pytest.raises(DamagedCheckpointError, match=advice):
        checkpoints.restore(noise(0), which=which)


def test_where_all_are_damaged_the_newest_is_named(noisy):
    for step in "12":
        damage_arrays(noisy / step)
    with Checkpoints(noisy, read_only=True) as checkpoints, pytest.raises(DamagedCheckpointError, match="2: the check"):
        checkpoints.restore(noise(0))


def test_checkpoints_without_a_record_are_read(noisy):
    shutil.rmtree(noisy / "2" / "record")
    with Checkpoints(noisy, read_only=True) as checkpoints:
        assert checkpoints.restore(noise(0)).step == 2


@pytest.mark.parametrize("like", [{"kernel": jnp.ones(9)}, {"kernel": jnp.ones(8), "a": jnp.ones(8)}, {}])
def test_a_checkpoint_of_another_model_is_said_to_be_one(like, noisy):
    message = r"another model: params\['\w+'\] is (missing|\[64, 64\]), in the model (missing|\[\d\])"
    with Checkpoints(noisy, read_only=True) as checkpoints, pytest.raises(DamagedCheckpointError, match=message):
        checkpoints.restore({"params": like})


def test_a_reader_changes_nothing(noisy):
    (noisy / "3.orbax-checkpoint-tmp").mkdir()
    for path in [noisy, *noisy.rglob("*")]:
        path.chmod(path.stat().st_mode & ~0o222)
    before = {path: path.stat().st_mtime_ns for path in noisy.rglob("*")}
    with Checkpoints(noisy, read_only=True) as checkpoints:
        assert checkpoints.restore(noise(0)).step == 2
    assert {path: path.stat().st_mtime_ns for path in noisy.rglob("*")} == before


@pytest.mark.parametrize("name", ["a[b]", "a*b?", "a\\b", "é {x}:$[red]"])
def test_checkpoints_lie_in_folders_of_any_name(name, tmp_path):
    folder, items = tmp_path / name / "checkpoints", {"params": {"a": jnp.arange(5.0)}}
    (tmp_path / "ab").mkdir()
    with Checkpoints(folder) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, items)
    with Checkpoints(folder, read_only=True) as checkpoints:
        restored = checkpoints.restore(items)
    assert restored.step == 3
    np.testing.assert_array_equal(restored.items["params"]["a"], items["params"]["a"])
    assert {path.name for path in tmp_path.iterdir()} == {name, "ab"}
    assert {path.name for path in folder.iterdir()} == {"2", "3"}
