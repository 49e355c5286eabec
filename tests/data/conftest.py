from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emmi_jax.data.readers import tensors


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors lie in `.npy` files beside their names, since torch is no requirement of the tests."""

    def load(path: Path) -> np.ndarray:
        return np.load(path.with_suffix(".pt.npy"))

    monkeypatch.setattr(tensors, "load_torch_tensor", load)
    monkeypatch.setattr(tensors, "map_torch_tensor", load)
