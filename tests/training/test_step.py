import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT
from emmi_jax.config import OptimizerSettings, TrainSettings
from emmi_jax.data.samples import Sample
from emmi_jax.models.init import init_params
from emmi_jax.points import PointSet
from emmi_jax.training.devices import Devices, Layout
from emmi_jax.training.optimizer import learning_rates, make_optimizer
from emmi_jax.training.step import TrainState, field_errors, init_state, make_train_step

FIELDS = {"surface": {"pressure": 1}, "volume": {"velocity": 3, "pressure": 1}}


@pytest.fixture(scope="module")
def model() -> AnchoredBranchedUPT:
    options = {"physics_blocks": ("joint",), "decoder_depths": {}, "init_weights": "torch", "option_scope": "all"}
    return AnchoredBranchedUPT(AbUptConfig(dim=24, num_heads=2, fields=FIELDS, **options))


def make_points(rng: np.random.Generator, num_points: int) -> dict[str, PointSet]:
    return {
        branch: PointSet(
            rng.uniform(0, 100, size=(2, num_points, 3)).astype(np.float32),
            {name: rng.normal(size=(2, num_points, c)).astype(np.float32) for name, c in fields.items()},
        )
        for branch, fields in FIELDS.items()
    }


@pytest.fixture(scope="module")
def batch() -> Sample:
    rng = np.random.default_rng(0)
    return Sample(make_points(rng, 5), make_points(rng, 3))


@pytest.fixture(scope="module")
def params(model):
    return init_params(model, seed=0)


def predict(model, params, batch):
    return jax.jit(lambda params: model.apply({"params": params}, **batch.model_inputs()))(params)


def measure(model, params, batch):
    """Errors of the fields, averaged over the cases."""
    return {name: errors.mean() for name, errors in jax.jit(lambda: field_errors(model, params, batch))().items()}


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


def make_settings(steps: int = 40, loss_weights: dict[str, float] | None = None, **optimizer: object) -> TrainSettings:
    return TrainSettings(steps=steps, loss_weights=loss_weights or {}, optimizer=OptimizerSettings(**optimizer))


def train(model, batch, settings: TrainSettings, num_steps: int) -> tuple[list[TrainState], list[dict[str, float]]]:
    """States after each step, and their metrics."""
    optimizer = make_optimizer(settings)
    state = init_state(init_params(model, seed=0), optimizer, settings.optimizer)
    step = make_train_step(model, optimizer, settings, Devices.make(settings, Layout()))
    states, rows = [], []
    for _ in range(num_steps):
        state, metrics = step(state, batch)
        states.append(jax.tree.map(np.asarray, state))
        rows.append({name: float(value) for name, value in metrics.items()})
    return states, rows


@pytest.fixture(scope="module")
def first_step(model, batch) -> tuple[TrainState, dict[str, float]]:
    """State and metrics of one step under the default settings."""
    (state,), (row,) = train(model, batch, make_settings(), 1)
    return state, row


@pytest.fixture(scope="module", params=[("adamw", 1e-2), ("lion", 2e-3), ("muon", 1e-2)], ids=lambda param: param[0])
def averaged(request, model, batch) -> tuple[list[TrainState], list[dict[str, float]]]:
    """States and metrics of 40 steps of every optimizer, with averaged parameters."""
    name, learning_rate = request.param
    return train(model, batch, make_settings(name=name, learning_rate=learning_rate, ema_decay=0.75), 40)


def test_steps_of_every_optimizer_lower_the_loss(averaged):
    _, rows = averaged
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]


def test_averaged_parameters_are_the_exponential_mean_of_those_after_each_step(averaged):
    states = averaged[0][:3]
    weights = np.array([0.75**2, 0.75, 1.0])

    def check(average, *values):
        expected = np.average(values, axis=0, weights=weights)
        np.testing.assert_allclose(average, expected, rtol=1e-5, atol=1e-7)

    jax.tree.map(check, states[-1].ema, *(state.params for state in states))
    assert states[-1].trained_params is states[-1].ema


def test_total_loss_is_the_weighted_mean_of_the_fields(model, batch, first_step):
    loss_weights = {"volume/velocity": 3.0, "surface/pressure": 0.0}
    _, (weighted,) = train(model, batch, make_settings(loss_weights=loss_weights), 1)
    for row, weights in ((first_step[1], {}), (weighted, loss_weights)):
        names = ("surface/pressure", "volume/velocity", "volume/pressure")
        expected = np.average([row[name] for name in names], weights=[weights.get(name, 1.0) for name in names])
        np.testing.assert_allclose(row["loss"], expected, rtol=1e-6)


