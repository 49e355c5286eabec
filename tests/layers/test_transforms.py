"""Every layer under every transform that docs/layers.md names, with and without a mask and dropout."""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from emmi_jax import (
    AnchorAttentionConfig,
    AttentionPattern,
    CrossAnchorAttention,
    DotProductAttention,
    Geometry,
    JointAnchorAttention,
    MixedAttention,
    PerceiverAttention,
    PerceiverBlock,
    RopeFrequencies,
    SupernodePooling,
    SupernodePoolingConfig,
    TokenSpec,
    TransformerBlock,
    rope_frequencies,
)
from emmi_jax.layers.perceiver_block import UntiedPerceiverBlock
from emmi_jax.layers.transformer_block import UntiedTransformerBlock
from tests.tolerances import TOLERANCES

REPOSITORY = Path(__file__).parents[2]
BATCH, TOKENS, DIM = 4, 12, 24
SPECS = (TokenSpec("s_anchors", 5), TokenSpec("v_queries", 3), TokenSpec("v_anchors", 4))
OFF = AnchorAttentionConfig(dim=DIM, num_heads=2, use_rope=True, branches=("s", "v"))
RNG = np.random.default_rng(0)
X = RNG.normal(size=(BATCH, TOKENS, DIM)).astype(np.float32)
POSITIONS = RNG.uniform(0, 1000, (BATCH, TOKENS, 3)).astype(np.float32)
FREQS = RopeFrequencies(*map(np.asarray, rope_frequencies(jnp.asarray(POSITIONS), DIM // 2)))
MASK = RNG.random((BATCH, TOKENS)) < 0.8
KEYS = MASK[:, None, None]
CONDITION = RNG.normal(size=(BATCH, 2)).astype(np.float32)
CLOUD = Geometry(POSITIONS, np.tile(np.arange(6, dtype=np.int32), (BATCH, 1)))


class Layer(NamedTuple):
    """A layer: its class, how a module of it, perhaps lifted, is made, and what the module is called with."""

    kind: type[nn.Module]
    make: Callable[[Any, AnchorAttentionConfig, float], nn.Module]
    arrays: Mapping[str, Any]
    masks: Mapping[str, Any]
    static: Mapping[str, Any] = {}


def attention(kind: type[nn.Module]) -> Layer:
    arrays = {"x": X, "freqs": FREQS}
    static = {"token_specs": SPECS} | ({"attention_patterns": PATTERNS} if kind is MixedAttention else {})
    return Layer(kind, lambda k, c, rate: k(c), arrays, {"key_padding_mask": MASK}, static)


OPTIONS: dict[str, Any] = {"mlp_ratio": 1, "condition_dim": 2, "layer_scale": 0.5}
PERCEIVER = {"q": X, "kv": X[:, ::-1].copy(), "q_freqs": FREQS, "k_freqs": FREQS}
BLOCK = {"x": X, "freqs": FREQS, "condition": CONDITION}
PATTERNS = (
    AttentionPattern(("s_anchors",), ("s_anchors", "v_anchors")),
    AttentionPattern(("v_anchors", "v_queries"), ("v_anchors",)),
)
LAYERS = {
    "anchors": attention(CrossAnchorAttention),
    "mixed": attention(MixedAttention),
    "full": Layer(DotProductAttention, lambda k, c, rate: k(c), {"x": X, "freqs": FREQS}, {"mask": KEYS}),
    "perceiver": Layer(PerceiverAttention, lambda k, c, rate: k(c), PERCEIVER, {"mask": KEYS}),
    "block": Layer(
        TransformerBlock,
        lambda k, c, rate: k(c, attention=JointAnchorAttention, drop_path_rate=rate, **OPTIONS),
        BLOCK,
        {"key_padding_mask": MASK},
        {"token_specs": SPECS},
    ),
    "untied block": Layer(
        UntiedTransformerBlock,
        lambda k, c, rate: k(
            TransformerBlock(c, attention=CrossAnchorAttention, drop_path_rate=rate, parent=None, **OPTIONS)
        ),
        BLOCK,
        {"key_padding_mask": MASK},
        {"token_specs": SPECS},
    ),
    "perceiver block": Layer(
        PerceiverBlock,
        lambda k, c, rate: k(c, drop_path_rate=rate, **OPTIONS),
        PERCEIVER | {"condition": CONDITION},
        {"mask": KEYS},
    ),
    "untied perceiver block": Layer(
        UntiedPerceiverBlock,
        lambda k, c, rate: k(PerceiverBlock(c, drop_path_rate=rate, parent=None, **OPTIONS), ("s", "v")),
        PERCEIVER | {"condition": CONDITION},
        {"mask": KEYS},
        {"token_specs": SPECS},
    ),
    "pooling": Layer(
        SupernodePooling,
        lambda k, c, rate: k(DIM, SupernodePoolingConfig(radius=None, k=3), c),
        {"geometry": CLOUD},
        {"geometry": CLOUD._replace(mask=np.tile(np.arange(6) < 4, (BATCH, 1)))},
    ),
}


class Call(NamedTuple):
    """A layer with its parameters and arrays; `lifted` makes it of a transformed class."""

    layer: Layer
    config: AnchorAttentionConfig
    variables: Any
    arrays: Any
    options: Mapping[str, Any]

    def lifted(self, lift: Callable[[Any], Any]) -> Callable[..., jax.Array]:
        module = self.layer.make(lift(self.layer.kind), self.config, self.config.dropout)

        def apply(variables: Any, arrays: Any) -> jax.Array:
            return module.apply(variables, **arrays, **self.layer.static, **self.options)  # type: ignore[return-value]

        return apply

    @property
    def apply(self) -> Callable[..., jax.Array]:
        return self.lifted(lambda kind: kind)


@functools.cache
def call(name: str, is_masked: bool, dropout: float) -> Call:
    layer = LAYERS[name]
    config = AnchorAttentionConfig(**{**OFF.to_dict(), "dropout": dropout})
    arrays = {**layer.arrays, **(layer.masks if is_masked else {})}
    options: dict[str, Any] = {}
    if name != "pooling":
        options = {"deterministic": not dropout} | ({"rngs": {"dropout": jax.random.key(1)}} if dropout else {})
    module = layer.make(layer.kind, config, dropout)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), **arrays, **layer.static))
    leaves, tree = jax.tree.flatten(shapes)
    drawn = [np.random.default_rng(i).normal(0, 0.3, leaf.shape).astype(leaf.dtype) for i, leaf in enumerate(leaves)]
    return Call(layer, config, jax.tree.unflatten(tree, drawn), arrays, options)


