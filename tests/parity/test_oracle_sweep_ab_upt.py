"""Blocks, supernode pooling and the whole AB-UPT model agree with the PyTorch oracle on random configurations.

Outputs are compared, and the gradients by every parameter and every input. All parameters are random, since modulations
start at zero and would hide what they modulate.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from benchmarks import torch_model as oracle  # noqa: E402
from emmi_jax import (  # noqa: E402
    AbUptConfig,
    AnchorAttentionConfig,
    AnchoredBranchedUPT,
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
from emmi_jax.convert import ab_upt_from_torch, params_from_torch  # noqa: E402
from emmi_jax.layers.transformer_block import UntiedTransformerBlock  # noqa: E402
from tests.cases import ANCHOR_ATTENTIONS  # noqa: E402
from tests.tolerances import TOLERANCES, assert_close  # noqa: E402

FORWARD, GRADIENT = TOLERANCES["float32"]
CONDITION_DIM = 5
HEADS = {2: 24, 3: 36}  # number of heads: channels; 12 a head, so that the rotation has two frequencies an axis
BRANCHES = ("wing", "body", "wake")

sweep = functools.partial(settings, derandomize=True, deadline=None)
# The first example takes the first of every choice, so that comes first which does most.
choices = st.sampled_from((True, False))
layer_scales = st.sampled_from((0.3, None))
implementations = st.sampled_from(("masked", "xla", "blockwise"))
seeds = st.integers(0, 2**16)


def assert_agrees(
    run: Callable[[Any, Any], Any],
    run_oracle: Callable[[Any], Any],
    module: torch.nn.Module,
    inputs: Any,
    *,
    seed: int,
    convert: Callable[[Mapping[str, Any]], Any] = params_from_torch,
) -> None:
    """Compares run(params, inputs) with run_oracle(inputs), and the gradients of their products with a cotangent.

    Args:
        run: Our computation, with the parameters of `module` converted.
        run_oracle: The same with `module`, whose parameters this function draws.
        module: The oracle's module.
        inputs: A tree of float arrays.
        seed: Of parameters and cotangent.
        convert: Makes parameters of a state dict, and gradients of gradients.
    """
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            std = parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.5
            parameter.normal_(0.0, std, generator=generator)
    tensors = jax.tree.map(lambda a: torch.tensor(a, requires_grad=True), inputs)
    expected = run_oracle(tensors)
    cotangent = jax.tree.map(lambda y: rng.standard_normal(y.shape, np.float32), expected)
    products = jax.tree.map(lambda y, c: (y * torch.tensor(c)).sum(), expected, cotangent)
    sum(jax.tree.leaves(products)).backward()

    @jax.jit
    def output_and_gradients(params: Any, inputs: Any, cotangent: Any) -> Any:
        y, vjp = jax.vjp(run, params, inputs)
        return y, *vjp(cotangent)

    params = convert(module.state_dict())
    actual, by_params, by_inputs = output_and_gradients(params, inputs, cotangent)
    assert_trees_close(actual, jax.tree.map(lambda y: y.detach().numpy(), expected), FORWARD)
    assert_trees_close(by_params, convert({name: grad(p) for name, p in module.named_parameters()}), GRADIENT)
    assert_trees_close(by_inputs, jax.tree.map(grad, tensors), GRADIENT)


def grad(tensor: torch.Tensor) -> np.ndarray:
    return np.zeros(tensor.shape, np.float32) if tensor.grad is None else tensor.grad.numpy()


def assert_trees_close(actual: Any, expected: Any, tolerance: float) -> None:
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    jax.tree.map(functools.partial(assert_close, tolerance=tolerance), actual, expected)


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32)


def positions(rng: np.random.Generator, num_tokens: int, num_axes: int = 3) -> np.ndarray:
    """Near the origin: at 1000, rounding the angles alone would move gradients by 1e-4."""
    return 5 * rng.random((2, num_tokens, num_axes), np.float32)


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


def random_specs(rng: np.random.Generator, branches: Sequence[str]) -> list[tuple[str, int]]:
    """Anchors of each branch, and queries of some."""
    specs = [(f"{b}_{group}", int(rng.integers(2, 6))) for b in branches for group in ("anchors", "queries", "late")]
    return [(name, size) for name, size in specs if name.endswith("anchors") or rng.random() < 0.6]


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
    branches = BRANCHES[: case["num_branches"]]
    kind = case["attention"] if len(branches) > 1 else "self"
    config, (options, oracle_options) = anchor_config(case, branches), block_options(case)
    specs = random_specs(rng, branches)
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
    branches = BRANCHES[: case["num_branches"]]
    kind = case["attention"] if len(branches) > 1 else "self"
    config, (options, oracle_options) = anchor_config(case, branches), block_options(case)
    specs = random_specs(rng, branches)
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


def pooling_options(case: Mapping[str, Any]) -> dict[str, Any]:
    """Options that ours and the oracle's have in common."""
    options = {name: value for name, value in case.items() if name != "neighborhood"}
    if case["mode"] == "absrelpos":
        options["input_features_dim"] = None
    return {"radius": None, **options, **case["neighborhood"]}


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


