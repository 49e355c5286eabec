"""Anchor attention against PyTorch: ``python -m benchmarks.attention``."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import torch

from benchmarks import measure, torch_model
from emmi_jax import (
    AnchorAttentionConfig,
    CrossAnchorAttention,
    JointAnchorAttention,
    SelfAnchorAttention,
    TokenSpec,
    rope_frequencies,
)
from emmi_jax.convert import params_from_torch

DIM, NUM_HEADS = 192, 3
ATTENTIONS = {"self": SelfAnchorAttention, "cross": CrossAnchorAttention, "joint": JointAnchorAttention}
BRANCHES = ("surface", "volume")


def main() -> None:
    parser = measure.arguments(__doc__, "benchmarks/results/attention.json")
    parser.add_argument("--tokens", type=int, nargs="+", default=[512, 2048, 8192], help="per group (%(default)s)")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--implementations", nargs="+", default=["auto"], help="the first counts (%(default)s)")
    options = parser.parse_args()
    measure.use_all_threads()
    rows = []
    for dtype, tokens in itertools.product(options.dtypes, options.tokens):
        rows += _rows(dtype, tokens, options)
    measure.report(f"dim {DIM}, {NUM_HEADS} heads, {measure.DEVICE}; ratio = torch / jax", rows, options.json)


def _rows(dtype: str, tokens: int, options: Any) -> list[dict[str, Any]]:
    """Times all attentions and passes in turns, so that a slow minute of the machine falls on every row."""
    contestants, differences = {}, {}
    for row in itertools.product(ATTENTIONS, (False, True)):
        kind, backward = row
        calls = _contestants(kind, tokens, dtype, backward, options)
        results = {name: call()[0] if backward else call() for name, call in calls.items()}
        differences[row] = measure.check_equal(results, dtype)
        contestants |= {(*row, name): call for name, call in calls.items()}
    times = measure.interleaved_medians(contestants, options.seconds * len(differences))
    rows = []
    for kind, backward in differences:
        seconds = {name: times[kind, backward, name] for *row, name in times if row == [kind, backward]}
        row: dict[str, Any] = {
            "attention": kind,
            "tokens": tokens,
            "dtype": dtype,
            "pass": "forward+backward" if backward else "forward",
            "jax_ms": 1e3 * seconds["jax"],
        }
        for name in list(seconds)[1:]:
            row |= {f"{name}_ms": 1e3 * seconds[name], f"ratio_{name}": seconds[name] / seconds["jax"]}
        row |= measure.peak_memory({name: contestants[kind, backward, name] for name in seconds})
        rows.append(row | {"difference": differences[kind, backward]})
        print({k: round(v, 3) if isinstance(v, float) else v for k, v in rows[-1].items()}, flush=True)
    return rows


def _contestants(kind: str, tokens: int, dtype: str, backward: bool, options: Any) -> dict[str, Any]:
    groups = [f"{branch}_{group}" for branch in BRANCHES for group in ("anchors", "queries")]
    num_tokens = tokens * len(groups)
    torch_dtype = getattr(torch, dtype)
    torch.manual_seed(0)
    reference = torch_model.AnchorAttention(kind, DIM, NUM_HEADS, use_rope=True, bias=True, branches=BRANCHES)
    params = params_from_torch(reference.state_dict())
    reference = reference.to(measure.TORCH_DEVICE, torch_dtype)
    x = torch.randn(1, num_tokens, DIM)
    positions = 1000 * torch.rand(1, num_tokens, 3)
    cotangent = torch.randn(1, num_tokens, DIM)

    config = AnchorAttentionConfig(dim=DIM, num_heads=NUM_HEADS, use_rope=True, branches=BRANCHES, dtype=dtype)
    token_specs = tuple(TokenSpec(name, tokens) for name in groups)
    jax_x, jax_cotangent = jnp.asarray(x.numpy(), dtype), jnp.asarray(cotangent.numpy(), dtype)
    freqs = rope_frequencies(jnp.asarray(positions.numpy()), DIM // NUM_HEADS)
    params = jax.tree.map(lambda a: jnp.asarray(a, dtype), params)

    def jax_call(implementation: str) -> Any:
        module = ATTENTIONS[kind](dataclasses.replace(config, implementation=implementation))

        def forward(params: Any, x: jax.Array) -> jax.Array:
            return module.apply({"params": params}, x, token_specs, freqs)

        def gradient(params: Any, x: jax.Array, cotangent: jax.Array) -> Any:
            """Gradients of x, which are compared, and of the parameters, which are not."""
            return jax.vjp(forward, params, x)[1](cotangent)[::-1]

        inputs = (params, jax_x, jax_cotangent) if backward else (params, jax_x)
        return functools.partial(jax.jit(gradient) if backward else jax.jit(forward), *inputs)

    specs = [(name, tokens) for name in groups]
    torch_freqs = torch_model.rope_frequencies(positions.to(measure.TORCH_DEVICE), DIM // NUM_HEADS)
    torch_x, torch_cotangent = (a.to(measure.TORCH_DEVICE, torch_dtype) for a in (x, cotangent))

    def torch_call(module: Any) -> Any:
        if not backward:
            with torch.no_grad():
                return module(torch_x, specs, torch_freqs)
        leaf = torch_x.clone().requires_grad_()
        module.zero_grad()
        module(leaf, specs, torch_freqs).backward(torch_cotangent)
        return leaf.grad, [parameter.grad for parameter in module.parameters()]

    first, *others = options.implementations
    contestants = {"jax": jax_call(first), **{name: jax_call(name) for name in others}}
    contestants["torch"] = functools.partial(torch_call, reference)
    if options.torch_compile:
        contestants["compiled_torch"] = functools.partial(torch_call, torch.compile(reference))
    return contestants


if __name__ == "__main__":
    main()
