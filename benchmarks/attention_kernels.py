"""Attention without projections, against PyTorch: ``python -m benchmarks.attention_kernels``."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from torch.nn import functional

from benchmarks import measure
from emmi_jax.ops.attention import dot_product_attention, resolve_implementation

NUM_HEADS, HEAD_DIM = 3, 64


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/attention_kernels.json")
    parser.add_argument("--tokens", type=int, default=16384, help="anchors per branch (%(default)s)")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--implementations", nargs="+", default=["auto"], help="the first counts (%(default)s)")
    parser.add_argument("--matrix-size", type=int, default=8192, help="of the timed product (%(default)s)")
    options = parser.parse_args()
    measure.use_all_threads()
    matrix_rate = _matrix_rate(options)
    rows = []
    # Batch, queries and keys of a small call, of self attention without and with queries, of joint attention.
    n = options.tokens
    for batch, num_queries, num_keys in ((2, n // 8, n // 8), (2, n, n), (2, 2 * n, n), (1, 2 * n, 2 * n)):
        for backward in (False, True):
            contestants, implementation = _contestants(batch, num_queries, num_keys, backward, options)
            difference = measure.check_equal({name: call() for name, call in contestants.items()}, options.dtype)
            times = measure.interleaved_medians(contestants, options.seconds)
            # Forward: two products. Backward: the logits again, and two products for each of them.
            flops = (14 if backward else 4) * batch * num_queries * num_keys * NUM_HEADS * HEAD_DIM
            row: dict[str, Any] = {
                "batch": batch,
                "queries": num_queries,
                "keys": num_keys,
                "pass": "both" if backward else "forward",
                "jax": implementation,
                "jax_ms": 1e3 * times["jax"],
                "tflops": flops / times["jax"] / 1e12,
                "share_of_matrix_rate": flops / times["jax"] / matrix_rate,
            }
            for name in list(times)[1:]:
                row |= {f"{name}_ms": 1e3 * times[name], f"ratio_{name}": times[name] / times["jax"]}
            rows.append(row | {"difference": difference})
    title = (
        f"{NUM_HEADS} heads of {HEAD_DIM}, {options.dtype}, {measure.DEVICE}, "
        f"matrices of {options.matrix_size} at {matrix_rate / 1e12:.3g} TFLOP/s; ratios are to jax"
    )
    measure.report(title, rows, options.json)


def _matrix_rate(options: Any) -> float:
    """Floating-point operations per second of one large product, in the faster framework."""
    shape = (options.matrix_size, options.matrix_size)
    a = torch.randn(shape).to(measure.TORCH_DEVICE, getattr(torch, options.dtype))
    x = jnp.asarray(np.random.default_rng(0).standard_normal(shape), options.dtype)
    contestants = {"jax": functools.partial(jax.jit(jnp.dot), x, x), "torch": functools.partial(torch.mm, a, a)}
    for call in contestants.values():
        measure.wait(call())
    times = measure.interleaved_medians(contestants, options.seconds)
    return 2 * options.matrix_size**3 / min(times.values())


def _contestants(batch: int, num_queries: int, num_keys: int, backward: bool, options: Any) -> tuple[Any, str]:
    rng = np.random.default_rng(0)
    sizes = (num_queries, num_keys, num_keys, num_queries)
    arrays = [rng.standard_normal((batch, size, NUM_HEADS, HEAD_DIM), np.float32) for size in sizes]
    inputs = [jnp.asarray(a, options.dtype) for a in arrays]
    # PyTorch's layout is [B, N, T, H].
    torch_dtype = getattr(torch, options.dtype)
    tensors = [torch.from_numpy(a).transpose(1, 2).to(measure.TORCH_DEVICE, torch_dtype).contiguous() for a in arrays]

    def jax_call(implementation: str) -> Any:
        attend = functools.partial(dot_product_attention, implementation=implementation)

        def gradients(q: jax.Array, k: jax.Array, v: jax.Array, cotangent: jax.Array) -> Any:
            return jax.vjp(attend, q, k, v)[1](cotangent)

        return functools.partial(jax.jit(gradients if backward else attend), *inputs[: 4 if backward else 3])

    def torch_call(attend: Any) -> Any:
        if not backward:
            with torch.no_grad():
                return attend(*tensors[:3]).transpose(1, 2)
        leaves = [tensor.detach().requires_grad_() for tensor in tensors[:3]]
        grads = torch.autograd.grad(attend(*leaves), leaves, tensors[3])
        return [grad.transpose(1, 2) for grad in grads]

    sdpa = functional.scaled_dot_product_attention
    first, *others = options.implementations
    contestants = {"jax": jax_call(first), **{name: jax_call(name) for name in others}}
    contestants["torch"] = functools.partial(torch_call, sdpa)
    if options.torch_compile:
        contestants["compiled_torch"] = functools.partial(torch_call, torch.compile(lambda q, k, v: sdpa(q, k, v)))
    return contestants, resolve_implementation(first, *inputs[:2])


if __name__ == "__main__":
    main()
