"""The shapes of attention that the tests share, and random arrays for them."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from emmi_jax import (
    AnchorAttentionConfig,
    AttentionPattern,
    CrossAnchorAttention,
    JointAnchorAttention,
    MultiBranchAnchorAttention,
    RopeFrequencies,
    SelfAnchorAttention,
    TokenSpec,
    rope_frequencies,
)

PORTABLE = ("masked", "xla", "blockwise")
"""Implementations that serve every call on any platform."""

ALL_IMPLEMENTATIONS = (*PORTABLE, "auto")


LARGE = 2**21
"""Cases with more logits, or more tokens squared, are only traced."""

MASK_FORMS = tuple("".join(axes) for axes in itertools.product("b1", "n1", "t1", "s1"))
"""Which axes of a mask [B, N, T, S] are full; the others are 1."""


@dataclass(frozen=True)
class AttentionShape:
    """Sizes of one attention; `mask` is one of `MASK_FORMS` or None."""

    batch: int
    num_heads: int
    head_dim: int
    num_queries: int
    num_keys: int
    mask: str | None = None

    @property
    def is_large(self) -> bool:
        return self.batch * self.num_heads * self.num_queries * self.num_keys > LARGE

    @property
    def q_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.num_queries, self.num_heads, self.head_dim

    @property
    def k_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.num_keys, self.num_heads, self.head_dim

    def mask_shape(self, form: str) -> tuple[int, ...]:
        full = (self.batch, self.num_heads, self.num_queries, self.num_keys)
        return tuple(1 if axis == "1" else size for axis, size in zip(form, full, strict=True))

    def arrays(self, dtype: DTypeLike = jnp.float32, seed: int = 0) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Random q, k and v."""
        rng = np.random.default_rng(seed)
        return tuple(random_array(rng, shape, dtype) for shape in (self.q_shape, self.k_shape, self.k_shape))

    def random_mask(self, form: str | None, seed: int = 1) -> jax.Array | None:
        """A mask of this form, or None."""
        return None if form is None else jnp.asarray(np.random.default_rng(seed).random(self.mask_shape(form)) < 0.7)


ATTENTION_SHAPES = {
    "small": AttentionShape(2, 3, 8, 7, 5),
    "odd": AttentionShape(3, 1, 10, 13, 9, "bnts"),
    "single_channel": AttentionShape(1, 2, 1, 6, 6),
    "one_query": AttentionShape(2, 2, 8, 1, 9, "1n1s"),
    "one_key": AttentionShape(2, 2, 8, 9, 1),
    "padded": AttentionShape(2, 3, 8, 12, 11, "b11s"),
    "pattern": AttentionShape(2, 2, 16, 24, 16, "11ts"),
    "several_blocks": AttentionShape(1, 1, 4, 601, 2101),
    "several_masked_blocks": AttentionShape(1, 1, 4, 601, 2101, "11ts"),
    "no_queries": AttentionShape(2, 3, 8, 0, 5),
    "no_keys": AttentionShape(2, 3, 8, 7, 0),
    "no_batch": AttentionShape(0, 3, 8, 7, 5),
    "training": AttentionShape(4, 3, 64, 1024, 512),
    "square": AttentionShape(1, 3, 64, 8192, 8192),
    "published": AttentionShape(1, 3, 64, 16384, 16384),
}
SMALL_SHAPES = [name for name, shape in ATTENTION_SHAPES.items() if not shape.is_large]


