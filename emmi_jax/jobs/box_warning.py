"""A warning about points where a model has seen nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from rich.console import Console

from emmi_jax.data.normalization import Normalizer
from emmi_jax.points import row_chunks


def warn_outside(normalizer: Normalizer, what: Path | str, position: NDArray[Any], console: Console) -> None:
    """Prints how many positions [N, n] are outside the box of the training data, if any are."""
    num_outside = sum(map(normalizer.num_outside, row_chunks(position)))
    if num_outside:
        console.print(
            f"warning: {what}: {num_outside:,} of {len(position):,} points are outside the box of the training data",
            highlight=False,
            soft_wrap=True,
        )
