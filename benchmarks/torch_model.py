"""The same mathematics in PyTorch, written plainly, with the 1.x state_dict names.

The benchmarks time it, and tests/parity compares outputs and gradients with it. It covers evaluation mode only: no
dropout, no drop path. Tokens are [B, T, C]; attention works on torch's [B, N, T, H].
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from emmi_jax import AbUptConfig

CONFIG_FIELDS = (
    "geometry_depth", "condition_dim", "max_wavelength", "norm", "qk_norm", "bias", "bias_scope", "readout_norm",
    "conditioning_dims", "geometry_conditioning_dims", "feature_dims",
)  # fmt: skip
Specs = Sequence[tuple[str, int]]
Patterns = Sequence[tuple[Sequence[str], Sequence[str]]]


def axis_width(dim: int, num_axes: int) -> int:
    """Channels per position axis, an even number; the rest of `dim` is padding."""
    width = dim // num_axes // 2 * 2
    if width <= 0:
        raise ValueError(f"dim {dim} is too small for {num_axes} position axes")
    return width


def position_angles(positions: Tensor, width: int, max_wavelength: float) -> Tensor:
    """Angles coordinate_i * omega_j of shape [..., n, width / 2], in float32."""
    # The recorded omegas are 1 / max_wavelength ** (2j / w), with every step in float32. max_wavelength ** (-2j / w)
    # differs by an ulp or two, which angles near 1000 turn into errors near 1e-4.
    exponents = torch.arange(0, width, 2, dtype=torch.float32, device=positions.device) / width
    return positions.float()[..., None] * (1.0 / max_wavelength**exponents)


def rope_frequencies(positions: Tensor, head_dim: int, max_wavelength: float = 10_000) -> Tensor:
    """exp(i * angle) as complex64 [B, T, H / 2] for positions [B, T, n]: axis-major, zero angles at the end."""
    angles = position_angles(positions, axis_width(head_dim, positions.shape[-1]), max_wavelength).flatten(-2)
    angles = functional.pad(angles, (0, head_dim // 2 - angles.shape[-1]))
    return torch.polar(torch.ones_like(angles), angles)


def apply_rope(x: Tensor, freqs: Tensor) -> Tensor:
    """Rotates the interleaved channel pairs of x [B, N, T, H] by freqs [B, T, H / 2]; in float32, cast back."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * freqs[:, None]).flatten(-2).type_as(x)


def sincos_embedding(positions: Tensor, dim: int, max_wavelength: float = 10_000) -> Tensor:
    """Per axis [sin, cos], the axes in order, then zeros: [..., n] -> float32 [..., dim]."""
    angles = position_angles(positions, axis_width(dim, positions.shape[-1]), max_wavelength)
    embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
    return functional.pad(embedding, (0, dim - embedding.shape[-1]))


def split_heads(x: Tensor, num_parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """[B, T, num_parts * C] -> num_parts tensors [B, N, T, H]; channels are ordered (part, head, head channel)."""
    return x.unflatten(-1, (num_parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def merge_heads(x: Tensor) -> Tensor:
    """[B, N, T, H] -> [B, T, C]."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(q k^T / sqrt(H)) v; mask broadcasts to [B, N, T, S], True = attend; rows without a key give zeros."""
    if q.shape[2] == 0 or k.shape[2] == 0:
        return torch.zeros_like(q)
    if mask is None:
        return functional.scaled_dot_product_attention(q, k, v)
    alive = mask.any(dim=-1, keepdim=True)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask | ~alive).masked_fill(~alive, 0)


def concat(tensors: Sequence[Tensor], dim: int) -> Tensor:
    """torch.cat, without a copy where there is only one tensor."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=dim)


class RmsNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) * weight; eps None is that of the dtype of the sum."""

    def __init__(self, dim: int, eps: float | None = 1e-6, learned: bool = True) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim)) if learned else None

    def forward(self, x: Tensor) -> Tensor:
        wide = x.double() if x.dtype == torch.float64 else x.float()
        eps = torch.finfo(wide.dtype).eps if self.eps is None else self.eps
        y = wide * torch.rsqrt(wide.square().mean(dim=-1, keepdim=True) + eps)
        return (y if self.weight is None else y * self.weight).type_as(x)