@dataclass(frozen=True)
class AnchorLayout:
    """Branches and the groups of one sequence."""

    branches: tuple[str, ...]
    token_specs: tuple[TokenSpec, ...]
    anchor_suffix: str = "_anchors"

    @property
    def num_tokens(self) -> int:
        return sum(spec.size or 0 for spec in self.token_specs)

    @property
    def is_large(self) -> bool:
        return self.num_tokens**2 > LARGE

    @property
    def kinds(self) -> list[str]:
        """The attentions that take this many branches."""
        return [kind for kind, cls in ANCHOR_ATTENTIONS.items() if len(self.branches) >= cls.min_branches]

    @property
    def anchors(self) -> list[str]:
        return [branch + self.anchor_suffix for branch in self.branches]

    @property
    def queries(self) -> list[str]:
        return [spec.name for spec in self.token_specs if spec.name not in self.anchors]

    def rows(self, names: Sequence[str]) -> np.ndarray:
        """Indices of the tokens of these groups, in sequence order."""
        owners = np.repeat([spec.name for spec in self.token_specs], [spec.size or 0 for spec in self.token_specs])
        return np.flatnonzero(np.isin(owners, names))

    def only(self, names: Sequence[str]) -> tuple[TokenSpec, ...]:
        """Specs of these groups alone."""
        return tuple(spec for spec in self.token_specs if spec.name in names)

    @property
    def cached_anchors(self) -> tuple[TokenSpec, ...]:
        """Specs whose anchors come from the cache."""
        return tuple(TokenSpec(s.name, None) if s.name in self.anchors else s for s in self.token_specs)


def specs(**sizes: int | None) -> tuple[TokenSpec, ...]:
    """Token specs, written briefly."""
    return tuple(TokenSpec(name, size) for name, size in sizes.items())


ANCHOR_ATTENTIONS: dict[str, type[MultiBranchAnchorAttention]] = {
    "self": SelfAnchorAttention,
    "cross": CrossAnchorAttention,
    "joint": JointAnchorAttention,
}
ANCHOR_LAYOUTS = {
    "one_branch": AnchorLayout(("car",), specs(car_anchors=5, car_queries=3)),
    "two_branches": AnchorLayout(
        ("surface", "volume"), specs(surface_anchors=5, surface_queries=3, volume_anchors=4, volume_queries=6)
    ),
    "equal_sizes": AnchorLayout(
        ("surface", "volume"), specs(surface_anchors=4, surface_queries=3, volume_anchors=4, volume_queries=3)
    ),
    "anchors_only": AnchorLayout(("b", "a"), specs(a_anchors=4, b_anchors=3)),
    "any_order": AnchorLayout(
        ("wake", "wing", "body"),
        specs(body_late=2, wing_anchors=4, wake_queries=3, body_anchors=2, wing_queries=1, wake_anchors=3, body=2),
    ),
    "shared_prefix": AnchorLayout(
        ("vol", "volume"), specs(vol_anchors=3, volume_anchors=4, volume_queries=2, vol_queries=5)
    ),
    "own_suffix": AnchorLayout(("a", "b"), specs(a_queries=2, a=3, b=4, b_x=1), anchor_suffix=""),
    "empty_groups": AnchorLayout(("a", "b"), specs(a_anchors=4, a_queries=0, b_queries=3, b_anchors=0)),
    "no_tokens": AnchorLayout(("a", "b"), specs(a_anchors=0, a_queries=0, b_anchors=0)),
    "published": AnchorLayout(
        ("surface", "volume"),
        specs(surface_anchors=16384, surface_queries=16384, volume_anchors=16384, volume_queries=16384),
    ),
}
SMALL_LAYOUTS = [name for name, layout in ANCHOR_LAYOUTS.items() if not layout.is_large]


