"""Configurations: validation, hashing, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AnchorAttentionConfig, AttentionConfig
from emmi_jax.config import IMPLEMENTATIONS, INIT_WEIGHTS, Config, FrozenMapping
from emmi_jax.ops import attention

SIZES = {"dim": 24, "num_heads": 2}
CONFIGS = [
    AttentionConfig(**SIZES),
    AttentionConfig(
        dim=48,
        num_heads=3,
        use_rope=True,
        bias=False,
        dropout=0.1,
        init_weights="torch",
        implementation="blockwise",
        dtype=jnp.bfloat16,
        param_dtype="float16",
        precision="highest",
    ),
    AnchorAttentionConfig(**SIZES, branches=("surface", "volume")),
    AnchorAttentionConfig(**SIZES, branches=["b", "a"], anchor_suffix="/anchors", dtype="float32"),  # type: ignore
]


def test_defaults_are_those_of_the_documentation() -> None:
    defaults = {field.name: field.default for field in dataclasses.fields(AttentionConfig)}
    assert {name: value for name, value in defaults.items() if value is not dataclasses.MISSING} == {
        "use_rope": False,
        "bias": True,
        "dropout": 0.0,
        "qk_norm": False,
        "init_weights": "truncnormal002",
        "implementation": "auto",
        "dtype": None,
        "param_dtype": jnp.float32,
        "precision": None,
        "token_axis": None,
    }
    assert AnchorAttentionConfig(**SIZES, branches=("a",)).anchor_suffix == "_anchors"


def test_head_dim_is_the_width_of_a_head() -> None:
    assert AttentionConfig(dim=192, num_heads=3).head_dim == 64


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_survives_json(config: Config) -> None:
    text = json.dumps(config.to_dict())
    again = type(config).from_dict(json.loads(text))
    assert again == config
    assert hash(again) == hash(config)
    assert json.dumps(again.to_dict()) == text


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_is_hashable_and_can_be_pickled_and_replaced(config: Config) -> None:
    assert {config: 1}[pickle.loads(pickle.dumps(config))] == 1
    assert dataclasses.replace(config) == config
    assert dataclasses.replace(config, num_heads=1) != config
    assert jax.jit(lambda c: c.dim * jnp.ones(()), static_argnums=0)(config) == config.dim


@pytest.mark.parametrize("spelling", ["bfloat16", jnp.bfloat16, jnp.dtype("bfloat16"), np.dtype(jnp.bfloat16)])
def test_spellings_of_a_dtype_are_one_value(spelling: Any) -> None:
    config = AttentionConfig(**SIZES, dtype=spelling, param_dtype=spelling)
    assert config == AttentionConfig(**SIZES, dtype="bfloat16", param_dtype="bfloat16")
    assert (config.to_dict()["dtype"], config.to_dict()["param_dtype"]) == ("bfloat16", "bfloat16")


@pytest.mark.parametrize("spelling", ["highest", "HIGHEST", jax.lax.Precision.HIGHEST])
def test_spellings_of_a_precision_are_one_value(spelling: Any) -> None:
    config = AttentionConfig(**SIZES, precision=spelling)
    assert config.precision == "highest"
    assert hash(config) == hash(AttentionConfig(**SIZES, precision="highest"))


def test_numpy_numbers_become_python_numbers() -> None:
    config = AttentionConfig(dim=np.int64(24), num_heads=np.int32(2), dropout=np.float32(0.5), bias=np.bool_(False))
    assert config == AttentionConfig(dim=24, num_heads=2, dropout=0.5, bias=False)
    assert [type(value) for value in (config.dim, config.num_heads, config.dropout, config.bias)] == [
        int, int, float, bool
    ]  # fmt: skip
    assert AttentionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_implementations_run_the_kernels_that_attention_has() -> None:
    assert {entry.kernel for entry in IMPLEMENTATIONS.values()} == attention.KERNELS.keys()


def test_branches_become_a_tuple_whose_order_counts() -> None:
    config = AnchorAttentionConfig(**SIZES, branches=["a", "b"])  # type: ignore[arg-type]
    assert config.branches == ("a", "b")
    assert config != AnchorAttentionConfig(**SIZES, branches=("b", "a"))


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_cannot_be_changed(config: Config) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dim = 48  # type: ignore[attr-defined]


def test_values_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        AttentionConfig(24, 2)  # type: ignore[misc]


@pytest.mark.parametrize("init_weights", INIT_WEIGHTS)
def test_every_named_initialisation_is_accepted(init_weights: str) -> None:
    assert AttentionConfig(**SIZES, init_weights=init_weights).init_weights == init_weights


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 0}, "dim must be an integer >= 1, got 0"),
        ({"dim": 24.0}, r"dim must be an integer >= 1, got 24\.0"),
        ({"dim": True, "num_heads": 1}, "dim must be an integer >= 1, got True"),
        ({"num_heads": 0}, "num_heads must be an integer >= 1, got 0"),
        ({"num_heads": -2}, "num_heads must be an integer >= 1, got -2"),
        ({"num_heads": 5}, "dim must be divisible by num_heads, got dim=24 and num_heads=5"),
        ({"dim": 26, "num_heads": 2, "use_rope": True}, "even head_dim, got 13"),
        ({"dropout": -0.1}, r"dropout must lie in \[0, 1\), got -0\.1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1\.0"),
        ({"dropout": float("nan")}, r"dropout must lie in \[0, 1\), got nan"),
        ({"dropout": "0.1"}, r"dropout must lie in \[0, 1\), got '0\.1'"),
        ({"dropout": False}, r"dropout must lie in \[0, 1\), got False"),
        ({"bias": "no"}, "bias must be True or False, got 'no'"),
        ({"use_rope": 1}, "use_rope must be True or False, got 1"),
        ({"implementation": "typo"}, "implementation must be one of auto, .*, got 'typo'"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16, got 'float64'"),
        ({"dtype": "float8_e4m3fn"}, "dtype must be one of .*, got 'float8_e4m3fn'"),
        ({"param_dtype": "float64"}, "param_dtype must be one of .*, got 'float64'"),
        ({"param_dtype": None}, "param_dtype must be one of .*, got None"),
        ({"init_weights": "xavier"}, "init_weights must be one of truncnormal002, .*, got 'xavier'"),
        ({"dtype": "int32"}, "dtype must be one of float32, bfloat16, float16, got 'int32'"),
        ({"dtype": "half-ish"}, "dtype must be one of .*, got 'half-ish'"),
        ({"param_dtype": jnp.int8}, "param_dtype must be one of .*, got .*int8"),
        ({"precision": "exact"}, "precision must be None or one of .*'highest'.*, got 'exact'"),
        ({"precision": 3.5}, r"precision must be None or one of .*, got 3\.5"),
    ],
)
@pytest.mark.parametrize("cls", [AttentionConfig, AnchorAttentionConfig])
def test_a_wrong_value_is_quoted(cls: type[AttentionConfig], values: dict[str, Any], message: str) -> None:
    branches = {"branches": ("a",)} if cls is AnchorAttentionConfig else {}
    with pytest.raises(ValueError, match=message):
        cls(**(SIZES | branches | values))


@pytest.mark.parametrize(
    ("branches", "message"),
    [
        (("a", "b/c"), "a branch name must be a non-empty string without '/', got 'b/c'"),
        (3, "branches must be a sequence of names, got 3"),
        ((), "branches must name at least one branch, got none"),
        ("surface", "branches must be a sequence of names, got 'surface'"),
        (("a", "b", "a"), r"branches names a branch twice: \('a', 'b', 'a'\)"),
        (("a", ""), "a branch name must be a non-empty string without '/', got ''"),
        (("a", "b" * 151), "a branch name must be at most 150 bytes long, without NUL, got 'bbb"),
        (("a", "b\0"), "a branch name must be at most 150 bytes long, without NUL, got 'b"),
        (("a", 3), r"branches must be a sequence of names, got \('a', 3\)"),
    ],
)
def test_wrong_branches_are_quoted(branches: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AnchorAttentionConfig(**SIZES, branches=branches)


def test_branches_have_no_default() -> None:
    with pytest.raises(TypeError, match="branches"):
        AnchorAttentionConfig(**SIZES)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("key", "nearest"),
    [("num_head", "num_heads"), ("Dim", "dim"), ("rope", "use_rope"), ("drop_out", "dropout"), ("branch", "branches")],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(key: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"unknown key '{key}' for AnchorAttentionConfig; did you mean '{nearest}'"):
        AnchorAttentionConfig.from_dict(SIZES | {"branches": ["a"], key: 1})


def test_a_key_that_resembles_nothing_is_refused_all_the_same() -> None:
    with pytest.raises(ValueError, match="unknown key '%%' for AttentionConfig"):
        AttentionConfig.from_dict(SIZES | {"%%": 1})


def test_a_frozen_mapping_is_a_hashable_mapping_whose_order_counts() -> None:
    mapping = FrozenMapping({"a": 1, "b": {"c": (2, 3)}})
    assert mapping == {"a": 1, "b": {"c": (2, 3)}}
    assert hash(mapping) == hash(FrozenMapping({"a": 1, "b": {"c": (2, 3)}}))
    assert mapping != FrozenMapping({"b": {"c": (2, 3)}, "a": 1})
    assert mapping != {"a": 1}
    assert list(mapping) == ["a", "b"]
    assert len(mapping) == 2
    with pytest.raises(TypeError):
        mapping["a"] = 2  # type: ignore[index]


def test_a_frozen_mapping_keeps_its_own_items() -> None:
    items = {"a": {"b": 1}}
    mapping = FrozenMapping(items)
    items["a"]["b"] = 2
    assert mapping["a"]["b"] == 1
