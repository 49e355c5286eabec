#!/usr/bin/env bash
# scipy.spatial.cKDTree 1.17.1 compares in float64: on float32 points another radius search than float32 arithmetic.
#
# Expected: on a float32 line of spacing 0.1, the neighbours within 0.1, 0.2, ... include the point at that distance,
#           as distance <= float32(radius) does (PyTorch's cdist, JAX).
# Seen:     the point on the rim is missing for radii 0.1, 0.2, 0.3, 0.4 and 0.6: float32(0.1) > 0.1.
# Hurts:    neighbours found on the host and on the device differ on every structured mesh.
#           Query with float(np.float32(radius)).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet scipy==1.17.1 numpy==2.4.6 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
import scipy
from scipy.spatial import cKDTree

line = np.arange(10, dtype=np.float32) * np.float32(0.1)
radii = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]
tree = cKDTree(line[:, None])
num_scipy = [len(tree.query_ball_point([0.0], radius)) for radius in radii]
num_float32 = [int((line <= np.float32(radius)).sum()) for radius in radii]
num_rounded = [len(tree.query_ball_point([0.0], float(np.float32(radius)))) for radius in radii]
print("scipy", scipy.__version__, "neighbours", num_scipy, "in float32", num_float32, "with a rounded radius", num_rounded)
sys.exit(num_scipy != [1, 2, 3, 4, 6, 6, 8] or num_float32 != [2, 3, 4, 5, 6, 7, 8] or num_rounded != num_float32)
PY