def test_rmse_is_the_mean_over_cases_of_the_root_of_their_errors(model, params, batch):
    _, (row,) = train(model, batch, dataclasses.replace(make_settings(), loss="rmse"), 1)
    for name, errors in jax.jit(lambda: field_errors(model, params, batch))().items():
        np.testing.assert_allclose(row[name], np.sqrt(errors).mean(), rtol=1e-5)


def test_rmse_of_a_perfect_prediction_has_a_finite_gradient(model, params, batch):
    predictions = predict(model, params, batch)
    exact = batch._replace(
        anchors={
            branch: points._replace(fields={name: predictions[f"{branch}_{name}"] for name in points.fields})
            for branch, points in batch.anchors.items()
        },
        queries={},
    )
    _, (row,) = train(model, exact, dataclasses.replace(make_settings(), loss="rmse"), 1)
    assert np.isfinite(row["gradient_norm"])


def test_a_batch_in_parts_has_the_step_of_the_whole(model, batch, first_step):
    whole, row = first_step
    (parts,), (row_of_parts,) = train(model, batch, make_settings(accumulation=2), 1)
    for name, value in row.items():
        np.testing.assert_allclose(row_of_parts[name], value, rtol=1e-4)
    moments = [jax.tree.leaves(state.opt_state) for state in (whole, parts)]
    for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


def test_loss_and_state_are_float32_under_a_half_precision_model(model, batch, first_step):
    half = AnchoredBranchedUPT(dataclasses.replace(model.config, dtype="bfloat16"))
    (state,), (row,) = train(half, batch, make_settings(ema_decay=0.9), 1)
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.params, state.ema))} == {"float32"}
    np.testing.assert_allclose(row["loss"], first_step[1]["loss"], rtol=0.02)
    shapes = jax.eval_shape(lambda: field_errors(half, init_params(half, seed=0), batch))
    assert {loss.dtype.name for loss in shapes.values()} == {"float32"}


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_half_precision_parameters_have_a_wide_average_and_optimizer(batch, model, name):
    half = AnchoredBranchedUPT(dataclasses.replace(model.config, param_dtype="bfloat16", dtype="float32"))
    settings = make_settings(name=name, ema_decay=0.9)
    start = init_state(init_params(half), make_optimizer(settings), settings.optimizer)
    (state,), _ = train(half, batch, settings, 1)
    assert jax.tree.map(lambda a: a.dtype, state) == jax.tree.map(lambda a: a.dtype, start)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.params)} == {"bfloat16"}
    assert {leaf.dtype.name for leaf in jax.tree.leaves((state.ema, state.opt_state))} == {"float32", "int32"}


def test_drop_path_depends_on_seed_and_step_and_a_resumed_run_draws_the_same(model, batch):
    dropping = AnchoredBranchedUPT(dataclasses.replace(model.config, drop_path_rate=0.5))
    settings = make_settings(learning_rate=1e-30)  # the parameters stay, so losses differ by drop path alone
    optimizer = make_optimizer(settings)
    devices = Devices.make(settings, Layout())
    steps = [make_train_step(dropping, optimizer, dataclasses.replace(settings, seed=seed), devices) for seed in (0, 1)]

    def losses(seed: int, state: TrainState, num_steps: int) -> tuple[TrainState, list[float]]:
        found = []
        for _ in range(num_steps):
            state, metrics = steps[seed](jax.tree.map(jnp.copy, state), batch)
            found.append(float(metrics["loss"]))
        return state, found

    start = init_state(init_params(model, seed=0), optimizer, settings.optimizer)
    middle, first = losses(0, start, 3)
    _, rest = losses(0, middle, 5)
    assert losses(0, start, 8)[1] == first + rest
    assert losses(1, start, 8)[1] != first + rest
    assert len({round(loss, 5) for loss in first + rest}) > 3


def test_only_matrices_decay(model, params):
    optimizer = make_optimizer(make_settings(steps=10, learning_rate=1e-2, weight_decay=0.5, warmup_fraction=0.0))
    with jax.numpy_dtype_promotion("standard"):
        gradient = jax.tree.map(np.zeros_like, params)
        updates, _ = jax.jit(lambda params: optimizer.update(gradient, optimizer.init(params), params))(params)
    assert np.any(updates["volume_decoder"]["kernel"])
    assert not np.any(updates["volume_decoder"]["bias"])


def test_learning_rate_rises_then_falls_to_almost_zero():
    rates = learning_rates(make_settings(steps=101, learning_rate=2e-3, warmup_fraction=0.1))
    assert np.argmax(rates) == 9
    np.testing.assert_allclose(rates[:10], 2e-4 * np.arange(1, 11), rtol=1e-6)
    assert np.all(np.diff(rates[9:]) < 0)
    np.testing.assert_allclose(rates[-1], 1e-3 * rates[9], rtol=1e-4)


