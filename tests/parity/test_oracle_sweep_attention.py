"""Attention layers against the PyTorch oracle on random layouts: forward and gradients, every implementation."""

from __future__ import annotations

import functools
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from benchmarks import torch_model as oracle  # noqa: E402
from emmi_jax import (  # noqa: E402
    AnchorAttentionConfig,
    AttentionConfig,
    AttentionPattern,
    DotProductAttention,
    MixedAttention,
    TokenSpec,
    rope_frequencies,
)
from emmi_jax.convert import params_from_torch  # noqa: E402
from tests.cases import ANCHOR_ATTENTIONS, PORTABLE, random_array, random_positions, take_freqs  # noqa: E402
from tests.tolerances import TOLERANCES, assert_close  # noqa: E402

BATCH = 2


# Random cases ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """What both sides are built from. `cached` groups are computed first and read from the cache by the others."""

    dim: int
    num_heads: int
    use_rope: bool
    bias: bool
    dtype: str
    is_masked: bool
    seed: int
    token_specs: tuple[tuple[str, int], ...]
    kind: str | None = None
    branches: tuple[str, ...] = ()
    patterns: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...] = ()
    cached: tuple[str, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(size for _, size in self.token_specs)

    @property
    def config(self) -> dict[str, Any]:
        return {"dim": self.dim, "num_heads": self.num_heads, "use_rope": self.use_rope, "bias": self.bias}


# Hypothesis leans to what comes first.
sizes = st.sampled_from([3, 4, 1, 0, 6, 2])
booleans = st.sampled_from([True, False])
names = st.text(string.ascii_lowercase + "_", min_size=1, max_size=3)


@st.composite
def numerics(draw: st.DrawFn) -> dict[str, Any]:
    num_heads, head_dim = draw(st.sampled_from([(2, 6), (1, 12), (3, 14), (2, 16)]))
    dtype = draw(st.sampled_from(["float32", "float32", "bfloat16"]))
    flags = {name: draw(booleans) for name in ("use_rope", "bias", "is_masked")}
    return flags | {
        "dim": num_heads * head_dim,
        "num_heads": num_heads,
        "dtype": dtype,
        "seed": draw(st.integers(0, 99)),
    }


@st.composite
def anchor_cases(draw: st.DrawFn, kind: str, is_cached: bool) -> Case:
    branches = draw(st.lists(names, min_size=1 if kind == "self" else 2, max_size=3, unique=True))
    # A branch such as a_a would own the anchors of a.
    owners = [max((b for b in branches if f"{branch}_anchors".startswith(b)), key=len) for branch in branches]
    assume(owners == branches)
    anchors = {f"{branch}_anchors" for branch in branches}
    queries = {f"{draw(st.sampled_from(branches))}:{i}" for i in range(draw(st.integers(0, 3)))}
    token_specs = tuple((name, draw(sizes)) for name in draw(st.permutations(sorted(anchors | queries))))
    cached = tuple(sorted(anchors)) if is_cached else ()
    return Case(**draw(numerics()), kind=kind, branches=tuple(branches), token_specs=token_specs, cached=cached)


@st.composite
def mixed_cases(draw: st.DrawFn) -> Case:
    groups = draw(st.lists(names, min_size=1, max_size=4, unique=True))
    owners = [draw(st.integers(0, 2)) for _ in groups]
    some_groups = st.lists(st.sampled_from(groups), min_size=1, unique=True).map(tuple)
    patterns = tuple(
        (tuple(group for group, j in zip(groups, owners, strict=True) if i == j), draw(some_groups))
        for i in sorted(set(owners))
    )
    return Case(**draw(numerics()), token_specs=tuple((name, draw(sizes)) for name in groups), patterns=patterns)


@st.composite
def full_cases(draw: st.DrawFn) -> Case:
    return Case(**draw(numerics()), token_specs=(("all", draw(sizes)),))


# The two sides ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Numbers:
    """Random numbers of a case, representable in its dtype so that both sides start from the same."""

    state_dict: dict[str, np.ndarray]
    x: np.ndarray
    cotangent: np.ndarray
    positions: np.ndarray
    mask: np.ndarray | None


def random_numbers(case: Case, module: torch.nn.Module) -> Numbers:
    rng = np.random.default_rng(case.seed)

    def numbers(*shape: int) -> np.ndarray:
        return np.array(random_array(rng, shape, case.dtype).astype(jnp.float32))

    tokens = (BATCH, case.num_tokens)
    return Numbers(
        state_dict={name: np.float32(0.25) * numbers(*tensor.shape) for name, tensor in module.state_dict().items()},
        x=numbers(*tokens, case.dim),
        cotangent=numbers(*tokens, case.dim),
        positions=np.array(random_positions(rng, *tokens)),
        mask=rng.random(tokens) < 0.7 if case.is_masked else None,
    )


def torch_module(case: Case) -> tuple[torch.nn.Module, tuple[Any, ...]]:
    """The oracle's module, and its arguments between x and freqs."""
    if case.kind:
        return oracle.AnchorAttention(case.kind, **case.config, branches=case.branches), (case.token_specs,)
    if case.patterns:
        return oracle.MixedAttention(**case.config), (case.token_specs, case.patterns)
    return oracle.DotProductAttention(**case.config), ()


def expected_results(
    case: Case, module: torch.nn.Module, static: tuple[Any, ...], numbers: Numbers
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Output, and gradients with respect to x and the state dict."""
    module.load_state_dict({name: torch.from_numpy(array) for name, array in numbers.state_dict.items()})
    x, positions = torch.from_numpy(numbers.x).requires_grad_(), torch.from_numpy(numbers.positions)
    freqs = oracle.rope_frequencies(positions, case.dim // case.num_heads) if case.use_rope else None
    mask = None if numbers.mask is None else torch.from_numpy(numbers.mask)
    if mask is not None and not static:
        mask = mask[:, None, None]
    y = module(x, *static, freqs, mask)
    (y * torch.from_numpy(numbers.cotangent)).sum().backward()
    # Torch has no gradient of what nothing was computed from.
    leaves = {"x": x, **dict(module.named_parameters())}
    gradients = {k: np.zeros(a.shape, np.float32) if a.grad is None else a.grad.numpy() for k, a in leaves.items()}
    return y.detach().numpy(), gradients.pop("x"), gradients


def flax_call(case: Case, implementation: str) -> Callable[..., jax.Array]:
    """The layer as a function of variables, x, freqs and mask."""
    dtype = None if case.dtype == "float32" else case.dtype
    config = case.config | {"implementation": implementation, "dtype": dtype, "precision": "highest"}
    if not case.kind and not case.patterns:
        full = DotProductAttention(AttentionConfig(**config))
        return lambda v, x, freqs, mask: full.apply(v, x, freqs, mask=None if mask is None else mask[:, None, None])
    token_specs = tuple(TokenSpec(*spec) for spec in case.token_specs)
    if case.patterns:
        mixed, patterns = MixedAttention(AttentionConfig(**config)), [AttentionPattern(*p) for p in case.patterns]
        return lambda v, x, freqs, mask: mixed.apply(v, x, token_specs, patterns, freqs, key_padding_mask=mask)
    module = ANCHOR_ATTENTIONS[case.kind](AnchorAttentionConfig(**config, branches=case.branches))
    if not case.cached:
        return lambda v, x, freqs, mask: module.apply(v, x, token_specs, freqs, key_padding_mask=mask)
    return functools.partial(call_in_two, module, token_specs, case.cached)


def call_in_two(
    module: Any,
    token_specs: tuple[TokenSpec, ...],
    cached: tuple[str, ...],
    variables: Any,
    x: Any,
    freqs: Any,
    mask: Any,
) -> jax.Array:
    """The cached groups first, then the others on their caches."""
    owners = np.repeat([spec.name for spec in token_specs], [spec.size for spec in token_specs])
    first, second = (np.flatnonzero(np.isin(owners, cached, invert=i)) for i in (False, True))

    def part(variables: Any, specs: tuple[TokenSpec, ...], rows: np.ndarray, **kwargs: Any) -> Any:
        part_mask = None if mask is None else mask[:, rows]
        return module.apply(variables, x[:, rows], specs, take_freqs(freqs, rows), key_padding_mask=part_mask, **kwargs)

    anchors, state = part(
        variables, tuple(spec for spec in token_specs if spec.name in cached), first, mutable=["cache"]
    )
    queries = part(
        variables | state, tuple(TokenSpec(s.name, None) if s.name in cached else s for s in token_specs), second
    )
    return jnp.concatenate([anchors, queries], axis=1)[:, np.argsort(np.concatenate([first, second]))]


def check(case: Case) -> None:
    module, static = torch_module(case)
    numbers = random_numbers(case, module)
    expected, expected_x, expected_params = expected_results(case, module, static, numbers)
    params = params_from_torch(numbers.state_dict)
    freqs = rope_frequencies(jnp.asarray(numbers.positions), case.dim // case.num_heads) if case.use_rope else None

    @jax.jit
    def run(params: Any, x: Any, cotangent: Any, *arrays: Any) -> dict[str, Any]:
        results = {}
        for implementation in PORTABLE:
            call = flax_call(case, implementation)
            y, pullback = jax.vjp(lambda params, x, call=call: call({"params": params}, x, *arrays), params, x)
            results[implementation] = (y, *pullback(cotangent.astype(y.dtype)))
        return results

    tolerance = TOLERANCES[case.dtype]
    for y, params_gradient, x_gradient in run(params, numbers.x, numbers.cotangent, freqs, numbers.mask).values():
        assert y.dtype == case.dtype
        assert_close(y, expected, tolerance.forward)
        assert_close(x_gradient, expected_x, tolerance.gradient)
        jax.tree.map(
            lambda a, b: assert_close(a, b, tolerance.gradient), params_gradient, params_from_torch(expected_params)
        )


# The sweep -------------------------------------------------------------------------------------------------------


def sweep(max_examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=max_examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
        # Each example compiles: to shrink a failing one would take minutes.
        phases=(Phase.explicit, Phase.generate),
    )


@pytest.mark.parametrize("is_cached", [True, False])
@pytest.mark.parametrize("kind", ANCHOR_ATTENTIONS)
@sweep(max_examples=3)
@given(data=st.data())
def test_anchor_attention_agrees_with_the_oracle(kind: str, is_cached: bool, data: st.DataObject) -> None:
    check(data.draw(anchor_cases(kind, is_cached)))


@sweep(max_examples=8)
@given(case=mixed_cases())
def test_mixed_attention_agrees_with_the_oracle(case: Case) -> None:
    check(case)


@sweep(max_examples=5)
@given(case=full_cases())
def test_full_attention_agrees_with_the_oracle(case: Case) -> None:
    check(case)