@functools.cache
def plain(name: str, is_masked: bool, dropout: float) -> np.ndarray:
    """What the layer gives op by op, which costs less than to compile it."""
    found = call(name, is_masked, dropout)
    return np.asarray(found.apply(found.variables, found.arrays))


def by_sample(call: Call) -> jax.Array:
    arrays = jax.tree.map(lambda a: a[:, None], call.arrays)
    return jax.jit(jax.vmap(call.apply, in_axes=(None, 0)))(call.variables, arrays)[:, 0]


def scanned(call: Call) -> jax.Array:
    """The layer as the only step of a scan."""

    class Scanned(nn.Module):
        @nn.compact
        def __call__(self, arrays: Any) -> Any:
            def body(module: Any, carry: Any, _: None) -> Any:
                options = {name: value for name, value in call.options.items() if name != "rngs"}
                return carry, module(**carry, **call.layer.static, **options)

            lift = nn.scan(body, variable_axes={"params": 0}, split_rngs={"params": True, "dropout": False}, length=1)
            module = call.layer.make(call.layer.kind, call.config, call.config.dropout)
            return lift(module, arrays, None)[1][0]

    inner = jax.tree.map(lambda a: a[None], call.variables["params"])
    name = f"{call.layer.kind.__name__}_0"
    rngs = call.options.get("rngs", {})
    return jax.jit(lambda v, a: Scanned().apply(v, a, rngs=rngs))({"params": {name: inner}}, call.arrays)


def gradient(call: Call) -> jax.Array:
    """The output, after a derivative in reverse mode has been compared with that in forward mode."""

    def total(variables: Any) -> jax.Array:
        return jnp.sin(call.apply(variables, call.arrays)).sum()

    @jax.jit
    def both(variables: Any) -> tuple[jax.Array, Any, jax.Array]:
        along = jax.tree.map(jnp.ones_like, variables)
        forward = jax.jvp(total, (variables,), (along,))[1]
        return call.apply(variables, call.arrays), jax.grad(total)(variables), forward

    found, reverse, forward = both(call.variables)
    np.testing.assert_allclose(forward, sum(map(np.sum, jax.tree.leaves(reverse))), rtol=1e-3, atol=1e-3)
    return found


