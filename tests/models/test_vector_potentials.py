"""Fields declared as vector potentials: curls of what the network predicts, without divergence, else like any field."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, Geometry, SupernodePoolingConfig
from emmi_jax.inference.streaming import encode, predict
from emmi_jax.ops.curl import curl_by_token
from tests.cases import random_params
from tests.tolerances import TOLERANCES, assert_close

FORWARD = TOLERANCES["float32"].forward
PLAIN = AbUptConfig(
    dim=24,
    num_heads=2,
    fields={"surface": {"pressure": 1}, "volume": {"pressure": 1, "vorticity": 3}},
    physics_blocks=("perceiver", "cross"),
    decoder_depths={"volume": 1},
    geometry_depth=0,
    supernode_pooling=SupernodePoolingConfig(radius=None, k=2),
    mlp_ratio=1,
    # Long waves: the differences of the tests are of smooth functions.
    max_wavelength=1000,
)
CONFIG = dataclasses.replace(PLAIN, vector_potentials={"volume": ("vorticity",)})
MODEL = AnchoredBranchedUPT(CONFIG)
FIELDS = ("query_surface_pressure", "query_volume_pressure", "query_volume_vorticity")


def positions(num_points: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0, 20, (1, num_points, 3)).astype(np.float32)


INPUTS = {
    "anchors": {"surface": positions(4, 0), "volume": positions(5, 1)},
    "geometry": Geometry(positions(6, 2), np.arange(3, dtype=np.int32)[None]),
}
QUERIES = {"surface": positions(3, 3), "volume": positions(7, 4)}


@functools.cache
def variables() -> Any:
    return random_params(MODEL, **INPUTS)


@functools.cache
def predicted(config: AbUptConfig) -> dict[str, jax.Array]:
    return jax.jit(AnchoredBranchedUPT(config).apply)(variables(), **INPUTS, queries=QUERIES)


@functools.cache
def cache() -> Any:
    return jax.jit(functools.partial(MODEL.apply, mutable=["cache"]))(variables(), **INPUTS)[1]["cache"]


def at_query(name: str, model: AnchoredBranchedUPT = MODEL) -> Any:
    """The field at one position [3] of the volume, as a function of the position."""
    with_cache = variables() | {"cache": cache()}

    def field(position: jax.Array) -> jax.Array:
        return model.apply(with_cache, queries={"volume": position[None, None]})[f"query_volume_{name}"][0, 0]

    return field


def test_the_parameters_are_those_of_a_model_without_potentials():
    def shapes(config):
        return jax.eval_shape(lambda: AnchoredBranchedUPT(config).init(jax.random.key(0), **INPUTS, queries=QUERIES))

    assert jax.tree.map(np.shape, shapes(CONFIG)) == jax.tree.map(np.shape, shapes(PLAIN))


def test_all_other_fields_are_those_of_a_model_without_potentials():
    with_curls, without = predicted(CONFIG), predicted(PLAIN)
    assert set(with_curls) == set(without)
    for name in set(without) - {"volume_vorticity", "query_volume_vorticity"}:
        assert_close(with_curls[name], without[name], FORWARD)


def test_the_field_is_the_curl_of_the_network_by_differences():
    potential = jax.jit(jax.vmap(at_query("vorticity", AnchoredBranchedUPT(PLAIN))))
    step, points = 0.125, QUERIES["volume"][0]
    steps = {s: s * step * np.eye(3, dtype=np.float32) for s in (-2, -1, 1, 2)}
    moved = {s: [np.asarray(potential(points + by), np.float64) for by in steps[s]] for s in steps}
    # Fourth order: (8 (f(+1) - f(-1)) - (f(+2) - f(-2))) / 12.
    d = [(8 * (moved[1][i] - moved[-1][i]) - (moved[2][i] - moved[-2][i])) / (12 * step) for i in range(3)]
    curl = np.stack([d[1][:, 2] - d[2][:, 1], d[2][:, 0] - d[0][:, 2], d[0][:, 1] - d[1][:, 0]], axis=1)
    assert_close(predicted(CONFIG)["query_volume_vorticity"][0], curl, 2e-3)


def test_the_field_has_no_divergence():
    jacobian = np.asarray(jax.jit(jax.vmap(jax.jacfwd(at_query("vorticity"))))(QUERIES["volume"][0]), np.float64)
    divergence = np.trace(jacobian, axis1=1, axis2=2)
    sizes = np.abs(jacobian).sum(axis=(1, 2))
    assert sizes.min() > 1e-4
    assert (np.abs(divergence) <= 1e-6 * sizes).all(), np.abs(divergence / sizes).max()
    # The network's own channels have one, so the test would see it.
    plain = at_query("vorticity", AnchoredBranchedUPT(PLAIN))
    jacobian = np.asarray(jax.jit(jax.vmap(jax.jacfwd(plain)))(QUERIES["volume"][0]), np.float64)
    assert np.abs(np.trace(jacobian, axis1=1, axis2=2)).min() > 1e-3 * np.abs(jacobian).sum(axis=(1, 2)).max()


def test_an_anchor_has_the_curl_of_a_query_in_its_place():
    queries = {"volume": INPUTS["anchors"]["volume"]}
    outputs = jax.jit(MODEL.apply)(variables(), **INPUTS, queries=queries)
    assert_close(outputs["volume_vorticity"], outputs["query_volume_vorticity"], FORWARD)
    assert_close(predicted(CONFIG)["volume_vorticity"], outputs["volume_vorticity"], FORWARD)


@pytest.mark.parametrize("branches", [["volume"], ["surface"], ["surface", "volume"]])
def test_cached_anchors_give_the_same_field(branches):
    apply = jax.jit(functools.partial(MODEL.apply, anchors=None))
    outputs = apply(variables() | {"cache": cache()}, queries={branch: QUERIES[branch] for branch in branches})
    assert set(outputs) == {name for name in FIELDS if name.split("_")[1] in branches}
    for name, values in outputs.items():
        assert_close(values, predicted(CONFIG)[name], FORWARD)


def test_the_field_is_streamed():
    encoded = encode(
        MODEL,
        variables(),
        anchors={branch: position[0] for branch, position in INPUTS["anchors"].items()},
        geometry=Geometry(INPUTS["geometry"].position[0], INPUTS["geometry"].supernode_idx[0]),
    )
    fields = predict(MODEL, variables(), encoded, {"volume": QUERIES["volume"][0]}, chunk_size=3)
    assert_close(fields["volume_vorticity"], predicted(CONFIG)["query_volume_vorticity"][0], FORWARD)
    assert_close(fields["volume_pressure"], predicted(CONFIG)["query_volume_pressure"][0], FORWARD)


@pytest.mark.parametrize("remat", [False, True])
def test_every_parameter_that_moves_the_potential_is_trained(remat):
    model = AnchoredBranchedUPT(dataclasses.replace(CONFIG, remat=remat))

    def loss(params):
        outputs = model.apply({"params": params}, **INPUTS, queries=QUERIES)
        return jnp.square(outputs["query_volume_vorticity"]).sum() + jnp.square(outputs["volume_vorticity"]).sum()

    gradient = jax.jit(jax.grad(loss))(variables()["params"])
    flat = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree_util.tree_leaves_with_path(gradient)}
    assert all(np.isfinite(size) for size in flat.values())
    for part in ("volume_bias", "encoder", "physics_blocks_0", "physics_blocks_1", "volume_decoder"):
        assert max(size for name, size in flat.items() if part in name) > 1e-4, part


def test_drop_path_drops_the_same_blocks_at_anchors_and_queries():
    model = AnchoredBranchedUPT(dataclasses.replace(CONFIG, drop_path_rate=0.5))
    queries = {"volume": INPUTS["anchors"]["volume"]}

    def apply(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables(), **INPUTS, queries=queries, deterministic=False, rngs=rngs)

    outputs = [jax.jit(apply)(seed) for seed in range(3)]
    for output in outputs:
        for field in ("pressure", "vorticity"):
            assert_close(output[f"volume_{field}"], output[f"query_volume_{field}"], FORWARD)
    assert any(np.abs(outputs[0]["volume_vorticity"] - o["volume_vorticity"]).max() > 1e-3 for o in outputs[1:])


def test_a_masked_anchor_is_as_good_as_none():
    masks = {"volume": np.array([[True, True, True, True, False]])}
    other = INPUTS["anchors"] | {"volume": np.concatenate([INPUTS["anchors"]["volume"][:, :4], positions(1, 9)], 1)}
    apply = jax.jit(functools.partial(MODEL.apply, variables()))
    first, second = (
        apply(**INPUTS | {"anchors": anchors}, queries=QUERIES, anchor_masks=masks)
        for anchors in (INPUTS["anchors"], other)
    )
    for name in FIELDS:
        np.testing.assert_array_equal(first[name], second[name])
    assert np.abs(first["query_volume_vorticity"] - predicted(CONFIG)["query_volume_vorticity"]).max() > 1e-3


def test_a_masked_supernode_is_as_good_as_none():
    apply, mask = jax.jit(functools.partial(MODEL.apply, variables())), np.array([[True, True, False]])
    first, second = (
        apply(**INPUTS | {"geometry": INPUTS["geometry"]._replace(supernode_idx=idx, mask=mask)}, queries=QUERIES)
        for idx in (np.array([[0, 1, 2]]), np.array([[0, 1, -1]]))
    )
    for name in FIELDS:
        np.testing.assert_array_equal(first[name], second[name])
    assert np.abs(first["query_volume_vorticity"] - predicted(CONFIG)["query_volume_vorticity"]).max() > 1e-3


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        ({"wing": positions(3, 0)}, "queries name the unknown branches ['wing']"),
        (
            {"volume": positions(3, 0)[0]},
            "queries['volume'] must be float32 of shape [batch, tokens, 3], got float32 of shape [3, 3]",
        ),
        ({"volume": positions(3, 0)[..., :2]}, "of shape [batch, tokens, 3], got float32 of shape [1, 3, 2]"),
    ],
)
@pytest.mark.parametrize("is_cached", [False, True])
def test_queries_that_do_not_fit_are_named(queries, message, is_cached):
    inputs = {} if is_cached else INPUTS
    with pytest.raises(ValueError, match=re.escape(message)):
        jax.eval_shape(lambda: MODEL.apply(variables() | {"cache": cache()}, **inputs, queries=queries))


def test_curls_of_blockwise_attention_are_those_of_dense_attention():
    config = dataclasses.replace(CONFIG, implementation="blockwise")
    assert_close(predicted(config)["query_volume_vorticity"], predicted(CONFIG)["query_volume_vorticity"], FORWARD)


def test_the_curl_of_a_known_field_is_exact():
    def potential(p):
        x, y, z = p["a"][..., 0], p["a"][..., 1], p["a"][..., 2]
        return {"a": jnp.stack([y * z, x * x, x * y], axis=-1)}, {"other": x}

    p = positions(4, 5)
    curls, others = curl_by_token(potential, {"a": jnp.asarray(p)})
    x, y, z = p[..., 0], p[..., 1], p[..., 2]
    np.testing.assert_allclose(curls["a"], np.stack([x, y - y, 2 * x - z], axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(others["other"], x)


def test_the_configuration_goes_through_json():
    again = AbUptConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict())))
    assert again == CONFIG
    assert hash(again) == hash(CONFIG)
    assert again != PLAIN
    assert dataclasses.replace(CONFIG, vector_potentials={"volume": []}) == PLAIN


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vector_potentials": {"volume": ("velocity",)}}, "names volume/velocity, which is not in fields"),
        ({"vector_potentials": {"wing": ("vorticity",)}}, "names wing/vorticity, which is not in fields"),
        ({"vector_potentials": {"volume": "vorticity"}}, "must be a sequence of names, got 'vorticity'"),
        ({"vector_potentials": {"volume": ("pressure",)}}, "volume/pressure has 1 channels and num_position_axes=3"),
        ({"num_position_axes": 2}, "volume/vorticity has 3 channels and num_position_axes=2"),
    ],
)
def test_what_cannot_be_a_potential_is_named(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        dataclasses.replace(CONFIG, **changes)
