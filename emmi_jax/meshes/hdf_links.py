"""Parts of an HDF5 file that lie in other files: links, raw data that lie elsewhere, virtual data sets.

Found by their bytes, by the specification of the format, because the HDF5 library in VTK opens whatever they name.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Iterator

_LINK = re.compile(rb"\x01[\x08-\x1f]\x40")
"""Begin of a link to another file: a version, flags of which one says that a type follows, and that type."""
_EXTERNAL = rb"\x01(?=...(?:[^\x00].|.[^\x00])(?:[^\x00].|.[^\x00])(.{%d}\x00{%d})(.{%d}))"
"""A list of files with raw data: a version, numbers of places and files, the address of their names, the first name."""
_VIRTUAL = rb"[\x04\x05](?=\x03(.{%d}\x00{%d})(.{4}))"
"""A layout of that version and the class "virtual"; the address and the number of its sources in a global heap."""
_LONGEST = 1 << 12


def other_files(content: mmap.mmap, end: int, width: int) -> Iterator[str]:
    """Yields what a file takes from others, in words.

    Args:
        content: The file.
        end: Its size, by itself.
        width: Bytes of an address.
    """
    for begin in _LINK.finditer(content, 0, end):
        if (target := _linked(content[begin.start() : begin.start() + _LONGEST])) is not None:
            yield f"links to the file {target!r:.200}"
    low = max(1, (end.bit_length() + 7) // 8)  # bytes of an address that may not be zero
    zeros = max(width - low, 0)
    for match in re.compile(_EXTERNAL % (width - zeros, zeros, width), re.DOTALL).finditer(content, 0, end):
        heap, name = _number(match[1]), _number(match[2])
        if content[heap : heap + 4] == b"HEAP":
            begins = heap + 8 + 2 * width
            names = _number(content[begins : begins + width])
            yield f"has values in the file {_text(content, names + name)!r:.200}"
    for match in re.compile(_VIRTUAL % (width - zeros, zeros), re.DOTALL).finditer(content, 0, end):
        heap = _number(match[1])
        if content[heap : heap + 4] == b"GCOL":
            source = _sources(content, heap, _number(match[2]), width)
            yield f"has a virtual data set, whose values are in {source!r:.200}"


def _number(data: bytes) -> int:
    return int.from_bytes(data, "little")


def _text(content: mmap.mmap, place: int) -> str:
    return content[place : place + _LONGEST].partition(b"\0")[0].decode(errors="replace")


def _sources(content: mmap.mmap, heap: int, number: int, width: int) -> str:
    """Returns the first file that an object of a global heap names; "." is the file itself."""
    place, end = heap + 8 + width, heap + _number(content[heap + 8 : heap + 8 + width])
    while place + 8 + width <= end:
        index, size = _number(content[place : place + 2]), _number(content[place + 8 : place + 8 + width])
        if index == number or not index:
            break
        place += 8 + width + -(-size // 8) * 8
    name = _text(content, place + 8 + width + 1 + width)
    return "." if name.startswith("\x04") else name  # a later form says that by a flag


def _linked(message: bytes) -> str | None:
    """Returns the file that a message links to; None if the bytes are no such message."""
    flags = message[1]
    place = 3 + (8 if flags & 4 else 0) + (1 if flags & 16 else 0)
    width = 1 << (flags & 3)
    length = int.from_bytes(message[place : place + width], "little")
    name = message[place + width : place + width + length]
    place += width + length
    size = int.from_bytes(message[place : place + 2], "little")
    file, end, inside = message[place + 3 : place + 2 + size].partition(b"\0")
    if not 0 < length < _LONGEST or message[place + 2 : place + 3] != b"\0" or not (end and file):
        return None
    is_link = inside.endswith(b"\0") and inside.count(b"\0") == 1 and (name + file + inside).isascii()
    return file.decode(errors="replace") if is_link else None