def under_mesh(kind: AxisType, spec: P, call: Call) -> jax.Array:
    num_devices = jax.device_count()
    sizes = (num_devices // 2, 2) if num_devices > 1 else (1, 1)
    mesh = jax.make_mesh(sizes, ("d", "t"), (kind, kind))

    def put(array: Any) -> Any:
        axes = [axis if axis and array.shape[i] != 1 else None for i, axis in enumerate([*spec][: array.ndim])]
        return jax.device_put(np.asarray(array), NamedSharding(mesh, P(*axes)))

    with jax.set_mesh(mesh):
        whole = jax.device_put(call.variables, NamedSharding(mesh, P()))
        return jax.jit(call.apply)(whole, jax.tree.map(put, call.arrays))


def shares(call: Call) -> jax.Array:
    mesh = jax.make_mesh((jax.device_count(),), ("d",), (AxisType.Auto,))
    apply = jax.shard_map(call.apply, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))
    return jax.jit(apply)(call.variables, call.arrays)


def strict(call: Call) -> jax.Array:
    with jax.numpy_rank_promotion("raise"):
        return jax.jit(lambda v, a: call.apply(v, a) + 0)(call.variables, call.arrays)


ON_ANY: dict[str, Callable[[Call], jax.Array]] = {
    "jit": lambda call: jax.jit(call.apply)(call.variables, call.arrays),
    "grad": gradient,
    "vmap": by_sample,
    "nn.scan": scanned,
    "nn.remat": lambda call: jax.jit(call.lifted(nn.remat))(call.variables, call.arrays),
    "nn.jit": lambda call: call.lifted(nn.jit)(call.variables, call.arrays),
    "jax_numpy_rank_promotion": strict,
}
ON_SEVERAL: dict[str, Callable[[Call], jax.Array]] = {
    "shard_map": shares,
    "jax.set_mesh": functools.partial(under_mesh, AxisType.Auto, P("d", "t")),
    "explicit": functools.partial(under_mesh, AxisType.Explicit, P("d", "t")),
}
"""Transforms over devices, of which a process has one or four."""

TRANSFORMS = ON_ANY if jax.device_count() == 1 else ON_SEVERAL
DRAWS_ALIKE = ("jit", "grad", "nn.remat", "jax_numpy_rank_promotion")
"""Transforms under which a layer drops what it drops alone."""


@pytest.mark.parametrize(("is_masked", "dropout"), [(True, 0.0), (False, 0.5)], ids=["mask", "dropout"])
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_layers_work_under_every_transform(transform: str, name: str, is_masked: bool, dropout: float) -> None:
    if name == "pooling" and dropout:
        is_masked, dropout = False, 0.0  # it has none
    expected = plain(name, is_masked, dropout)
    found = np.asarray(TRANSFORMS[transform](call(name, is_masked, dropout)))
    if not dropout or transform in DRAWS_ALIKE:
        np.testing.assert_allclose(found, expected, atol=TOLERANCES["float32"].forward * np.abs(expected).max())
    else:
        assert np.isfinite(found).all()
        assert np.abs(found - plain(name, is_masked, 0.0)).max() > 0.1


@pytest.mark.parametrize("name", LAYERS)
def test_masks_and_dropout_go_together(name: str) -> None:
    found = call(name, True, 0.5 if name != "pooling" else 0.0)
    compiled = np.asarray(ON_ANY["jit"](found))
    np.testing.assert_allclose(compiled, plain(name, True, found.config.dropout), atol=1e-5 * np.abs(compiled).max())


def test_docs_name_the_transforms() -> None:
    page = (REPOSITORY / "docs" / "layers.md").read_text(encoding="utf-8")
    named = re.search(r"Layers work under (.*?), with masks", page, re.DOTALL)
    assert named is not None
    known = {transform.split()[0] for transform in (*ON_ANY, *ON_SEVERAL)} - {"explicit"}
    assert set(re.findall(r"`([\w.]+)", named[1])) == known


def test_four_devices_share_what_one_computes() -> None:
    environment = os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__, "-k", "every_transform"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=REPOSITORY, env=environment)
    assert not done.returncode, done.stdout[-3000:]
    assert f"{2 * len(LAYERS) * len(ON_SEVERAL)} passed" in done.stdout
