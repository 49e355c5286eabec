"""A surrogate in one file that runs without this package; `emmi_jax.deploy` reads what is written here."""

from __future__ import annotations

import dataclasses
import io
import json
import zipfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import AbstractMesh, AxisType
from numpy.typing import NDArray

from emmi_jax.config import AbUptConfig
from emmi_jax.config.implementations import IMPLEMENTATIONS
from emmi_jax.deploy.intervals import CalibrationScores
from emmi_jax.deploy.manifest import FORMAT_VERSION, MANIFEST, Entry
from emmi_jax.files.atomic import atomic_path
from emmi_jax.inference.chunks import CPU_CHUNK_SIZE
from emmi_jax.inference.streaming import QUERY_AXIS, query_fields
from emmi_jax.inference.surrogate import Surrogate, after_training
from emmi_jax.layers.supernode_pooling import Geometry
from emmi_jax.models.ab_upt import AnchoredBranchedUPT
from emmi_jax.ops.attention import platform as current_platform
from emmi_jax.ops.attention import target_platform

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
CHUNK_SIZE = 2**16
"""Queries per call on GPUs and TPUs."""

_ONE_DEVICE = AbstractMesh((1,), (QUERY_AXIS,), (AxisType.Auto,))
# cuDNN's version is checked when it runs; JAX makes no promise for it in an export.
_ALLOWED = (jax.export.DisabledSafetyCheck.custom_call("__cudnn$fmhaSoftmax"),)


class Program(NamedTuple):
    """A function of the model that was exported for some platforms.

    Attributes:
        function: ``encode``, or ``query/<branch>``.
        platforms: What it runs on.
        anchors: Its numbers of anchors; None means any.
        num_queries: Its number of queries; None means any.
        exported: The program.
    """

    function: str
    platforms: tuple[str, ...]
    anchors: dict[str, int] | None
    num_queries: int | None
    exported: jax.export.Exported

    @property
    def kernel(self) -> str:
        """The attention kernel that was compiled in; ``xla`` where XLA compiles attention like all else."""
        module = self.exported.mlir_module_serialized
        return next((name for name, entry in IMPLEMENTATIONS.items() if entry.mark and entry.mark in module), "xla")


def export_surrogate(
    surrogate: Surrogate,
    path: Path,
    *,
    platforms: Collection[str] = (),
    units: Mapping[str, str] | None = None,
    calibration: CalibrationScores | None = None,
    advance: Callable[[Program], object] = lambda program: None,
) -> None:
    """Writes a surrogate to one file that `emmi_jax.deploy.load` reads.

    For each platform it holds programs of the sizes that the run's sampling, or its context, sets: these run the same
    attention kernels as the run. One more set of programs takes any number of anchors and queries on any of the
    platforms.

    Args:
        surrogate: The model.
        path: The file.
        platforms: Some of `PLATFORMS`; by default the one that JAX computes on.
        units: The units of ``position`` and ``<branch>/<field or feature>``, for the reader.
        calibration: The scores that intervals come from, those of this very model; None for no intervals.
        advance: Called with each program when it is done.

    Raises:
        ValueError: A platform or the name of a unit is unknown.
        UnwritableFileError: The file cannot be written.
    """
    platforms = tuple(platforms) or (current_platform(),)
    if unknown := [name for name in platforms if name not in PLATFORMS]:
        raise ValueError(f"platforms must be some of {', '.join(PLATFORMS)}, got {', '.join(unknown)!r}")
    channels = (*surrogate.model.config.fields.items(), *surrogate.features.items())
    named = {"position", *(f"{branch}/{name}" for branch, names in channels for name in names)}
    if wrong := sorted(set(units or {}) - named):
        raise ValueError(f"units are those of {', '.join(sorted(named))}; got {wrong[0]!r}")
    _check_geometry(surrogate)
    programs = []
    for program in _programs(surrogate, tuple(dict.fromkeys(platforms))):
        programs.append(program)
        advance(program)
    _write(path, surrogate, dict(units or {}), calibration, programs)


def _check_geometry(surrogate: Surrogate) -> None:
    config = surrogate.model.config
    if config.has_geometry and not all(_geometry_sizes(surrogate)):
        sizes = list(_geometry_sizes(surrogate))
        raise ValueError(f"the model has a geometry branch, but the run draws {sizes} geometry points and supernodes")