MAIN_OPTIONS = {
    "qk_norm": (True, False, "geometry"),
    "bias": (False, True),
    "bias_scope": ("all", "transformer_blocks"),
    "eps": (1e-3, 1e-6),
    "mlp_hidden_dim": (None, 10),
}
MODEL_OPTIONS: dict[str, Sequence[Any]] = MAIN_OPTIONS | {
    "num_heads": tuple(HEADS),
    "with_queries": ((True, True, True), (False, True, False), (True, False, False)),
    # Main has no other norms beside that of the readout, and one branch has no other to attend to.
    "norm, readout_norm, is_conditioned": (("rms", True, True), ("layer", False, True), ("rms", False, False)),
    "physics_blocks, num_branches": (
        (("perceiver", "cross"), 3),
        (("joint", "perceiver"), 2),
        (("perceiver", "shared"), 1),
    ),
    "decoder_depths": ((1, 0, 0), (0, 0, 0), (0, 1, 1)),
    "geometry_depth": (1, 0),
    "has_features": (True, False),
    "layer_scale": (0.3, None),
    "mlp_ratio": (2, 4, 1),
    "implementation": ("masked", "xla", "blockwise"),
    "mode, input_features_dim": (("relpos", None), ("abspos", 3), ("absrelpos", None)),
    "aggregation": ("mean", "sum"),
    "message_mode": ("mlp", "linear"),
    "pooling_bias": (True, False),
    "readd_supernode_pos": (True, False),
    "neighborhood": ({"radius": 2.0}, {"radius": 4.0, "max_degree": 2}, {"k": 3}),
}
NUM_MODELS = 3
"""As many as any option has values: a whole model takes seconds to compile."""


def random_model(number: int) -> dict[str, Any]:
    """Random options; together, all models have every value of every option."""
    rng = np.random.default_rng(26)
    chosen: dict[str, Any] = {"seed": number}
    for name, values in MODEL_OPTIONS.items():
        value = values[rng.permutation(NUM_MODELS)[number] % len(values)]
        chosen |= dict(zip(name.split(", "), value, strict=True)) if ", " in name else {name: value}
    names = ("mode", "aggregation", "message_mode", "readd_supernode_pos", "input_features_dim", "neighborhood")
    chosen["pooling"] = {name: chosen[name] for name in names} | {"bias": chosen["pooling_bias"]}
    return chosen


