"""From an exported file to the model in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from .archive import Members, read_npy, read_program
from .exported import ExportedSurrogate
from .manifest import FORMAT_VERSION, MANIFEST, Manifest, parse_manifest
from .parsing import parse_json

_MAX_MANIFEST = 2**24


def load(path: str | Path, *, devices: Sequence[jax.Device] | None = None) -> ExportedSurrogate:
    """Loads a file that `emmi-jax export` wrote.

    Args:
        path: The file.
        devices: The devices to compute on, all of one platform; by default all local ones.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no such file, a damaged one, one of another version, or has no program for this platform.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    devices = jax.local_devices() if devices is None else list(devices)
    if not devices:
        raise ValueError("devices must name at least one device, got none")
    with Members(path) as members:
        return _read(members, devices)


def _read(members: Members, devices: Sequence[jax.Device]) -> ExportedSurrogate:
    manifest = _read_manifest(members)
    arrays = {
        name: read_npy(members, f"arrays/{number}.npy", dtype, shape)
        for number, (name, (dtype, shape)) in enumerate(manifest.arrays.items())
    }
    platform, newer = _platform(devices[0]), manifest.newer_jax()
    programs = []
    for number, entry in enumerate(manifest.programs):
        name = f"programs/{number}"
        if platform in entry.platforms and (newer is None or entry.anchors is not None):
            programs.append(read_program(members, name, entry, manifest.jax_version))
        else:
            members.skip(name)
    members.finish()
    if not programs:
        if newer is not None:
            raise ValueError(f"{members.path}: {newer}")
        known = sorted({platform for entry in manifest.programs for platform in entry.platforms})
        raise ValueError(f"{members.path}: exported for {', '.join(known)}, but the devices are of {platform!r}")
    return ExportedSurrogate(manifest, arrays, programs, devices)


def _read_manifest(members: Members) -> Manifest:
    if members.size(MANIFEST) > _MAX_MANIFEST:
        raise members.error(f"{MANIFEST} has {members.size(MANIFEST)} bytes")
    with members.open(MANIFEST) as file:
        values = parse_json(file.read())
    if not isinstance(values, dict) or values.get("format") != "emmi":
        raise members.error(f"{MANIFEST} is not that of an exported model")
    if values.get("version") != FORMAT_VERSION:
        raise ValueError(
            f"{members.path}: has format version {values.get('version')!r:.40}, expected {FORMAT_VERSION}: export the "
            "run again, or use the emmi_jax that wrote it"
        )
    try:
        return parse_manifest(values)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
        raise members.error(f"{MANIFEST}: {type(error).__name__}: {error!s:.80}") from None


def _platform(device: jax.Device) -> str:
    if device.platform != "gpu":
        return device.platform
    return "cuda" if "cuda" in device.client.platform_version else "rocm"
