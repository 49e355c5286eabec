"""Loads the recorded cases of tests/golden."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FOLDER = Path(__file__).parent / "golden"
CONSTANTS = ("omega", "padding_tensor")


class Golden(NamedTuple):
    """One recorded case: its description, and its arrays by name. `gradients` holds ``in/…`` and ``param/…``."""

    meta: dict[str, Any]
    params: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    cotangents: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


def golden_names(*prefixes: str) -> list[str]:
    """Names of the recorded cases that start with one of these."""
    return sorted(path.stem for path in FOLDER.glob("*.npz") if path.stem.startswith(prefixes))


def load_golden(name: str) -> Golden:
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): array for key, array in arrays.items() if key.startswith(prefix)}

    params = {key: array for key, array in part("param/").items() if key.split(".")[-1] not in CONSTANTS}
    return Golden(meta, params, part("in/"), part("out/"), part("cot/"), part("grad/"))
