"""The list of attention implementations: their layout of patterns, their kernel, and where they run."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Implementation(NamedTuple):
    """Layout of the attention patterns of a layer, and the kernel that runs each call.

    ``whole`` is one call for all patterns, with a rectangle of the logits for each pair of groups. ``by_pattern`` is
    one call for all patterns of equal shape.

    Attributes:
        kernel: Its name in `emmi_jax.ops.attention.KERNELS`.
        is_portable: Whether it runs on every platform.
        mark: What shows in an exported program that it was compiled in.
    """

    strategy: Literal["whole", "by_pattern"]
    kernel: str
    is_portable: bool = False
    mark: bytes | None = None


IMPLEMENTATIONS = {
    "masked": Implementation("whole", "dense", is_portable=True),
    "xla": Implementation("by_pattern", "dense", is_portable=True),
    "blockwise": Implementation("by_pattern", "blockwise", is_portable=True),
    "cudnn": Implementation("by_pattern", "cudnn", mark=b"__cudnn$fmha"),
    "flash": Implementation("by_pattern", "flash"),
    "splash": Implementation("whole", "splash", mark=b"tpu_custom_call"),
}
"""Values of `implementation` beside ``auto``:

- ``masked``: one dense call for all patterns. It serves every call and holds all logits.
- ``xla``: a dense call by pattern. It serves every call and holds all logits.
- ``blockwise``: tiles, by pattern. It serves every call; memory is linear in T and S.
- ``cudnn``: cuDNN's flash attention, by pattern; memory is linear in T and S. It serves NVIDIA GPUs, bfloat16 and
  float16, masks [B, 1, 1, S], a head_dim that is a multiple of 8 and at most 128 (256 from Hopper on); no dropout.
- ``flash``: FlashAttention-4, by pattern; memory is linear in T and S. It serves NVIDIA GPUs of compute capability
  9.0 or higher where the package fa4-jax is installed, bfloat16 and float16, masks [B, 1, 1, S], a head_dim that is
  a multiple of 8 and at most 128; no dropout. Under `forward_mode`, and for second derivatives, Pallas kernels run,
  which need no package. It is not exported: a file must run where the package is absent.
- ``splash``: a Pallas kernel, one call for all patterns; memory is linear in T and S. It serves TPUs, float32 and
  bfloat16, masks [B, 1, 1, S] and rectangles; no dropout.
"""