def head_norms(qk_norm: bool, dim: int, num_heads: int) -> dict[str, nn.Module]:
    """The norms of queries and keys over the channels of a head."""
    return {name: RmsNorm(dim // num_heads, None) if qk_norm else nn.Identity() for name in ("q_norm", "k_norm")}


class SelfProjections(nn.Module):
    """The projections of attention within one sequence: `qkv` (`q`, `k`, `v` since 2026.4) and `proj`."""

    def __init__(
        self, dim: int, num_heads: int, use_rope: bool = False, bias: bool = True, split_qkv: bool = False,
        qk_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, norm in head_norms(qk_norm, dim, num_heads).items():
            self.add_module(name, norm)
        self.num_heads, self.use_rope, self.split_qkv = num_heads, use_rope, split_qkv
        if split_qkv:
            self.q, self.k, self.v = (nn.Linear(dim, dim, bias=bias) for _ in range(3))
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def heads(self, x: Tensor, freqs: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as [B, N, T, H], q and k rotated."""
        if self.use_rope != (freqs is not None):
            raise ValueError(f"use_rope is {self.use_rope}, but freqs are {'absent' if freqs is None else 'given'}")
        if self.split_qkv:
            q, k, v = (split_heads(linear(x), 1, self.num_heads)[0] for linear in (self.q, self.k, self.v))
        else:
            q, k, v = split_heads(self.qkv(x), 3, self.num_heads)
        q, k = self.q_norm(q), self.k_norm(k)
        return (q, k, v) if freqs is None else (apply_rope(q, freqs), apply_rope(k, freqs), v)


class DotProductAttention(SelfProjections):
    """Full attention of a sequence to itself."""

    def forward(self, x: Tensor, freqs: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self.proj(merge_heads(attend(*self.heads(x, freqs), mask)))


class MixedAttention(SelfProjections):
    """Attention of groups of tokens to groups of tokens, one scaled_dot_product_attention call per pattern."""

    def forward(
        self, x: Tensor, token_specs: Specs, patterns: Patterns,
        freqs: Tensor | None = None, key_padding_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        names, sizes = [name for name, _ in token_specs], [size for _, size in token_specs]
        q, k, v = (dict(zip(names, t.split(sizes, dim=2), strict=True)) for t in self.heads(x, freqs))
        real = {} if key_padding_mask is None else dict(zip(names, key_padding_mask.split(sizes, dim=1), strict=True))
        outputs: dict[str, Tensor] = {}
        for queries, keys in patterns:
            mask = concat([real[name] for name in keys], dim=1)[:, None, None] if real else None
            q_p, k_p, v_p = (concat([t[n] for n in group], dim=2) for t, group in ((q, queries), (k, keys), (v, keys)))
            output = attend(q_p, k_p, v_p, mask).split([q[name].shape[2] for name in queries], dim=2)
            outputs |= zip(queries, output, strict=True)
        return self.proj(merge_heads(concat([outputs[name] for name in names], dim=2)))


def anchor_patterns(kind: str, branches: Sequence[str], names: Sequence[str], anchor_suffix: str) -> Patterns:
    """The patterns of self, cross or joint anchor attention; the longest branch name that prefixes a group owns it."""
    anchors = {branch: f"{branch}{anchor_suffix}" for branch in branches}
    owners = {name: max(filter(name.startswith, branches), key=len) for name in names}
    groups = {branch: [name for name in names if owners[name] == branch] for branch in branches}
    if kind == "self":
        return [(groups[branch], [anchors[branch]]) for branch in branches]
    if kind == "cross":
        return [(groups[branch], [anchors[other] for other in branches if other != branch]) for branch in branches]
    if kind == "joint":
        return [(names, list(anchors.values()))]
    raise ValueError(f"kind {kind!r} is none of 'self', 'cross', 'joint'")


class AnchorAttention(nn.Module):
    """Self, cross or joint anchor attention: everything attends to anchors, nothing attends to queries."""

    def __init__(
        self, kind: str, dim: int, num_heads: int, use_rope: bool, bias: bool,
        branches: Sequence[str], anchor_suffix: str = "_anchors", split_qkv: bool = False, qk_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.kind, self.branches, self.anchor_suffix = kind, tuple(branches), anchor_suffix
        self.mixed_attention = MixedAttention(dim, num_heads, use_rope, bias, split_qkv, qk_norm)

    def forward(
        self, x: Tensor, token_specs: Specs, freqs: Tensor | None = None, key_padding_mask: Tensor | None = None
    ) -> Tensor:
        patterns = anchor_patterns(self.kind, self.branches, [name for name, _ in token_specs], self.anchor_suffix)
        return self.mixed_attention(x, token_specs, patterns, freqs, key_padding_mask)


class PerceiverAttention(nn.Module):
    """Attention of q [B, T, C] to kv [B, S, kv_dim], each rotated by its own frequencies."""

    def __init__(
        self, dim: int, num_heads: int, kv_dim: int | None = None,
        use_rope: bool = False, bias: bool = True, split_qkv: bool = False, qk_norm: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        for name, norm in head_norms(qk_norm, dim, num_heads).items():
            self.add_module(name, norm)
        self.num_heads, self.use_rope, self.split_qkv = num_heads, use_rope, split_qkv
        self.q = nn.Linear(dim, dim, bias=bias)
        if split_qkv:
            self.k, self.v = (nn.Linear(kv_dim or dim, dim, bias=bias) for _ in range(2))
        else:
            self.kv = nn.Linear(kv_dim or dim, 2 * dim, bias=bias)
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(
        self, q: Tensor, kv: Tensor,
        q_freqs: Tensor | None = None, k_freqs: Tensor | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        if (q_freqs is not None, k_freqs is not None) != (self.use_rope, self.use_rope):
            raise ValueError(f"use_rope is {self.use_rope}: q_freqs and k_freqs must both be given, or both absent")
        (query,) = split_heads(self.q(q), 1, self.num_heads)
        packed = torch.cat([self.k(kv), self.v(kv)], dim=-1) if self.split_qkv else self.kv(kv)
        key, value = split_heads(packed, 2, self.num_heads)
        query, key = self.q_norm(query), self.k_norm(key)
        if self.use_rope:
            query, key = apply_rope(query, q_freqs), apply_rope(key, k_freqs)
        return self.proj(merge_heads(attend(query, key, value, mask)))


class Projection(nn.Sequential):
    """A Linear under the name `project`."""

    def __init__(self, in_dim: int, out_dim: int, bias: bool = True) -> None:
        super().__init__(OrderedDict(project=nn.Linear(in_dim, out_dim, bias=bias)))


class Mlp(nn.Sequential):
    """fc1, exact GELU, fc2."""

    def __init__(self, dim: int, hidden_dim: int, bias: bool = True) -> None:
        layers = [nn.Linear(dim, hidden_dim, bias=bias), nn.GELU(), nn.Linear(hidden_dim, dim, bias=bias)]
        super().__init__(OrderedDict(zip(("fc1", "act", "fc2"), layers, strict=True)))


class TokenMlp(nn.Sequential):
    """Linear, exact GELU, Linear, under the name `mlp`."""

    def __init__(self, in_dim: int, dim: int, bias: bool = True) -> None:
        mlp = nn.Sequential(nn.Linear(in_dim, dim, bias=bias), nn.GELU(), nn.Linear(dim, dim, bias=bias))
        super().__init__(OrderedDict(mlp=mlp))


class LayerScale(nn.Module):
    """Multiplies by a learned `gamma` [C]."""

    def __init__(self, dim: int, init: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((dim,), init))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def modulate(x: Tensor, scale: Tensor | None, shift: Tensor | None) -> Tensor:
    return x if scale is None or shift is None else x * (1 + scale) + shift


class ResidualBlock(nn.Module):
    """The part that both blocks share: the MLP, layer scales and, with a condition, modulations of these sizes."""

    def __init__(
        self, dim: int, chunks: Sequence[int], *, mlp_expansion_factor: int | None = 4,
        mlp_hidden_dim: int | None = None, condition_dim: int | None = None, layerscale: float | None = None,
        bias: bool = True, eps: float = 1e-6, norm: str = "layer", mlp_bias: bool | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.chunk_sizes, self.norm_options = list(chunks), (norm, eps, bias, condition_dim is None)
        self.norm2 = self.norm(dim)
        hidden_dim = mlp_hidden_dim or (mlp_expansion_factor or 0) * dim
        self.mlp = Mlp(dim, hidden_dim, bias if mlp_bias is None else mlp_bias)
        self.ls1, self.ls2 = (nn.Identity() if layerscale is None else LayerScale(dim, layerscale) for _ in range(2))
        self.modulation = None if condition_dim is None else Projection(condition_dim, sum(chunks))
        if self.modulation is not None:
            nn.init.zeros_(self.modulation.project.weight)
            nn.init.zeros_(self.modulation.project.bias)

    def norm(self, dim: int) -> nn.Module:
        norm, eps, bias, learned = self.norm_options
        if norm == "rms":
            return RmsNorm(dim, eps, learned)
        return nn.LayerNorm(dim, eps=eps, elementwise_affine=learned, bias=bias)

    def chunks(self, condition: Tensor | None) -> Sequence[Tensor | None]:
        """The modulations [B, 1, C] of condition [B, condition_dim]; Nones without one."""
        if (self.modulation is None) != (condition is None):
            raise ValueError("a conditioned block needs a condition, an unconditioned one refuses it")
        if self.modulation is None:
            return (None,) * len(self.chunk_sizes)
        return self.modulation(condition)[:, None].split(self.chunk_sizes, dim=-1)

    def residuals(self, x: Tensor, h: Tensor, gate1: Tensor | None, *mlp_chunks: Tensor | None) -> Tensor:
        """Adds the attention output h to x, then the MLP's."""
        scale, shift, gate2 = mlp_chunks
        h = self.ls1(h)
        x = x + (h if gate1 is None else h * gate1)
        h = self.ls2(self.mlp(modulate(self.norm2(x), scale, shift)))
        return x + (h if gate2 is None else h * gate2)


class TransformerBlock(ResidualBlock):
    """Pre-norm block around full attention or, when given, an `AnchorAttention`."""

    def __init__(
        self, dim: int, num_heads: int, use_rope: bool = True, attention: AnchorAttention | None = None, *,
        qk_norm: bool = False, bias: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, 6 * [dim], bias=bias, **options)
        self.norm1 = self.norm(dim)
        self.attention_block = attention or DotProductAttention(dim, num_heads, use_rope, bias, qk_norm=qk_norm)

    def forward(
        self, x: Tensor, freqs: Tensor | None = None, token_specs: Specs | None = None,
        condition: Tensor | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """mask: [B, N, T, S] of full attention, the key_padding_mask [B, T] of anchor attention."""
        scale, shift, *rest = self.chunks(condition)
        arguments = (freqs, mask) if token_specs is None else (token_specs, freqs, mask)
        return self.residuals(x, self.attention_block(modulate(self.norm1(x), scale, shift), *arguments), *rest)


class PerceiverBlock(ResidualBlock):
    """Pre-norm block whose tokens q attend to kv."""

    def __init__(
        self, dim: int, num_heads: int, use_rope: bool = True, kv_dim: int | None = None, *,
        qk_norm: bool = False, bias: bool = True, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__(dim, [dim, dim, kv_dim or dim, kv_dim or dim, *4 * [dim]], bias=bias, **options)
        self.norm1q, self.norm1kv = self.norm(dim), self.norm(kv_dim or dim)
        self.attn = PerceiverAttention(dim, num_heads, kv_dim, use_rope, bias, qk_norm=qk_norm)

    def forward(
        self, q: Tensor, kv: Tensor, q_freqs: Tensor | None = None, k_freqs: Tensor | None = None,
        condition: Tensor | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        q_scale, q_shift, kv_scale, kv_shift, *rest = self.chunks(condition)
        kv = modulate(self.norm1kv(kv), kv_scale, kv_shift)
        h = self.attn(modulate(self.norm1q(q), q_scale, q_shift), kv, q_freqs, k_freqs, mask)
        return self.residuals(q, h, *rest)


def take(x: Tensor, idx: Tensor) -> Tensor:
    """Rows of x [B, P, C] at idx [B, ...] -> [B, ..., C]."""
    return x.take_along_dim(idx.flatten(1)[..., None], dim=1).unflatten(1, idx.shape[1:])


def find_neighbors(
    points: Tensor, supernodes: Tensor, radius: float | None, k: int | None, max_degree: int
) -> tuple[Tensor, Tensor]:
    """Indices [B, M, K] into points [B, P, n] near supernodes [B, M, n], and which of them are real."""
    if (radius is None) == (k is None):
        raise ValueError(f"exactly one of radius and k is needed, got radius={radius} and k={k}")
    num_points = points.shape[1]
    distance = torch.linalg.vector_norm(supernodes[:, :, None] - points[:, None], dim=-1)
    if k is not None:
        idx = distance.sort(dim=-1, stable=True).indices[..., :k]
        return idx, torch.ones_like(idx, dtype=torch.bool)
    candidates = torch.arange(num_points, device=points.device).where(distance <= radius, num_points)
    idx = candidates.sort(dim=-1).values[..., :max_degree]
    return idx.clamp(max=num_points - 1), idx < num_points


class SupernodePooling(nn.Module):
    """Aggregates the messages of each supernode's neighbours.

    Maps points [B, P, n] and supernode_idx [B, M] to [B, M, C]. `neighbors` replaces the search, which holds all
    distances: a pair (idx [B, M, K], is_real [B, M, K]).
    """

    def __init__(
        self, dim: int, mode: str = "abspos", radius: float | None = None, k: int | None = None, max_degree: int = 32,
        aggregation: str = "mean", readd_supernode_pos: bool = True, input_features_dim: int | None = None,
        message_mode: str = "mlp", bias: bool = True, max_wavelength: float = 10_000,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dim, self.mode, self.aggregation, self.max_wavelength = dim, mode, aggregation, max_wavelength
        self.neighborhood = (radius, k, max_degree)
        if input_features_dim is not None:
            self.feature_projection = Projection(input_features_dim, dim, bias)
            self.feature_down_projection = Projection({"abspos": 2, "relpos": 3}[mode] * dim, dim, bias)
        width = {"abspos": 2, "relpos": 1, "absrelpos": 3}[mode] * dim
        self.message = {
            "mlp": lambda: nn.Sequential(Projection(width, dim, bias), nn.GELU(), Projection(dim, dim, bias)),
            "linear": lambda: Projection(width, dim, bias),
            "identity": nn.Identity,
        }[message_mode]()
        self.proj = Projection(2 * dim, dim, bias) if readd_supernode_pos else None

    def embed(self, positions: Tensor) -> Tensor:
        dtype = next((parameter.dtype for parameter in self.parameters()), torch.float32)
        return sincos_embedding(positions, self.dim, self.max_wavelength).to(dtype)

    def forward(
        self, points: Tensor, supernode_idx: Tensor, features: Tensor | None = None, *,
        neighbors: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:  # fmt: skip
        supernodes = take(points, supernode_idx)
        idx, real = neighbors or find_neighbors(points, supernodes, *self.neighborhood)
        own_idx = supernode_idx[..., None].expand_as(idx)
        projected = None if features is None else self.feature_projection(features)
        vectors = []
        if self.mode != "relpos":
            absolute = self.embed(points)
            if projected is not None:
                absolute = self.feature_down_projection(torch.cat([absolute, projected], dim=-1))
            vectors += [take(absolute, idx), take(absolute, own_idx)]
        if self.mode != "abspos":
            offset = supernodes[:, :, None] - take(points, idx)
            relative = self.embed(torch.cat([offset, torch.linalg.vector_norm(offset, dim=-1, keepdim=True)], dim=-1))
            if projected is not None:
                own = [relative, take(projected, idx), take(projected, own_idx)]
                relative = self.feature_down_projection(torch.cat(own, dim=-1))
            vectors.append(relative)
        pooled = self.message(torch.cat(vectors, dim=-1)).masked_fill(~real[..., None], 0).sum(dim=2)
        if self.aggregation == "mean":
            pooled = pooled / real.sum(dim=2)[..., None]
        if self.proj is None:
            return pooled
        has_features = projected is not None and self.mode == "abspos"
        own = take(absolute, supernode_idx) if has_features else self.embed(supernodes)
        return self.proj(torch.cat([pooled, own], dim=-1))


class Conditioner(nn.Module):
    """Embeds named vectors in [-1, 1] to one condition."""

    def __init__(self, dims: Mapping[str, int], dim: int) -> None:
        super().__init__()
        self.dim = dim
        # Index 1, behind an embedding without parameters.
        self.embedder = nn.ModuleDict(
            {name: nn.Sequential(OrderedDict({"1": Projection(dim, dim), "2": nn.GELU()})) for name, n in dims.items()}
        )
        self.shared_mlp = nn.Sequential(Projection(len(dims) * dim, dim), nn.GELU(), Projection(dim, dim), nn.GELU())

    def width(self, num_axes: int) -> int:
        return axis_width(self.dim, num_axes)

    def embed(self, x: Tensor) -> Tensor:
        octaves = torch.linspace(0, 10, self.width(x.shape[-1]) // 2)
        angles = x[..., None] * (torch.pi * 2.0**octaves)
        embedding = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return functional.pad(embedding, (0, self.dim - embedding.shape[-1]))

    def forward(self, condition: Mapping[str, Tensor]) -> Tensor:
        parts = [embedder(self.embed(condition[name])) for name, embedder in self.embedder.items()]
        return self.shared_mlp(torch.cat(parts, dim=-1))


class Readout(nn.Module):
    """RMSNorm, modulated by a condition, and a Linear."""

    def __init__(self, dim: int, out_dim: int, condition_dim: int | None, bias: bool) -> None:
        super().__init__()
        self.norm_final = RmsNorm(dim, learned=condition_dim is None)
        self.modulation = None if condition_dim is None else Projection(condition_dim, 2 * dim)
        self.linear = Projection(dim, out_dim, bias)

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        h = self.norm_final(x)
        return self.linear(
            h if self.modulation is None else modulate(h, *self.modulation(condition)[:, None].chunk(2, -1))
        )


class AbUpt(nn.Module):
    """Anchored-branched UPT. The keys of `fields` {branch: [(field, channels)]} are its branches, in order.

    `physics_blocks` lists self (or shared), cross, joint and perceiver blocks; only a perceiver needs geometry.
    `supernode_pooling` holds keyword arguments of `SupernodePooling`, `block` those of all blocks but perceivers.
    """

    def __init__(
        self, dim: int, num_heads: int, physics_blocks: Sequence[str], decoder_depths: Mapping[str, int],
        fields: Mapping[str, Specs], *, geometry_depth: int = 1, supernode_pooling: Mapping[str, object] | None = None,
        mlp_expansion_factor: int | None = 4, condition_dim: int | None = None, max_wavelength: float = 10_000,
        block: Mapping[str, object] | None = None, norm: str = "layer", qk_norm: bool | str = False,
        bias: bool = True, bias_scope: str = "all", readout_norm: bool = False,
        conditioning_dims: Mapping[str, int] | None = None,
        geometry_conditioning_dims: Mapping[str, int] | None = None, feature_dims: Mapping[str, int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.dim, self.head_dim, self.fields = dim, dim // num_heads, dict(fields)
        self.max_wavelength = max_wavelength
        outer_bias, heads = bias or bias_scope == "transformer_blocks", {"qk_norm": qk_norm is True}
        common = {"mlp_expansion_factor": mlp_expansion_factor, "norm": norm}
        options = {**common, "bias": bias, **(block or {})}
        condition_dim = condition_dim or (dim if conditioning_dims else None)

        def physics_block(kind: str, branches: Sequence[str]) -> nn.Module:
            if kind == "perceiver":
                return PerceiverBlock(dim, num_heads, bias=outer_bias, condition_dim=condition_dim, **common, **heads)
            kind = "self" if kind == "shared" else kind
            attention = AnchorAttention(kind, dim, num_heads, use_rope=True, bias=bias, branches=branches, **heads)
            return TransformerBlock(dim, num_heads, attention=attention, condition_dim=condition_dim, **options)

        self.conditioner = Conditioner(conditioning_dims, condition_dim) if conditioning_dims else None
        has_own, geometry_condition_dim = geometry_conditioning_dims is not None, condition_dim
        if has_own and not geometry_conditioning_dims:
            geometry_condition_dim = None
        own = Conditioner(geometry_conditioning_dims, condition_dim) if geometry_conditioning_dims else None
        self.geometry_shares_condition, self.geometry_conditioner = not has_own, own
        self.encoder = None
        if "perceiver" in physics_blocks:
            self.encoder = SupernodePooling(dim, **(supernode_pooling or {}))
            of_geometry = {"condition_dim": geometry_condition_dim, "qk_norm": bool(qk_norm), **options}
            blocks = [TransformerBlock(dim, num_heads, **of_geometry) for _ in range(geometry_depth)]
            self.geometry_blocks = nn.ModuleList(blocks)
        self.physics_blocks = nn.ModuleList(physics_block(kind, tuple(fields)) for kind in physics_blocks)
        for branch, branch_fields in fields.items():
            blocks = [physics_block("self", (branch,)) for _ in range(decoder_depths.get(branch, 0))]
            channels = sum(channels for _, channels in branch_fields)
            self.add_module(f"{branch}_bias", TokenMlp(dim, dim, outer_bias))
            if branch in (feature_dims or {}):
                self.add_module(f"{branch}_features", TokenMlp(feature_dims[branch], dim, outer_bias))
            self.add_module(f"{branch}_decoder_blocks", nn.ModuleList(blocks))
            readout = Readout(dim, channels, condition_dim, outer_bias) if readout_norm else None
            self.add_module(f"{branch}_decoder", readout or Projection(dim, channels, outer_bias))

    @classmethod
    def from_config(cls, config: AbUptConfig) -> AbUpt:
        """The oracle of a configuration without untied blocks."""
        return cls(
            config.dim,
            config.num_heads,
            config.physics_blocks,
            config.decoder_depths,
            {branch: list(fields.items()) for branch, fields in config.fields.items()},
            supernode_pooling=config.supernode_pooling.to_dict(),
            mlp_expansion_factor=config.mlp_ratio,
            block={"layerscale": config.layer_scale, "mlp_hidden_dim": config.mlp_hidden_dim, "eps": config.eps},
            **{name: getattr(config, name) for name in CONFIG_FIELDS},
        )

    def condition(self, given: Any) -> tuple[Tensor | None, Tensor | None]:
        """The condition of all blocks, and that of the geometry blocks."""
        if self.conditioner is None:
            return given, given
        of_all, own = self.conditioner(given), self.geometry_conditioner
        return of_all, of_all if self.geometry_shares_condition else None if own is None else own(given)

    def tokens(self, branch: str, groups: Sequence[tuple[Tensor, Tensor | None]], dtype: torch.dtype) -> Tensor:
        """Embeds the positions of groups of tokens, and adds the features of those that have them."""
        parts = []
        for positions, features in groups:
            embedding = sincos_embedding(positions, self.dim, self.max_wavelength).to(dtype)
            part = self.get_submodule(f"{branch}_bias")(embedding)
            parts.append(part if features is None else part + self.get_submodule(f"{branch}_features")(features))
        return torch.cat(parts, dim=1)

    def forward(
        self, anchors: Mapping[str, Tensor], queries: Mapping[str, Tensor] | None = None,
        geometry_position: Tensor | None = None, geometry_supernode_idx: Tensor | None = None,
        condition: Any = None, geometry_neighbors: tuple[Tensor, Tensor] | None = None,
        geometry_features: Tensor | None = None, anchor_features: Mapping[str, Tensor] | None = None,
        query_features: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:  # fmt: skip
        """Positions [B, tokens, n] per branch, a condition [B, condition_dim] -> named fields [B, tokens, channels]."""
        given = (("anchors", anchors, anchor_features or {}), ("queries", queries or {}, query_features or {}))
        specs = {b: [(f"{b}_{group}", p[b].shape[1]) for group, p, _ in given if b in p] for b in self.fields}
        positions = {b: torch.cat([p[b] for _, p, _ in given if b in p], dim=1) for b in self.fields}
        dtype = next(self.parameters()).dtype
        x = torch.cat(
            [self.tokens(b, [(p[b], f.get(b)) for _, p, f in given if b in p], dtype) for b in self.fields], dim=1
        )
        condition, of_geometry = self.condition(condition)
        freqs = rope_frequencies(torch.cat(list(positions.values()), dim=1), self.head_dim, self.max_wavelength)
        if self.encoder is not None:
            pooling_inputs = (geometry_position, geometry_supernode_idx, geometry_features)
            geometry = self.encoder(*pooling_inputs, neighbors=geometry_neighbors)
            supernodes = take(geometry_position, geometry_supernode_idx)
            geometry_freqs = rope_frequencies(supernodes, self.head_dim, self.max_wavelength)
            for block in self.geometry_blocks:
                geometry = block(geometry, geometry_freqs, condition=of_geometry)
        all_specs = [spec for b in specs for spec in specs[b]]
        for block in self.physics_blocks:
            if isinstance(block, PerceiverBlock):
                x = block(x, geometry, freqs, geometry_freqs, condition)
            else:
                x = block(x, freqs, all_specs, condition)

        sizes = [p.shape[1] for p in positions.values()]
        outputs: dict[str, Tensor] = {}
        for branch, h, branch_freqs in zip(self.fields, x.split(sizes, 1), freqs.split(sizes, 1), strict=True):
            for block in cast(nn.ModuleList, self.get_submodule(f"{branch}_decoder_blocks")):
                h = block(h, branch_freqs, specs[branch], condition)
            decoder = self.get_submodule(f"{branch}_decoder")
            h = decoder(h, condition) if isinstance(decoder, Readout) else decoder(h)
            prefixes = ("", "query_")[: len(specs[branch])]
            for prefix, tokens in zip(prefixes, h.split([size for _, size in specs[branch]], 1), strict=True):
                parts = tokens.split([channels for _, channels in self.fields[branch]], dim=-1)
                names = [f"{prefix}{branch}_{field}" for field, _ in self.fields[branch]]
                outputs |= zip(names, parts, strict=True)
        return outputs
