"""Training on eight devices: the losses of one, at an eighth of the work and memory each."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emmi_jax.training.devices import Devices, Layout
from tests.jobs.tiny_runs import tiny_settings

REPOSITORY = Path(__file__).parents[2]
LAYOUTS = ("data=8", "tokens=8", "data=4,tokens=2 fsdp in two parts")

PROGRAM = """
import json, sys
import jax
from emmi_jax import AnchoredBranchedUPT
from emmi_jax.data.load import load_dataset
from emmi_jax.models.init import init_params
from emmi_jax.training.devices import Devices, Layout
from emmi_jax.training.settings import model_config
from emmi_jax.training.trainer import TrainSetup
from tests.jobs.tiny_runs import tiny_settings

sizes = {"num_anchors": 32, "num_queries": 16, "num_supernodes": 8, "geometry_depth": 1}
norms = {"norm": "rms", "qk_norm": True, "readout_norm": True}
settings = tiny_settings(None, batch_size=8, loss="rmse", **sizes, **norms)
dataset = load_dataset(settings)
normalizer = dataset.measure().normalizer(position_range=100.0)
config = model_config(settings, dataset.fields, features={"volume": {"x": 3}, "geometry": {"x": 3}})

def with_features(batch):
    add = lambda points: points._replace(features=points.position / 100)
    parts = ({**part, "volume": add(part["volume"])} for part in (batch.anchors, batch.queries))
    return batch._replace(**dict(zip(("anchors", "queries"), parts)), geometry=add(batch.geometry))

params = init_params(AnchoredBranchedUPT(config))
found = {}
for text in sys.argv[1:]:
    mesh, _, options = text.partition(" ")
    own = settings.updated({"optimizer": {"accumulation": 2 if "parts" in options else 1}})
    devices = Devices.make(own, Layout.parse(mesh, fsdp="fsdp" in options))
    trainer = TrainSetup.make(own, dataset, devices, config, normalizer)
    state, losses = trainer.init_state([params]), []
    compiled = trainer.train_step.lower(state, trainer.put(with_features(trainer.draw(0)))).compile()
    size = lambda tree: sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))
    bytes_of_state = size(state)
    for step in range(3):
        state, metrics = trainer.train_step(state, trainer.put(with_features(trainer.draw(step))))
        losses.append(float(metrics["loss"]))
    found[text] = {
        "losses": losses,
        "flops": compiled.cost_analysis()["flops"],
        "activations": compiled.memory_analysis().temp_size_in_bytes,
        "state": bytes_of_state,
        "num_traces": trainer.train_step._cache_size(),
    }
print(json.dumps(found))
"""


@functools.cache
def results() -> dict[str, Any]:
    environment = os.environ | {
        "XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM, "data=1", *LAYOUTS],
        capture_output=True, text=True, cwd=REPOSITORY, env=environment, timeout=600,
    )  # fmt: skip
    assert output.returncode == 0, output.stderr[-3000:]
    return json.loads(output.stdout.splitlines()[-1])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_losses_are_those_of_one_device_and_a_step_is_compiled_once(layout):
    found = results()
    np.testing.assert_allclose(found[layout]["losses"], found["data=1"]["losses"], rtol=1e-5)
    assert found[layout]["num_traces"] == 1


@pytest.mark.parametrize("layout", ["data=8", "tokens=8"])
def test_every_device_has_an_eighth_of_the_work_and_of_the_activations(layout):
    found = results()
    share = {name: found[layout][name] / found["data=1"][name] for name in ("flops", "activations")}
    assert share["flops"] < 1.6 / 8
    assert share["activations"] < 2 / 8


def test_with_fsdp_every_device_has_an_eighth_of_the_state():
    found = results()
    assert found["data=8"]["state"] == found["data=1"]["state"]
    assert found[LAYOUTS[2]]["state"] < 1.2 / 8 * found["data=1"]["state"]


@pytest.mark.parametrize("text", ["data", "data=0", "data=x", "rows=2", "data=2,data=4", "data=2;tokens=2", ""])
def test_a_mesh_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=f"got '{text}'"):
        Layout.parse(text)


@pytest.mark.parametrize(
    ("text", "layout"), [(None, Layout()), ("tokens=2", Layout(None, 2)), ("data=4, tokens=2", Layout(4, 2))]
)
def test_a_mesh_names_either_axis_or_both(text, layout):
    assert Layout.parse(text) == layout


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(data=4), "needs 4 devices, there are 1"),
        (Layout(tokens=3), "data=1,tokens=3 needs 3 devices, there are 1"),
    ],
)
def test_more_devices_than_there_are_are_refused(layout, message):
    with pytest.raises(ValueError, match=message):
        Devices.make(tiny_settings(None, batch_size=4), layout)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (Layout(data=3), "data=3 devices cannot share 4 cases equally"),
        (Layout(tokens=4), "tokens=4 devices cannot share num_anchors = 6 equally"),
    ],
)
def test_what_cannot_be_shared_equally_is_refused(layout, message, monkeypatch):
    monkeypatch.setattr("jax.device_count", lambda: 8)
    with pytest.raises(ValueError, match=message):
        Devices.make(tiny_settings(None, batch_size=4), layout)