def _geometry_sizes(surrogate: Surrogate) -> tuple[int, int]:
    """Returns the largest numbers of geometry points and supernodes; less is padded."""
    sampling, context = surrogate.sampling, surrogate.context
    stored = (0, 0)
    if context is not None and context.geometry is not None:
        stored = (len(context.geometry.position), len(context.geometry.supernode_idx))
    return max(sampling.num_geometry_points, stored[0]), max(sampling.num_test_supernodes, stored[1])


def _programs(surrogate: Surrogate, platforms: tuple[str, ...]) -> Iterator[Program]:
    config = surrogate.model.config
    anchors = dict.fromkeys(config.branches, surrogate.sampling.num_test_anchors)
    if surrogate.context is not None:
        anchors |= {branch: len(position) for branch, position in surrogate.context.anchors.items()}
    num_passes = 4 if config.vector_potentials else 1
    for platform in platforms:
        chunk_size = (CPU_CHUNK_SIZE if platform == "cpu" else CHUNK_SIZE) // num_passes
        # A kernel of one platform serves no other.
        known = IMPLEMENTATIONS.get(config.implementation)
        kernel = config.implementation if known is not None and known.is_portable else "auto"
        yield from _set_of_programs(surrogate, (platform,), kernel, anchors, chunk_size)
    yield from _set_of_programs(surrogate, platforms, "blockwise", None, None)


def _set_of_programs(
    surrogate: Surrogate,
    platforms: tuple[str, ...],
    implementation: str,
    anchors: dict[str, int] | None,
    num_queries: int | None,
) -> Iterator[Program]:
    """Yields the program that encodes, and one for the queries of each branch."""
    config = dataclasses.replace(surrogate.model.config, implementation=implementation, remat=False)
    model, branches = AnchoredBranchedUPT(config), config.branches
    featured = [branch for branch in branches if branch in config.feature_dims]
    sizes: list[Any]
    if anchors is not None:
        sizes = [*anchors.values(), num_queries]
    else:
        sizes = list(jax.export.symbolic_shape(", ".join([*(f"a{i}" for i in range(len(branches))), "n"])))
    axes = config.num_position_axes
    flat = flatten_dict(surrogate.params)
    params = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in flat.values())

    def variables(params: Sequence[Any]) -> dict[str, Any]:
        return {"params": unflatten_dict(dict(zip(flat, params, strict=True)))}

    # Only where the model takes some, so that earlier files have the same arguments.
    def encode(params: Any, anchors: Any, geometry: Any, condition: Any, features: Any = ()) -> Any:
        inputs: dict[str, Any] = {"anchors": dict(zip(branches, anchors, strict=True))}
        if geometry:
            position, idx, mask, *of_points = geometry
            inputs["geometry"] = Geometry(position, idx, mask=mask, features=of_points[0] if of_points else None)
        inputs["anchor_features"] = dict(zip(featured, features, strict=True))
        if condition:
            inputs["condition"] = condition[0]
        _, updated = model.apply(variables(params), **inputs, mutable=["cache"])
        return updated["cache"]

    def query(branch: str, params: Any, entries: Any, condition: Any, position: Any, *features: Any) -> Any:
        given = {**variables(params), "cache": entries}
        fields = query_fields(model, branch, given, condition[0] if condition else None, position, *features)
        return tuple(fields[name] for name in config.fields[branch])

    positions = tuple(jax.ShapeDtypeStruct((1, size, axes), jnp.float32) for size in sizes[:-1])
    geometry = _geometry_shapes(surrogate) if config.has_geometry else ()
    condition = _condition_shapes(config)
    features = tuple(
        jax.ShapeDtypeStruct((1, size, config.feature_dims[branch]), jnp.float32)
        for branch, size in zip(branches, sizes[:-1], strict=True)
        if branch in featured
    )
    inputs = (positions, geometry, condition, *([features] if features else []))
    exported = _export(encode, platforms, params, *inputs)
    yield Program("encode", platforms, anchors, None, exported)
    entries = jax.tree.unflatten(
        exported.out_tree, [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in exported.out_avals]
    )
    for branch in branches:
        widths = [axes, config.feature_dims[branch]] if branch in featured else [axes]
        rows = [jax.ShapeDtypeStruct((sizes[-1], width), jnp.float32) for width in widths]
        exported = _export(partial(query, branch), platforms, params, entries, condition, *rows)
        yield Program(f"query/{branch}", platforms, anchors, num_queries, exported)


def _export(function: Callable[..., Any], platforms: tuple[str, ...], *args: Any) -> jax.export.Exported:
    # Attention would be cut into shares for all devices of this process, if it knew of no mesh.
    with target_platform(platforms[0]), jax.sharding.use_abstract_mesh(_ONE_DEVICE):
        return jax.export.export(jax.jit(function), platforms=platforms, disabled_checks=_ALLOWED)(*args)


