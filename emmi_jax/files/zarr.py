"""Arrays and JSON below a path or a URL: zarr v3 through TensorStore, uncompressed, in checksummed chunks of shards."""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import tensorstore as ts
from numpy.typing import DTypeLike, NDArray

from emmi_jax.deploy.parsing import parse_json
from emmi_jax.files.locks import LOCK_FILE
from emmi_jax.files.silence import quiet_stderr

CHUNK_ROWS = 16_384
"""Rows that are read at once."""

SHARD_CHUNKS = 1024
"""Chunks per file."""

Shape: TypeAlias = tuple[int, ...]
Read: TypeAlias = Callable[[], NDArray[Any]]

_CACHE_BYTES = 64 << 20
_PARTIAL = ".__lock"
"""Ends of the names of files that TensorStore writes to before it renames them."""

_RETRIES = {"max_retries": 4, "initial_delay": "1s", "max_delay": "8s"}
_OF_URLS = ("http_request_retries", "gcs_request_retries", "s3_request_retries")
_SILENT_SECONDS = 15
# By default TensorStore waits for minutes for a server that is not there, and forever for one that says nothing.
os.environ.setdefault("TENSORSTORE_CURL_CONNECT_TIMEOUT_SECONDS", str(_SILENT_SECONDS))
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(_SILENT_SECONDS))
os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
_CHECKSUM_BYTES, _INDEX_BYTES = 4, 16
_LITTLE_ENDIAN = {"name": "bytes", "configuration": {"endian": "little"}}
_CODECS = [_LITTLE_ENDIAN, {"name": "crc32c"}]


