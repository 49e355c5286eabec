"""Blocks and supernode pooling agree with the PyTorch oracle on random configurations."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
from benchmarks import torch_model as oracle  # noqa: E402
from emmi_jax import (  # noqa: E402
    AnchorAttentionConfig,
    AttentionConfig,
    Geometry,
    PerceiverAttention,
    PerceiverBlock,
    SupernodePooling,
    SupernodePoolingConfig,
    TokenSpec,
    TransformerBlock,
    rope_frequencies,
)
from emmi_jax.convert import params_from_torch  # noqa: E402
from emmi_jax.layers.transformer_block import UntiedTransformerBlock  # noqa: E402
from tests.cases import ANCHOR_ATTENTIONS  # noqa: E402
from tests.parity.sweep_cases import BRANCHES, CONDITION_DIM, HEADS, assert_agrees, normal, pooling_options, positions  # noqa: E402

sweep = functools.partial(settings, derandomize=True, deadline=None)
# The first example takes the first of every choice, so that comes first which does most.
choices = st.sampled_from((True, False))
layer_scales = st.sampled_from((0.3, None))
implementations = st.sampled_from(("masked", "xla", "blockwise"))
seeds = st.integers(0, 2**16)

blocks = {
    "num_heads": st.sampled_from(list(HEADS)),
    "use_rope": choices,
    "is_conditioned": choices,
    "layer_scale": layer_scales,
    "mlp_ratio": st.sampled_from((4, 1, 2, 3)),
    "is_masked": choices,
    "implementation": implementations,
    "seed": seeds,
    "norm": st.sampled_from(("rms", "layer")),
    "qk_norm": choices,
    "bias": st.sampled_from((False, True)),
    "eps": st.sampled_from((1e-3, 1e-6)),
    "mlp_hidden_dim": st.sampled_from((None, 10)),
}


def block_options(case: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options of our block and of the oracle's."""
    condition_dim = CONDITION_DIM if case["is_conditioned"] else None
    layer_scale, ratio = case["layer_scale"], case["mlp_ratio"]
    options = {name: case[name] for name in ("norm", "eps", "mlp_hidden_dim")} | {"condition_dim": condition_dim}
    of_oracle = {"bias": case["bias"], "qk_norm": case["qk_norm"]}
    return (
        options | {"mlp_ratio": ratio, "layer_scale": layer_scale},
        options | of_oracle | {"mlp_expansion_factor": ratio, "layerscale": layer_scale},
    )


def block_inputs(case: Mapping[str, Any], rng: np.random.Generator, **sizes: tuple[int, int]) -> dict[str, Any]:
    """Tokens by name, given as (number, channels), and a condition if the block has one."""
    inputs = {name: normal(rng, 2, *size) for name, size in sizes.items()}
    return inputs | ({"condition": normal(rng, 2, CONDITION_DIM)} if case["is_conditioned"] else {})


def both_frequencies(case: Mapping[str, Any], rng: np.random.Generator, num_tokens: int) -> tuple[Any, Any]:
    """Rotations of random positions, ours and the oracle's; or none."""
    if not case["use_rope"]:
        return None, None
    at, head_dim = positions(rng, num_tokens), HEADS[case["num_heads"]] // case["num_heads"]
    return rope_frequencies(jnp.asarray(at), head_dim), oracle.rope_frequencies(torch.tensor(at), head_dim)


def random_tokens(
    case: Mapping[str, Any], rng: np.random.Generator
) -> tuple[Sequence[str], str, list[tuple[str, int]]]:
    """The branches, the kind of attention that so many allow, and anchors of each branch and queries of some."""
    branches = BRANCHES[: case["num_branches"]]
    specs = [(f"{b}_{group}", int(rng.integers(2, 6))) for b in branches for group in ("anchors", "queries", "late")]
    kept = [(name, size) for name, size in specs if name.endswith("anchors") or rng.random() < 0.6]
    return branches, case["attention"] if len(branches) > 1 else "self", kept


def anchor_config(case: Mapping[str, Any], branches: Sequence[str]) -> AnchorAttentionConfig:
    return AnchorAttentionConfig(
        dim=HEADS[case["num_heads"]],
        num_heads=case["num_heads"],
        use_rope=case["use_rope"],
        implementation=case["implementation"],
        branches=tuple(branches),
        bias=case["bias"],
        qk_norm=case["qk_norm"],
    )


anchor_blocks = {"attention": st.sampled_from(("cross", "self", "joint")), "num_branches": st.sampled_from((3, 1, 2))}


