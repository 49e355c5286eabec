"""State dicts and parameter trees for the tests of the conversion."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchoredBranchedUPT, SupernodePoolingConfig
from emmi_jax.models.init import init_params
from tests.golden_files import CONSTANTS, FOLDER, load_golden


def golden_state_dict(name: str) -> dict[str, np.ndarray]:
    """The state dict of a recorded case, constants included."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return {key.removeprefix("param/"): file[key] for key in file.files if key.startswith("param/")}


def without_constants(state_dict: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in state_dict.items() if name.rpartition(".")[2] not in CONSTANTS}


def golden_ab_upt_config(name: str) -> AbUptConfig:
    """The configuration that the meta of a recorded AB-UPT case describes."""
    meta = load_golden(name).meta
    letters = {"p": "perceiver", "s": "self", "c": "cross"}
    branches = ("surface", "volume")
    fields = meta.get("fields") or {branch: meta[f"{branch}_fields"] for branch in branches}
    names = ("max_wavelength", "eps", "mlp_hidden_dim", "bias", "norm", "qk_norm", "feature_dims")
    options = {name: meta[name] for name in names if name in meta}
    is_main = meta["kind"] == "ab_upt_main"
    options |= {"readout_norm": True} if is_main else {"bias_scope": "transformer_blocks"}
    if meta.get("conditioning_dims"):
        options["conditioning_dims"] = dict(meta["conditioning_dims"])
    return AbUptConfig(
        **options,
        layer_scale=meta.get("layerscale"),
        dim=meta["dim"],
        num_heads=meta["num_heads"],
        fields={branch: dict(pairs) for branch, pairs in fields.items()},
        physics_blocks=meta.get("physics_blocks") or [letters[letter] for letter in meta["blocks"]],
        decoder_depths=meta.get("decoder_blocks") or {branch: meta[f"num_{branch}_blocks"] for branch in branches},
        geometry_depth=meta["geometry_depth"],
        condition_dim=meta.get("condition_dim"),
        supernode_pooling=SupernodePoolingConfig(**{"radius": None, **meta["supernode_pooling"]}),
    )


@functools.lru_cache
def model_shapes(config: AbUptConfig) -> Any:
    """The tree of parameter shapes of the model."""
    return jax.tree.map(np.shape, jax.eval_shape(functools.partial(init_params, AnchoredBranchedUPT(config))))


def random_params(shapes: Any, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda s: rng.normal(size=s).astype(np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))


def assert_same_bits(got: Any, expected: Any) -> None:
    """The same tree, shapes, dtypes and bytes."""
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        assert (a.shape, a.dtype, a.tobytes()) == (b.shape, b.dtype, b.tobytes())


def listed(error: pytest.ExceptionInfo[ValueError]) -> set[str]:
    """The problems that an error lists, one a line below its title."""
    return {line.strip() for line in str(error.value).splitlines()[1:]}
