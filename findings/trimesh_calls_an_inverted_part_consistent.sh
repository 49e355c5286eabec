#!/usr/bin/env bash
# trimesh 5.2.0: two closed bodies of which one is inside out are "watertight" with "consistent winding", and have
# volume 0.
#
# Expected: is_winding_consistent or is_volume is False, or each part is turned outwards.
# Seen:     both checks pass, the volume of two unit boxes is 0, the centre of mass is not finite.
# Hurts:    forces and normals of assemblies whose parts come from different tools; the checks that people run before
#           they train do not find them. Look at every part (`split`).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet trimesh==5.2.0 numpy==2.4.6 networkx scipy 2>/dev/null
"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import numpy as np
import trimesh

first, second = trimesh.creation.box(), trimesh.creation.box()
second.apply_translation([3, 0, 0])
second.invert()
both = trimesh.util.concatenate([first, second])
seen = (both.is_watertight, both.is_winding_consistent, float(both.volume), bool(np.isfinite(both.center_mass).all()))
parts = sorted(float(part.volume) for part in both.split())
print("trimesh", trimesh.__version__, "watertight, consistent, volume, finite centre:", seen, "parts:", parts)
sys.exit(seen != (True, True, 0.0, False) or not np.allclose(parts, [-1, 1]))
PY
