"""A flipped or truncated file of a run gives the same fields or one line, never other numbers."""

import contextlib
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from emmi_jax import load_run
from tests.jobs.tiny_runs import run, tiny_settings, write_case

pytestmark = pytest.mark.faults

NUM_FAULTS = int(os.environ.get("EMMI_JAX_FAULTS", "25"))
POINTS = np.random.default_rng(1).uniform(-1, 1, size=(20, 3))


def flipped(content: bytes, rng: random.Random) -> bytes:
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def truncated(content: bytes, rng: random.Random) -> bytes:
    return content[: rng.randrange(len(content))]


def zeroed(content: bytes, rng: random.Random) -> bytes:
    start = rng.randrange(len(content))
    return content[:start] + bytes(len(content[start : start + 512])) + content[start + 512 :]


def fields(path: Path) -> dict[str, np.ndarray]:
    return load_run(path).encode().predict({"volume": POINTS})


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults")
    run(tiny_settings(write_case(folder / "case.npz"), steps=4), folder / "run")
    return folder / "run"


def test_damaged_bytes_of_a_run_never_give_other_fields(finished, tmp_path):
    rng, expected, handled = random.Random(0), fields(finished), 0
    files = [path for part in ("config.json", "context.npz", "checkpoints/4/params", "checkpoints/4/record")
             for path in ([finished / part] if (finished / part).is_file() else (finished / part).rglob("*"))
             if path.is_file() and path.stat().st_size]  # fmt: skip
    for number in range(NUM_FAULTS):
        damaged = shutil.copytree(finished, tmp_path / str(number))
        file = damaged / rng.choice(files).relative_to(finished)
        damage = rng.choice([flipped, truncated, zeroed])
        file.write_bytes(damage(file.read_bytes(), rng))
        with contextlib.suppress(ValueError, OSError):
            found = fields(damaged)
            if file.name != "config.json":  # which a person may edit, so it has no checksum
                np.testing.assert_equal(found, expected, err_msg=f"{number} {file} {damage.__name__}")
        handled += 1
        shutil.rmtree(damaged)
    print(f"{NUM_FAULTS} damaged files, {handled} handled")
