"""Runs a model that `emmi-jax export` wrote; needs jax, numpy and flatbuffers, and nothing else of this package.

>>> import emmi_jax.deploy
>>> surrogate = emmi_jax.deploy.load("model.emmi")  # doctest: +SKIP
>>> encoded = surrogate.encode(points={"surface": surface, "volume": volume})  # doctest: +SKIP
>>> fields = encoded.predict({"volume": positions})  # {"volume_velocity": [N, 3], ...}  # doctest: +SKIP

This file can be copied into another project and imported there under any name.

An exported file is an uncompressed zip: `manifest.json`, arrays as `.npy` and programs as StableHLO. Opening one reads
JSON, numbers and programs for the accelerator, never Python code; nothing is extracted to disk.
"""

from __future__ import annotations

import collections
import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, NDArray

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
GEOMETRY_BRANCH = "surface"
"""Branch whose points describe the geometry where nothing else does."""

_MAX_MANIFEST = 2**24
_MAX_NPY_HEADER = 2**16
_BITS = {"bfloat16": np.dtype("<u2")}
"""How dtypes that `.npy` does not know are stored."""
_KINDS = "fiub"

Array: TypeAlias = NDArray[Any]


class Points(NamedTuple):
    """Points to draw anchors from: positions [N, n], and the cell sizes [N] that weight the draw."""

    position: Array
    cell_size: Array | None = None


class Geometry(NamedTuple):
    """Points of a geometry [P, n], and the indices [M] of the supernodes among them."""

    position: Array
    supernode_idx: Array


class StreamedChunk(NamedTuple):
    """Fields at queries `start`, `start` + 1, … of a branch: arrays [num_points, F] float32 by field."""

    branch: str
    start: int
    fields: dict[str, NDArray[np.float32]]

    @property
    def num_points(self) -> int:
        """Number of queries in the chunk."""
        return len(next(iter(self.fields.values())))


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
    try:
        with zipfile.ZipFile(path) as file:
            return _read(_Members(path, file), devices)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path}: not an exported model, or a truncated one: {error}") from None


