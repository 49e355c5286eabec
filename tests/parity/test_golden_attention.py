"""Every implementation reproduces the recorded figures of the attention layers, forward and backward."""

from __future__ import annotations

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
    DotProductAttention,
    JointAnchorAttention,
    MixedAttention,
    SelfAnchorAttention,
    TokenSpec,
    rope_frequencies,
)
from emmi_jax.convert import params_from_torch
from tests.cases import PORTABLE
from tests.golden_files import Golden, golden_names, load_golden
from tests.tolerances import TOLERANCES, assert_close

FORWARD, GRADIENT = TOLERANCES["float32"]
ANCHOR_KINDS = {
    "self_anchor_attention": SelfAnchorAttention,
    "cross_anchor_attention": CrossAnchorAttention,
    "joint_anchor_attention": JointAnchorAttention,
}
NAMES = golden_names("self_anchor", "cross_anchor", "joint_anchor", "mixed", "dot_product")
NAMES_2026 = [name for name in NAMES if "_2026_" in name]
NAMES_MASKED = [*NAMES_2026, "self_anchor_main_0"]
NAMES_CACHED = [*NAMES_2026, *[name for name in NAMES if "_main_" in name and name != "dot_product_main_0"]]
NAMES_WITH_GRADIENTS = [name for name in NAMES if "_2026_" not in name]

every_implementation = pytest.mark.parametrize("implementation", PORTABLE)


def build(meta: dict[str, Any], implementation: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """The module of a recorded case, and its arguments between x and freqs."""
    names = ("dim", "num_heads", "use_rope", "bias", "qk_norm", "branches", "anchor_suffix")
    values = {name: meta[name] for name in names if name in meta}
    values |= {"implementation": implementation, "precision": "highest"}
    if meta["kind"] == "dot_product_attention":
        return DotProductAttention(AttentionConfig(**values)), ()
    token_specs = tuple(TokenSpec(name, size) for name, size in meta["token_specs"])
    if meta["kind"] == "mixed_attention":
        patterns = tuple(AttentionPattern(tuple(q), tuple(k)) for q, k in meta["patterns"])
        return MixedAttention(AttentionConfig(**values)), (token_specs, patterns)
    return ANCHOR_KINDS[meta["kind"]](AnchorAttentionConfig(**values)), (token_specs,)


def frequencies(golden: Golden) -> Any:
    if not golden.meta["use_rope"]:
        return None
    return rope_frequencies(jnp.asarray(golden.inputs["pos"]), golden.meta["dim"] // golden.meta["num_heads"])


@functools.cache
def results(implementation: str) -> dict[str, Any]:
    """Output and gradients of every case; compiled together, which takes a third of the time."""
    goldens = {name: load_golden(name) for name in NAMES}
    arrays = {
        name: (params_from_torch(g.params), g.inputs["x"], frequencies(g), g.cotangents.get("y"))
        for name, g in goldens.items()
    }

    def run_case(golden: Golden, params: Any, x: jax.Array, freqs: Any, cotangent: jax.Array | None) -> Any:
        module, static = build(golden.meta, implementation)
        y, pullback = jax.vjp(lambda params, x: module.apply({"params": params}, x, *static, freqs), params, x)
        return y, None if cotangent is None else pullback(cotangent)

    @jax.jit
    def run(arrays: dict[str, Any]) -> dict[str, Any]:
        return {name: run_case(goldens[name], *args) for name, args in arrays.items()}

    return run(arrays)


def test_there_are_recorded_cases_of_every_kind() -> None:
    kinds = {load_golden(name).meta["kind"] for name in NAMES}
    assert kinds == {*ANCHOR_KINDS, "mixed_attention", "dot_product_attention"}
    assert len(NAMES_2026) == 2


@pytest.mark.parametrize("name", NAMES)
@every_implementation
def test_output_matches_the_recorded_one(name: str, implementation: str) -> None:
    y, _ = results(implementation)[name]
    assert_close(y, load_golden(name).outputs["y"], FORWARD)


@pytest.mark.parametrize("name", NAMES_WITH_GRADIENTS)
@every_implementation
def test_gradients_of_input_and_parameters_match_the_recorded_ones(name: str, implementation: str) -> None:
    _, (params, x) = results(implementation)[name]
    recorded = load_golden(name).gradients
    assert_close(x, recorded.pop("in/x"), GRADIENT)
    expected = params_from_torch({key.removeprefix("param/"): gradient for key, gradient in recorded.items()})
    jax.tree.map(lambda a, b: assert_close(a, b, GRADIENT), params, expected)


@pytest.mark.parametrize("name", NAMES_MASKED)
@every_implementation
def test_output_under_a_padding_mask_matches_the_recorded_one(name: str, implementation: str) -> None:
    golden = load_golden(name)
    module, static = build(golden.meta, implementation)
    variables, mask = {"params": params_from_torch(golden.params)}, golden.inputs["key_padding_mask"]
    apply = jax.jit(lambda v, x, freqs, mask: module.apply(v, x, *static, freqs, key_padding_mask=mask))
    assert_close(apply(variables, golden.inputs["x"], frequencies(golden), mask), golden.outputs["y_masked"], FORWARD)


@pytest.mark.parametrize("name", NAMES_CACHED)
@every_implementation
def test_queries_on_cached_anchors_match_the_recorded_rows(name: str, implementation: str) -> None:
    golden = load_golden(name)
    module, (token_specs, *patterns) = build(golden.meta, implementation)
    params = params_from_torch(golden.params)
    queries = np.array(golden.meta["query_rows"])
    anchors = np.setdiff1d(np.arange(golden.inputs["x"].shape[1]), queries)
    anchor_specs = tuple(spec for spec in token_specs if spec.name.endswith("_anchors"))
    query_specs = tuple(TokenSpec(s.name, None) if s in anchor_specs else s for s in token_specs)

    @jax.jit
    def run(params: Any, x: jax.Array, freqs: Any) -> Any:
        def part(variables: Any, specs: Any, rows: np.ndarray, **kwargs: Any) -> Any:
            rotations = jax.tree.map(lambda f: f[:, rows], freqs)
            of_specs = [restricted(p, specs) for p in patterns]
            return module.apply(variables, x[:, rows], specs, *of_specs, rotations, **kwargs)

        y, state = part({"params": params}, anchor_specs, anchors, mutable=["cache"])
        return y, part({"params": params, **state}, query_specs, queries)

    y, y_cached = run(params, golden.inputs["x"], frequencies(golden))
    assert_close(y_cached, golden.outputs["y_cached"], FORWARD)
    assert_close(y, golden.outputs["y"][:, anchors], FORWARD)


def restricted(patterns: Any, specs: Any) -> list[AttentionPattern]:
    """The patterns of those groups that are in the specs."""
    names = {spec.name for spec in specs}
    kept = [(tuple(name for name in p.query_tokens if name in names), p.key_value_tokens) for p in patterns]
    return [AttentionPattern(queries, keys) for queries, keys in kept if queries]


def test_recorded_frequencies_serve_as_well_as_computed_ones() -> None:
    golden = load_golden("self_anchor_0")
    module, static = build(golden.meta, "auto")
    freqs = golden.inputs["freqs_real"] + 1j * golden.inputs["freqs_imag"]
    apply = jax.jit(lambda params, x, freqs: module.apply({"params": params}, x, *static, freqs))
    y = apply(params_from_torch(golden.params), golden.inputs["x"], freqs)
    assert_close(y, golden.outputs["y"], FORWARD)
