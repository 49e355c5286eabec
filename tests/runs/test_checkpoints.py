from pathlib import Path

import jax.numpy as jnp
import pytest

from emmi_jax.runs.checkpoints import Checkpoints

ERRORS = {2: 0.5, 4: 0.2, 5: 0.4}
"""Mean errors of the validated steps."""


def tree(value: float) -> dict:
    return {"params": {"kernel": jnp.full(8, value)}}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    with Checkpoints(tmp_path) as checkpoints:
        for step in range(1, 8):
            checkpoints.save(step, tree(step), {"mean": ERRORS[step]} if step in ERRORS else None)
    return tmp_path


def test_the_last_two_and_the_best_are_kept(directory):
    assert sorted(path.name for path in directory.iterdir()) == ["4", "6", "7"]


@pytest.mark.parametrize(("which", "step"), [("latest", 7), ("best", 4)])
def test_either_is_restored(which, step, directory):
    with Checkpoints(directory) as checkpoints:
        assert checkpoints.step(which) == step
        assert float(checkpoints.restore(tree(0), which)["params"]["kernel"][0]) == step


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
            checkpoints.restore(tree(0), "best")