@sweep(max_examples=4)
@given(st.fixed_dictionaries(blocks | anchor_blocks))
def test_transformer_block_with_anchor_attention(case):
    rng = np.random.default_rng(case["seed"])
    branches, kind, specs = random_tokens(case, rng)
    config, (options, oracle_options) = anchor_config(case, branches), block_options(case)
    num_tokens = sum(size for _, size in specs)
    freqs, oracle_freqs = both_frequencies(case, rng, num_tokens)
    mask = rng.random((2, num_tokens)) < 0.8 if case["is_masked"] else None
    inputs = block_inputs(case, rng, x=(num_tokens, config.dim))
    block = TransformerBlock(config, attention=ANCHOR_ATTENTIONS[kind], **options)
    attention = oracle.AnchorAttention(
        kind, config.dim, config.num_heads, config.use_rope, config.bias, branches, qk_norm=config.qk_norm
    )
    module = oracle.TransformerBlock(config.dim, config.num_heads, attention=attention, **oracle_options)
    token_specs = tuple(TokenSpec(*spec) for spec in specs)
    torch_mask = None if mask is None else torch.tensor(mask)
    assert_agrees(
        lambda params, inputs: block.apply(
            {"params": params}, **inputs, token_specs=token_specs, freqs=freqs, key_padding_mask=mask
        ),
        lambda inputs: module(**inputs, freqs=oracle_freqs, token_specs=specs, mask=torch_mask),
        module,
        inputs,
        seed=case["seed"],
    )


@sweep(max_examples=3)
@given(st.fixed_dictionaries(blocks))
def test_transformer_block_with_full_attention(case):
    rng = np.random.default_rng(case["seed"])
    config, (options, oracle_options) = anchor_config(case, ("any",)), block_options(case)
    freqs, oracle_freqs = both_frequencies(case, rng, 7)
    mask = rng.random((2, 7)) < 0.8 if case["is_masked"] else None
    torch_mask = None if mask is None else torch.tensor(mask)[:, None, None]
    block = TransformerBlock(config, **options)
    module = oracle.TransformerBlock(config.dim, config.num_heads, config.use_rope, **oracle_options)
    assert_agrees(
        lambda params, inputs: block.apply({"params": params}, **inputs, freqs=freqs, key_padding_mask=mask),
        lambda inputs: module(**inputs, freqs=oracle_freqs, mask=torch_mask),
        module,
        block_inputs(case, rng, x=(7, config.dim)),
        seed=case["seed"],
    )


@sweep(max_examples=4)
@given(st.fixed_dictionaries(blocks | {"kv_dim": st.sampled_from((None, 10)), "is_block": choices}))
def test_perceiver_attention_and_block(case):
    rng = np.random.default_rng(case["seed"])
    case = case if case["is_block"] else case | {"is_conditioned": False}
    config, (options, oracle_options) = anchor_config(case, ("any",)), block_options(case)
    kv_dim = case["kv_dim"]
    (q_freqs, oracle_q), (k_freqs, oracle_k) = both_frequencies(case, rng, 6), both_frequencies(case, rng, 9)
    mask = rng.random((2, 1, 6, 9)) < 0.8 if case["is_masked"] else None
    torch_mask = None if mask is None else torch.tensor(mask)
    sizes = (config.dim, config.num_heads)
    if case["is_block"]:
        ours = PerceiverBlock(config, kv_dim=kv_dim, **options)
        module = oracle.PerceiverBlock(*sizes, config.use_rope, kv_dim, **oracle_options)
    else:
        ours = PerceiverAttention(config, kv_dim)
        module = oracle.PerceiverAttention(*sizes, kv_dim, config.use_rope, config.bias, qk_norm=config.qk_norm)
    assert_agrees(
        lambda params, inputs: ours.apply({"params": params}, **inputs, q_freqs=q_freqs, k_freqs=k_freqs, mask=mask),
        lambda inputs: module(**inputs, q_freqs=oracle_q, k_freqs=oracle_k, mask=torch_mask),
        module,
        block_inputs(case, rng, q=(6, config.dim), kv=(9, kv_dim or config.dim)),
        seed=case["seed"],
    )


