import jax.numpy as jnp
import numpy as np
import pytest

from emmi_jax.convert import params_from_torch, params_to_torch

torch = pytest.importorskip("torch")


def attention(dtype, dim=8):
    generator = torch.Generator().manual_seed(0)
    shapes = {"qkv.weight": (3 * dim, dim), "qkv.bias": (3 * dim,), "proj.weight": (dim, dim), "proj.bias": (dim,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.double).to(dtype) for name, shape in shapes.items()
    }


@pytest.mark.parametrize("split_qkv", [False, True])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_round_trip_keeps_dtype_and_bits(dtype, split_qkv):
    state_dict = attention(getattr(torch, dtype))
    params = params_from_torch(state_dict)
    assert params["qkv"]["kernel"].dtype == jnp.dtype(dtype)
    back = params_to_torch(params, split_qkv=split_qkv)
    if split_qkv:
        back |= {f"qkv.{leaf}": torch.cat([back.pop(f"{p}.{leaf}") for p in "qkv"]) for leaf in ("weight", "bias")}
    assert back.keys() == state_dict.keys()
    for name, tensor in back.items():
        assert tensor.dtype == state_dict[name].dtype
        assert torch.equal(tensor, state_dict[name])


def test_bfloat16_values_are_those_of_torch():
    state_dict = attention(torch.bfloat16)
    got = params_from_torch(state_dict)["proj"]["bias"].astype(np.float32)
    np.testing.assert_array_equal(got, state_dict["proj.bias"].float().numpy())


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_parameters_that_require_gradients_and_views_are_read(dtype):
    state_dict = attention(getattr(torch, dtype))
    expected = params_from_torch(state_dict)
    state_dict["qkv.weight"] = torch.nn.Parameter(state_dict["qkv.weight"])
    state_dict["proj.weight"] = state_dict["proj.weight"].T.contiguous().T
    got = params_from_torch(state_dict)
    for module, leaf in (("qkv", "kernel"), ("proj", "kernel")):
        assert got[module][leaf].tobytes() == expected[module][leaf].tobytes()


def test_neither_direction_shares_memory():
    state_dict = attention(torch.float32)
    params = params_from_torch(state_dict)
    back = params_to_torch(params)
    before = params["proj"]["bias"].copy()
    state_dict["proj.bias"].zero_()
    back["proj.bias"].fill_(1.0)
    np.testing.assert_array_equal(params["proj"]["bias"], before)


def test_jax_arrays_go_to_torch():
    params = params_from_torch(attention(torch.bfloat16))
    on_device = {module: {leaf: jnp.asarray(a) for leaf, a in leaves.items()} for module, leaves in params.items()}
    for name, tensor in params_to_torch(on_device).items():
        assert torch.equal(tensor, params_to_torch(params)[name])


@pytest.mark.parametrize("place", ["module.{}", "_orig_mod.{}", "module._orig_mod.{}", "module.module.{}"])
def test_what_torch_adds_to_names_is_ignored(place):
    state_dict = attention(torch.float32)
    wrapped = {place.format(name): tensor for name, tensor in state_dict.items()} | {"n_averaged": torch.tensor(3)}
    got, expected = params_from_torch(wrapped), params_from_torch(state_dict)
    assert all(got["qkv"][leaf].tobytes() == array.tobytes() for leaf, array in expected["qkv"].items())


def test_names_of_a_part_that_was_compiled_alone_are_read_and_two_of_one_parameter_refused():
    state_dict = attention(torch.float32)
    state_dict["proj._orig_mod.bias"] = state_dict.pop("proj.bias")
    assert params_from_torch(state_dict)["proj"]["bias"].shape == (8,)
    state_dict["proj.bias"] = torch.zeros(8)
    with pytest.raises(
        ValueError, match=r"several entries for one parameter: \['proj\._orig_mod\.bias', 'proj\.bias'\]"
    ):
        params_from_torch(state_dict)


def test_a_tensor_without_values_is_listed():
    state_dict = attention(torch.float32)
    state_dict["proj.bias"] = torch.empty(8, device="meta")
    with pytest.raises(ValueError, match=r"not readable: proj.bias is a Tensor"):
        params_from_torch(state_dict)


def test_integer_tensors_are_listed():
    state_dict = attention(torch.float32)
    state_dict["proj.bias"] = torch.zeros(8, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"not floating point: proj.bias has the dtype int32"):
        params_from_torch(state_dict)
