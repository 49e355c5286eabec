"""Tests of flat OpenFOAM cases: one layer of cells between patches of the type `empty` or `wedge`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emmi_jax.config import FoamSelection
from emmi_jax.meshes.openfoam import foam_branches, foam_patches, read_foam
from tests.meshes import foam_cases
from tests.meshes.foam_cases import FIELDS, cell_centres, write_foam_case


@pytest.fixture(params=["empty", "wedge"])
def flat(request, tmp_path, monkeypatch) -> Path:
    """A case of one layer around a missing cell; both its sides are the patch `ground`."""
    of_step = foam_cases._patch
    monkeypatch.setattr(foam_cases, "CELLS", (6, 5, 1))
    monkeypatch.setattr(foam_cases, "HOLE", (2, 2, 0))
    monkeypatch.setattr(foam_cases, "HOLES", {(2, 2, 0)})
    monkeypatch.setattr(foam_cases, "_patch", lambda step, other: "ground" if step[2] else of_step(step, other))
    case = write_foam_case(tmp_path / "case")
    boundary = case / "constant/polyMesh/boundary"
    boundary.write_text(boundary.read_text().replace("ground\n{ type wall;", f"ground\n{{ type {request.param};"))
    for file in (path for time in ("0", "100") for path in (case / time).iterdir()):
        text = file.read_text()
        start, end = text.index("ground {"), text.index("sides {")
        file.write_text(f"{text[:start]}ground {{ type {request.param}; }}\n{text[end:]}")
    return case


def test_a_flat_case_has_its_cells_and_walls(flat):
    assert foam_branches(flat) == ("surface", "volume")
    assert [name for name, patch in foam_patches(flat).items() if patch.is_chosen] == ["body"]
    meshes = read_foam(flat, ["surface", "volume"])
    np.testing.assert_allclose(meshes["volume"].position("cells"), cell_centres(), rtol=1e-12)
    np.testing.assert_allclose(meshes["volume"].dataset.cell_data["U"], 1.1 * FIELDS["U"](cell_centres()), rtol=1e-12)
    np.testing.assert_allclose(meshes["volume"].cell_sizes(), np.prod(foam_cases.SPACING), rtol=1e-12)
    position = meshes["surface"].position("cells")
    assert len(position) == 4
    np.testing.assert_allclose(meshes["surface"].dataset.cell_data["p"], 1.1 * FIELDS["p"](position), rtol=1e-12)
    assert all(mesh.left_out == () for mesh in meshes.values())


def test_the_sides_of_a_flat_case_have_no_values_and_are_named(flat):
    kind = foam_patches(flat)["ground"].kind
    with pytest.raises(ValueError, match=f"patch 'ground': its condition '{kind}' has no value in the file"):
        read_foam(flat, ["surface"], FoamSelection(("ground",)), {"surface": ["p"]})
