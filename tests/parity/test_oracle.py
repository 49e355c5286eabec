"""The PyTorch oracle reproduces the recorded figures of tests/golden; what they do not cover is checked by meaning."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from benchmarks import torch_model as oracle  # noqa: E402
from tests.convert.cases import golden_ab_upt_config  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "golden"
FORWARD_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
CONSTANTS = ("omega", "padding_tensor")

CASES = sorted(path.stem for path in GOLDEN.glob("*.npz"))
MODULE_CASES = [case for case in CASES if not case.startswith(("rope", "sincos", "ab_upt"))]
GRADIENT_CASES = [case for case in MODULE_CASES if "_2026_" not in case and not case.startswith("supernode")]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


class Golden:
    """One recorded case: `meta`, and its arrays as tensors by the first part of their name."""

    def __init__(self, case: str) -> None:
        with np.load(GOLDEN / f"{case}.npz") as file:
            self.meta: dict[str, Any] = json.loads(str(file["meta"]))
            self.arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "meta"}

    def part(self, prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): a for name, a in self.arrays.items() if name.startswith(prefix)}

    @property
    def params(self) -> dict[str, torch.Tensor]:
        return {name: a for name, a in self.part("param/").items() if name.split(".")[-1] not in CONSTANTS}


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = FORWARD_TOLERANCE) -> None:
    """Compares relative to the largest expected entry."""
    assert actual.shape == expected.shape
    error, largest = (actual - expected).abs().max().item(), expected.abs().max().item()
    assert error <= tolerance * largest, f"error {error:.2e}, largest entry {largest:.2e}"


def block_options(meta: dict[str, Any]) -> dict[str, Any]:
    names = ("mlp_expansion_factor", "condition_dim", "layerscale", "mlp_hidden_dim", "eps", "norm", "bias", "qk_norm")
    return {name: meta[name] for name in names if name in meta}


def build(meta: dict[str, Any]) -> torch.nn.Module:
    """The oracle's module for a recorded case; release 2026.4 has split q, k, v."""
    kind, split = meta["kind"], "release" in meta
    if kind == "supernode_pooling":
        names = ("radius", "k", "max_degree", "aggregation", "message_mode", "bias", "readd_supernode_pos")
        options = {name: meta[name] for name in (*names, "input_features_dim") if name in meta}
        return oracle.SupernodePooling(meta["dim"], meta["spool_pos_mode"], **options)
    sizes = (meta.get("dim") or meta["hidden_dim"], meta["num_heads"])
    heads = {"split_qkv": split, "qk_norm": meta.get("qk_norm", False)}
    if kind == "transformer_block":
        return oracle.TransformerBlock(*sizes, meta["use_rope"], **block_options(meta))
    if kind == "perceiver_block":
        return oracle.PerceiverBlock(*sizes, meta["use_rope"], meta.get("kv_dim"), **block_options(meta))
    if kind == "perceiver_attention":
        return oracle.PerceiverAttention(*sizes, meta["kv_dim"], meta["use_rope"], **heads)
    if kind == "dot_product_attention":
        return oracle.DotProductAttention(*sizes, meta["use_rope"], **heads)
    if kind == "mixed_attention":
        return oracle.MixedAttention(*sizes, meta["use_rope"], meta["bias"], **heads)
    anchor_kind = kind.removesuffix("_anchor_attention")
    branches = {"branches": meta["branches"], "anchor_suffix": meta["anchor_suffix"]}
    return oracle.AnchorAttention(anchor_kind, *sizes, meta["use_rope"], meta["bias"], **branches, **heads)


