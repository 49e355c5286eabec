"""`emmi-jax doctor`: what is installed, what runs here, and whether its numbers are right."""

from __future__ import annotations

import importlib.metadata
import os
import platform as machine
import textwrap
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from emmi_jax.config import AbUptConfig, SupernodePoolingConfig
from emmi_jax.config.implementations import IMPLEMENTATIONS
from emmi_jax.jobs.platforms import missing_platform
from emmi_jax.jobs.progress import say
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.models.init import init_params
from emmi_jax.ops.attention import (
    KERNELS,
    Call,
    dot_product_attention,
    platform,
    resolve_implementation,
)

REQUIRED = ("emmi-jax", "jax", "jaxlib", "flax", "chex", "numpy")
OPTIONAL = {
    "train": ("optax", "orbax-checkpoint", "grain", "tensorstore", "rich", "typer", "matplotlib", "scipy"),
    "deploy": ("flatbuffers",),
    "cfd": ("pyvista",),
    "convert": ("torch", "safetensors"),
    "tensorboard": ("tensorboardX",),
    "html": ("plotly",),
    "flash": ("fa4-jax",),
}
"""Packages by the extra that brings them."""

TOLERANCES = {"float32": 1e-5, "bfloat16": 2e-2}
"""Largest error over the largest entry."""

RECORDED = {
    "surface_pressure": (0.2330638,),
    "query_volume_velocity": (0.6751033, 0.1683589, 0.4904533),
}
"""Fields of the tiny model at the first point, in float32 on a CPU; one channel, or three."""

_WIDTH = 80
_LABEL = 14


def examine(console: Console) -> bool:
    """Prints versions, devices, attention kernels and checks of numbers; returns whether all numbers are right.

    Where JAX has nothing to compute on, no number is.

    Args:
        console: Where to print.
    """

    def show(label: str, text: str) -> None:
        lines = textwrap.wrap(text, _WIDTH - _LABEL, break_long_words=False, break_on_hyphens=False)
        for number, line in enumerate(lines or [""]):
            say(console, f"{'' if number else label:{_LABEL}}{line}")

    show("python", f"{machine.python_version()} on {machine.system()} {machine.machine()}")
    show("packages", ", ".join(f"{name} {_version(name) or 'missing'}" for name in REQUIRED))
    for extra, names in OPTIONAL.items():
        missing = [name for name in names if _version(name) is None]
        text = f"missing: {', '.join(missing)}: pip install 'emmi-jax[{extra}]'" if missing else "complete"
        show(f"[{extra}]", text)
    if (problem := missing_platform()) is not None:
        show("device", problem)
        return False
    for text in _devices():
        show("device", text)
    show("memory", _host_memory())
    is_right = True
    for name in KERNELS:
        for dtype in TOLERANCES:
            text, passed = check_kernel(name, dtype)
            show(name, f"{dtype}: {text}")
            is_right &= passed
    for dtype in TOLERANCES:
        show("auto", f"{dtype}: takes {_choice(dtype)} for many tokens")
    text, passed = check_model()
    show("model", text)
    is_right &= passed
    show("result", "all numbers are right" if is_right else "WRONG NUMBERS: do not use this installation")
    return is_right


def check_kernel(name: str, dtype: str) -> tuple[str, bool]:
    """Compares an attention kernel with the formula in float64.

    Args:
        name: A key of `KERNELS`.
        dtype: A key of `TOLERANCES`.

    Returns:
        The result in words, and whether it is right, or does not run here.
    """
    q, k, v = (jnp.asarray(_waves(i, 1, size, 2, 64), dtype) for i, size in enumerate((130, 200, 200)))
    if refusal := KERNELS[name].refusal(Call(q, k)):
        return f"not here: it {refusal}", True
    implementation = next(key for key, entry in IMPLEMENTATIONS.items() if entry.kernel == name)
    attend = partial(dot_product_attention, implementation=implementation, precision="highest")
    output = jax.jit(attend)(q, k, v)
    exact = [np.asarray(x, np.float64) for x in (q, k, v)]
    logits = np.einsum("btnh,bsnh->bnts", exact[0], exact[1]) / 8
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    expected = np.einsum("bnts,bsnh->btnh", weights / weights.sum(axis=-1, keepdims=True), exact[2])
    return _verdict(np.asarray(output, np.float64), expected, TOLERANCES[dtype])