def random_array(rng: np.random.Generator, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    return jnp.asarray(rng.standard_normal(shape, np.float32)).astype(dtype)


def random_positions(rng: np.random.Generator, batch: int, num_tokens: int, num_axes: int = 3) -> jax.Array:
    return jnp.asarray(1000 * rng.random((batch, num_tokens, num_axes), np.float32))


def random_params(module: nn.Module, *args: Any, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    """Random parameters, biases too, without compiling an initialisation."""
    arrays = {i: arg for i, arg in enumerate(args) if isinstance(arg, (jax.Array, RopeFrequencies))}

    def init(arrays: dict[int, Any]) -> Any:
        return module.init(jax.random.key(0), *(arrays.get(i, arg) for i, arg in enumerate(args)), **kwargs)

    shapes = jax.eval_shape(init, arrays)
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda a: (0.3 * random_array(rng, a.shape)).astype(a.dtype), shapes)


def apply_uncompiled(
    module: nn.Module,
    variables: dict[str, Any],
    x: jax.Array,
    static: tuple[Any, ...],
    freqs: RopeFrequencies | None,
    **kwargs: Any,
) -> Any:
    return module.apply(variables, x, *static, freqs, **kwargs)


apply_compiled = jax.jit(apply_uncompiled, static_argnames=("module", "static", "deterministic", "mutable"))


@dataclass(frozen=True)
class Example:
    """An attention layer with parameters and inputs; what it takes of specs and patterns stands between x and freqs."""

    module: nn.Module
    variables: dict[str, Any]
    x: jax.Array
    token_specs: tuple[TokenSpec, ...] | None
    freqs: RopeFrequencies | None
    patterns: tuple[AttentionPattern, ...] | None = None
    apply: Callable[..., Any] = apply_compiled

    @property
    def arrays(self) -> tuple[Any, ...]:
        return self.variables, self.x, self.freqs

    @property
    def static(self) -> tuple[Any, ...]:
        return tuple(argument for argument in (self.token_specs, self.patterns) if argument is not None)

    def uncompiled(self, variables: Any, x: jax.Array, freqs: Any) -> Example:
        """The example with other arrays, to be called in what is compiled as a whole."""
        return dataclasses.replace(self, variables=variables, x=x, freqs=freqs, apply=apply_uncompiled)

    def __call__(self, x: ArrayLike | None = None, **kwargs: Any) -> Any:
        """Applies the layer, to x in place of its own."""
        return self.apply(self.module, self.variables, self.x if x is None else x, self.static, self.freqs, **kwargs)

    def part(
        self, token_specs: tuple[TokenSpec, ...], rows: np.ndarray, cache: dict[str, Any] | None = None, **kwargs: Any
    ) -> Any:
        """Applies the layer to some tokens under other specs."""
        variables = self.variables if cache is None else self.variables | {"cache": cache}
        static, freqs = (token_specs, *self.static[1:]), take_freqs(self.freqs, rows)
        return self.apply(self.module, variables, self.x[:, rows], static, freqs, **kwargs)


def run_together(examples: dict[Any, Example], function: Callable[[Any, Example], Any]) -> dict[Any, Any]:
    """Calls function(key, example) for each, compiled as one, which takes a third of the time."""

    @jax.jit
    def run(arrays: dict[Any, Any]) -> dict[Any, Any]:
        return {key: function(key, examples[key].uncompiled(*args)) for key, args in arrays.items()}

    return run({key: example.arrays for key, example in examples.items()})


def take_freqs(freqs: RopeFrequencies | None, rows: np.ndarray) -> RopeFrequencies | None:
    return None if freqs is None else RopeFrequencies(*(f[:, rows] for f in freqs))


@functools.cache
def anchor_example(
    kind: str, layout_name: str, *, use_rope: bool = True, dim: int = 24, num_heads: int = 2, **config: Any
) -> Example:
    """An anchor attention on a named layout, batch 2, with random parameters."""
    layout, rng = ANCHOR_LAYOUTS[layout_name], np.random.default_rng(0)
    anchor_config = AnchorAttentionConfig(
        dim=dim,
        num_heads=num_heads,
        use_rope=use_rope,
        branches=layout.branches,
        anchor_suffix=layout.anchor_suffix,
        **config,
    )
    x = random_array(rng, (2, layout.num_tokens, dim), anchor_config.dtype or jnp.float32)
    positions = random_positions(rng, 2, layout.num_tokens)
    freqs = rope_frequencies(positions, anchor_config.head_dim) if use_rope else None
    module = ANCHOR_ATTENTIONS[kind](anchor_config)
    return Example(module, random_params(module, x, layout.token_specs, freqs), x, layout.token_specs, freqs)
