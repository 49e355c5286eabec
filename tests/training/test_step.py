import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.data.samples import Sample
from emmi_jax.models.init import init_params
from emmi_jax.points import PointSet
from emmi_jax.training.optimizer import learning_rates, make_optimizer
from emmi_jax.training.settings import TrainSettings
from emmi_jax.training.step import TrainState, field_losses, make_train_step

FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1}}


@pytest.fixture(scope="module")
def model() -> AnchoredBranchedUPT:
    blocks = {"physics_blocks": ("joint",), "decoder_depths": {}}
    return AnchoredBranchedUPT(AbUptConfig(dim=24, num_heads=2, fields=FIELDS, init_weights="torch", **blocks))


def make_points(rng: np.random.Generator, num_points: int) -> dict[str, PointSet]:
    return {
        branch: PointSet(
            rng.uniform(0, 100, size=(2, num_points, 3)).astype(np.float32),
            {name: rng.normal(size=(2, num_points, c)).astype(np.float32) for name, c in fields.items()},
        )
        for branch, fields in FIELDS.items()
    }


@pytest.fixture
def batch() -> Sample:
    rng = np.random.default_rng(0)
    return Sample(make_points(rng, 5), make_points(rng, 3))


@pytest.fixture(scope="module")
def params(model):
    return init_params(model, seed=0)


def predict(model, params, batch):
    return jax.jit(lambda params: model.apply({"params": params}, **batch.model_inputs()))(params)


def measure(model, params, batch):
    return jax.jit(lambda params: field_losses(model, params, batch))(params)


def test_loss_is_the_mean_squared_error_over_anchors_and_queries(model, params, batch):
    predictions, losses = predict(model, params, batch), measure(model, params, batch)
    assert set(losses) == {"surface/pressure", "volume/velocity", "volume/pressure"}
    squares = [
        np.square(predictions[f"{prefix}volume_velocity"] - part["volume"].fields["velocity"]).ravel()
        for prefix, part in (("", batch.anchors), ("query_", batch.queries))
    ]
    np.testing.assert_allclose(losses["volume/velocity"], np.concatenate(squares).mean(), rtol=1e-5)


def test_a_batch_without_queries_has_the_loss_of_its_anchors(model, params, batch):
    batch = batch._replace(queries={})
    error = predict(model, params, batch)["surface_pressure"] - batch.anchors["surface"].fields["pressure"]
    loss = measure(model, params, batch)["surface/pressure"]
    np.testing.assert_allclose(loss, np.square(error).mean(), rtol=1e-5)


def test_steps_lower_the_loss_whose_total_is_the_mean_of_the_fields(model, batch):
    optimizer = make_optimizer(TrainSettings(steps=40, learning_rate=1e-2))
    params = init_params(model, seed=0)
    state, step, rows = TrainState(params, optimizer.init(params)), make_train_step(model, optimizer), []
    for _ in range(40):
        state, metrics = step(state, batch)
        rows.append({name: float(value) for name, value in metrics.items()})
    assert rows[-1]["loss"] < 0.2 * rows[0]["loss"]
    fields = [rows[0][name] for name in ("surface/pressure", "volume/velocity", "volume/pressure")]
    np.testing.assert_allclose(rows[0]["loss"], np.mean(fields), rtol=1e-6)


def test_only_matrices_decay(model, params):
    optimizer = make_optimizer(TrainSettings(steps=10, learning_rate=1e-2, weight_decay=0.5, warmup_fraction=0.0))
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = optimizer.update(jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params)
    assert np.any(updates["volume_decoder"]["kernel"])
    assert not np.any(updates["volume_decoder"]["bias"])


def test_learning_rate_rises_then_falls_to_almost_zero():
    rates = learning_rates(TrainSettings(steps=101, learning_rate=2e-3, warmup_fraction=0.1))
    assert np.argmax(rates) == 10
    np.testing.assert_allclose(rates[10], 2e-3, rtol=1e-6)
    assert np.all(np.diff(rates[:10]) > 0)
    assert np.all(np.diff(rates[10:]) < 0)
    assert 0 < rates[-1] < 1e-2 * rates[10]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule(steps):
    rates = learning_rates(TrainSettings(steps=steps, learning_rate=1.0))
    assert rates.shape == (steps,)
    assert np.all((rates > 0) & (rates <= 1))
