"""The whole AB-UPT model agrees with the PyTorch oracle on random configurations."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from benchmarks import torch_model as oracle  # noqa: E402
from emmi_jax import (  # noqa: E402
    AbUptConfig,
    AnchoredBranchedUPT,
    Geometry,
    SupernodePoolingConfig,
)
from emmi_jax.convert import ab_upt_from_torch  # noqa: E402
from tests.parity.sweep_cases import BRANCHES, CONDITION_DIM, HEADS, assert_agrees, normal, pooling_options, positions  # noqa: E402

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
