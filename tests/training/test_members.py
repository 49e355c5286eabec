"""Members that train together: each is what it would be alone, on one device and on several; runs resume with them."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from emmi_jax.data.load import load_dataset
from emmi_jax.models.init import init_params
from emmi_jax.runs.load import load_run
from emmi_jax.training.devices import Devices, Layout
from emmi_jax.training.settings import model_config
from emmi_jax.training.trainer import TrainSetup
from tests.jobs.tiny_runs import run, tiny_settings
from tests.training.test_devices import REPOSITORY

OPTIONS = {"drop_path_rate": 0.3, "ema_decay": 0.5, "accumulation": 2, "dense_fraction": 0.5, "steps": 4} | {
    "physics_blocks": ("perceiver",)
}

PROGRAM = """
import json
import jax, numpy as np
from tests.training.test_members import trained
options = {"batch_size": 2, "dense_fraction": 0.0, "accumulation": 1, "steps": 2}
state, losses, mesh = trained(members=2, **options)
alone = [trained(seed=seed, **options)[0] for seed in range(2)]
together = jax.tree.map(lambda *leaves: np.stack(leaves), *alone)
gaps = jax.tree.map(lambda a, b: float(np.abs(np.asarray(a, np.float64) - b).max()), state, together)
print(json.dumps({"mesh": mesh, "gap": max(jax.tree.leaves(gaps))}))
"""


def trained(**changes):
    """The parameters after the last step, the losses, and the mesh."""
    settings = tiny_settings(None, **OPTIONS | changes)
    dataset = load_dataset(settings)
    normalizer = dataset.measure().normalizer(position_range=100.0)
    devices = Devices.make(settings, Layout())
    setup = TrainSetup.make(settings, dataset, devices, model_config(settings, dataset.fields), normalizer)
    state, losses = setup.init_state(), []
    for step in range(settings.steps):
        state, metrics = setup.train_step(state, setup.put(setup.draw(step)))
        losses.append(float(metrics["loss"]))
    return jax.device_get(state.trained_params), losses, dict(devices.mesh.shape)


@pytest.mark.parametrize("seed", [3])
def test_a_member_is_what_it_would_be_alone(seed):
    together, mean, mesh = trained(members=2, seed=seed)
    assert mesh == {"member": 1, "data": 1, "tokens": 1}
    losses = []
    for number in range(2):
        alone, of_member, _ = trained(seed=seed + number)
        losses.append(of_member)
        member = jax.tree.map(lambda leaf, number=number: leaf[number], together)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), member, alone)
    np.testing.assert_allclose(mean, np.mean(losses, axis=0), rtol=1e-4)


def test_members_share_eight_devices_and_stay_what_they_are():
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["mesh"]["member"] == 2
    assert found["gap"] < 1e-4


def test_a_run_of_members_resumes_and_predicts_their_mean(tmp_path: Path):
    settings = tiny_settings(None, members=2, steps=4, batch_size=1, checkpoint_every=2, physics_blocks=("perceiver",))
    outcome, printed = run(settings, tmp_path / "whole")
    assert outcome.signal_number is None
    assert "loss" in printed
    half = shutil.copytree(tmp_path / "whole", tmp_path / "half")
    shutil.rmtree(half / "checkpoints" / "4")
    run(settings, half, resume=True)
    whole, again = load_run(tmp_path / "whole"), load_run(half)
    assert len(whole.members) == 2
    jax.tree.map(np.testing.assert_array_equal, whole.params, again.params)
    jax.tree.map(np.testing.assert_array_equal, whole.others, again.others)
    assert not jax.tree.all(jax.tree.map(np.array_equal, whole.params, whole.others[0]))
    metrics = json.loads((tmp_path / "whole" / "metrics.json").read_text())
    assert metrics["test"]["surface/pressure_coefficient"]["relative_l2"] > 0


def test_members_start_from_one_model_or_each_from_its_own():
    settings = tiny_settings(None, members=2)
    dataset = load_dataset(settings)
    config = model_config(settings, dataset.fields)
    setup = TrainSetup.make(settings, dataset, Devices.make(settings, Layout()), config)
    each = [init_params(setup.model, seed=seed) for seed in (5, 6)]
    for given, expected in ((each, each), (each[1:], [each[1]] * 2)):
        params = setup.init_state(given).trained_params
        jax.tree.map(lambda found, *of: np.testing.assert_array_equal(found, np.stack(of)), params, *expected)


def test_members_with_sharded_parameters_are_refused():
    settings = tiny_settings(None, members=2)
    with pytest.raises(ValueError, match="2 members cannot be trained with --fsdp: train and join single runs"):
        Devices.make(settings, Layout(fsdp=True))