def call(module: torch.nn.Module, meta: dict[str, Any], inputs: dict[str, torch.Tensor], **masks: Any) -> torch.Tensor:
    """Runs a module on its recorded inputs, with frequencies from the recorded positions."""
    if meta["kind"] == "supernode_pooling":
        return module(inputs["pos"], inputs["supernode_idx"], inputs.get("features"))
    head_dim = (meta.get("dim") or meta["hidden_dim"]) // meta["num_heads"]
    freqs = {name: oracle.rope_frequencies(a, head_dim) for name, a in inputs.items() if name.endswith("pos")}
    if meta["kind"].startswith("perceiver"):
        conditions = {"condition": inputs["condition"]} if "condition" in inputs else {}
        return module(inputs["q"], inputs["kv"], freqs.get("q_pos"), freqs.get("k_pos"), **conditions)
    if meta["kind"] == "transformer_block":
        return module(inputs["x"], freqs["pos"], condition=inputs.get("condition"))
    if meta["kind"] == "dot_product_attention":
        return module(inputs["x"], freqs.get("pos"))
    arguments = [meta[name] for name in ("token_specs", "patterns") if name in meta]
    return module(inputs["x"], *arguments, freqs.get("pos"), **masks)


def loaded(golden: Golden) -> torch.nn.Module:
    module = build(golden.meta)
    blocks = golden.meta["kind"].endswith("_block") and "release" in golden.meta
    module.load_state_dict(fuse_projections(golden.params) if blocks else golden.params)
    return module


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("rope")])
def test_rope_matches_the_recorded_frequencies_and_rotation(case: str) -> None:
    golden = Golden(case)
    freqs = oracle.rope_frequencies(golden.arrays["in/pos"], golden.meta["head_dim"], golden.meta["max_wavelength"])
    assert_close(freqs.real, golden.arrays["out/freqs_real"])
    assert_close(freqs.imag, golden.arrays["out/freqs_imag"])
    assert_close(oracle.apply_rope(golden.arrays["in/x"], freqs), golden.arrays["out/y"])


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("sincos")])
def test_sincos_embedding_matches_the_recorded_one(case: str) -> None:
    golden = Golden(case)
    embedding = oracle.sincos_embedding(golden.arrays["in/pos"], golden.meta["dim"], golden.meta["max_wavelength"])
    assert_close(embedding, golden.arrays["out/y"])


@pytest.mark.parametrize("case", ["ab_upt_0", "ab_upt_1", "supernode_pooling_0", "supernode_pooling_2"])
def test_position_frequencies_equal_the_recorded_constants_bit_for_bit(case: str) -> None:
    for name, omega in Golden(case).part("param/").items():
        if name.endswith("omega"):
            ours = oracle.position_angles(torch.ones(1), 2 * len(omega), 10_000)[0]
            assert torch.equal(ours, omega), name


@pytest.mark.parametrize("case", MODULE_CASES)
def test_module_output_matches_the_recorded_one(case: str) -> None:
    golden = Golden(case)
    assert_close(call(loaded(golden), golden.meta, golden.part("in/")), golden.arrays["out/y"])


@pytest.mark.parametrize("case", GRADIENT_CASES)
def test_gradients_match_the_recorded_ones(case: str) -> None:
    golden, module = Golden(case), loaded(Golden(case))
    inputs, expected = golden.part("in/"), golden.part("grad/")
    for name in golden.part("grad/in/"):
        inputs[name].requires_grad_()
    (call(module, golden.meta, inputs) * golden.arrays["cot/y"]).sum().backward()
    if golden.meta["kind"].endswith("_block") and "release" in golden.meta:
        expected = fuse_projections(expected)
    actual = {f"in/{name}": a.grad for name, a in inputs.items()}
    actual |= {f"param/{name}": a.grad for name, a in module.named_parameters()}
    assert set(expected) == {name for name, gradient in actual.items() if gradient is not None}
    for name, gradient in expected.items():
        assert_close(actual[name], gradient, GRADIENT_TOLERANCE)


@pytest.mark.parametrize("case", [case for case in MODULE_CASES if "_2026_" in case])
def test_padded_keys_are_never_attended_to_as_recorded(case: str) -> None:
    golden = Golden(case)
    masks = {"key_padding_mask": golden.arrays["in/key_padding_mask"]}
    assert_close(call(loaded(golden), golden.meta, golden.part("in/"), **masks), golden.arrays["out/y_masked"])