class ArrayFolder:
    """A place for arrays and JSON.

    Args:
        location: Path of a folder, or a URL that TensorStore opens, such as `gs://bucket/store` or `file:///data/store`.

    Raises:
        ValueError: TensorStore knows no such URL or path.
    """

    def __init__(self, location: str) -> None:
        self.location = location
        self.path = None if "://" in location else Path(location).absolute()
        """The folder; None for a URL."""
        spec: Any = f"{location.rstrip('/')}/"
        if self.path is not None:
            if "\\" in str(self.path):
                raise ValueError(f"{location}: TensorStore takes a backslash for a slash: choose another name")
            spec = {"driver": "file", "path": f"{self.path}/"}
        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE_BYTES}, **dict.fromkeys(_OF_URLS, _RETRIES)})
        self._is_met = self.path is not None
        # TensorStore prints when it first meets a server and finds no credentials.
        with nullcontext() if self._is_met else quiet_stderr():
            self._context, self._root = context, ts.KvStore.open(spec, context=context).result()

    @property
    def is_empty(self) -> bool:
        """Whether the folder is absent or holds no more than a killed writer leaves; of a URL this is not known."""
        if self.path is None or not self.path.is_dir():
            return True
        return all(path.name == LOCK_FILE or path.name.endswith(_PARTIAL) for path in self.path.iterdir())

    def read_json(self, key: str) -> Any:
        """Reads JSON; None if there is none.

        Raises:
            ValueError: It is not JSON, or cannot be read.
        """
        try:
            with nullcontext() if self._is_met else quiet_stderr():
                entry = self._root.read(key).result()
            self._is_met = True
        except ValueError as error:
            raise ValueError(f"{self.location}/{key}: cannot be read: {error}") from None
        if entry.state != "value":
            return None
        try:
            return parse_json(entry.value)
        except ValueError as error:
            raise ValueError(f"{self.location}/{key}: not JSON: {error}") from None

    def write_json(self, key: str, value: Mapping[str, Any]) -> None:
        """Writes JSON atomically."""
        self._root.write(key, (json.dumps(value, indent=2) + "\n").encode()).result()

    def delete(self, name: str) -> None:
        """Deletes everything below a name."""
        self._root.delete_range(ts.KvStore.KeyRange(f"{name}/", f"{name}0")).result()  # "0" follows "/"
        if self.path is not None:
            shutil.rmtree(self.path / name, ignore_errors=True)  # the folders that are left

    def write_array(self, name: str, values: NDArray[Any], order: NDArray[np.int64], dtype: DTypeLike) -> list[int]:
        """Writes the rows of an array [N] or [N, F] in an order, one shard in memory at a time.

        Returns:
            The chunks that are zeros.
        """
        array = self._open(name, values.shape, dtype, ts.OpenMode(create=True, delete_existing=True))
        step, chunk_rows, zeros = _shard_rows(len(values)), _chunk_rows(len(values)), list[int]()
        for start in range(0, len(values), step):
            rows = _taken(values, order[start : start + step]).astype(dtype, copy=False)
            array[start : start + len(rows)].write(rows).result()
            chunks = range(0, len(rows), chunk_rows)
            zeros += [(start + at) // chunk_rows for at in chunks if not rows[at : at + chunk_rows].any()]
        return zeros

    def open_array(self, name: str, shape: Shape, dtype: DTypeLike, *, fill: bool = False) -> ts.TensorStore:
        """Opens an array that must have this shape and type; nothing but its metadata is read.

        Args:
            name: Its name.
            shape: Its shape.
            dtype: Its type.
            fill: Whether a missing chunk is zeros, and no error.

        Raises:
            ValueError: There is no such array, or it differs.
        """
        return self._open(name, shape, dtype, ts.OpenMode(open=True), fill=fill)

    def check_size(self, name: str, shape: Shape, dtype: DTypeLike, zeros: Collection[int] = ()) -> None:
        """Checks that the files of an array are as long as its shape demands; a URL is not checked.

        Args:
            name: Its name.
            shape: Its shape.
            dtype: Its type.
            zeros: The chunks that are zeros, which other writers of zarr leave out.

        Raises:
            ValueError: A file is missing or truncated; the message names it.
        """
        if self.path is None:
            return
        shard_rows, chunk_rows = _shard_rows(shape[0]), _chunk_rows(shape[0])
        chunk_bytes = chunk_rows * math.prod(shape[1:]) * np.dtype(dtype).itemsize + _CHECKSUM_BYTES
        index_bytes = shard_rows // chunk_rows * _INDEX_BYTES + _CHECKSUM_BYTES
        for number, start in enumerate(range(0, shape[0], shard_rows)):
            file = self.path.joinpath(name, "c", str(number), *("0" for _ in shape[1:]))
            chunks = range(start // chunk_rows, -(-min(start + shard_rows, shape[0]) // chunk_rows))
            num_zeros, expected = sum(at in chunks for at in zeros), len(chunks) * chunk_bytes + index_bytes
            if num_zeros == len(chunks) and not file.exists():
                continue
            num_bytes = file.stat().st_size if file.is_file() else 0
            if num_bytes not in range(expected, expected - (num_zeros + 1) * chunk_bytes, -chunk_bytes):
                raise ValueError(f"{file}: has {num_bytes} bytes, expected {expected}: the store is damaged")

    def _open(
        self, name: str, shape: Shape, dtype: DTypeLike, mode: ts.OpenMode, *, fill: bool = False
    ) -> ts.TensorStore:
        spec = {
            "driver": "zarr3",
            "metadata": _metadata(shape, np.dtype(dtype).name),
            # A missing chunk is an error unless it is known to be zeros, which other writers leave out.
            "fill_missing_data_reads": fill,
            "store_data_equal_to_fill_value": True,
        }
        return ts.open(spec, kvstore=self._root / f"{name}/", context=self._context, open_mode=mode).result()


def _taken(values: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Returns rows of an array; as one item each, which is twice as fast as NumPy's own way."""
    if not values.size:
        return values.take(rows, axis=0)
    whole = np.ascontiguousarray(values).reshape(len(values), -1)
    items = whole.view(np.dtype((np.void, whole.shape[1] * whole.itemsize))).reshape(-1)
    return items.take(rows).view(whole.dtype).reshape(-1, *values.shape[1:])


def read_rows(
    array: ts.TensorStore,
    start: int,
    num_rows: int,
    zeros: Collection[int] = (),
    filled: ts.TensorStore | None = None,
) -> Read:
    """Begins to read rows from `start`, going on from the first row after the last one.

    Args:
        array: The array.
        start: The first row.
        num_rows: How many rows.
        zeros: The chunks that are zeros, and may be missing.
        filled: The array, opened so that missing chunks are zeros; only `zeros` need it.

    Returns:
        A function that waits for the rows and returns them; it raises a ValueError if a chunk is missing or damaged.
    """
    end, num_all = start + num_rows, array.shape[0]
    ranges = [(start, min(end, num_all)), *([(0, end - num_all)] if end > num_all else [])]
    parts = [
        (filled if filled is not None and is_zero else array)[first:last].read()
        for begin, stop in ranges
        for first, last, is_zero in _runs(begin, stop, _chunk_rows(num_all), zeros)
    ]
    if len(parts) == 1:
        return lambda: np.asarray(parts[0].result())
    return lambda: np.concatenate([part.result() for part in parts])


def _runs(start: int, end: int, chunk_rows: int, zeros: Collection[int]) -> Iterator[tuple[int, int, bool]]:
    """Yields runs of rows, and whether their chunks are among these."""
    if not zeros:
        yield start, end, False
        return
    chunks = range(start // chunk_rows, -(-end // chunk_rows))
    for is_zero, run in itertools.groupby(chunks, lambda at: at in zeros):
        numbers = list(run)
        yield max(start, numbers[0] * chunk_rows), min(end, (numbers[-1] + 1) * chunk_rows), is_zero


def _chunk_rows(num_rows: int) -> int:
    return min(CHUNK_ROWS, num_rows)


def _shard_rows(num_rows: int) -> int:
    chunk_rows = _chunk_rows(num_rows)
    return chunk_rows * min(SHARD_CHUNKS, -(-num_rows // chunk_rows))


def _metadata(shape: Shape, dtype: str) -> dict[str, Any]:
    sharding = {
        "chunk_shape": [_chunk_rows(shape[0]), *shape[1:]],
        "codecs": _CODECS,
        "index_codecs": _CODECS,
        "index_location": "end",
    }
    grid = {"chunk_shape": [_shard_rows(shape[0]), *shape[1:]]}
    return {
        "shape": list(shape),
        "data_type": dtype,
        "fill_value": 0,
        "chunk_grid": {"name": "regular", "configuration": grid},
        "chunk_key_encoding": {"name": "default"},
        "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
    }
