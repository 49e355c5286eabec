"""The AB-UPT model compiled, rematerialised, in bfloat16, mapped, exported and at its published size."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export

from emmi_jax import (
    AbUptConfig,
    AnchoredBranchedUPT,
    Geometry,
)
from tests.models.ab_upt_cases import (
    CONFIG,
    FORWARD,
    MASKS,
    NUM_QUERIES,
    SMALL,
    TRACED,
    assert_same,
    make_inputs,
    predict,
    run,
    shapes,
    variables_of,
)
from tests.tolerances import TOLERANCES, assert_close


def test_equal_configurations_and_shapes_are_traced_once():
    first = run(CONFIG, variables_of(CONFIG), **make_inputs())
    traced = len(TRACED)
    again = AbUptConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict())))
    assert again is not CONFIG
    predicted = run(again, variables_of(CONFIG), **make_inputs(seed=1))
    assert len(TRACED) == traced
    assert np.abs(predicted["volume_velocity"] - first["volume_velocity"]).max() > 1e-3


def test_gradients_under_rematerialisation_equal_those_without():
    config = dataclasses.replace(SMALL, physics_blocks=("cross_untied",))
    inputs, variables = make_inputs(config, num_queries={}), variables_of(config)

    def gradient(config: AbUptConfig) -> Any:
        def loss(variables: Any) -> jax.Array:
            fields = AnchoredBranchedUPT(config).apply(variables, **inputs)
            return sum((field**2).sum() for field in fields.values())

        return jax.jit(jax.grad(loss))(variables)

    expected, actual = gradient(config), gradient(dataclasses.replace(config, remat=True))
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(assert_close, tolerance=FORWARD), actual, expected)


def test_rematerialisation_changes_neither_parameters_nor_caches():
    def tree(config: AbUptConfig) -> Any:
        model, inputs = AnchoredBranchedUPT(config), make_inputs(config)
        variables = jax.eval_shape(lambda: model.init(jax.random.key(0), **inputs))
        first = inputs | {"queries": None}
        _, cache = jax.eval_shape(lambda v: model.apply(v, mutable=["cache"], **first), variables)
        second = {"queries": inputs["queries"], "condition": inputs["condition"]}
        return variables, cache, jax.eval_shape(lambda v: model.apply(v, **second), variables | cache)

    assert tree(dataclasses.replace(CONFIG, remat=True)) == tree(CONFIG)


def test_drop_path_follows_its_key():
    dropping = dataclasses.replace(SMALL, drop_path_rate=0.5)
    inputs, variables = make_inputs(SMALL), variables_of(SMALL)
    first, again, other = (
        run(dropping, variables, deterministic=False, rngs={"dropout": jax.random.key(seed)}, **inputs)
        for seed in (0, 0, 2)
    )
    assert_same(first, again, 0.0)
    assert any((first[name] != other[name]).any() for name in first)


def test_bfloat16_stays_close_to_float32_with_float32_parameters():
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    inputs = make_inputs(SMALL)
    _, params = shapes(half, **inputs)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    predicted = run(half, variables_of(SMALL), **inputs)
    assert {field.dtype.name for field in predicted.values()} == {"bfloat16"}
    expected = predict(SMALL, **inputs)
    for name, field in predicted.items():
        assert_close(field.astype(jnp.float32), expected[name], 2 * TOLERANCES["bfloat16"].forward)


def test_vmap_equals_a_loop():
    cases = [make_inputs(SMALL, seed=seed) for seed in range(2)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *cases)
    variables = variables_of(SMALL)
    together = jax.jit(jax.vmap(lambda i: AnchoredBranchedUPT(SMALL).apply(variables, **i)))(stacked)
    for i, case in enumerate(cases):
        assert_same({name: field[i] for name, field in together.items()}, predict(SMALL, **case))


def test_model_exports_with_a_symbolic_batch_size():
    config = dataclasses.replace(SMALL, implementation="masked", vector_potentials={"volume": ("velocity",)})
    inputs = make_inputs(config) | {"anchor_masks": MASKS}
    (batch,) = export.symbolic_shape("b")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), inputs)
    apply = jax.jit(functools.partial(AnchoredBranchedUPT(config).apply, variables_of(SMALL)))
    exported = export.export(apply)(**shapes)
    fields = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    assert fields["query_volume_velocity"].shape == (batch, NUM_QUERIES["volume"], 3)


PUBLISHED = AbUptConfig(
    dim=192,
    num_heads=3,
    fields={
        "surface": {"pressure": 1, "wallshearstress": 3},
        "volume": {"totalpcoeff": 1, "velocity": 3, "vorticity": 3},
    },
)


def test_published_size_has_8_751_179_parameters_and_takes_its_published_inputs():
    positions = jax.ShapeDtypeStruct((1, 16_384, 3), jnp.float32)
    predicted, params = shapes(
        PUBLISHED,
        anchors=dict.fromkeys(PUBLISHED.branches, positions),
        queries=dict.fromkeys(PUBLISHED.branches, positions),
        geometry=Geometry(
            jax.ShapeDtypeStruct((1, 65_536, 3), jnp.float32), jax.ShapeDtypeStruct((1, 16_384), jnp.int32)
        ),
    )
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params)) == 8_751_179
    assert predicted == {
        f"{prefix}{branch}_{field}": (1, 16_384, channels)
        for prefix, (branch, fields) in itertools.product(("", "query_"), PUBLISHED.fields.items())
        for field, channels in fields.items()
    }
