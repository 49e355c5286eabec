"""What anchor attention means, without recorded figures: reach, padding, caches, transformations, traces."""

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
    ANCHOR_LAYOUTS,
    PORTABLE,
    Example,
    anchor_example,
    random_array,
    random_params,
    run_together,
    specs,
    take_freqs,
)
from tests.tolerances import TOLERANCES, assert_close

FORWARD, GRADIENT = TOLERANCES["float32"]
LAYOUT = ANCHOR_LAYOUTS["any_order"]
ANCHOR_ROWS, QUERY_ROWS = LAYOUT.rows(LAYOUT.anchors), LAYOUT.rows(LAYOUT.queries)
MASK = jnp.asarray(np.random.default_rng(3).random((2, LAYOUT.num_tokens)) < 0.6).at[:, ANCHOR_ROWS[0]].set(True)

every_kind = pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
every_implementation = pytest.mark.parametrize("implementation", PORTABLE)


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    jax.tree.map(lambda a, b: assert_close(a, b, tolerance), actual, expected)


# Reach -----------------------------------------------------------------------------------------------------------


@every_kind
@every_implementation
def test_queries_move_no_anchor_and_no_other_query(kind: str, implementation: str) -> None:
    example = anchor_example(kind, "any_order", implementation=implementation)
    (name, *_), before = LAYOUT.queries, np.asarray(example())
    perturbed = LAYOUT.rows([name])
    after = np.asarray(example(example.x.at[:, perturbed].add(1.0)))
    rest = np.delete(np.arange(LAYOUT.num_tokens), perturbed)
    np.testing.assert_array_equal(after[:, rest], before[:, rest])
    assert np.abs(after - before)[:, perturbed].max(axis=-1).min() > 1e-3


@every_kind
def test_anchors_move_exactly_the_groups_that_attend_to_them(kind: str) -> None:
    example = anchor_example(kind, "any_order")
    patterns = example.module._create_attention_patterns(example.token_specs)
    for anchors in LAYOUT.anchors:
        moved = example(example.x.at[:, LAYOUT.rows([anchors])].add(1.0)) - example()
        reached = {spec.name for spec in LAYOUT.token_specs if jnp.abs(moved[:, LAYOUT.rows([spec.name])]).max() > 1e-3}
        attending = {name for p in patterns if anchors in p.key_value_tokens for name in p.query_tokens}
        assert reached == attending | {anchors}


@every_kind
@every_implementation
def test_a_permutation_within_a_group_permutes_its_outputs_and_nothing_else(kind: str, implementation: str) -> None:
    example = anchor_example(kind, "any_order", implementation=implementation)
    for name in ("wing_anchors", "wake_queries"):
        order = np.arange(LAYOUT.num_tokens)
        order[LAYOUT.rows([name])] = np.roll(LAYOUT.rows([name]), 1)
        y = example.part(LAYOUT.token_specs, order)
        assert_close(y, example()[:, order], FORWARD)


# Padding ---------------------------------------------------------------------------------------------------------


# The last token of each group of more than one is padding.
ENDS = np.cumsum([spec.size for spec in LAYOUT.token_specs])
PADDING = [end - 1 for end, spec in zip(ENDS, LAYOUT.token_specs, strict=True) if spec.size > 1]
REAL = np.delete(np.arange(LAYOUT.num_tokens), PADDING)
KIND_AND_MASKING = [*((kind, True) for kind in ANCHOR_ATTENTIONS), ("self", False)]
TRUNCATED = tuple(TokenSpec(spec.name, spec.size - (spec.size > 1)) for spec in LAYOUT.token_specs)


@functools.cache
def padded_and_truncated(implementation: str) -> dict[tuple[str, bool], tuple[jax.Array, jax.Array]]:
    def run(key: tuple[str, bool], example: Example) -> tuple[jax.Array, jax.Array]:
        mask = MASK if key[1] else jnp.ones_like(MASK)
        # Inputs that would be noticed.
        x = example.x.at[:, PADDING].mul(100.0)
        padded = example(x, key_padding_mask=mask.at[:, PADDING].set(False))
        return padded, example.part(TRUNCATED, REAL, key_padding_mask=mask[:, REAL] if key[1] else None)

    examples = {k: anchor_example(k[0], "any_order", implementation=implementation) for k in KIND_AND_MASKING}
    return run_together(examples, run)