class ExportedSurrogate:
    """A model, its parameters, and how a case reaches it; positions and fields are in physical units.

    Args:
        manifest: What the file says about itself.
        arrays: Parameters and context by name.
        programs: The programs for the platform of the devices, those for fixed sizes first.
        devices: The devices to compute on.
    """

    def __init__(
        self, manifest: _Manifest, arrays: Mapping[str, Array], programs: Sequence[_Program], devices: Sequence[Any]
    ) -> None:
        self._manifest, self._programs, self._devices = manifest, programs, devices
        self._context = {name: array for name, array in arrays.items() if name.startswith("context/")}
        parameters = tuple(array for name, array in arrays.items() if name.startswith("parameters/"))
        self._parameters = [jax.device_put(parameters, device) for device in devices]

    @property
    def fields(self) -> dict[str, dict[str, int]]:
        """Numbers of channels by branch and field."""
        return {
            branch: {name: len(scale.mean) for name, scale in scales.items()}
            for branch, scales in self._manifest.scales.items()
        }

    @property
    def units(self) -> dict[str, str]:
        """The units that the file names: by `position` and `<branch>/<field>`."""
        return dict(self._manifest.units)

    @property
    def kernels(self) -> dict[str, str]:
        """The attention kernel of each program, by function and sizes."""
        return {program.title: program.kernel for program in self._programs}

    def encode(
        self,
        *,
        anchors: Mapping[str, Array] | None = None,
        geometry: Geometry | Array | None = None,
        condition: ArrayLike | None = None,
        points: Mapping[str, Points | Array] | None = None,
        seed: int = 0,
    ) -> Encoded:
        """Encodes one case; its queries can then be predicted any number of times.

        What is not given comes from the run's context, or else is drawn: anchors from `points`; geometry points from
        `points` of the branch ``surface``, or else from its anchors; supernodes from the geometry points. The same seed
        draws what `emmi_jax.Surrogate.encode` draws.

        Args:
            anchors: Positions [T, n] of any of the branches.
            geometry: Points [P, n] that describe the body, to draw from; or a `Geometry`, used as it is.
            condition: Array [condition_dim], if the model has one.
            points: Points [N, n] of any of the branches to draw from; as `Points` they may bring cell sizes.
            seed: Seed of the draws.

        Raises:
            ValueError: There is nothing to draw from, or too little; or an array does not fit the model.
        """
        manifest, rng = self._manifest, np.random.default_rng(seed)
        available = {branch: _as_points(branch, given) for branch, given in (points or {}).items()}
        chosen: dict[str, Any] = {**self._stored_anchors(), **(anchors or {})}
        if unknown := sorted({*chosen, *available} - set(manifest.scales)):
            branches = tuple(manifest.scales)
            raise ValueError(f"anchors or points name the unknown branches {unknown!r}; the branches are {branches!r}")
        chosen = {b: chosen[b] if b in chosen else self._draw(rng, b, available) for b in manifest.scales}
        model_units = {b: manifest.to_model_units(f"the anchor {b}", position) for b, position in chosen.items()}
        drawn = self._geometry(rng, geometry, available, chosen)
        sizes = {b: len(position) for b, position in model_units.items()}
        if empty := [b for b, size in sizes.items() if not size]:
            raise ValueError(f"the branches {empty!r} have no anchors: expected at least one")
        inputs = (
            tuple(position[None] for position in model_units.values()),
            () if drawn is None else self._padded(drawn),
            condition_input(condition, manifest.condition_dim),
        )
        encode = self._program("encode", sizes)
        entries = encode.run(self._parameters[0], *jax.device_put(inputs, self._devices[0]))
        return Encoded(self, sizes, [jax.device_put((entries, inputs[2]), device) for device in self._devices])

    def _program(self, function: str, sizes: Mapping[str, int], num_queries: int | None = None) -> _Program:
        """Returns the first program for these sizes: one with the run's own kernel, or else the one for any sizes."""
        programs = [program for program in self._programs if program.function == function]
        for program in programs:
            if program.anchors in (None, sizes) and program.num_queries in (None, num_queries):
                return program
        raise ValueError(f"the file has no program {function!r} for {dict(sizes)} anchors and {num_queries} queries")

    def _stored_anchors(self) -> dict[str, Array]:
        prefix = "context/anchors/"
        return {name.removeprefix(prefix): a for name, a in self._context.items() if name.startswith(prefix)}

    def _draw(self, rng: np.random.Generator, branch: str, available: Mapping[str, Points]) -> Array:
        points, sampling = available.get(branch), self._manifest.sampling
        if points is None or not len(points.position):
            raise ValueError(f"no anchors for the branch {branch!r}: give them, or points to draw them from")
        if sampling.method == "weighted" and points.cell_size is None:
            raise ValueError(
                "anchors are drawn by cell size, but the points have no cell sizes: pass the anchors instead"
            )
        num_anchors = min(sampling.num_anchors, len(points.position))
        return np.asarray(points.position[_draw(rng, sampling.method, points, num_anchors)])

    def _geometry(
        self,
        rng: np.random.Generator,
        geometry: Geometry | Array | None,
        available: Mapping[str, Points],
        anchors: Mapping[str, Array],
    ) -> Geometry | None:
        sampling = self._manifest.sampling
        if not sampling.num_geometry_points:
            if geometry is not None:
                raise ValueError("a geometry is given, but the model has no geometry branch")
            return None
        if geometry is None and "context/geometry" in self._context:
            geometry = Geometry(self._context["context/geometry"], self._context["context/supernode_idx"])
        if geometry is None and GEOMETRY_BRANCH in available:
            geometry = available[GEOMETRY_BRANCH].position
        if geometry is None:
            geometry = anchors.get(GEOMETRY_BRANCH)
        if geometry is None:
            raise ValueError(f"no geometry: give its points, or points of the branch {GEOMETRY_BRANCH!r}")
        if isinstance(geometry, tuple):
            return Geometry(geometry.position, geometry.supernode_idx)
        points = _as_points("geometry", geometry)
        num_points = min(sampling.num_geometry_points, len(points.position))
        position = points.position[_draw(rng, "uniform", points, num_points)]
        # Drawn points are in no order, so the first are as good as any.
        num_supernodes, method = min(sampling.num_supernodes, num_points), sampling.supernode_method
        if method == "uniform":
            return Geometry(position, np.arange(num_supernodes))
        return Geometry(position, _draw(rng, method, Points(position), num_supernodes))

    def _padded(self, geometry: Geometry) -> tuple[Array, Array, Array]:
        """Returns points, supernodes and which of these are real, of the sizes that the program takes."""
        sampling = self._manifest.sampling
        position, idx = self._manifest.to_model_units("the geometry", geometry.position), np.asarray(geometry[1])
        largest = (sampling.num_geometry_points, sampling.num_supernodes)
        if idx.ndim != 1 or idx.dtype.kind not in "iu" or len(position) > largest[0] or len(idx) > largest[1]:
            raise ValueError(
                f"the geometry must have at most {largest[0]} points and {largest[1]} supernodes [M], "
                f"got {len(position)} and {idx.dtype} of shape {list(idx.shape)}"
            )
        if len(idx) and not (idx.min() >= 0 and idx.max() < len(position)):
            raise ValueError(f"supernodes must lie in [0, {len(position)}), got {idx.min()} … {idx.max()}")
        # The model knows a point that is NaN as an absent one.
        points = np.full((1, largest[0], position.shape[1]), np.nan, np.float32)
        points[0, : len(position)] = position
        supernodes, is_real = np.zeros((1, largest[1]), np.int32), np.zeros((1, largest[1]), bool)
        supernodes[0, : len(idx)], is_real[0, : len(idx)] = idx, True
        return points, supernodes, is_real


