"""The public names, pinned: to add or remove one is a decision that shows here."""

from __future__ import annotations

import importlib
import re
import types
from pathlib import Path

import pytest

PUBLIC = {
    "emmi_jax": {
        "AbUptConfig",
        "AnchorAttentionConfig",
        "AnchoredBranchedUPT",
        "AttentionConfig",
        "AttentionPattern",
        "CrossAnchorAttention",
        "DotProductAttention",
        "Geometry",
        "JointAnchorAttention",
        "MissingAnchorTokenError",
        "MissingBranchTokensError",
        "MixedAttention",
        "MultiBranchAnchorAttention",
        "PerceiverAttention",
        "PerceiverBlock",
        "RopeFrequencies",
        "SelfAnchorAttention",
        "SupernodePooling",
        "SupernodePoolingConfig",
        "Surrogate",
        "TokenSpec",
        "TransformerBlock",
        "UnexpectedTokenError",
        "apply_rope",
        "encode",
        "load_run",
        "predict",
        "rope_frequencies",
        "stream",
    },
    "emmi_jax.convert": {
        "CONSTANTS",
        "LAYOUTS",
        "PRESETS",
        "Preset",
        "TorchFile",
        "ab_upt_from_torch",
        "ab_upt_to_torch",
        "load_torch_file",
        "params_from_torch",
        "params_to_torch",
    },
    "emmi_jax.deploy": {
        "Encoded",
        "EncodedSet",
        "ExportedSurrogate",
        "Geometry",
        "Intervals",
        "Points",
        "Spread",
        "StreamedChunk",
        "load",
    },
    "emmi_jax.design": {
        "CaseInputs",
        "Draws",
        "Functional",
        "Lattice",
        "MorphedCase",
        "MultiPointCase",
        "Optimization",
        "RadialBasis",
        "Sensitivity",
        "Sums",
        "Surface",
        "directional_derivative",
        "drag",
        "evaluate",
        "hessian_vector_product",
        "integral",
        "keep_box_free",
        "keep_clearance",
        "keep_volume",
        "lift",
        "mean",
        "moment",
        "optimize",
        "per_point",
        "read_surface",
        "sensitivity",
        "side_force",
        "smooth_maximum",
        "smooth_minimum",
    },
}
DOCUMENTED = [(module, name) for module, names in PUBLIC.items() for name in sorted(names) if not name.isupper()]


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names_are_exactly_these(module: str) -> None:
    imported = importlib.import_module(module)
    members = {name: getattr(imported, name) for name in dir(imported) if not name.startswith("_")}
    names = {name for name, value in members.items() if not isinstance(value, types.ModuleType)}
    assert names == PUBLIC[module]


@pytest.mark.parametrize(("module", "name"), DOCUMENTED)
def test_public_names_have_a_docstring_of_their_own(module: str, name: str) -> None:
    public = getattr(importlib.import_module(module), name)
    # A dataclass without one gets its signature.
    assert public.__doc__
    assert not public.__doc__.startswith(f"{name}(")


def test_public_names_have_an_entry_in_the_reference():
    pages = (Path(__file__).parents[1] / "docs" / "api").glob("*.md")
    entries = {entry for page in pages for entry in re.findall(r"^::: (.*)", page.read_text(), re.MULTILINE)}
    assert {f"{module}.{name}" for module, names in PUBLIC.items() for name in names} <= entries