@pytest.mark.parametrize(
    ("schedule", "middle", "last"), [("linear", 0.55, 0.1), ("constant", 1.0, 1.0), ("cosine", 0.55, 0.1)]
)
def test_schedules_end_where_they_should(schedule, middle, last):
    rates = learning_rates(
        make_settings(1000, schedule=schedule, learning_rate=1.0, final_fraction=0.1, warmup_fraction=0)
    )
    np.testing.assert_allclose(rates[500], middle, atol=0.01)
    np.testing.assert_allclose(rates[-1], last, rtol=1e-5)


def test_a_warm_up_over_all_steps_reaches_the_peak():
    rates = learning_rates(make_settings(10, schedule="constant", learning_rate=1.0, warmup_fraction=1.0))
    np.testing.assert_allclose(rates, 0.1 * np.arange(1, 11), rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs_have_a_schedule(steps):
    rates = learning_rates(make_settings(steps=steps, learning_rate=1.0))
    assert rates.shape == (steps,)
    assert np.all((rates > 0) & (rates <= 1))


def test_looped_iterations_of_muon_are_those_that_optax_unrolls():
    settings = TrainSettings(optimizer=OptimizerSettings(name="muon", learning_rate=1e-2, b2=0.95), steps=10)
    rng = np.random.default_rng(0)
    params, grads = ({"kernel": jnp.asarray(rng.normal(size=(24, 16)), jnp.float32)} for _ in range(2))
    rate = float(learning_rates(settings)[0])
    default = optax.contrib.muon(rate, weight_decay=settings.optimizer.weight_decay, adam_b2=0.95, consistent_rms=0.2)
    default = optax.chain(optax.clip_by_global_norm(settings.optimizer.clip_norm), default)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        found, expected = (
            transformation.update(grads, transformation.init(params), params)[0]["kernel"]
            for transformation in (make_optimizer(settings), default)
        )
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("companion", ["adamw", "lion"])
def test_muon_leaves_all_but_matrices_to_its_companion(companion):
    rng = np.random.default_rng(0)
    params, grads = (
        {"kernel": jnp.asarray(rng.normal(size=(24, 16)), jnp.float32), "bias": jnp.asarray(rng.normal(size=16))}
        for _ in range(2)
    )
    options = {"learning_rate": 0.01, "weight_decay": 0.01, "b2": 0.95, "clip_norm": 1e9}
    muon = TrainSettings(
        optimizer=OptimizerSettings(
            name="muon",
            companion=companion,
            companion_learning_rate=5e-5,
            companion_weight_decay=0.05,
            muon_scale="shape",
            **options,
        )
    )
    alone = TrainSettings(optimizer=OptimizerSettings(name="lion", **options | {"learning_rate": 5e-5}))
    first = float(learning_rates(alone)[0])
    rest = {"adamw": functools.partial(optax.nadamw, eps=1e-8), "lion": optax.lion}[companion](
        first, b1=0.9, b2=0.95, weight_decay=0.05
    )
    matrices = optax.contrib.muon(float(learning_rates(muon)[0]), weight_decay=0.01)
    with jax.numpy_dtype_promotion("standard"):  # optax raises floats to integer powers
        optimizer = make_optimizer(muon)
        found, _ = optimizer.update(grads, optimizer.init(params), params)
        for name, transformation in (("kernel", matrices), ("bias", rest)):
            one, grad = {name: params[name]}, {name: grads[name]}
            expected, _ = transformation.update(grad, transformation.init(one), one)
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-9)


def test_points_without_a_value_are_left_out_of_the_loss_exactly(model, batch):
    """Two values of a case are unknown, and all of the other case."""
    anchors, queries = (jax.tree.map(np.array, part) for part in (batch.anchors, batch.queries))
    velocity = anchors["volume"].fields["velocity"], queries["volume"].fields["velocity"]
    velocity[0][0, 2, 1] = velocity[1][0, 0] = velocity[0][1] = velocity[1][1] = np.nan
    settings = dataclasses.replace(make_settings(), data="cases", mask_nan=True)
    _, (row,) = train(model, Sample(anchors, queries), settings, 1)
    predictions = predict(model, init_params(model, seed=0), batch)
    errors = [predictions[f"{p}volume_velocity"][0] - v[0] for p, v in zip(("", "query_"), velocity, strict=True)]
    known = np.delete(np.concatenate(errors), [2, 5], axis=0)
    np.testing.assert_allclose(row["volume/velocity"], np.square(known).mean(), rtol=1e-5)
    assert np.isfinite(row["gradient_norm"])