def _condition_shapes(config: AbUptConfig) -> tuple[Any, ...]:
    if config.condition_dim is None:
        return ()
    if config.conditioning_dims is None:
        return (jax.ShapeDtypeStruct((1, config.condition_dim), jnp.float32),)
    return ({name: jax.ShapeDtypeStruct((1, size), jnp.float32) for name, size in config.named_conditions.items()},)


def _geometry_shapes(surrogate: Surrogate) -> tuple[jax.ShapeDtypeStruct, ...]:
    num_points, num_supernodes = _geometry_sizes(surrogate)
    config = surrogate.model.config
    channels = config.supernode_pooling.input_features_dim
    return (
        jax.ShapeDtypeStruct((1, num_points, config.num_position_axes), jnp.float32),
        jax.ShapeDtypeStruct((1, num_supernodes), jnp.int32),
        jax.ShapeDtypeStruct((1, num_supernodes), bool),
        *([] if channels is None else [jax.ShapeDtypeStruct((1, num_points, channels), jnp.float32)]),
    )


def _write(
    path: Path,
    surrogate: Surrogate,
    units: dict[str, str],
    calibration: CalibrationScores | None,
    programs: Sequence[Program],
) -> None:
    arrays = _arrays(surrogate)
    manifest = _manifest(surrogate, units, programs)
    if calibration is not None:
        manifest["calibration"] = calibration.to_dict()
    manifest["arrays"] = {name: {"dtype": a.dtype.name, "shape": list(a.shape)} for name, a in arrays.items()}
    with atomic_path(path) as unfinished, zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as file:
        file.writestr(MANIFEST, json.dumps(manifest, indent=1))
        for number, array in enumerate(arrays.values()):
            file.writestr(f"arrays/{number}.npy", _npy(array))
        for number, program in enumerate(programs):
            file.writestr(f"programs/{number}", program.exported.serialize())


def _arrays(surrogate: Surrogate) -> dict[str, NDArray[Any]]:
    members = [flatten_dict(member.params) for member in surrogate.members]
    arrays = {f"parameters/{'/'.join(key)}": _stacked([member[key] for member in members]) for key in members[0]}
    context = surrogate.context
    if context is not None:
        arrays |= {f"context/anchors/{b}": np.asarray(a, np.float64) for b, a in context.anchors.items()}
        arrays |= {f"context/anchor_features/{b}": np.asarray(a) for b, a in context.anchor_features.items()}
        arrays |= {f"context/{name}": array for name, array in context.stored_geometry.items()}
    return arrays


def _stacked(members: Sequence[Any]) -> NDArray[Any]:
    return np.asarray(members[0]) if len(members) == 1 else np.stack([np.asarray(one) for one in members])


def _npy(array: NDArray[Any]) -> bytes:
    # NumPy has no bfloat16: the file holds its bits.
    known = array.view(np.uint16) if array.dtype == jnp.bfloat16 else array
    file = io.BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(known).reshape(array.shape), (1, 0), allow_pickle=False)
    return file.getvalue()


def _manifest(surrogate: Surrogate, units: dict[str, str], programs: Sequence[Program]) -> dict[str, Any]:
    config: AbUptConfig = surrogate.model.config
    normalizer = surrogate.normalizer
    num_points, num_supernodes = _geometry_sizes(surrogate)
    return {
        "format": "emmi",
        "version": FORMAT_VERSION,
        "num_members": len(surrogate.members),
        "jax": jax.__version__,
        "model": config.to_dict(),
        "fields": {
            branch: {name: normalizer.fields[branch][name].to_dict() for name in names}
            for branch, names in config.fields.items()
        },
        "features": normalizer.to_dict()["features"],
        "position": {"low": list(normalizer.position_low), "scale": normalizer.position_scale},
        "units": units,
        "condition_dim": config.condition_dim if config.conditioning_dims is None else config.named_conditions,
        "nondimensionalize": None if normalizer.nondimensionalize is None else normalizer.nondimensionalize.to_dict(),
        "conditions": {name: scale.to_dict() for name, scale in normalizer.conditions.items()},
        "geometry": {"num_points": num_points, "num_supernodes": num_supernodes} if config.has_geometry else None,
        "sampling": after_training(surrogate.sampling)._asdict(),
        "programs": [{name: getattr(program, name) for name in Entry._fields} for program in programs],
    }
