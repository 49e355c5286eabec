"""Configurations of the AB-UPT model: validation, hashing, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json
import pickle

import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AbUptConfig, AnchorAttentionConfig, SupernodePoolingConfig
from emmi_jax.config import Config

SIZES = {"dim": 24, "num_heads": 2}
FIELDS = {"wing": {"pressure": 1}, "body": {"velocity": 3, "pressure": 1}}
OTHER = AbUptConfig(
    dim=48,
    num_heads=3,
    fields=FIELDS,
    physics_blocks=("perceiver_untied", "joint", "self_untied", "cross"),
    decoder_depths={"body": 2},
    geometry_depth=0,
    supernode_pooling=SupernodePoolingConfig(
        radius=None,
        k=4,
        max_degree=7,
        mode="abspos",
        aggregation="sum",
        readd_supernode_pos=False,
        input_features_dim=3,
    ),
    condition_dim=5,
    mlp_ratio=2,
    layer_scale=0.1,
    drop_path_rate=0.2,
    max_wavelength=5_000,
    num_position_axes=2,
    bias=False,
    init_weights="torch",
    implementation="blockwise",
    dtype=jnp.bfloat16,
    param_dtype="float16",
    precision="highest",
    token_axis="tokens",
    remat=True,
    mlp_hidden_dim=50,
    eps=1e-3,
    norm="rms",
    qk_norm="geometry",
    bias_scope="transformer_blocks",
    option_scope="all",
    readout_norm=True,
    conditioning_dims={"design": 2},
    geometry_conditioning_dims={"inflow": 1},
    feature_dims={"body": 2},
)
CONFIGS = [AbUptConfig(**SIZES), OTHER, SupernodePoolingConfig(), OTHER.supernode_pooling]


def test_defaults_are_those_of_the_documentation():
    assert AbUptConfig(**SIZES).to_dict() == {
        "dim": 24,
        "num_heads": 2,
        "fields": {"surface": {"pressure": 1, "friction": 3}, "volume": {"velocity": 3, "pressure": 1}},
        "physics_blocks": ["perceiver", "self", "cross", "self", "cross", "self"],
        "decoder_depths": {"surface": 6, "volume": 6},
        "geometry_depth": 1,
        "supernode_pooling": {
            "radius": 0.25,
            "k": None,
            "max_degree": 32,
            "mode": "relpos",
            "aggregation": "mean",
            "readd_supernode_pos": True,
            "input_features_dim": None,
            "message_mode": "mlp",
            "bias": True,
            "max_wavelength": 10_000,
        },
        "condition_dim": None,
        "mlp_ratio": 4,
        "layer_scale": None,
        "drop_path_rate": 0.0,
        "max_wavelength": 10_000,
        "num_position_axes": 3,
        "bias": True,
        "init_weights": "truncnormal002",
        "implementation": "auto",
        "dtype": None,
        "param_dtype": "float32",
        "precision": None,
        "token_axis": None,
        "remat": False,
        "vector_potentials": {},
        "mlp_hidden_dim": None,
        "eps": 1e-6,
        "norm": "layer",
        "qk_norm": False,
        "bias_scope": "all",
        "option_scope": "transformer_blocks",
        "readout_norm": False,
        "conditioning_dims": None,
        "geometry_conditioning_dims": None,
        "feature_dims": {},
    }


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_survives_json(config: Config):
    text = json.dumps(config.to_dict())
    again = type(config).from_dict(json.loads(text))
    assert again == config
    assert hash(again) == hash(config)
    assert json.dumps(again.to_dict()) == text


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_config_is_hashable_frozen_and_can_be_pickled_and_replaced(config: Config):
    assert {config: 1}[pickle.loads(pickle.dumps(config))] == 1
    assert dataclasses.replace(config) == config
    for field in dataclasses.fields(config):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, field.name, None)


def test_every_field_takes_part_in_equality():
    base = AbUptConfig(**SIZES)
    for field in dataclasses.fields(base):
        with_others = ("fields", "decoder_depths", "num_heads", "vector_potentials", "feature_dims")
        if field.name not in (*with_others, "geometry_conditioning_dims"):
            assert dataclasses.replace(base, **{field.name: getattr(OTHER, field.name)}) != base


def test_order_of_branches_and_of_their_fields_counts():
    config = AbUptConfig(**SIZES, fields=FIELDS, decoder_depths={})
    branches_swapped = dict(reversed(FIELDS.items()))
    fields_swapped = {branch: dict(reversed(fields.items())) for branch, fields in FIELDS.items()}
    assert config.branches == ("wing", "body")
    assert list(AbUptConfig.from_dict(json.loads(json.dumps(config.to_dict()))).fields["body"]) == [
        "velocity",
        "pressure",
    ]
    for fields in (branches_swapped, fields_swapped):
        assert dataclasses.replace(config, fields=fields) != config


def test_a_config_does_not_follow_what_it_was_built_from():
    fields = {branch: dict(channels) for branch, channels in FIELDS.items()}
    blocks, depths = ["self"], {"wing": 1}
    config = AbUptConfig(**SIZES, fields=fields, physics_blocks=blocks, decoder_depths=depths)
    before = hash(config)
    fields["wing"]["pressure"] = 2
    fields["wake"] = {"velocity": 3}
    blocks.append("cross")
    depths["wing"] = 4
    assert config.fields == FIELDS
    assert (config.physics_blocks, dict(config.decoder_depths), hash(config)) == (("self",), {"wing": 1}, before)
    with pytest.raises(TypeError):
        config.fields["wing"]["pressure"] = 2


def test_numpy_numbers_become_python_numbers():
    config = AbUptConfig(
        dim=np.int64(24),
        num_heads=np.int32(2),
        fields={"wing": {"pressure": np.int64(1)}},
        physics_blocks=("self",),
        decoder_depths={"wing": np.int32(2)},
        max_wavelength=np.float32(500),
        supernode_pooling={"radius": np.float32(0.5), "max_degree": np.int8(4)},
    )
    assert AbUptConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert type(config.fields["wing"]["pressure"]) is type(config.decoder_depths["wing"]) is int


def test_shared_is_another_word_for_self():
    config = AbUptConfig(**SIZES, physics_blocks=("perceiver", "shared", "cross"))
    assert config == AbUptConfig(**SIZES, physics_blocks=("perceiver", "self", "cross"))


def test_a_pooling_config_may_be_given_as_json_values():
    pooling = OTHER.supernode_pooling
    assert AbUptConfig(**SIZES, supernode_pooling=pooling.to_dict()).supernode_pooling == pooling


@pytest.mark.parametrize(
    ("blocks", "has_geometry"),
    [((), False), (("self", "cross", "joint"), False), (("self", "perceiver"), True), (("perceiver_untied",), True)],
)
def test_only_perceiver_blocks_need_a_geometry(blocks, has_geometry):
    assert AbUptConfig(**SIZES, physics_blocks=blocks).has_geometry == has_geometry


def test_attention_layers_get_the_values_of_the_model():
    assert OTHER.head_dim == 16
    assert OTHER.attention == AnchorAttentionConfig(
        dim=48,
        num_heads=3,
        use_rope=True,
        bias=False,
        init_weights="torch",
        implementation="blockwise",
        dtype="bfloat16",
        param_dtype="float16",
        precision="highest",
        token_axis="tokens",
        branches=("wing", "body"),
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dim": 0}, "dim must be an integer >= 1, got 0"),
        ({"num_heads": 5}, "dim must be divisible by num_heads, got dim=24 and num_heads=5"),
        ({"dim": 26}, "even head_dim, got 13"),
        ({"fields": {}}, "fields must name at least one branch, got none"),
        ({"fields": {"surface": {}, "volume": {"p": 1}}}, "branch 'surface' needs at least one field .*, got {}"),
        ({"fields": {"surface": 1, "volume": {"p": 1}}}, "branch 'surface' needs at least one field .*, got 1"),
        ({"fields": {"surface": {"p": 0}, "volume": {"p": 1}}}, "channels of surface/p must be an integer >= 1, got 0"),
        ({"fields": {"surface": {"p": 1.5}, "volume": {"p": 1}}}, r"surface/p must be an integer >= 1, got 1\.5"),
        (
            {"fields": {"": {"p": 1}}, "physics_blocks": (), "decoder_depths": {}},
            "without '/' or ':', got ''",
        ),
        ({"physics_blocks": ("self", "attention")}, "self, cross, joint, .*'_untied', got 'attention'"),
        ({"physics_blocks": ("self_tied",)}, "a physics block must be one of .*, got 'self_tied'"),
        ({"fields": {"surface": {"p": 1}}, "decoder_depths": {}}, "'cross' needs at least two branches"),
        (
            {"fields": {"surface": {"p": 1}}, "decoder_depths": {}, "physics_blocks": ("joint_untied",)},
            "'joint_untied' needs at least two branches",
        ),
        ({"decoder_depths": {"wing": 1}}, r"names branch 'wing', which is not in fields \['surface', 'volume'\]"),
        ({"decoder_depths": {"surface": -1}}, "the decoder depth of 'surface' must be an integer >= 0, got -1"),
        ({"geometry_depth": -1}, "geometry_depth must be an integer >= 0, got -1"),
        ({"mlp_ratio": 0}, "mlp_ratio must be an integer >= 1, got 0"),
        ({"mlp_ratio": 2.5}, r"mlp_ratio must be an integer >= 1, got 2\.5"),
        ({"num_position_axes": 0}, "num_position_axes must be an integer >= 1, got 0"),
        ({"condition_dim": 0}, "condition_dim must be an integer >= 1, got 0"),
        ({"drop_path_rate": 1.0}, r"drop_path_rate must lie in \[0, 1\), got 1\.0"),
        ({"drop_path_rate": -0.1}, r"drop_path_rate must lie in \[0, 1\), got -0\.1"),
        ({"init_weights": "xavier"}, "init_weights must be one of truncnormal002, .*, got 'xavier'"),
        ({"dtype": "int32"}, "dtype must be one of float32, bfloat16, float16, got 'int32'"),
        ({"param_dtype": "half-ish"}, "param_dtype must be one of float32, .*, got 'half-ish'"),
        ({"num_heads": 6}, r"rotary embedding of 3 position axes needs a head_dim of at least 6, got 4"),
        ({"num_position_axes": 7}, r"7 position axes needs a head_dim of at least 14, got 12"),
        ({"dim": 6, "num_heads": 1}, r"pooling of mode 'relpos' needs a dim of at least 8, got 6"),
        ({"fields": {"a/b": {"p": 1}, "volume": {"p": 1}}}, "a branch name must .* without '/' or ':', got 'a/b'"),
        ({"fields": {"a:b": {"p": 1}, "volume": {"p": 1}}}, "a branch name must .* without '/' or ':', got 'a:b'"),
        ({"fields": {"a": {"p/q": 1}, "volume": {"p": 1}}}, "a field name of branch 'a' must .* '/', got 'p/q'"),
        ({"fields": ["surface"]}, r"fields must be a mapping, got \['surface'\]"),
        ({"decoder_depths": 3}, "decoder_depths must be a mapping, got 3"),
        ({"physics_blocks": "self"}, "physics_blocks must be a sequence of names, got 'self'"),
        ({"physics_blocks": (1,)}, r"physics_blocks must be a sequence of names, got \(1,\)"),
        ({"max_wavelength": 0}, "max_wavelength must be positive and finite, got 0"),
        ({"max_wavelength": float("nan")}, "max_wavelength must be positive and finite, got nan"),
        ({"max_wavelength": True}, "max_wavelength must be positive and finite, got True"),
        ({"drop_path_rate": float("nan")}, r"drop_path_rate must lie in \[0, 1\), got nan"),
        ({"layer_scale": float("nan")}, "layer_scale must be a finite number or None, got nan"),
        ({"layer_scale": True}, "layer_scale must be a finite number or None, got True"),
        ({"eps": -1e-6}, "eps must be at least 0 and finite, got -1e-06"),
        ({"norm": "batch"}, "norm must be one of layer, rms, got 'batch'"),
        ({"qk_norm": "self"}, "qk_norm must be True, False or 'geometry', got 'self'"),
        ({"qk_norm": 1}, "qk_norm must be True, False or 'geometry', got 1"),
        ({"bias_scope": "norms"}, "bias_scope must be one of all, transformer_blocks, attention, got 'norms'"),
        ({"option_scope": "none"}, "option_scope must be one of transformer_blocks, all, got 'none'"),
        ({"mlp_hidden_dim": 0}, "mlp_hidden_dim must be an integer >= 1, got 0"),
        ({"mlp_ratio": None}, "one of mlp_ratio and mlp_hidden_dim must be set"),
        ({"mlp_ratio": None, "mlp_hidden_dim": 9}, "perceiver blocks need mlp_ratio, got mlp_ratio=None"),
        ({"conditioning_dims": {"inflow": 0}}, "channels of condition 'inflow' must be an integer >= 1, got 0"),
        ({"conditioning_dims": {"a/b": 1}}, "a condition's name must be a non-empty string without '/', got 'a/b'"),
        ({"conditioning_dims": {"inflow": 3}, "condition_dim": 5}, "needs a condition_dim of at least 6, got 5"),
        ({"geometry_conditioning_dims": {"a": 1}}, "geometry_conditioning_dims needs conditioning_dims"),
        (
            {"conditioning_dims": {"a": 1}, "geometry_conditioning_dims": {"a": 2}},
            "condition 'a' cannot have both 1 and 2 channels",
        ),
        ({"feature_dims": {"wake": 1}}, "feature_dims names branch 'wake', which is not in fields"),
        ({"remat": 1}, "remat must be True or False, got 1"),
        ({"bias": "no"}, "bias must be True or False, got 'no'"),
        ({"implementation": "typo"}, "implementation must be one of auto, .*, got 'typo'"),
        ({"dtype": "float64"}, "dtype must be one of float32, bfloat16, float16, got 'float64'"),
        ({"precision": "exact"}, "precision must be None or one of .*, got 'exact'"),
        ({"supernode_pooling": {"radius": 1.0, "k": 2}}, "exactly one of radius and k must be set"),
    ],
)
def test_a_wrong_value_is_quoted(values, message):
    with pytest.raises(ValueError, match=message):
        AbUptConfig(**(SIZES | values))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"radius": None}, "exactly one of radius and k must be set, got radius=None and k=None"),
        ({"k": 4}, r"exactly one of radius and k must be set, got radius=0\.25 and k=4"),
        ({"radius": -1.0}, r"radius must be at least 0 and finite, got -1\.0"),
        ({"radius": float("nan")}, "radius must be at least 0 and finite, got nan"),
        ({"radius": float("inf")}, "radius must be at least 0 and finite, got inf"),
        ({"radius": True}, "radius must be at least 0 and finite, got True"),
        ({"radius": "0.5"}, "radius must be at least 0 and finite, got '0.5'"),
        ({"readd_supernode_pos": "no"}, "readd_supernode_pos must be True or False, got 'no'"),
        ({"radius": None, "k": 0}, "k must be an integer >= 1, got 0"),
        ({"radius": None, "k": 1.5}, r"k must be an integer >= 1, got 1\.5"),
        ({"max_degree": 0}, "max_degree must be an integer >= 1, got 0"),
        ({"mode": "pos"}, "mode must be one of abspos, relpos, absrelpos, got 'pos'"),
        ({"aggregation": "max"}, "aggregation must be one of mean, sum, got 'max'"),
        ({"input_features_dim": 0}, "input_features_dim must be an integer >= 1, got 0"),
        ({"message_mode": "sum"}, "message_mode must be one of mlp, linear, identity, got 'sum'"),
        ({"message_mode": "identity", "mode": "abspos"}, "too wide to add the supernode's position again"),
        ({"max_wavelength": 0}, "max_wavelength must be positive and finite, got 0"),
        ({"bias": 1}, "bias must be True or False, got 1"),
        ({"mode": "absrelpos", "input_features_dim": 3}, "for the modes 'abspos' and 'relpos', not 'absrelpos'"),
    ],
)
def test_a_wrong_value_of_the_pooling_is_quoted(values, message):
    with pytest.raises(ValueError, match=message):
        SupernodePoolingConfig(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"branches": ["a"]}, "unknown key 'branches' for AbUptConfig; did you mean '"),
        ({"decoder_depth": {}}, "unknown key 'decoder_depth' for AbUptConfig; did you mean 'decoder_depths'"),
        (
            {"supernode_pooling": {"max_degre": 3}},
            "unknown key 'max_degre' for SupernodePoolingConfig; did you mean 'max_degree'",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_the_nearest_known_one(values, message):
    with pytest.raises(ValueError, match=message):
        AbUptConfig.from_dict(SIZES | values)


def test_values_are_given_by_name():
    with pytest.raises(TypeError, match="positional"):
        AbUptConfig(24, 2)
    with pytest.raises(TypeError, match="positional"):
        SupernodePoolingConfig(0.25)


@pytest.mark.parametrize(
    "fields",
    [{"a": {"b_p": 1}, "a_b": {"p": 1}}, {"a": {"p": 1}, "query_a": {"p": 1}}],
)
def test_fields_of_different_branches_that_would_get_the_same_name_are_refused(fields):
    with pytest.raises(ValueError, match=r"a_b_p|query_a_p"):
        AbUptConfig(**SIZES, fields=fields, decoder_depths={})


@pytest.mark.parametrize(("name", "value"), [("layer_scale", "small"), ("supernode_pooling", None)])
def test_a_value_of_the_wrong_kind_is_quoted(name, value):
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        AbUptConfig(**SIZES, **{name: value})
