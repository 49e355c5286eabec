"""Fixtures that the tests of this folder share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from emmi_jax import deploy
from emmi_jax.inference.exporting import export_surrogate
from tests.deploy.cases import surrogate


@pytest.fixture(scope="session")
def exported_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Exports each kind of model once."""

    @functools.cache
    def export(kind: str) -> Path:
        path = tmp_path_factory.mktemp("exported") / "model.emmi"
        export_surrogate(surrogate(kind), path, units={"position": "m", "volume/velocity": "m/s"})
        return path

    return export


@pytest.fixture(scope="session")
def file(exported_file: Callable[[str], Path]) -> Path:
    return exported_file("geometry")


@pytest.fixture(scope="session")
def exported(file: Path) -> deploy.ExportedSurrogate:
    return deploy.load(file)