@pytest.mark.parametrize("case", [case for case in MODULE_CASES if "_2026_" in case])
def test_query_rows_match_those_recorded_from_cached_anchors(case: str) -> None:
    golden = Golden(case)
    output = call(loaded(golden), golden.meta, golden.part("in/"))
    assert_close(output[:, golden.meta["query_rows"]], golden.arrays["out/y_cached"])


@pytest.mark.parametrize("case", [f"supernode_pooling_{i}" for i in range(3)])
def test_neighbor_counts_match_the_recorded_degrees(case: str) -> None:
    golden, module = Golden(case), build(Golden(case).meta)
    points, idx = golden.arrays["in/pos"], golden.arrays["in/supernode_idx"]
    _, real = oracle.find_neighbors(points, oracle.take(points, idx), *module.neighborhood)
    assert torch.equal(real.sum(dim=-1), golden.arrays["out/degree"])


def fuse_projections(params: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """2026.4's q, k, v as 1.x's `qkv`, and as `q` and `kv` in the perceiver blocks (under `attn`)."""
    fused = dict(params)
    for name in params:
        if match := re.fullmatch(r"(.*\.)k(\.weight|\.bias)", name):
            before, after = match.groups()
            parts = "kv" if before.endswith("attn.") else "qkv"
            fused[f"{before}{parts}{after}"] = torch.cat([fused.pop(f"{before}{part}{after}") for part in parts])
    return fused


RENAMING_2026 = (
    (r"^domain_biases\.(\w+)\.", r"\1_bias."),
    (r"^domain_decoder_blocks\.(\w+)\.", r"\1_decoder_blocks."),
    (r"^domain_decoder_projections\.(\w+)\.", r"\1_decoder."),
    (r"^domain_feature_projs\.(\w+)\.", r"\1_features."),
)
RENAMING_TUTORIAL = (
    (r"^(encoder\.message\.\d|encoder\.proj|\w+_decoder)\.(weight|bias)$", r"\1.project.\2"),
    (r"^(\w+_bias)\.(\d)", r"\1.mlp.\2"),
    (r"^(geometry_blocks\.\d+)\.attn\.", r"\1.attention_block."),
    (r"^((?:\w+_)?blocks\.\d+)\.attn\.", r"\1.attention_block.mixed_attention."),
    (r"^blocks\.0\.attention_block\.mixed_attention\.", r"blocks.0.attn."),  # block 0 is the perceiver
    (r"^blocks\.", "physics_blocks."),
    (r"^(surface|volume)_blocks\.", r"\1_decoder_blocks."),
)


def renamed(params: dict[str, torch.Tensor], rules: tuple[tuple[str, str], ...]) -> dict[str, torch.Tensor]:
    def rename(name: str) -> str:
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        return name

    return {rename(name): array for name, array in params.items()}


def run_ab_upt(
    golden: Golden,
    params: dict[str, torch.Tensor],
    fields: dict[str, Any],
    depths: dict[str, int],
    blocks: list[str],
    position: Callable[[str, str], torch.Tensor | None],
) -> dict[str, torch.Tensor]:
    """Builds, loads and applies a model; `position(branch, group)` finds a recorded input."""
    meta, inputs = golden.meta, golden.part("in/")
    options = {name: meta[name] for name in ("geometry_depth", "supernode_pooling")}
    sizes = (meta["dim"], meta["num_heads"])
    model = oracle.AbUpt(*sizes, blocks, depths, fields, condition_dim=meta.get("condition_dim"), **options)
    model.load_state_dict(params)
    anchors = {branch: position(branch, "anchor") for branch in fields}
    queries = {branch: p for branch in fields if (p := position(branch, "query")) is not None}
    geometry = [inputs["geometry_position"], inputs["geometry_supernode_idx"]]
    if geometry[0].ndim == 2:
        geometry = [array[None] for array in geometry]
    condition = inputs.get("condition", inputs.get("geometry_design_parameters"))
    return model(anchors, queries, *geometry, condition)


def assert_same_fields(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(actual) == set(expected)
    for name, field in expected.items():
        assert_close(actual[name], field)


@pytest.mark.parametrize("case", ["ab_upt_0", "ab_upt_1"])
def test_ab_upt_matches_the_recorded_fields_of_1x(case: str) -> None:
    golden = Golden(case)
    meta, inputs = golden.meta, golden.part("in/")
    fields = {branch: meta[f"{branch}_fields"] for branch in ("surface", "volume")}
    depths = {branch: meta[f"num_{branch}_blocks"] for branch in fields}

    def position(branch: str, group: str) -> torch.Tensor | None:
        return inputs.get(f"{branch}_anchor_position" if group == "anchor" else f"query_{branch}_position")

    outputs = run_ab_upt(golden, golden.params, fields, depths, meta["physics_blocks"], position)
    assert_same_fields(outputs, golden.part("out/"))


@pytest.mark.parametrize("case", ["ab_upt_2026_0", "ab_upt_2026_1"])
def test_ab_upt_matches_the_recorded_fields_of_2026(case: str) -> None:
    golden = Golden(case)
    meta, inputs = golden.meta, golden.part("in/")
    params = fuse_projections(renamed(golden.params, RENAMING_2026))

    def position(branch: str, group: str) -> torch.Tensor | None:
        return inputs.get(f"{group}/{branch}")

    blocks, depths = meta["physics_blocks"], meta["decoder_blocks"]
    assert_same_fields(run_ab_upt(golden, params, meta["fields"], depths, blocks, position), golden.part("out/"))


@pytest.mark.parametrize(
    "case", [c for c in CASES if "ab_upt_field" in c or "ab_upt_main" in c if c != "ab_upt_field_3"]
)
def test_ab_upt_matches_the_recorded_fields_of_every_option(case: str) -> None:
    golden, config = Golden(case), golden_ab_upt_config(case)
    model = oracle.AbUpt.from_config(config)
    model.load_state_dict(fuse_projections(renamed(golden.params, RENAMING_2026)))
    inputs = golden.part("in/")

    def named(prefix: str) -> dict[str, torch.Tensor]:
        return {name.removeprefix(prefix): a for name, a in inputs.items() if name.startswith(prefix)}

    outputs = model(
        named("anchor/"),
        named("query/"),
        inputs["geometry_position"],
        inputs["geometry_supernode_idx"],
        named("condition/") or None,
        anchor_features=named("anchor_feature/"),
        query_features=named("query_feature/"),
    )
    tolerance = 1e-4 if config.conditioning_dims else FORWARD_TOLERANCE
    for name, field in golden.part("out/").items():
        assert_close(outputs[name], field, tolerance)


def test_ab_upt_matches_the_recorded_fields_of_the_tutorial_model() -> None:
    golden = Golden("ab_upt_tutorial_48")
    meta, inputs = golden.meta, golden.part("in/")
    fields = {branch: meta[f"{branch}_fields"] for branch in ("surface", "volume")}
    depths = {branch: meta[f"num_{branch}_blocks"] for branch in fields}
    blocks = [{"p": "perceiver", "s": "self", "c": "cross"}[letter] for letter in meta["blocks"]]

    def position(branch: str, group: str) -> torch.Tensor | None:
        return inputs.get(f"{branch}_{group}_position")

    params = renamed(golden.params, RENAMING_TUTORIAL)
    outputs = run_ab_upt(golden, params, fields, depths, blocks, position)
    # The tutorial's names are {branch}_{group}_{field}, and the recorded fields have no batch axis.
    rules = ((r"^(\w+?)_anchor_", r"\1_"), (r"^(\w+?)_query_", r"query_\1_"))
    assert_same_fields({name: field[0] for name, field in outputs.items()}, renamed(golden.part("out/"), rules))


def test_rows_with_nothing_to_attend_to_give_zeros_and_finite_gradients() -> None:
    attention = oracle.MixedAttention(12, 2)
    specs, patterns = [("a", 3), ("b", 4), ("empty", 0)], [(["a"], ["b"]), (["b"], ["empty"]), (["empty"], ["a"])]
    x = torch.randn(2, 7, 12, requires_grad=True)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[1, 3:] = False
    y = attention(x, specs, patterns, key_padding_mask=mask)
    y.square().sum().backward()
    expected = attention.proj.bias.expand(7, 12)
    assert torch.equal(y[1], expected)
    assert torch.equal(y[0, 3:], expected[3:])
    assert not torch.allclose(y[0, :3], expected[:3])
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(attention.qkv.weight.grad).all()


def test_a_group_belongs_to_the_longest_branch_that_prefixes_it() -> None:
    names = ["vol_anchors", "volume_anchors", "volume_queries", "vol_queries"]
    patterns = oracle.anchor_patterns("self", ("vol", "volume"), names, "_anchors")
    assert patterns == [
        (["vol_anchors", "vol_queries"], ["vol_anchors"]),
        (["volume_anchors", "volume_queries"], ["volume_anchors"]),
    ]


def test_the_split_and_the_fused_layout_compute_the_same() -> None:
    fused, split = oracle.PerceiverAttention(12, 2, 8), oracle.PerceiverAttention(12, 2, 8, split_qkv=True)
    params = {f"x.attn.{name}": array for name, array in split.state_dict().items()}
    fused.load_state_dict({name.removeprefix("x.attn."): a for name, a in fuse_projections(params).items()})
    q, kv = torch.randn(2, 5, 12), torch.randn(2, 6, 8)
    assert_close(split(q, kv), fused(q, kv))


def test_too_many_neighbors_within_the_radius_keep_the_lowest_indices() -> None:
    points = torch.zeros(1, 9, 3)
    points[0, 2] = 5.0
    idx, real = oracle.find_neighbors(points, points[:, 7:8], radius=1.0, k=None, max_degree=4)
    assert idx.tolist() == [[[0, 1, 3, 4]]]
    assert real.all()


@pytest.mark.parametrize("mode", ["abspos", "relpos"])
def test_point_features_change_the_pooled_tokens_of_their_neighborhood_only(mode: str) -> None:
    points = torch.arange(20.0)[None, :, None] * torch.tensor([1.0, 0.5, 0.25])
    supernode_idx, features = torch.tensor([[3, 16]]), torch.randn(1, 20, 2)
    pooling = oracle.SupernodePooling(24, mode, k=3, input_features_dim=2)
    changed = features.clone()
    changed[0, 2] += 1.0
    before, after = pooling(points, supernode_idx, features), pooling(points, supernode_idx, changed)
    assert torch.equal(before[0, 1], after[0, 1])
    assert not torch.allclose(before[0, 0], after[0, 0])


def test_ab_upt_without_a_perceiver_has_no_geometry_and_queries_move_no_anchor() -> None:
    fields = {"a": [("p", 1)], "b": [("u", 3), ("p", 1)]}
    model = oracle.AbUpt(24, 2, ["self", "cross", "joint"], {"a": 1, "b": 0}, fields)
    assert not any(name.startswith(("encoder", "geometry")) for name in model.state_dict())
    anchors = {"a": 1000 * torch.rand(2, 5, 3), "b": 1000 * torch.rand(2, 4, 3)}
    alone = model(anchors)
    both = model(anchors, {"b": 1000 * torch.rand(2, 6, 3)})
    assert set(both) - set(alone) == {"query_b_u", "query_b_p"}
    assert both["query_b_u"].shape == (2, 6, 3)
    for name, field in alone.items():
        assert_close(both[name], field)
