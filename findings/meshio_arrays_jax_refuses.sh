#!/usr/bin/env bash
# meshio 5.3.5 gives the arrays of a binary legacy .vtk file in big-endian order, which neither JAX nor PyTorch takes.
#
# Expected: native floats, as pyvista gives for the same file.
# Seen:     dtype >f8; jnp.asarray raises "Error interpreting argument to stage as a JAX value", which names no byte
#           order, and torch.from_numpy a ValueError.
# Hurts:    pipelines that work with .vtu fail with .vtk. array.astype(array.dtype.newbyteorder("=")) helps.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet meshio==5.3.5 numpy==2.4.6 jax==0.10.2 2>/dev/null
cd "$work"
JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PY'
import sys

import jax
import jax.numpy as jnp
import meshio
import numpy as np

mesh = meshio.Mesh(np.eye(3), [("triangle", np.array([[0, 1, 2]]))], point_data={"p": np.arange(3.0)})
dtypes = {}
for ending in ("vtk", "vtu"):
    mesh.write(f"mesh.{ending}")
    dtypes[ending] = meshio.read(f"mesh.{ending}").point_data["p"].dtype.str
try:
    jnp.asarray(meshio.read("mesh.vtk").point_data["p"])
    error = "none"
except TypeError as raised:
    error = str(raised).strip()
print("meshio", meshio.__version__, dtypes, "jax", jax.__version__, "says:", error)
sys.exit(dtypes != {"vtk": ">f8", "vtu": "<f8"} or error == "none" or "endian" in error or "byte" in error)
PY