def model_config(case: Mapping[str, Any]) -> AbUptConfig:
    branches = BRANCHES[: case["num_branches"]]
    fields = dict(zip(BRANCHES, ({"pressure": 1, "friction": 3}, {"pressure": 1}, {"velocity": 2}), strict=True))
    names = (
        "num_heads",
        "geometry_depth",
        "layer_scale",
        "mlp_ratio",
        "implementation",
        "norm",
        "readout_norm",
        *MAIN_OPTIONS,
    )
    return AbUptConfig(
        dim=HEADS[case["num_heads"]],
        fields={branch: fields[branch] for branch in branches},
        physics_blocks=case["physics_blocks"],
        decoder_depths=dict(zip(branches, case["decoder_depths"], strict=False)),
        supernode_pooling=SupernodePoolingConfig(**pooling_options(case["pooling"])),
        condition_dim=CONDITION_DIM if case["is_conditioned"] else None,
        feature_dims={branches[-1]: 2} if case["has_features"] else {},
        **{name: case[name] for name in names},
    )


NAMES_OF_MAIN = (
    (r"^(\w+)_bias\.", r"domain_biases.\1."),
    (r"^(\w+)_features\.", r"domain_feature_projs.\1."),
    (r"^(\w+)_decoder_blocks\.", r"domain_decoder_blocks.\1."),
    (r"^(\w+)_decoder\.project\.", r"domain_decoder_projections.\1.linear.project."),
    (r"^(\w+)_decoder\.", r"domain_decoder_projections.\1."),
)


def as_in_main(state_dict: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Renames the oracle's entries, and splits its projections of queries, keys and values."""
    renamed = {}
    for name, array in state_dict.items():
        for pattern, replacement in NAMES_OF_MAIN:
            name = re.sub(pattern, replacement, name)
        before, parts, after = re.fullmatch(r"(.*?)(?:\.(qkv|kv))?(\.[a-z]+)", name).groups()
        if parts is None:
            renamed[name] = np.asarray(array)
        else:
            split = np.split(np.asarray(array), len(parts))
            renamed |= {f"{before}.{part}{after}": piece for part, piece in zip(parts, split, strict=True)}
    return renamed


@pytest.mark.parametrize("number", range(NUM_MODELS))
def test_whole_model(number):
    case = random_model(number)
    rng = np.random.default_rng(case["seed"])
    config = model_config(case)
    model = oracle.AbUpt.from_config(config)
    anchors = {branch: positions(rng, 4 + i) for i, branch in enumerate(config.branches)}
    asked = [branch for branch, is_asked in zip(config.branches, case["with_queries"], strict=False) if is_asked]
    inputs = {"anchors": anchors, "queries": {branch: positions(rng, 3) for branch in asked}}
    for branch in config.feature_dims:
        inputs["anchor_features"] = {branch: normal(rng, *anchors[branch].shape[:2], 2)}
    if config.condition_dim:
        inputs["condition"] = normal(rng, 2, config.condition_dim)
    supernode_idx = None
    if config.has_geometry:
        inputs["geometry_position"] = positions(rng, 12)
        supernode_idx = np.stack([rng.permutation(12)[:4] for _ in range(2)])
        if config.supernode_pooling.input_features_dim:
            inputs["geometry_features"] = normal(rng, 2, 12, config.supernode_pooling.input_features_dim)

    def run(params: Any, inputs: dict[str, Any]) -> Any:
        position, features = inputs.pop("geometry_position", None), inputs.pop("geometry_features", None)
        if position is not None:
            inputs["geometry"] = Geometry(position, supernode_idx.astype(np.int32), features=features)
        return AnchoredBranchedUPT(config).apply({"params": params}, **inputs)

    def run_oracle(inputs: dict[str, Any]) -> Any:
        idx = None if supernode_idx is None else torch.tensor(supernode_idx)
        return model(**inputs, geometry_supernode_idx=idx)

    assert_agrees(
        lambda params, inputs: run(params, dict(inputs)),
        lambda inputs: run_oracle(dict(inputs)),
        model,
        inputs,
        seed=case["seed"],
        convert=lambda state_dict: ab_upt_from_torch(as_in_main(state_dict), config),
    )
