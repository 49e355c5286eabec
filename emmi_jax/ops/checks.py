"""Failed checks of arrays, as errors for the user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def as_value_error(what: str) -> Iterator[None]:
    """Raises a failed chex assertion again as a ValueError that names the arguments.

    Args:
        what: Names of the arguments under test, such as ``"q, k and v"``.

    Raises:
        ValueError: An assertion inside the block failed.
    """
    try:
        yield
    except AssertionError as error:
        raise ValueError(f"{what} do not fit: {error}") from error