@pytest.mark.parametrize(("kind", "is_masked_inside"), KIND_AND_MASKING)
@every_implementation
def test_padding_equals_truncation(kind: str, implementation: str, is_masked_inside: bool) -> None:
    padded, truncated = padded_and_truncated(implementation)[kind, is_masked_inside]
    assert_close(padded[:, REAL], truncated, FORWARD)
    assert np.isfinite(padded).all()


@every_kind
@every_implementation
def test_nan_in_padding_reaches_nothing_real(kind: str, implementation: str) -> None:
    example = anchor_example(kind, "any_order", implementation=implementation)
    mask, x = MASK.at[:, PADDING].set(False), example.x.at[:, PADDING].set(jnp.nan)
    freqs = RopeFrequencies(*(f.at[:, PADDING].set(jnp.nan) for f in example.freqs))

    @jax.jit
    def output_and_gradients(x: jax.Array, freqs: RopeFrequencies) -> Any:
        def real_output(variables: Any, x: jax.Array) -> jax.Array:
            return example.uncompiled(variables, x, freqs)(key_padding_mask=mask)[:, REAL]

        y, pullback = jax.vjp(real_output, example.variables, x)
        return y, pullback(y)

    y, (params, dx) = output_and_gradients(x, freqs)
    assert_trees_close((y, (params, dx)), output_and_gradients(example.x, example.freqs), GRADIENT)
    assert not dx[:, PADDING].any()


@every_implementation
def test_nan_in_a_query_stays_in_its_row_and_in_anchors_in_its_pattern(implementation: str) -> None:
    example = anchor_example("self", "any_order", implementation=implementation)
    for name, reached in (("wake_queries", ["wake_queries"]), ("wing_anchors", ["wing_anchors", "wing_queries"])):
        y = example(example.x.at[:, LAYOUT.rows([name])].set(jnp.nan))
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(y).any(axis=(0, 2))), LAYOUT.rows(reached))


@every_implementation
def test_samples_may_be_padded_differently(implementation: str) -> None:
    example = anchor_example("cross", "any_order", implementation=implementation)
    y = example(key_padding_mask=MASK)
    for sample in range(2):
        mask = jnp.broadcast_to(MASK[sample], MASK.shape)
        assert_close(y[sample], example(key_padding_mask=mask)[sample], FORWARD)
    assert not np.allclose(y, example())


# Caches ----------------------------------------------------------------------------------------------------------


ANCHORS = (LAYOUT.only(LAYOUT.anchors), ANCHOR_ROWS)
QUERIES = (LAYOUT.cached_anchors, QUERY_ROWS)


def store(example: Example, key_padding_mask: jax.Array | None = None) -> tuple[jax.Array, dict[str, Any]]:
    """Output and caches of a call with the anchors alone."""
    mask = None if key_padding_mask is None else key_padding_mask[:, ANCHOR_ROWS]
    y, state = example.part(*ANCHORS, key_padding_mask=mask, mutable=("cache",))
    return y, state["cache"]


KIND_AND_MASK_USE = [(kind, "stored_and_given") for kind in ANCHOR_ATTENTIONS]
KIND_AND_MASK_USE += [("cross", use) for use in ("none", "stored", "given")]


@functools.cache
def cached_and_uncached(implementation: str) -> dict[tuple[str, str, str], tuple[jax.Array, jax.Array]]:
    def run(key: tuple[str, str, str], example: Example) -> tuple[jax.Array, jax.Array]:
        stored, given = (MASK if use in key[2] else None for use in ("stored", "given"))
        y, cache = store(example, stored)
        queries = example.part(*QUERIES, cache, key_padding_mask=None if given is None else given[:, QUERY_ROWS])
        return jnp.concatenate([y, queries], axis=1), example(key_padding_mask=stored)

    keys = [(kind, "float32", use) for kind, use in KIND_AND_MASK_USE] + [("self", "bfloat16", "stored")]
    examples = {k: anchor_example(k[0], "any_order", dtype=k[1], implementation=implementation) for k in keys}
    return run_together(examples, run)


