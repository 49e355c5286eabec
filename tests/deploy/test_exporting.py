"""Exporting for other platforms and kernels, and running without the package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from emmi_jax import deploy
from emmi_jax.inference.exporting import Program, export_surrogate
from tests.deploy.cases import POINTS, QUERIES, surrogate

ROOT = Path(__file__).parents[2]


def test_a_file_for_another_platform_has_its_kernels_and_says_so(tmp_path: Path) -> None:
    programs: list[Program] = []
    export_surrogate(surrogate("curls"), tmp_path / "model.emmi", platforms=["tpu"], advance=programs.append)
    # A curl needs forward mode, which the kernel of TPUs lacks; and no kernel of TPUs takes any size.
    kernels = {program.function: program.kernel for program in programs if program.anchors}
    assert (kernels["query/surface"], kernels["query/volume"]) == ("splash", "xla")
    assert {program.kernel for program in programs if not program.anchors} == {"xla"}
    with pytest.raises(ValueError, match="exported for tpu, but the devices are of 'cpu'"):
        deploy.load(tmp_path / "model.emmi")


def test_cudnn_is_exported_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
    run, programs = surrogate("bfloat16 with heads for cuDNN"), []
    export_surrogate(run, tmp_path / "model.emmi", platforms=["cuda"], advance=programs.append)
    assert {program.kernel for program in programs if program.function == "query/volume"} == {"cudnn", "xla"}


@pytest.mark.parametrize(
    ("options", "message"),
    [({"platforms": ["gpu"]}, "platforms must be some of cpu, cuda"), ({"units": {"wake": "m"}}, "got 'wake'")],
)
def test_a_mistaken_export_leaves_no_file(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_surrogate(surrogate("curls"), tmp_path / "model.emmi", **options)
    assert list(tmp_path.iterdir()) == []


def test_the_example_runs_without_the_package(file: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "examples" / "run_exported.py", tmp_path)
    shutil.copytree(ROOT / "emmi_jax" / "deploy", tmp_path / "deploy")
    np.savez(tmp_path / "points.npz", **POINTS)
    code = (
        "import runpy, sys; sys.path.insert(0, '.')\n"
        "sys.modules.update(emmi_jax=None, flax=None, chex=None)\n"
        f"sys.argv = ['run_exported.py', {str(file)!r}, 'points.npz', 'fields.npz']\n"
        "runpy.run_path('run_exported.py', run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "volume_velocity: 30 points" in run.stdout
    expected = surrogate("geometry").encode(points=POINTS).predict(POINTS)
    with np.load(tmp_path / "fields.npz") as found:
        assert {name: found[name].tolist() for name in found} == {n: v.tolist() for n, v in expected.items()}


def test_deploy_imports_neither_flax_nor_the_rest_of_the_package() -> None:
    code = "import emmi_jax.deploy, json, sys; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    imported = json.loads(run.stdout)
    assert {".".join(name.split(".")[:2]) for name in imported if name.startswith("emmi_jax")} == {
        "emmi_jax",
        "emmi_jax.deploy",
        "emmi_jax.lazy",
    }
    assert {"flax", "chex", "optax", "orbax", "typer"} & {name.split(".")[0] for name in imported} == set()


def test_devices_take_turns_at_the_chunks(file: Path, exported: deploy.ExportedSurrogate) -> None:
    device = jax.local_devices()[0]
    found = deploy.load(file, devices=[device, device]).encode(points=POINTS).predict({"volume": QUERIES}, chunk_size=2)
    expected = exported.encode(points=POINTS).predict({"volume": QUERIES}, chunk_size=2)
    assert {name: a.tolist() for name, a in found.items()} == {name: a.tolist() for name, a in expected.items()}
    with pytest.raises(ValueError, match="at least one device, got none"):
        deploy.load(file, devices=[])
