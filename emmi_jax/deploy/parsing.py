"""Bytes of unknown origin as JSON, `.npy` headers and members of zips: checked, bounded, and never executed."""

from __future__ import annotations

import contextlib
import io
import json
import math
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from numbers import Real
from pathlib import Path
from typing import IO, Any, NamedTuple, Self

import numpy as np

MAX_DEPTH = 100
"""Deepest nesting of values."""

_MAX_NPY_HEADER = 4096
_LARGEST = 1e38
_MAX_REASON = 160
_DAMAGE = (
    *(ValueError, TypeError, LookupError, AttributeError, OverflowError, EOFError, OSError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, struct.error),
)


class Header(NamedTuple):
    """Content of the header of an `.npy` file."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool

    @property
    def num_bytes(self) -> int:
        """Bytes of the array."""
        return math.prod(self.shape) * self.dtype.itemsize


def parse_json(content: str | bytes) -> Any:
    """Parses JSON.

    Raises:
        ValueError: It is not JSON, it is nested too deep, a name occurs twice in an object, or a number is not finite.
    """
    try:
        value = json.loads(content, parse_constant=finite_number, parse_float=finite_number, object_pairs_hook=_unique)
    except RecursionError:
        raise ValueError(f"it is nested more than {MAX_DEPTH} deep") from None
    check_depth(value)
    return value


def finite_number(text: str) -> float:
    """Returns the number that a text is; refuses NaN and infinity."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is not a finite number")
    return value


def finite_numbers(what: str, values: Any, length: int | None = None) -> tuple[float, ...]:
    """Returns a list of numbers as floats.

    Raises:
        ValueError: It is no list, or not as long as expected; or an entry is no number, or none that float32 can hold.
    """
    is_list = isinstance(values, Sequence | np.ndarray) and not isinstance(values, str | bytes)
    if not is_list or len(values) != (len(values) if length is None else length):
        raise ValueError(
            f"{what} must be a list of {'' if length is None else f'{length} '}numbers, got {values!r:.80}"
        )
    for value in values:
        is_number = isinstance(value, Real) and not isinstance(value, bool)
        if not (is_number and abs(value) <= _LARGEST):
            raise ValueError(f"{what} must hold finite numbers, got {value!r:.80}")
    return tuple(map(float, values))


def check_depth(value: Any) -> None:
    """Refuses dicts and lists that are nested too deep to be walked."""
    level = [value]
    for _ in range(MAX_DEPTH):
        nested = (item for item in level if isinstance(item, dict | list))
        level = [child for item in nested for child in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MAX_DEPTH} deep")


def read_header(file: IO[bytes], num_bytes: int) -> Header:
    """Reads the header of an `.npy` file, whose array must fill the rest.

    Args:
        file: The file, at its start.
        num_bytes: Its size.

    Raises:
        ValueError: It is no such file, it holds other things than numbers, or its size is another.
    """
    start = file.read(8)
    if start[:6] != b"\x93NUMPY" or start[6:] not in (b"\1\0", b"\2\0"):
        raise ValueError("it does not start as an .npy file does")
    size = file.read(2 * start[6])
    length = int.from_bytes(size, "little")
    if length > _MAX_NPY_HEADER:
        raise ValueError(f"its header claims {length} bytes, expected at most {_MAX_NPY_HEADER}")
    parse = np.lib.format.read_array_header_1_0 if start[6] == 1 else np.lib.format.read_array_header_2_0
    try:
        shape, is_fortran, dtype = parse(io.BytesIO(size + file.read(length)))
    except Exception:
        # The header is Python's own notation, whose parsers raise almost anything.
        raise ValueError("its header is damaged") from None
    if dtype.kind not in "fiub":
        raise ValueError(f"it holds {dtype}, expected real numbers")
    header, left = Header(shape, dtype, is_fortran), num_bytes - len(start) - len(size) - length
    if min(shape, default=0) < 0 or header.num_bytes != left:
        raise ValueError(f"its shape {list(shape)!s:.80} of {dtype} does not fit the {left} bytes that it has")
    return header


class Archive:
    """The members of a zip, after checks that none is larger than the file can hold; to be closed.

    Args:
        path: The zip.
        place: Where it is, for messages.
        methods: The kinds of compression that are expected.

    Raises:
        ValueError: It is no zip, a damaged one, or a member is compressed otherwise or encrypted, occurs twice, or
            claims too many bytes.
    """

    def __init__(self, path: Path, place: str, methods: Sequence[int] = (zipfile.ZIP_STORED,)) -> None:
        self.members: dict[str, zipfile.ZipInfo] = {}
        size, total = path.stat().st_size, 0
        with contextlib.ExitStack() as files, refusing_damage(place):
            self._file = files.enter_context(zipfile.ZipFile(path))
            for info in self._file.infolist():
                name = f"member {info.filename!r:.80}"
                if info.compress_type not in methods or info.flag_bits & 1:
                    raise ValueError(f"{name} is encrypted, or compressed in an unexpected way")
                total += info.compress_size
                is_stored = info.compress_type == zipfile.ZIP_STORED
                if total > size or (is_stored and info.file_size != info.compress_size):
                    raise ValueError(f"{name} declares {info.file_size} bytes, beyond the file's {size}")
                if info.filename in self.members:
                    raise ValueError(f"{name} occurs twice")
                self.members[info.filename] = info
            files.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def open(self, name: str) -> IO[bytes]:
        """Opens a member to read, under `refusing_damage`."""
        return self._file.open(self.members[name])


@contextlib.contextmanager
def refusing_damage(place: str) -> Iterator[None]:
    """Turns what parsers raise on damaged bytes into a ValueError of one line that begins with a place."""
    try:
        yield
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0][:_MAX_REASON] or type(error).__name__
        raise ValueError(f"{place}: {reason}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the name {name!r:.80} occurs twice")
        members[name] = value
    return members