def untied_oracle(
    blocks: Mapping[str, Any], kind: str, x: torch.Tensor, specs: oracle.Specs, freqs: Any, condition: Any = None
) -> torch.Tensor:
    """Anchor attention between branches whose tokens go through a block each."""
    names, sizes = [name for name, _ in specs], [size for _, size in specs]
    block_of = {name: blocks[name.rpartition("_")[0]] for name in names}
    groups = dict(zip(names, x.split(sizes, dim=1), strict=True))
    rotations = [None] * len(names) if freqs is None else freqs.split(sizes, dim=1)
    chunks = {name: block_of[name].chunks(condition) for name in names}
    heads = {}
    for name, rotation in zip(names, rotations, strict=True):
        h = oracle.modulate(block_of[name].norm1(groups[name]), *chunks[name][:2])
        heads[name] = block_of[name].attention_block.mixed_attention.heads(h, rotation)
    outputs = {}
    for queries, keys in oracle.anchor_patterns(kind, list(blocks), names, "_anchors"):
        k, v = (torch.cat([heads[key][part] for key in keys], dim=2) for part in (1, 2))
        for name in queries:
            y = oracle.merge_heads(oracle.attend(heads[name][0], k, v))
            y = block_of[name].attention_block.mixed_attention.proj(y)
            outputs[name] = block_of[name].residuals(groups[name], y, *chunks[name][2:])
    return torch.cat([outputs[name] for name in names], dim=1)


@sweep(max_examples=3)
@given(st.fixed_dictionaries(blocks | anchor_blocks))
def test_untied_transformer_block(case):
    rng = np.random.default_rng(case["seed"])
    branches, kind, specs = random_tokens(case, rng)
    config, (options, oracle_options) = anchor_config(case, branches), block_options(case)
    num_tokens = sum(size for _, size in specs)
    freqs, oracle_freqs = both_frequencies(case, rng, num_tokens)
    block = UntiedTransformerBlock(TransformerBlock(config, attention=ANCHOR_ATTENTIONS[kind], **options, parent=None))
    sizes = (config.dim, config.num_heads)
    attention = functools.partial(
        oracle.AnchorAttention, kind, *sizes, config.use_rope, config.bias, branches, qk_norm=config.qk_norm
    )
    module = torch.nn.ModuleDict(
        {b: oracle.TransformerBlock(*sizes, attention=attention(), **oracle_options) for b in branches}
    )
    token_specs = tuple(TokenSpec(*spec) for spec in specs)
    assert_agrees(
        lambda params, inputs: block.apply({"params": params}, **inputs, token_specs=token_specs, freqs=freqs),
        lambda inputs: untied_oracle(module, kind, **inputs, specs=specs, freqs=oracle_freqs),
        module,
        block_inputs(case, rng, x=(num_tokens, config.dim)),
        seed=case["seed"],
        convert=lambda state_dict: {
            b: params_from_torch({n.removeprefix(f"{b}."): a for n, a in state_dict.items() if n.startswith(f"{b}.")})
            for b in branches
        },
    )


pooling = st.fixed_dictionaries(
    {
        "mode": st.sampled_from(("relpos", "abspos", "absrelpos")),
        "aggregation": st.sampled_from(("mean", "sum")),
        "message_mode": st.sampled_from(("mlp", "linear")),
        "bias": choices,
        "readd_supernode_pos": choices,
        "input_features_dim": st.sampled_from((3, None)),
        # 12 is everybody, 15 more than there are; 2 of the points within the radius are fewer than there are.
        "neighborhood": st.sampled_from(({"radius": 2.0}, {"radius": 4.0, "max_degree": 2}, {"k": 3}, {"k": 15})),
    }
)


@sweep(max_examples=6)
@given(pooling, st.sampled_from((2, 3)), seeds)
def test_supernode_pooling(case, num_axes, seed):
    rng, options, dim = np.random.default_rng(seed), pooling_options(case), 20
    supernode_idx = np.stack([rng.permutation(12)[:4] for _ in range(2)])
    inputs = {"position": positions(rng, 12, num_axes)}
    if options["input_features_dim"]:
        inputs["features"] = normal(rng, 2, 12, options["input_features_dim"])
    ours = SupernodePooling(dim, SupernodePoolingConfig(**options), AttentionConfig(dim=dim, num_heads=1))
    module = oracle.SupernodePooling(dim, **options)
    assert_agrees(
        lambda params, inputs: ours.apply(
            {"params": params}, Geometry(supernode_idx=supernode_idx.astype(np.int32), **inputs)
        ),
        lambda inputs: module(inputs["position"], torch.tensor(supernode_idx), inputs.get("features")),
        module,
        inputs,
        seed=seed,
    )
