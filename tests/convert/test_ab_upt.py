import dataclasses

import jax
import numpy as np
import pytest

from emmi_jax import AbUptConfig, SupernodePoolingConfig
from emmi_jax.convert import LAYOUTS, ab_upt_from_torch, ab_upt_to_torch, params_from_torch, params_to_torch
from tests.convert.cases import (
    assert_same_bits,
    golden_ab_upt_config,
    golden_state_dict,
    listed,
    model_shapes,
    random_params,
    without_constants,
)

GOLDENS = {
    "ab_upt_0": "1.x",
    "ab_upt_1": "1.x",
    "ab_upt_2026_0": "2026.4",
    "ab_upt_2026_1": "2026.4",
    "ab_upt_tutorial_48": "tutorial",
    **{f"ab_upt_field_{i}": "2026.4" for i in range(4)},
    **{f"ab_upt_main_{i}": "main" for i in range(3)},
}


def small(**options):
    options = {"physics_blocks": ("self",), "decoder_depths": {"volume": 1}} | options
    return AbUptConfig(dim=12, num_heads=2, **options)


def pooling(**options):
    return small(physics_blocks=("perceiver",), supernode_pooling=SupernodePoolingConfig(**options))


# Models that no golden shows, and whether the tutorial's layout has names for them.
OTHERS = {
    "no geometry": (small(), True),
    "no biases": (small(physics_blocks=("perceiver", "joint"), bias=False), True),
    "biases of perceivers alone": (
        small(physics_blocks=("perceiver", "joint"), bias=False, bias_scope="transformer_blocks"),
        True,
    ),
    "no biases in attention": (small(physics_blocks=("perceiver",), bias=False, bias_scope="attention"), True),
    "linear messages": (pooling(mode="absrelpos", message_mode="linear"), True),
    "messages as they are": (pooling(mode="relpos", message_mode="identity", bias=False), True),
    "layer scale": (small(physics_blocks=("perceiver", "cross"), layer_scale=0.1), False),
    "condition": (small(physics_blocks=("perceiver", "self"), condition_dim=3), False),
    "wide MLP": (small(mlp_ratio=2, geometry_depth=0, physics_blocks=("perceiver",)), True),
    "absrelpos": (pooling(mode="absrelpos"), True),
    "relpos with features": (pooling(mode="relpos", input_features_dim=5), False),
    "abspos with features": (pooling(mode="abspos", input_features_dim=5), False),
    "no position after pooling": (pooling(readd_supernode_pos=False), True),
    "two axes": (small(physics_blocks=("perceiver",), num_position_axes=2), True),
    "names like other parts": (
        small(
            fields={"part_1": {"p": 1}, "part_decoder": {"p": 2}, "part_1_decoder_blocks": {"p": 1}},
            decoder_depths={"part_1": 2, "part_decoder": 1},
        ),
        True,
    ),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_has_exactly_the_tree_of_the_model(name):
    config = golden_ab_upt_config(name)
    params = ab_upt_from_torch(golden_state_dict(name), config)
    assert jax.tree.map(np.shape, params) == model_shapes(config)


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_round_trip_is_bit_exact(name):
    pytest.importorskip("torch")
    config, state_dict = golden_ab_upt_config(name), golden_state_dict(name)
    back = ab_upt_to_torch(ab_upt_from_torch(state_dict, config), config, layout=GOLDENS[name])
    assert_same_bits({key: tensor.numpy() for key, tensor in back.items()}, without_constants(state_dict))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OTHERS)
def test_every_layout_is_recognised_and_keeps_the_parameters(name, layout):
    pytest.importorskip("torch")
    config, in_tutorial = OTHERS[name]
    params = random_params(model_shapes(config))
    if layout == "tutorial" and not in_tutorial:
        with pytest.raises(ValueError, match="layout tutorial has no names for these parameters"):
            ab_upt_to_torch(params, config, layout=layout)
    else:
        assert_same_bits(ab_upt_from_torch(ab_upt_to_torch(params, config, layout=layout), config), params)


@pytest.mark.parametrize("name", OTHERS)
def test_parts_of_the_model_convert_alone_as_well(name):
    pytest.importorskip("torch")
    params = random_params(model_shapes(OTHERS[name][0]))
    parts = {part: tree for part, tree in params.items() if part == "encoder" or "_blocks_0" in part}
    assert parts
    for part in parts.values():
        for split_qkv in (False, True):
            assert_same_bits(params_from_torch(params_to_torch(part, split_qkv=split_qkv)), part)


def test_wrapped_state_dict_is_accepted():
    config, state_dict = golden_ab_upt_config("ab_upt_tutorial_48"), golden_state_dict("ab_upt_tutorial_48")
    wrapped = {"state_dict": state_dict, "model_config": {"dim": 48}}
    assert_same_bits(ab_upt_from_torch(wrapped, config), ab_upt_from_torch(state_dict, config))


def test_fields_of_a_branch_follow_one_another_in_the_decoder():
    config, state_dict = golden_ab_upt_config("ab_upt_tutorial_48"), golden_state_dict("ab_upt_tutorial_48")
    kernel = ab_upt_from_torch(state_dict, config)["volume_decoder"]["kernel"]
    assert kernel.shape == (config.dim, sum(config.fields["volume"].values()))
    np.testing.assert_array_equal(kernel, state_dict["volume_decoder.weight"].T)