def check_model() -> tuple[str, bool]:
    """Compares a tiny model in float32 with recorded numbers; returns the result in words, and whether it is right."""
    fields = tiny_model_fields()
    output = np.concatenate([fields[name][0, 0] for name in RECORDED])
    return _verdict(output, np.concatenate([np.array(numbers) for numbers in RECORDED.values()]), 1e-4)


def tiny_model_fields() -> dict[str, NDArray[np.float64]]:
    """Returns the fields of the tiny model, whose parameters and points need no random numbers."""
    config = AbUptConfig(
        dim=24,
        num_heads=2,
        mlp_ratio=1,
        fields={"surface": {"pressure": 1}, "volume": {"velocity": 3}},
        physics_blocks=("perceiver", "cross"),
        decoder_depths={},
        geometry_depth=0,
        supernode_pooling=SupernodePoolingConfig(radius=None, k=3),
        precision="highest",
    )
    model = AnchoredBranchedUPT(config)
    shapes, tree = jax.tree.flatten(jax.eval_shape(lambda: init_params(model, seed=0)))
    params = jax.tree.unflatten(tree, [_waves(i, *a.shape) / 2 for i, a in enumerate(shapes)])
    positions = [500 + 500 * _waves(i, 1, 8, 3) for i in range(4)]
    outputs: Any = jax.jit(model.apply)(
        {"params": params},
        anchors={"surface": positions[0], "volume": positions[1]},
        queries={"volume": positions[2]},
        geometry=Geometry(positions[3], np.arange(4, dtype=np.int32)[None]),
    )
    return {name: np.asarray(values, np.float64) for name, values in outputs.items()}


def _choice(dtype: str) -> str:
    tokens: Any = jax.ShapeDtypeStruct((1, 2**14, 3, 64), dtype)
    return resolve_implementation("auto", tokens, tokens)


def _waves(number: int, *shape: int) -> NDArray[np.float32]:
    """Returns numbers in [-1, 1] that are the same everywhere."""
    values = np.sin(1.0 + number + 1.7 * np.arange(int(np.prod(shape)), dtype=np.float64) ** 1.1)
    return values.reshape(shape).astype(np.float32)


def _verdict(output: NDArray[np.float64], expected: NDArray[np.float64], tolerance: float) -> tuple[str, bool]:
    error = float(np.abs(output - expected).max() / np.abs(expected).max())
    is_right = error <= tolerance
    return f"{'right' if is_right else 'WRONG'}, error {error:.0e} of at most {tolerance:.0e}", is_right


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> Iterator[str]:
    kinds: dict[str, list[jax.Device]] = {}
    for device in jax.local_devices():
        kinds.setdefault(device.device_kind, []).append(device)
    for kind, devices in kinds.items():
        stats = devices[0].memory_stats() or {}
        limit = f", {stats['bytes_limit'] / 2**30:.1f} GiB each" if "bytes_limit" in stats else ""
        yield f"{len(devices)} x {kind} ({platform()}){limit}"
    if platform() == "cpu" and Path("/proc/driver/nvidia/version").exists():
        yield "an NVIDIA driver is here, but jax uses the CPU: pip install 'emmi-jax[cuda13]' or [cuda12]"


def _host_memory() -> str:
    names = ("SC_PHYS_PAGES", "SC_AVPHYS_PAGES")
    if not set(names) <= set(getattr(os, "sysconf_names", ())):
        return "unknown on this system"
    whole, free = (os.sysconf(name) * os.sysconf("SC_PAGE_SIZE") / 2**30 for name in names)
    return f"{whole:.1f} GiB on the host, {free:.1f} GiB free; {os.cpu_count()} processor cores"
