"""Attention under scans, rematerialisation, vmap, export and jit, which traces equal modules once."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import (
    AnchorAttentionConfig,
    AttentionConfig,
    AttentionPattern,
    CrossAnchorAttention,
    MixedAttention,
    RopeFrequencies,
    SelfAnchorAttention,
    TokenSpec,
)
from tests.cases import (
    ANCHOR_ATTENTIONS,
    anchor_example,
    random_array,
    random_params,
    specs,
    take_freqs,
)
from tests.layers.attention_cases import (
    ANCHOR_ROWS,
    ANCHORS,
    FORWARD,
    GRADIENT,
    LAYOUT,
    QUERIES,
    QUERY_ROWS,
    assert_trees_close,
    every_implementation,
)
from tests.tolerances import assert_close


class Layers(nn.Module):
    """A residual layer of cross attention, as `nn.scan` wants it."""

    config: AnchorAttentionConfig
    token_specs: tuple[TokenSpec, ...]
    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, freqs: RopeFrequencies) -> tuple[jax.Array, None]:
        cls = nn.remat(CrossAnchorAttention) if self.remat else CrossAnchorAttention
        return x + cls(self.config, name="attention")(x, self.token_specs, freqs), None


NUM_LAYERS = 2
ScannedLayers = nn.scan(
    Layers,
    variable_axes={"params": 0, "cache": 0},
    split_rngs={"params": True},
    in_axes=nn.broadcast,
    length=NUM_LAYERS,
)


def stacked_params() -> dict[str, Any]:
    example, rng = anchor_example("cross", "any_order"), np.random.default_rng(5)
    params = {"attention": example.variables["params"]}
    return {"params": jax.tree.map(lambda a: 0.3 * random_array(rng, (NUM_LAYERS, *a.shape)), params)}


def loop(variables: Any, x: jax.Array, freqs: RopeFrequencies) -> jax.Array:
    module = anchor_example("cross", "any_order", implementation="masked").module
    for i in range(NUM_LAYERS):
        params = jax.tree.map(lambda a, i=i: a[i], variables["params"]["attention"])
        x = x + module.apply({"params": params}, x, LAYOUT.token_specs, freqs)
    return x


@functools.cache
def layers_with_gradients(implementation: str | None, *, use_remat: bool = False) -> tuple[jax.Array, Any]:
    """Output and gradients of scanned layers, or of the plain loop."""
    example = anchor_example("cross", "any_order", implementation=implementation or "masked")
    scanned = ScannedLayers(example.module.config, LAYOUT.token_specs, use_remat)

    @jax.jit
    def run(cotangent: jax.Array, freqs: RopeFrequencies, *primals: Any) -> tuple[jax.Array, Any]:
        def call(variables: Any, x: jax.Array) -> jax.Array:
            return scanned.apply(variables, x, freqs)[0] if implementation else loop(variables, x, freqs)

        y, pullback = jax.vjp(call, *primals)
        return y, pullback(cotangent)

    return run(random_array(np.random.default_rng(4), example.x.shape), example.freqs, stacked_params(), example.x)


LAYERS = [("masked", False), ("xla", True), ("blockwise", True)]


@pytest.mark.parametrize(("implementation", "use_remat"), LAYERS)
def test_scan_over_layers_and_remat_equal_the_plain_loop(implementation: str, use_remat: bool) -> None:
    y, gradients = layers_with_gradients(implementation, use_remat=use_remat)
    expected, expected_gradients = layers_with_gradients(None)
    assert_close(y, expected, FORWARD)
    assert_trees_close(gradients, expected_gradients, GRADIENT)


@pytest.mark.parametrize(("implementation", "use_remat"), LAYERS)
def test_scan_over_layers_stacks_caches_and_reads_them(implementation: str, use_remat: bool) -> None:
    example = anchor_example("cross", "any_order", implementation=implementation)

    @jax.jit
    def run(variables: Any, x: jax.Array, freqs: RopeFrequencies) -> Any:
        def part(token_specs: Any, rows: np.ndarray, state: Any, **kwargs: Any) -> Any:
            layers = ScannedLayers(example.module.config, token_specs, use_remat)
            return layers.apply(variables | state, x[:, rows], take_freqs(freqs, rows), **kwargs)

        (anchors, _), state = part(*ANCHORS, {}, mutable=["cache"])
        return anchors, part(*QUERIES, state)[0], state

    anchors, queries, state = run(stacked_params(), example.x, example.freqs)
    assert all(a.shape[0] == NUM_LAYERS for a in jax.tree.leaves(state["cache"]))
    expected, _ = layers_with_gradients(None)
    assert_close(anchors, expected[:, ANCHOR_ROWS], FORWARD)
    assert_close(queries, expected[:, QUERY_ROWS], FORWARD)


def test_scan_over_layers_initialises_every_layer_by_itself_and_caches_nothing() -> None:
    example = anchor_example("cross", "any_order")
    init = ScannedLayers(example.module.config, LAYOUT.token_specs).init
    variables = jax.jit(init)(jax.random.key(0), example.x, example.freqs)
    assert list(variables) == ["params"]
    kernel = variables["params"]["attention"]["mixed_attention"]["qkv"]["kernel"]
    assert kernel.shape == (NUM_LAYERS, 24, 72)
    assert not np.allclose(kernel[0], kernel[1])


@every_implementation
def test_vmap_over_inputs_and_over_parameters_equals_a_loop(implementation: str) -> None:
    example = anchor_example("cross", "any_order", implementation=implementation)
    rng = np.random.default_rng(6)
    x = random_array(rng, (3, *example.x.shape))
    variables = jax.tree.map(lambda a: 0.3 * random_array(rng, (3, *a.shape)), example.variables)
    moved = (dataclasses.replace(example, variables=jax.tree.map(lambda a, i=i: a[i], variables)) for i in range(3))
    looped = jnp.stack([layer(x[i]) for i, layer in enumerate(moved)])
    vmapped = jax.vmap(lambda variables, x, freqs: example.uncompiled(variables, x, freqs)(), in_axes=(0, 0, None))
    assert_close(jax.jit(vmapped)(variables, x, example.freqs), looped, FORWARD)


def test_compiled_equals_uncompiled() -> None:
    example = anchor_example("cross", "two_branches")
    y = jax.jit(example.module.apply)(example.variables, example.x, example.token_specs, example.freqs)
    assert_close(y, example.uncompiled(*example.arrays)(), FORWARD)


def test_specs_and_patterns_are_arguments_like_any_other() -> None:
    module = MixedAttention(AttentionConfig(dim=24, num_heads=2))
    arguments = (jnp.ones((2, 9, 24)), specs(a=3, b=4, c=2), [AttentionPattern(("a", "b", "c"), ("b", "a"))])
    shapes = jax.eval_shape(module.init, jax.random.key(0), *arguments)
    assert jax.eval_shape(module.apply, shapes, *arguments).shape == (2, 9, 24)


@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
def test_a_symbolic_batch_exports_by_default(kind: str) -> None:
    example = anchor_example(kind, "equal_sizes")
    (batch,) = jax.export.symbolic_shape("batch")
    variables, *arrays = jax.tree.map(jax.typeof, example.arrays)
    symbolic = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype), arrays)
    exported = jax.export.export(jax.jit(lambda *arrays: example.uncompiled(*arrays)()))(variables, *symbolic)
    assert_close(exported.call(*example.arrays), example(), FORWARD)


def test_the_same_specs_never_trace_twice() -> None:
    traced = []

    class Counting(SelfAnchorAttention):
        def _create_attention_patterns(self, token_specs: Any) -> Any:
            traced.append(token_specs)
            return super()._create_attention_patterns(token_specs)

    config = AnchorAttentionConfig(dim=24, num_heads=2, branches=("a",))
    module, x = Counting(config), jnp.ones((1, 5, 24))
    variables = random_params(module, x, specs(a_anchors=3, a_queries=2))
    apply = jax.jit(module.apply)
    traced.clear()
    for _ in range(3):
        apply(variables, x, specs(a_anchors=3, a_queries=2))
        apply(variables, x + 1.0, (TokenSpec("a_anchors", np.int64(3)), TokenSpec.from_dict({"a_queries": 2})))
    assert len(traced) == 1
    apply(variables, x, specs(a_anchors=2, a_queries=3))
    assert len(traced) == 2


def test_equal_modules_share_a_trace() -> None:
    traced = []

    @functools.partial(jax.jit, static_argnums=(0, 3))
    def apply(module: nn.Module, variables: Any, x: jax.Array, token_specs: Any) -> jax.Array:
        traced.append(module)
        return module.apply(variables, x, token_specs)

    x = jnp.ones((1, 5, 24))
    for _ in range(2):
        config = AnchorAttentionConfig(dim=24, num_heads=2, branches=["a"])  # type: ignore[arg-type]
        module = SelfAnchorAttention(config)
        apply(module, random_params(module, x, specs(a_anchors=5)), x, specs(a_anchors=5))
    assert len(traced) == 1