@dataclass(frozen=True, eq=False)
class Encoded:
    """One case as the model has encoded it.

    Args:
        surrogate: What encoded it.
        num_anchors: Numbers of anchors by branch.
        constants: Keys and values of anchors and geometry, and the condition, on each device.
    """

    surrogate: ExportedSurrogate
    num_anchors: Mapping[str, int]
    constants: Sequence[Any]

    def stream(self, queries: Mapping[str, Any], *, chunk_size: int | str = "auto") -> Iterator[StreamedChunk]:
        """Yields the fields at the queries chunk by chunk, branch after branch, in physical units.

        Every call of the model has the same shape; devices take turns, and copies overlap with computation.

        Args:
            queries: Positions [N, n] of any of the branches: arrays, memory-maps, or iterables of arrays of any length.
            chunk_size: Queries per call; "auto" is the size that the file has its own program for.

        Raises:
            ValueError: A branch is unknown, or positions are not [N, n] or not finite.
        """
        surrogate = self.surrogate
        manifest, devices = surrogate._manifest, surrogate._devices
        if unknown := sorted(set(queries) - set(manifest.scales)):
            branches = list(manifest.scales)
            raise ValueError(f"queries name the unknown branches {unknown!r}; the branches are {branches!r}")
        size = self._chunk_size(chunk_size)
        pending: collections.deque[tuple[str, int, int, Any]] = collections.deque()
        number = 0
        for branch, source in queries.items():
            run = surrogate._program(f"query/{branch}", self.num_anchors, size).run
            for start, num_points, position in _cut(branch, source, size, manifest):
                at = number % len(devices)
                number += 1
                fields = run(surrogate._parameters[at], *self.constants[at], jax.device_put(position, devices[at]))
                for values in fields:
                    values.copy_to_host_async()
                pending.append((branch, start, num_points, fields))
                if len(pending) == 2 * len(devices):
                    yield _finish(manifest, *pending.popleft())
        while pending:
            yield _finish(manifest, *pending.popleft())

    def predict(
        self, queries: Mapping[str, Any], *, out: Mapping[str, Any] | None = None, chunk_size: int | str = "auto"
    ) -> dict[str, Any]:
        """Returns the fields [N, F] at the queries by ``<branch>_<field>``, in physical units.

        Args:
            queries: Positions [N, n] of any of the branches; see `stream`.
            out: Arrays or memory-maps to fill instead of new ones, one for each field of the queried branches; needed
                for iterables, whose length is unknown.
            chunk_size: See `stream`.

        Raises:
            ValueError: See `stream`; or `out` does not fit.
        """
        fields = self.surrogate.fields
        wanted = {f"{b}_{name}": (b, channels) for b in queries for name, channels in fields.get(b, {}).items()}
        if out is None:
            if unknown := sorted({b for b, _ in wanted.values() if not hasattr(queries[b], "shape")}):
                raise ValueError(f"the number of queries of {unknown!r} is unknown: pass out, or stream the chunks")
            out = {name: np.empty((queries[b].shape[0], size), np.float32) for name, (b, size) in wanted.items()}
        if set(out) != set(wanted):
            raise ValueError(f"out must hold the arrays {sorted(wanted)!r}, got {sorted(out)!r}")
        done = dict.fromkeys(wanted, 0)
        for chunk in self.stream(queries, chunk_size=chunk_size):
            for field, values in chunk.fields.items():
                name = f"{chunk.branch}_{field}"
                done[name] = chunk.start + len(values)
                if out[name].shape[1:] != values.shape[1:] or done[name] > len(out[name]):
                    raise ValueError(
                        f"out[{name!r}] has shape {list(out[name].shape)}, but there are at least {done[name]} queries "
                        f"of {values.shape[1]} channels"
                    )
                out[name][chunk.start : done[name]] = values
        for name, num_points in done.items():
            if len(out[name]) != num_points:
                raise ValueError(f"out[{name!r}] has {len(out[name])} rows, but there were {num_points} queries")
        return dict(out)

    def _chunk_size(self, chunk_size: int | str) -> int:
        if chunk_size == "auto":
            programs = self.surrogate._programs
            return next(program.num_queries for program in programs if program.num_queries is not None)
        if isinstance(chunk_size, bool) or not isinstance(chunk_size, int | np.integer) or chunk_size < 1:
            raise ValueError(f"chunk_size must be 'auto' or a positive integer, got {chunk_size!r}")
        return int(chunk_size)


