import jax
import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax import AttentionConfig, DotProductAttention
from emmi_jax.convert import params_from_torch, params_to_torch
from emmi_jax.convert.modules import _modules
from tests.convert.cases import assert_same_bits, golden_state_dict, listed, random_params, without_constants
from tests.golden_files import golden_names

KINDS = ("self", "cross", "joint", "mixed", "dot_product", "perceiver", "transformer_block", "supernode_pooling")


def normal(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def self_attention(dim=8, bias=True):
    state_dict = {"qkv.weight": normal(3 * dim, dim), "proj.weight": normal(dim, dim)}
    return state_dict | {"qkv.bias": normal(3 * dim), "proj.bias": normal(dim)} if bias else state_dict


def perceiver_attention(dim=8, kv_dim=8):
    state_dict = {"q.weight": normal(dim, dim), "kv.weight": normal(2 * dim, kv_dim), "proj.weight": normal(dim, dim)}
    return state_dict | {"q.bias": normal(dim), "kv.bias": normal(2 * dim), "proj.bias": normal(dim)}


def split_entries(state_dict, fused):
    """Splits a fused projection such as ``qkv`` into one a letter."""
    prefix, letters = fused.rpartition(".")[0], fused.rpartition(".")[2]
    result = {}
    for name, array in state_dict.items():
        module, _, leaf = name.rpartition(".")
        if module != fused:
            result[name] = array
            continue
        for letter, part in zip(letters, np.split(array, len(letters)), strict=True):
            result[".".join(filter(None, (prefix, letter, leaf)))] = part
    return result


@pytest.mark.parametrize("name", golden_names(*KINDS))
def test_golden_round_trip_is_bit_exact(name):
    pytest.importorskip("torch")
    state_dict = golden_state_dict(name)
    is_split = any(part in name for part in ("_2026_", "_field_", "_main_"))
    back = params_to_torch(params_from_torch(state_dict), split_qkv=is_split)
    assert_same_bits({key: tensor.numpy() for key, tensor in back.items()}, without_constants(state_dict))


@pytest.mark.parametrize("bias", [True, False])
def test_attention_has_the_tree_of_the_flax_module(bias):
    module = DotProductAttention(AttentionConfig(dim=8, num_heads=2, bias=bias))
    variables = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 3, 8)))
    params = params_from_torch(self_attention(bias=bias))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, variables["params"])


def test_linear_weights_are_transposed_and_norm_weights_are_scales():
    state_dict = golden_state_dict("transformer_block_2")
    params = params_from_torch(state_dict)
    kernel = params["attention_block"]["qkv"]["kernel"]
    np.testing.assert_array_equal(kernel, state_dict["attention_block.qkv.weight"].T)
    np.testing.assert_array_equal(params["norm1"]["scale"], state_dict["norm1.weight"])
    np.testing.assert_array_equal(params["ls2"]["gamma"], state_dict["ls2.gamma"])


@pytest.mark.parametrize("bias", [True, False])
def test_fused_and_split_give_the_same_parameters(bias):
    fused = self_attention(bias=bias)
    split = split_entries(fused, "qkv")
    assert {name for name in split if name.endswith("weight")} == {f"{p}.weight" for p in ("q", "k", "v", "proj")}
    assert_same_bits(params_from_torch(split), params_from_torch(fused))


def test_bare_split_attention_is_self_attention():
    assert set(params_from_torch(split_entries(perceiver_attention(), "kv"))) == {"qkv", "proj"}


def test_bare_split_attention_with_other_key_channels_is_a_perceiver():
    fused = perceiver_attention(kv_dim=6)
    assert_same_bits(params_from_torch(split_entries(fused, "kv")), params_from_torch(fused))


@pytest.mark.parametrize("name", golden_names("perceiver_block"))
def test_split_perceiver_block_is_recognised_with_and_without_norms(name):
    fused = golden_state_dict(name)
    assert_same_bits(params_from_torch(split_entries(fused, "attn.kv")), params_from_torch(fused))


def test_every_variant_of_every_module_round_trips():
    pytest.importorskip("torch")
    sizes = {"C": 4, "D": 6, "E": 16, "F": 5, "H": 2, "K": 3}
    for module in _modules():
        params = {}
        for path, target in module.table.items():
            *parents, leaf = path.split("/")
            node = params
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = tuple(dim.size(sizes) for dim in target.shape)
        params = random_params(params)
        state_dict = params_to_torch(params, split_qkv=module.split_qkv)
        assert set(state_dict) == {name for target in module.table.values() for name in target.names}
        assert_same_bits(params_from_torch(state_dict), params)


def test_constants_and_a_checkpoint_around_the_state_dict_are_ignored():
    state_dict = self_attention()
    wrapped = {"state_dict": {**state_dict, "rope.omega": normal(2), "padding_tensor": normal(0)}, "epoch": 3}
    assert_same_bits(params_from_torch(wrapped), params_from_torch(state_dict))


