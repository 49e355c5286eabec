"""JSON and text files that appear under their names only when they are complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emmi_jax.cfd.whole_files import whole_file

JsonDict = dict[str, Any]


def write_json(path: Path, value: JsonDict) -> None:
    """Writes JSON that appears under its name only when it is complete."""
    write_atomically(path, json.dumps(value, indent=2) + "\n")


def write_atomically(path: Path, text: str) -> None:
    """Writes a text file that appears under its name only when it is complete."""
    with whole_file(path) as partial:
        partial.write_text(text)