def condition_input(condition: ArrayLike | None, condition_dim: int | None) -> tuple[NDArray[np.float32], ...]:
    """Returns a checked condition [condition_dim] as [1, condition_dim], or nothing if the model has none."""
    if condition_dim is None and condition is None:
        return ()
    values = np.asarray(condition if condition is not None else [])
    if condition_dim is None or values.shape != (condition_dim,) or values.dtype.kind not in "fiu":
        expected = "no condition" if condition_dim is None else f"{condition_dim} numbers as condition"
        raise ValueError(f"the model takes {expected}, got {None if condition is None else values.tolist()}")
    if not np.isfinite(values).all():
        raise ValueError(f"condition must hold finite numbers, got {values.tolist()}")
    return (values.astype(np.float32)[None],)


def draw_weighted(
    rng: np.random.Generator, weights: NDArray[np.float64], num_all: int, num_points: int
) -> NDArray[np.int64]:
    """Draws points one after another, each with a probability proportional to its weight among those left.

    Raises:
        ValueError: The weights are unusable, or too few points have one.
    """
    if weights.shape != (num_all,) or not np.all(np.isfinite(weights)) or np.any(weights < 0):
        extremes = f"{weights.min():g} … {weights.max():g}" if weights.size else "empty"
        raise ValueError(f"expected {num_all} finite weights >= 0, got shape {weights.shape}: {extremes}")
    if np.count_nonzero(weights) < num_points:
        raise ValueError(f"cannot draw {num_points} points: {np.count_nonzero(weights)} of {num_all} have a weight")
    # The order of exponential waiting times with these rates is that of successive draws with these weights.
    with np.errstate(divide="ignore"):
        waiting = rng.standard_exponential(num_all) / weights
    idx = np.argpartition(waiting, num_points)[:num_points] if num_points < num_all else np.arange(num_all)
    return idx[np.argsort(waiting[idx])]