def test_nan_and_half_precision_keep_their_bits():
    state_dict = {name: array.astype(np.float16) for name, array in self_attention().items()}
    state_dict["proj.bias"][0] = np.nan
    assert params_from_torch(state_dict)["proj"]["bias"].tobytes() == state_dict["proj.bias"].tobytes()


def test_parameters_do_not_share_memory_with_the_state_dict():
    state_dict = self_attention()
    for array in jax.tree.leaves(params_from_torch(state_dict)):
        assert not any(np.shares_memory(array, source) for source in state_dict.values())


FAULTS = {
    "unknown": ({"extra.weight": normal(2, 2)}, (), {"unknown: extra.weight"}),
    "missing projection": ({}, ("proj.weight", "proj.bias"), {"missing: proj.bias", "missing: proj.weight"}),
    "bias of one layer only": ({}, ("proj.bias",), {"missing: proj.bias"}),
    "rows not three times columns": (
        {"qkv.weight": normal(25, 8)},
        (),
        {"misshapen: qkv.weight has the shape [25, 8], expected [24, 8]"},
    ),
    "projection of another width": (
        {"proj.weight": normal(8, 9)},
        (),
        {"misshapen: proj.weight has the shape [8, 9], expected [8, 8]"},
    ),
    "wrong rank": ({"qkv.weight": normal(24)}, (), {"misshapen: qkv.weight has the shape [24], expected [24, 8]"}),
    "integers": ({"qkv.bias": np.zeros(24, int)}, (), {"not floating point: qkv.bias has the dtype int64"}),
    "complex": ({"qkv.bias": np.zeros(24, complex)}, (), {"not floating point: qkv.bias has the dtype complex128"}),
    "no tensor": ({"qkv.bias": [1.0]}, (), {"not readable: qkv.bias is a list, expected a tensor with values"}),
    "fused beside split": ({"k.weight": normal(8, 8)}, (), {"unknown: k.weight"}),
    "all at once": (
        {"extra": normal(1), "qkv.weight": normal(25, 8), "qkv.bias": np.zeros(24, np.int8)},
        ("proj.bias",),
        {
            "unknown: extra",
            "missing: proj.bias",
            "misshapen: qkv.weight has the shape [25, 8], expected [24, 8]",
            "not floating point: qkv.bias has the dtype int8",
        },
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_listed_in_one_error(fault):
    changed, removed, expected = FAULTS[fault]
    state_dict = {name: array for name, array in {**self_attention(), **changed}.items() if name not in removed}
    with pytest.raises(ValueError, match="self attention") as error:
        params_from_torch(state_dict)
    assert listed(error) == expected


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_a_missing_split_part_is_named(part):
    state_dict = split_entries(self_attention(), "qkv")
    del state_dict[f"{part}.weight"], state_dict[f"{part}.bias"]
    with pytest.raises(ValueError, match="self attention") as error:
        params_from_torch(state_dict)
    assert listed(error) == {f"missing: {part}.bias", f"missing: {part}.weight"}


def test_split_parts_of_different_dtypes_are_refused():
    state_dict = split_entries(self_attention(bias=False), "qkv")
    state_dict["k.weight"] = state_dict["k.weight"].astype(np.float16)
    with pytest.raises(ValueError, match=r"different dtypes: .*'q.weight': 'float32', 'k.weight': 'float16'"):
        params_from_torch(state_dict)


def test_faults_of_a_block_name_the_block():
    state_dict = golden_state_dict("transformer_block_0")
    del state_dict["mlp.fc1.bias"]
    state_dict["norm2.weight"] = normal(31)
    with pytest.raises(ValueError, match="TransformerBlock") as error:
        params_from_torch(state_dict)
    assert listed(error) == {"missing: mlp.fc1.bias", "misshapen: norm2.weight has the shape [31], expected [32]"}


def test_a_state_dict_of_nothing_known_is_refused():
    with pytest.raises(ValueError, match=r"no module known here .*\['layer.weight'\]"):
        params_from_torch({"layer.weight": normal(2, 2)})


@pytest.mark.parametrize("state_dict", [None, [("qkv.weight", 1)], {1: normal(2)}])
def test_what_is_no_state_dict_is_refused(state_dict):
    with pytest.raises(ValueError, match="state dict"):
        params_from_torch(state_dict)


def test_every_fault_of_a_parameter_tree_is_listed_in_one_error():
    params = {"qkv": {"kernel": normal(8, 24), "bias": normal(24)}, "proj": {"kernel": normal(9, 8)}, "x": {"y": None}}
    with pytest.raises(ValueError, match="self attention") as error:
        params_to_torch(params)
    assert listed(error) == {
        "missing: proj/bias",
        "misshapen: proj/kernel has the shape [9, 8], expected [8, 8]",
        "unknown: x/y",
    }


def test_what_is_no_parameter_tree_is_refused():
    with pytest.raises(ValueError, match="nested mapping, got list"):
        params_to_torch([1])
