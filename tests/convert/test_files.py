import io
import json
import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from emmi_jax.convert import ab_upt_from_torch, load_torch_file, params_from_torch
from emmi_jax.files.pt import load_torch_tensor
from tests.convert.cases import assert_same_bits, golden_ab_upt_config, golden_state_dict
from tests.golden_files import FOLDER

CHECKPOINT = FOLDER / "ab_upt_tutorial_48.th"


class RunsCode:
    """Leaves a trace where a reader executes it."""

    def __init__(self, trace):
        self.trace = str(trace)

    def __reduce__(self):
        return os.mkdir, (self.trace,)


def test_tutorial_checkpoint_converts_like_its_arrays():
    pytest.importorskip("torch")
    config = golden_ab_upt_config("ab_upt_tutorial_48")
    file = load_torch_file(CHECKPOINT)
    assert file.extra == {}
    expected = ab_upt_from_torch(golden_state_dict("ab_upt_tutorial_48"), config)
    assert_same_bits(ab_upt_from_torch(file.state_dict, config), expected)


@pytest.mark.parametrize("suffix", [".th", ".pt", ".pth", ".PT"])
@pytest.mark.parametrize("wrapped", [True, False])
def test_state_dict_and_what_stands_beside_it_are_read(tmp_path, suffix, wrapped):
    torch = pytest.importorskip("torch")
    state_dict = {"a": torch.arange(3.0), "b": torch.ones(2, 2, dtype=torch.bfloat16)}
    path = tmp_path / f"weights{suffix}"
    torch.save({"state_dict": state_dict, "model_config": {"dim": 3}} if wrapped else state_dict, path)
    file = load_torch_file(str(path))
    assert file.extra == ({"model_config": {"dim": 3}} if wrapped else {})
    assert {name: (array.shape, str(array.dtype)) for name, array in file.state_dict.items()} == {
        "a": ((3,), "float32"),
        "b": ((2, 2), "bfloat16"),
    }
    np.testing.assert_array_equal(file.state_dict["a"], [0, 1, 2])


@pytest.mark.parametrize("beside", [True, False])
def test_archive_that_wants_to_execute_code_is_refused_without_running_it(tmp_path, beside):
    torch = pytest.importorskip("torch")
    evil = RunsCode(tmp_path / "trace")
    path = tmp_path / "evil.th"
    torch.save({"state_dict": {"a": torch.ones(2)}, "x": evil} if beside else evil, path)
    with pytest.raises(ValueError, match=r"evil.th is refused, because loading it could execute code: .*mkdir"):
        load_torch_file(path)
    assert not (tmp_path / "trace").exists()


def test_bare_pickle_is_refused_without_running_it(tmp_path):
    path = tmp_path / "evil.pt"
    path.write_bytes(pickle.dumps(RunsCode(tmp_path / "trace")))
    with pytest.raises(ValueError, match="bare pickle, not a zip of tensors, and may execute code"):
        load_torch_file(path)
    assert not (tmp_path / "trace").exists()


def zip_of(*names):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(name, "x")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello world" * 20, "truncated, or it is no zip"),
        (CHECKPOINT.read_bytes()[:5000], "truncated, or it is no zip"),
        (CHECKPOINT.read_bytes()[:-10], "truncated, or it is no zip"),
        (zip_of("a.txt"), "a zip, but not one of tensors"),
        (zip_of("m/data.pkl", "m/constants.pkl", "m/code/m.py"), "TorchScript archive, which executes code"),
    ],
    ids=["empty", "text", "half", "cut end", "other zip", "TorchScript"],
)
def test_damaged_or_foreign_file_is_reported(tmp_path, content, message):
    path = tmp_path / "weights.th"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"weights.th .*{message}"):
        load_torch_file(path)


def test_archive_with_damaged_records_is_reported(tmp_path):
    pytest.importorskip("torch")
    path = tmp_path / "weights.th"
    path.write_bytes(zip_of("m/data.pkl"))
    with pytest.raises(ValueError, match=r"weights\.th .*damaged"):
        load_torch_file(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list, expected a state dict"),
        ({}, "it has no entries"),
        ({"epoch": 3, "model": {}}, r"no tensors are \['epoch', 'model'\]"),
    ],
)
def test_file_without_a_state_dict_is_refused(tmp_path, content, message):
    torch = pytest.importorskip("torch")
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=message):
        load_torch_file(tmp_path / "weights.pt")


@pytest.mark.parametrize("name", ["weights.npz", "weights", "weights.pkl"])
def test_unknown_suffix_is_refused(name):
    with pytest.raises(ValueError, match=r"suffix must be .th, .pt, .pth or .safetensors"):
        load_torch_file(name)


@pytest.mark.parametrize("name", ["nowhere.th", "nowhere.safetensors"])
def test_missing_file_is_reported_as_such(tmp_path, name):
    if name.endswith(".safetensors"):
        pytest.importorskip("safetensors")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_torch_file(tmp_path / name)


def test_safetensors_are_read_with_their_metadata(tmp_path):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    state_dict = golden_state_dict("dot_product_0")
    path = tmp_path / "weights.safetensors"
    safetensors_numpy.save_file(state_dict, path, metadata={"model_config": json.dumps({"dim": 32})})
    file = load_torch_file(path)
    assert file.extra == {"model_config": '{"dim": 32}'}
    assert_same_bits(params_from_torch(file.state_dict), params_from_torch(state_dict))


@pytest.mark.parametrize("keep", [0, 30, -3], ids=["empty", "header cut", "tensors cut"])
def test_damaged_safetensors_are_reported(tmp_path, keep):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_numpy.save(golden_state_dict("dot_product_0"))[:keep])
    with pytest.raises(ValueError, match=r"weights.safetensors is (empty|truncated)"):
        load_torch_file(path)


def test_torch_is_not_loaded_for_reading_numpy_and_safetensors(tmp_path):
    safetensors_numpy = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "weights.safetensors"
    safetensors_numpy.save_file(golden_state_dict("dot_product_0"), path)
    code = (
        "import sys; from emmi_jax.convert import load_torch_file, params_from_torch;"
        f"params_from_torch(load_torch_file({str(path)!r}).state_dict);"
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_file_of_one_tensor_is_read(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.arange(6.0).reshape(2, 3), tmp_path / "a.pt")
    array = load_torch_tensor(tmp_path / "a.pt")
    np.testing.assert_array_equal(array, [[0, 1, 2], [3, 4, 5]])
    assert array.dtype == np.float32


def test_what_is_no_file_of_one_tensor_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2)}, tmp_path / "dict.pt")
    torch.save(RunsCode(tmp_path / "trace"), tmp_path / "evil.pt")
    for name, message in {"dict": "holds a dict, expected a tensor", "evil": "could execute code: .*mkdir"}.items():
        with pytest.raises(ValueError, match=message):
            load_torch_tensor(tmp_path / f"{name}.pt")
    assert not (tmp_path / "trace").exists()
    with pytest.raises(FileNotFoundError, match=r"none\.pt: no such file"):
        load_torch_tensor(tmp_path / "none.pt")
