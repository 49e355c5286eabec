#!/usr/bin/env bash
# torch.cdist (2.13.0) changes its algorithm at 26 points: by default larger inputs go through a matrix product.
#
# Expected: the same distances for the first 25 of 26 points as for those 25 alone.
# Seen:     at coordinates near 1000 and distances below 2, errors up to 0.7; a point's distance to itself is 0.7.
# Hurts:    radius search by `cdist(x, y) <= r` on meshes in millimetres or far from the origin: tests on small clouds
#           pass, real ones find other neighbours. compute_mode="donot_use_mm_for_euclid_dist" is exact.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0 numpy 2>/dev/null
"$work/venv/bin/python" - <<'PY'
import sys

import torch

points = 1000 + torch.rand(26, 3, generator=torch.Generator().manual_seed(0))
exact = torch.cdist(points.double(), points.double())
errors = {
    "25 points": torch.cdist(points[:25], points[:25]).double() - exact[:25, :25],
    "26 points": torch.cdist(points, points).double() - exact,
    "26 points, no product": torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist").double() - exact,
}
seen = {name: error.abs().max().item() for name, error in errors.items()}
print("torch", torch.__version__, "largest error:", {name: f"{error:.2g}" for name, error in seen.items()})
sys.exit(not (seen["25 points"] < 1e-6 and seen["26 points"] > 0.1 and seen["26 points, no product"] < 1e-6))
PY