def draw_farthest(rng: np.random.Generator, position: Array, num_points: int) -> NDArray[np.int64]:
    """Draws the first point at random, and each next one as far as possible from those drawn."""
    idx = np.empty(num_points, np.int64)
    nearest = np.full(len(position), np.inf)
    for i in range(num_points):
        idx[i] = np.argmax(nearest) if i else rng.integers(len(position))
        np.minimum(nearest, np.square(position - position[idx[i]]).sum(axis=1), out=nearest)
        # Below every distance, so that no point is drawn twice where points coincide.
        nearest[idx[i]] = -1.0
    return idx


def _draw(rng: np.random.Generator, method: str, points: Points, num_points: int) -> NDArray[np.int64]:
    num_all = len(points.position)
    if method == "weighted":
        return draw_weighted(rng, np.asarray(points.cell_size, np.float64), num_all, num_points)
    if method == "farthest":
        return draw_farthest(rng, points.position, num_points)
    return rng.choice(num_all, num_points, replace=False)


def _as_points(what: str, points: Any) -> Points:
    position = getattr(points, "position", points)
    if not isinstance(getattr(position, "dtype", None), np.dtype) or len(position.shape) != 2:
        raise ValueError(f"the points of {what!r} must be an array [points, axes], got {type(position).__name__}")
    return Points(position, getattr(points, "cell_size", None))


class _Scale(NamedTuple):
    """Mean and deviation of each channel of a field, of the logarithm where there is one."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    log_scale: bool
    limit: tuple[float, ...] | None

    def denormalize(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Converts values [N, F] to physical units."""
        x = values.astype(np.float64) * np.array(self.std) + np.array(self.mean)
        if self.log_scale:
            sign = np.where(x < 0, -1.0, 1.0)
            x = sign * np.expm1(sign * x)
        if self.limit is not None:
            x = np.clip(x, -np.array(self.limit), np.array(self.limit))
        return x.astype(np.float32)


class _Sampling(NamedTuple):
    num_anchors: int
    num_geometry_points: int
    num_supernodes: int
    method: str
    supernode_method: str


class _Entry(NamedTuple):
    """What the manifest says about a program; `anchors` and `num_queries` are None where any number will do."""

    function: str
    platforms: tuple[str, ...]
    anchors: dict[str, int] | None
    num_queries: int | None
    kernel: str


class _Manifest(NamedTuple):
    scales: dict[str, dict[str, _Scale]]
    position_low: tuple[float, ...]
    position_scale: float
    condition_dim: int | None
    sampling: _Sampling
    units: dict[str, str]
    arrays: dict[str, tuple[str, tuple[int, ...]]]
    programs: tuple[_Entry, ...]

    def to_model_units(self, what: str, position: Any, start: int = 0) -> NDArray[np.float32]:
        """Returns checked positions [N, n] as the model takes them."""
        num_axes = len(self.position_low)
        array = position if hasattr(position, "dtype") else np.asarray(position)
        # Half precision would move the points, by 10 % of the output and more.
        is_exact = array.dtype.kind in "iu" or array.dtype in (np.float32, np.float64)
        if len(array.shape) != 2 or array.shape[1] != num_axes or not is_exact:
            raise ValueError(
                f"{what} positions{f' from point {start}' if start else ''} must be float32, float64 or integer "
                f"arrays of shape [points, {num_axes}], got {array.dtype} of shape {list(array.shape)}"
            )
        array = np.asarray(array)
        with np.errstate(over="ignore"):
            values = (array.astype(np.float64) - np.array(self.position_low)) * self.position_scale
            values = values.astype(np.float32)
        is_finite = np.isfinite(values).all(axis=1)
        if not is_finite.all():
            first = int(np.argmin(is_finite))
            raise ValueError(f"{what} position {start + first} is not finite: {array[first].tolist()}")
        return values


class _Program(NamedTuple):
    """A program of the file, ready to be called."""

    function: str
    anchors: dict[str, int] | None
    num_queries: int | None
    kernel: str
    run: Callable[..., Any]

    @property
    def title(self) -> str:
        """Function and sizes in words."""
        sizes = "any number of points" if self.anchors is None else f"{sum(self.anchors.values())} anchors"
        return f"{self.function}, {sizes}" + ("" if self.num_queries is None else f", {self.num_queries} queries")