@pytest.mark.parametrize("name", [name for name in GOLDENS if "_main_" not in name and "_field_" not in name])
def test_every_fault_is_listed_in_one_error(name):
    config, state_dict = golden_ab_upt_config(name), without_constants(golden_state_dict(name))
    wide, bias, message = (next(key for key in state_dict if part in key) for part in ("fc1.weight", "fc2.bias", "e.2"))
    shape = list(state_dict[wide].shape)
    state_dict[wide] = state_dict["head.weight"] = state_dict[wide].T
    state_dict[message] = state_dict[message].astype(np.int32)
    del state_dict[bias]
    with pytest.raises(ValueError, match=f"layout {GOLDENS[name]},") as error:
        ab_upt_from_torch(state_dict, config)
    assert listed(error) == {
        "unknown: head.weight",
        f"missing: {bias}",
        f"misshapen: {wide} has the shape {shape[::-1]}, expected {shape}",
        f"not floating point: {message} has the dtype int32",
    }


def test_another_configuration_names_what_does_not_fit():
    config = golden_ab_upt_config("ab_upt_2026_0")
    other = dataclasses.replace(config, decoder_depths={"surface": 2, "volume": 1})
    with pytest.raises(ValueError, match="does not fit the configuration") as error:
        ab_upt_from_torch(golden_state_dict("ab_upt_2026_0"), other)
    assert "missing: domain_decoder_blocks.surface.1.norm1.weight" in listed(error)
    assert "unknown: domain_decoder_blocks.volume.1.norm1.weight" in listed(error)


def test_every_fault_of_a_parameter_tree_is_listed_in_one_error():
    config = golden_ab_upt_config("ab_upt_0")
    params = ab_upt_from_torch(golden_state_dict("ab_upt_0"), config)
    params["surface_decoder"] = {"kernel": params["surface_decoder"]["kernel"].T, "scale": np.zeros(4)}
    with pytest.raises(ValueError, match="do not fit the configuration") as error:
        ab_upt_to_torch(params, config, layout="1.x")
    assert listed(error) == {
        "unknown: surface_decoder/scale",
        "missing: surface_decoder/bias",
        "misshapen: surface_decoder/kernel has the shape [4, 36], expected [36, 4]",
    }


def test_unknown_layout_is_refused():
    with pytest.raises(ValueError, match=r"layout must be one of 1.x, 2026.4, tutorial, main, got '2.0'"):
        ab_upt_to_torch({}, small(), layout="2.0")


@pytest.mark.parametrize("block", ["self_untied", "perceiver_untied"])
@pytest.mark.parametrize("layout", ["1.x", "tutorial"])
def test_untied_blocks_have_no_names_in_older_layouts(layout, block):
    config = small(physics_blocks=(block,))
    with pytest.raises(ValueError, match=rf"layout {layout} has no names for these parameters") as error:
        ab_upt_to_torch({}, config, layout=layout)
    assert all(path.startswith("physics_blocks_0/") for path in listed(error))


def test_what_branches_of_an_untied_block_share_must_be_equal():
    pytest.importorskip("torch")
    config = small(physics_blocks=("self_untied",))
    params = random_params(model_shapes(config))
    with pytest.raises(ValueError, match="do not fit the configuration") as error:
        ab_upt_to_torch(params, config, layout="2026.4")
    place = "physics_blocks_0/{}/norm1/scale"
    shared = (
        f"{place.format('surface')} and {place.format('volume')}, which share the entry physics_blocks.0.norm1.weight"
    )
    assert f"not equal: {shared}" in listed(error)


MAIN = {
    "plain": {},
    "conditions": {"conditioning_dims": {"design": 3, "inflow": 1}, "condition_dim": 8},
    "conditions of the geometry": {
        "conditioning_dims": {"design": 3},
        "geometry_conditioning_dims": {"inflow": 2},
        "bias": False,
    },
    "geometry without conditions": {"conditioning_dims": {"design": 3}, "geometry_conditioning_dims": {}},
    "one condition": {"condition_dim": 5, "qk_norm": "geometry"},
    "features and norms of heads": {"feature_dims": {"volume": 2}, "qk_norm": True, "layer_scale": 0.1},
}


@pytest.mark.parametrize("name", MAIN)
def test_main_is_recognised_and_keeps_the_parameters(name):
    pytest.importorskip("torch")
    config = small(physics_blocks=("perceiver", "cross"), norm="rms", readout_norm=True, **MAIN[name])
    params = random_params(model_shapes(config))
    assert_same_bits(ab_upt_from_torch(ab_upt_to_torch(params, config, layout="main"), config), params)
    with pytest.raises(ValueError, match=r"layout 2026\.4 is that of models with norm='layer'"):
        ab_upt_to_torch(params, config, layout="2026.4")


def test_main_refuses_weights_that_were_trained_with_other_norms():
    with pytest.raises(ValueError, match="layout main is that of models with norm='rms'"):
        ab_upt_to_torch({}, small(readout_norm=True), layout="main")


def test_branches_whose_names_collide_in_a_layout_are_refused():
    config = small(
        fields={"geometry": {"x": 1}, "b": {"y": 1}}, physics_blocks=("perceiver",), decoder_depths={"geometry": 1}
    )
    with pytest.raises(ValueError, match=r"layout tutorial several .* would share a name, .*: \['geometry_blocks.0"):
        ab_upt_to_torch({}, config, layout="tutorial")
