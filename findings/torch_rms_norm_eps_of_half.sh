#!/usr/bin/env bash
# torch.nn.RMSNorm (2.13.0, CPU) without eps takes that of float32 for half-precision input, not that of the input.
#
# Expected: as documented, torch.finfo(x.dtype).eps: 7.8e-3 for bfloat16, 9.8e-4 for float16.
# Seen:     1.2e-7 for both: a row of 2^-10 becomes 0.94, where the documented eps gives 0.011 and 0.031.
# Hurts:    ports of half-precision models with QK norm or RMSNorm that follow the documentation; small rows differ.
set -euo pipefail
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet 'torch==2.13.0' 'numpy==2.2.6'
"$scratch/venv/bin/python" - <<'PYTHON'
import torch

for dtype in (torch.bfloat16, torch.float16):
    x = torch.full((1, 8), 2.0**-10, dtype=dtype)
    y = torch.nn.RMSNorm(8, elementwise_affine=False)(x)[0, 0].item()

    def expected(eps):
        square = x[0, 0].double() ** 2
        return (x[0, 0].double() / (square + eps).sqrt()).item()

    documented, single = expected(torch.finfo(dtype).eps), expected(torch.finfo(torch.float32).eps)
    print(f"{dtype}: {y:.4f}; with the eps of the dtype {documented:.4f}, with that of float32 {single:.4f}")
    assert abs(y - single) < 5e-3 * single
    assert y > 5 * documented
PYTHON