def _cut(
    branch: str, source: Any, chunk_size: int, manifest: _Manifest
) -> Iterator[tuple[int, int, NDArray[np.float32]]]:
    """Yields start, number of points and positions [chunk_size, n] in model units, zeros after the last query."""
    if not hasattr(source, "shape") and (not isinstance(source, Iterable) or isinstance(source, str | Mapping)):
        raise ValueError(f"the queries of {branch!r} must be an array or an iterable of arrays, got {source!r:.80}")
    start, num_points, read = 0, 0, 0
    position = np.zeros((chunk_size, len(manifest.position_low)), np.float32)
    for array in [source] if hasattr(source, "shape") else source:
        if isinstance(array, jax.Array):  # JAX would compile one slice per chunk
            array = np.asarray(array)
        for low in range(0, len(array), chunk_size):
            rows = manifest.to_model_units(f"the query {branch}", array[low : low + chunk_size], read)
            read += len(rows)
            while len(rows):
                taken = rows[: chunk_size - num_points]
                position[num_points : num_points + len(taken)] = taken
                num_points, rows = num_points + len(taken), rows[len(taken) :]
                if num_points == chunk_size:
                    yield start, num_points, position
                    # A device on the host may compute on the old array itself, so it is not written again.
                    position = np.zeros_like(position)
                    start, num_points = start + chunk_size, 0
    if num_points:
        yield start, num_points, position


def _finish(
    manifest: _Manifest, branch: str, start: int, num_points: int, fields: Sequence[jax.Array]
) -> StreamedChunk:
    """Waits for the fields of a chunk."""
    scales = manifest.scales[branch]
    host = {
        name: scale.denormalize(np.asarray(values)[:num_points].astype(np.float32))
        for (name, scale), values in zip(scales.items(), fields, strict=True)
    }
    return StreamedChunk(branch, start, host)


class _Members:
    """The members of a file, read one by one after checks."""

    def __init__(self, path: Path, file: zipfile.ZipFile) -> None:
        self.path, self._file = path, file
        self._left: dict[str, zipfile.ZipInfo] = {}
        size = path.stat().st_size
        for info in file.infolist():
            # Without compression no member is larger than the file, whatever it declares.
            if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
                raise self.error(f"member {info.filename!r:.80} is compressed or encrypted")
            if info.file_size > size:
                raise self.error(f"member {info.filename!r:.80} declares {info.file_size} of {size} bytes")
            if info.filename in self._left:
                raise self.error(f"member {info.filename!r:.80} occurs twice")
            self._left[info.filename] = info

    def error(self, reason: str) -> ValueError:
        """Returns the error that says what is wrong with the file."""
        return ValueError(f"{self.path}: not an exported model, or a damaged one: {reason}")

    def read(self, name: str) -> bytes:
        """Reads a member; each can be read once."""
        if name not in self._left:
            raise self.error(f"member {name!r} is missing")
        try:
            return self._file.read(self._left.pop(name))
        except (zipfile.BadZipFile, EOFError, OSError, NotImplementedError) as error:
            raise self.error(f"member {name!r} cannot be read: {error}") from None

    def skip(self, name: str) -> None:
        """Leaves out a member that must be there."""
        if self._left.pop(name, None) is None:
            raise self.error(f"member {name!r} is missing")

    def manifest_size(self) -> int:
        """Returns the size of the manifest in bytes."""
        return self._left[MANIFEST].file_size if MANIFEST in self._left else 0

    def finish(self) -> None:
        """Refuses members that the manifest does not name."""
        if self._left:
            raise self.error(f"member {min(self._left)!r:.80} is not in its manifest")