@pytest.mark.parametrize(("kind", "mask_use"), KIND_AND_MASK_USE)
@every_implementation
def test_cached_equals_uncached(kind: str, implementation: str, mask_use: str) -> None:
    cached, uncached = cached_and_uncached(implementation)[kind, "float32", mask_use]
    assert_close(cached, uncached[:, np.concatenate([ANCHOR_ROWS, QUERY_ROWS])], FORWARD)


@every_implementation
def test_cached_equals_uncached_in_bfloat16(implementation: str) -> None:
    cached, uncached = cached_and_uncached(implementation)["self", "bfloat16", "stored"]
    assert cached.dtype == jnp.bfloat16
    assert_close(cached, uncached[:, np.concatenate([ANCHOR_ROWS, QUERY_ROWS])], TOLERANCES["bfloat16"].forward)


@every_implementation
def test_some_branches_may_be_cached_and_others_not(implementation: str) -> None:
    example = anchor_example("joint", "any_order", implementation=implementation)
    _, cache = store(example, MASK)
    token_specs = tuple(TokenSpec(s.name, None) if s.name == "wing_anchors" else s for s in LAYOUT.token_specs)
    rows = np.setdiff1d(np.arange(LAYOUT.num_tokens), LAYOUT.rows(["wing_anchors"]))
    y = example.part(token_specs, rows, cache, key_padding_mask=MASK[:, rows])
    assert_close(y, example(key_padding_mask=MASK)[:, rows], FORWARD)


@every_implementation
def test_caches_are_the_same_with_and_without_queries_in_the_call(implementation: str) -> None:
    example = anchor_example("cross", "any_order", implementation=implementation)
    _, alone = store(example, MASK)
    _, state = example(key_padding_mask=MASK, mutable=("cache",))
    assert set(alone["mixed_attention"]) == set(LAYOUT.anchors)
    assert jax.tree.map(jnp.shape, alone["mixed_attention"]["wing_anchors"]) == {
        "key": (2, 4, 2, 12),
        "value": (2, 4, 2, 12),
        "mask": (2, 4),
    }
    assert_trees_close(state["cache"], alone, FORWARD)


def test_caches_survive_a_call_that_reads_them() -> None:
    example = anchor_example("cross", "any_order")
    _, cache = store(example)
    y, state = example.part(*QUERIES, cache, mutable=("cache",))
    assert_trees_close(state["cache"], cache, 0.0)
    assert_close(y, example()[:, QUERY_ROWS], FORWARD)


@functools.cache
def gradients(implementation: str, *, is_cached: bool) -> Any:
    """Gradients with respect to parameters and inputs, of a call in two with caches or of one without."""
    example = anchor_example("cross", "any_order", implementation=implementation)

    @functools.partial(jax.grad, argnums=(0, 1))
    def loss(variables: Any, x: jax.Array, freqs: RopeFrequencies, cotangent: jax.Array) -> jax.Array:
        moved = example.uncompiled(variables, x, freqs)
        if not is_cached:
            return (moved() * cotangent).sum()
        y, cache = store(moved)
        return (y * cotangent[:, ANCHOR_ROWS]).sum() + (moved.part(*QUERIES, cache) * cotangent[:, QUERY_ROWS]).sum()

    return jax.jit(loss)(*example.arrays, random_array(np.random.default_rng(4), example.x.shape))


@every_implementation
def test_gradients_through_caches_equal_those_of_the_uncached_call(implementation: str) -> None:
    assert_trees_close(gradients(implementation, is_cached=True), gradients("masked", is_cached=False), GRADIENT)


@every_implementation
def test_any_group_of_mixed_attention_may_be_cached(implementation: str) -> None:
    module = MixedAttention(AttentionConfig(dim=24, num_heads=2, implementation=implementation))
    patterns = (AttentionPattern(("a", "c"), ("b", "a")), AttentionPattern(("b",), ("c",)))
    x = random_array(np.random.default_rng(0), (2, 9, 24))
    variables = random_params(module, x, specs(a=3, b=4, c=2), patterns)
    example = Example(module, variables, x, specs(a=3, b=4, c=2), None, patterns)
    y, state = example(mutable=("cache",))
    again = example.part(specs(a=None, b=None, c=2), np.arange(7, 9), state["cache"])
    assert_close(again, y[:, 7:], FORWARD)


