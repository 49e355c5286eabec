"""The platform of JAX, and the folder of its compiled programs."""

from __future__ import annotations

import contextlib
import os
import warnings

import jax

from emmi_jax.files.atomic import cache_folder


def missing_platform() -> str | None:
    """Says which platform is asked for but not here; None if JAX has one to compute on."""
    try:
        jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        asked = jax.config.jax_platforms  # type: ignore[attr-defined]
        reason = str(error).partition("\n")[0] or "it is not here"
        return f"JAX_PLATFORMS names {asked!r}: {reason}; unset it, or set cpu"
    return None


def keep_compiled_programs() -> None:
    """Lets a second start compile nothing; JAX_COMPILATION_CACHE_DIR names another folder, or none if it is empty."""
    # A kill or another process that writes leaves half of a program: JAX says so at every start, and compiles.
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache", UserWarning)
    folder = cache_folder()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and folder is not None:
        with contextlib.suppress(OSError):  # a home that is read-only: every start compiles
            folder.mkdir(parents=True, exist_ok=True)
            jax.config.update("jax_compilation_cache_dir", str(folder))
