"""Which parts of the logits [T, S] count, as rectangles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

Rectangle: TypeAlias = tuple[int, int, int, int]
"""Queries from the first to before the second attend to keys from the third to before the fourth."""


def rectangle_mask(rectangles: Sequence[Rectangle], num_queries: int, num_keys: int) -> np.ndarray:
    """Returns the union of the rectangles as booleans [T, S]."""
    mask = np.zeros((num_queries, num_keys), bool)
    for query_start, query_stop, key_start, key_stop in rectangles:
        mask[query_start:query_stop, key_start:key_stop] = True
    return mask