def test_nothing_is_cached_at_initialisation_or_unasked() -> None:
    example = anchor_example("self", "any_order")
    shapes = jax.eval_shape(lambda: example.module.init(jax.random.key(0), example.x, *example.static, example.freqs))
    assert list(shapes) == ["params"]
    y, state = example(mutable=("intermediates",))
    assert not state
    assert y.shape == example.x.shape


def broken_caches() -> dict[str, tuple[Any, str]]:
    """Ways to break the entry of the wing's anchors, and what is said about it."""
    key, mask = jnp.zeros((2, 4, 2, 12)), jnp.ones((2, 4), bool)
    right = {"key": key, "value": key}
    wrong_key = r"cached key of .*'wing_anchors' must be float32 of shape \[2, S, 2, 12\], got "
    wrong_mask = r"cached mask of .*'wing_anchors' must be bool of shape \[2, 4\], got "
    return {
        "batch": ({"key": key[:1], "value": key[:1]}, wrong_key + r"float32 of shape \[1, 4, 2, 12\]"),
        "heads": ({"key": key[:, :, :1], "value": key[:, :, :1]}, wrong_key + r"float32 of shape \[2, 4, 1, 12\]"),
        "rank": ({"key": key[0], "value": key[0]}, wrong_key + r"float32 of shape \[4, 2, 12\]"),
        "dtype": ({"key": key.astype(jnp.bfloat16), "value": key}, wrong_key + r"bfloat16 of shape \[2, 4, 2, 12\]"),
        "length": ({"key": key, "value": key[:, :3]}, r"cached value of .*'wing_anchors' .*\[2, 3, 2, 12\]"),
        "mask_shape": (right | {"mask": mask[:, :3]}, wrong_mask + r"bool of shape \[2, 3\]"),
        "mask_dtype": (right | {"mask": mask.astype(jnp.float32)}, wrong_mask + r"float32 of shape \[2, 4\]"),
        "no_value": ({"key": key}, r"cache entry of .*'wing_anchors' must hold key, value .*got \['key'\]"),
        "more": (right | {"bias": key}, r"cache entry of .*'wing_anchors' .*\['bias', 'key', 'value'\]"),
        "an_array": (key, "cache entry of .*'wing_anchors' must hold key, value"),
    }


@pytest.mark.parametrize(
    "broken",
    ["batch", "heads", "rank", "dtype", "length", "mask_shape", "mask_dtype", "no_value", "more", "an_array"],
)
def test_a_cache_entry_that_does_not_fit_is_refused_by_naming_the_group(broken: str) -> None:
    example = anchor_example("self", "any_order")
    _, cache = store(example)
    entry, message = broken_caches()[broken]
    cache = {"mixed_attention": cache["mixed_attention"] | {"wing_anchors": entry}}
    with pytest.raises(ValueError, match=message):
        example.part(*QUERIES, cache)


@pytest.mark.parametrize("cache", ["nothing", "other_groups"])
def test_a_missing_cache_entry_is_named(cache: str) -> None:
    example = anchor_example("self", "any_order")
    entries = dict(store(example)[1]["mixed_attention"])
    del entries["wing_anchors"]
    given = None if cache == "nothing" else {"mixed_attention": entries}
    missing = "w[a-z]+_anchors|body_anchors" if cache == "nothing" else "wing_anchors"
    with pytest.raises(ValueError, match=f"token group '({missing})' has size None but no cache entry"):
        example.part(*QUERIES, given)


def test_a_foreign_cache_entry_is_named() -> None:
    example = anchor_example("self", "any_order")
    entries = store(example)[1]["mixed_attention"]
    cache = {"mixed_attention": entries | {"rocket_anchors": entries["wing_anchors"]}}
    with pytest.raises(ValueError, match="cache holds token group 'rocket_anchors', which is not in token_specs"):
        example.part(*QUERIES, cache)


# Transformations -------------------------------------------------------------------------------------------------


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


# Traces ----------------------------------------------------------------------------------------------------------


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