def _read(members: _Members, devices: Sequence[jax.Device]) -> ExportedSurrogate:
    if members.manifest_size() > _MAX_MANIFEST:
        raise members.error(f"{MANIFEST} has {members.manifest_size()} bytes")
    try:
        values = json.loads(members.read(MANIFEST))
        if not isinstance(values, dict) or values.get("format") != "emmi":
            raise members.error(f"{MANIFEST} is not that of an exported model")
        if values["version"] != FORMAT_VERSION:
            raise ValueError(
                f"{members.path}: has format version {values['version']!r:.40}, expected {FORMAT_VERSION}: "
                "export the run again, or use the emmi_jax that wrote it"
            )
        manifest = _parse_manifest(values)
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, OverflowError) as error:
        raise members.error(f"{MANIFEST}: {type(error).__name__}: {error!s:.80}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise members.error(f"{MANIFEST} is not JSON: {error!s:.80}") from None
    arrays = {
        name: _read_npy(members, f"arrays/{number}.npy", dtype, shape)
        for number, (name, (dtype, shape)) in enumerate(manifest.arrays.items())
    }
    platform = _platform(devices[0])
    programs = []
    for number, entry in enumerate(manifest.programs):
        name = f"programs/{number}"
        if platform in entry.platforms:
            programs.append(_read_program(members, name, entry))
        else:
            members.skip(name)
    members.finish()
    if not programs:
        known = sorted({platform for entry in manifest.programs for platform in entry.platforms})
        raise ValueError(f"{members.path}: exported for {', '.join(known)}, but the devices are of {platform!r}")
    return ExportedSurrogate(manifest, arrays, programs, devices)


def _parse_manifest(values: dict[str, Any]) -> _Manifest:
    scales = {
        branch: {
            name: _Scale(
                mean=tuple(map(float, scale["mean"])),
                std=tuple(map(float, scale["std"])),
                log_scale=bool(scale["log_scale"]),
                limit=None if scale["limit"] is None else tuple(map(float, scale["limit"])),
            )
            for name, scale in fields.items()
        }
        for branch, fields in values["fields"].items()
    }
    condition_dim = values["condition_dim"]
    return _Manifest(
        scales=scales,
        position_low=tuple(map(float, values["position"]["low"])),
        position_scale=float(values["position"]["scale"]),
        condition_dim=None if condition_dim is None else int(condition_dim),
        sampling=_Sampling(**values["sampling"]),
        units={str(name): str(unit) for name, unit in values["units"].items()},
        arrays={
            str(name): (str(entry["dtype"]), tuple(map(_size, entry["shape"])))
            for name, entry in values["arrays"].items()
        },
        programs=tuple(
            _Entry(**{**entry, "platforms": tuple(map(str, entry["platforms"]))}) for entry in values["programs"]
        ),
    )


def _size(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise TypeError(f"expected a size, got {value!r:.40}")
    return value


def _read_npy(members: _Members, name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    """Reads an array after comparing its header with the manifest; an object array is refused, never unpickled."""
    content = members.read(name)
    file = io.BytesIO(content)
    try:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError("expected version 1.0")
        found, is_fortran, stored = np.lib.format.read_array_header_1_0(file, max_header_size=_MAX_NPY_HEADER)
        expected = _BITS.get(dtype) or np.dtype(dtype)
    except (ValueError, TypeError) as error:
        raise members.error(f"{name}: {str(error).splitlines()[0]:.80}") from None
    num_bytes = len(content) - file.tell()
    if found != shape or is_fortran or stored != expected or stored.kind not in _KINDS:
        raise members.error(f"{name} holds {stored} {list(found)}, the manifest says {expected} {list(shape)}")
    if num_bytes != math.prod(shape) * stored.itemsize:
        raise members.error(f"{name} has {num_bytes} bytes, expected {math.prod(shape) * stored.itemsize}")
    array = np.frombuffer(content, stored, offset=file.tell()).reshape(shape)
    return array if dtype not in _BITS else array.view(jnp.dtype(dtype))


def _read_program(members: _Members, name: str, entry: _Entry) -> _Program:
    content = members.read(name)
    try:
        exported = jax.export.deserialize(bytearray(content))
    except ImportError as error:
        raise ImportError(f"{error}: pip install flatbuffers") from None
    except Exception as error:
        # JAX has no error of its own for bytes that are no program.
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise members.error(f"{name} is no program of this jax ({jax.__version__}): {reason:.80}") from None
    return _Program(entry.function, entry.anchors, entry.num_queries, entry.kernel, jax.jit(exported.call))


def _platform(device: jax.Device) -> str:
    if device.platform != "gpu":
        return device.platform
    return "cuda" if "cuda" in device.client.platform_version else "rocm"
