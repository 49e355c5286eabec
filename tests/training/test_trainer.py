from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax.data.load import load_dataset
from emmi_jax.ops.neighbors import nearest_neighbors, radius_neighbors
from emmi_jax.training.devices import Devices, Layout
from emmi_jax.training.settings import model_config
from emmi_jax.training.trainer import TrainSetup
from tests.jobs.tiny_runs import tiny_settings


def make_trainer(workers: int, pooling: dict | None = None, **changes: Any) -> TrainSetup:
    changes |= {} if pooling is None else {"supernode_pooling": pooling}
    settings = tiny_settings(None, physics_blocks=("perceiver",), dim=12, num_heads=1, **changes)
    dataset = load_dataset(settings)
    normalizer = dataset.measure().normalizer(position_range=100.0)
    devices = Devices.make(settings, Layout(data=1))
    return TrainSetup.make(
        settings, dataset, devices, model_config(settings, dataset.fields), normalizer, workers=workers
    )


def test_the_last_steps_have_twice_as_many_points_and_the_others_are_as_without():
    plain, dense = make_trainer(0), make_trainer(0, dense_fraction=0.5)  # of 6 steps
    jax.tree.map(np.testing.assert_array_equal, plain.draw(2), dense.draw(2))
    sizes = [[a.shape[1] for a in jax.tree.leaves(t.draw(3)[:2])] for t in (plain, dense)]
    assert [2 * size for size in sizes[0]] == sizes[1]


@pytest.mark.parametrize("pooling", [{"radius": None, "k": 4}, {"radius": 20.0, "max_degree": 5}], ids=["k", "radius"])
def test_batches_carry_the_neighbours_that_the_device_would_find(pooling):
    trainer = make_trainer(2, pooling)
    geometry = trainer.draw(3).geometry
    assert geometry is not None
    options = {name: value for name, value in pooling.items() if value is not None}
    search = radius_neighbors if pooling["radius"] else nearest_neighbors
    expected = search(geometry.position.astype(np.float32), geometry.supernode_idx, **options)
    jax.tree.map(np.testing.assert_array_equal, geometry.neighbors, expected)


def test_neighbours_are_all_that_changes_in_batches_and_a_step_takes_them():
    on_device, on_host = (list(make_trainer(number).batches(0, 3)) for number in (0, 2))
    for one, other in zip(on_device, on_host, strict=True):
        assert one.geometry is not None
        assert other.geometry is not None
        assert (one.geometry.neighbors is None, other.geometry.neighbors is None) == (True, False)
        jax.tree.map(np.testing.assert_array_equal, one, other._replace(geometry=one.geometry))
    trainer = make_trainer(2)
    _, metrics = jax.eval_shape(trainer.train_step, trainer.state, on_host[0])
    assert metrics["loss"].shape == ()


def test_only_batches_of_steps_that_load_a_program_are_awaited(monkeypatch):
    trainer, waited = make_trainer(0, dense_fraction=0.5), []
    monkeypatch.setattr(
        jax, "block_until_ready", lambda batch: waited.append(batch.anchors["surface"].position) or batch
    )
    sizes = [batch.anchors["surface"].position.shape for batch in trainer.batches(1, 6)]
    assert [position.shape for position in waited] == [sizes[0], sizes[2]]
    assert sizes[0] != sizes[2]
