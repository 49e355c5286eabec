"""Lengths of the arrays of VTK's XML files: its readers end the process where one is longer than memory."""

from __future__ import annotations

import binascii
import mmap
import os
import re
from pathlib import Path

_FILE_HEAD = 1 << 16
_FILE, _TAG = re.compile(rb"<VTKFile\b[^>]*>"), re.compile(rb"<(?:Array|DataArray|AppendedData)\b[^>]*>")
_OFFSET, _COMPRESSOR = re.compile(rb"""\boffset=["'](\d+)["']"""), re.compile(rb"""\bcompressor=["']\w""")
MOST_COMPRESSION = 1100
"""How many times longer than in the file an array can be."""

_MEMORY = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def check_blocks(path: Path) -> None:
    """Refuses a `.vtp` or `.vtu` file with an array that is longer than the file or the memory can hold.

    Raises:
        ValueError: There is one.
    """
    size = path.stat().st_size
    if not size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        kind = _FILE.search(content, 0, _FILE_HEAD)
        if kind is None:
            return
        width, order = 8 if b"UInt64" in kind[0] else 4, "big" if b"BigEndian" in kind[0] else "little"
        is_compressed = _COMPRESSOR.search(kind[0]) is not None
        most = min(size * (MOST_COMPRESSION if is_compressed else 1), _MEMORY)
        for place, is_raw in _places(content):
            head = _head(content, place, width * (3 if is_compressed else 1), is_raw=is_raw)
            numbers = [int.from_bytes(head[at : at + width], order) for at in range(0, len(head), width)]  # type: ignore[arg-type]
            # The number of blocks, and the lengths of each and of the last one.
            if numbers and (numbers[0] * max(width, *numbers[1:2]) if is_compressed else numbers[0]) > most:
                raise ValueError(f"{path}: not a {path.suffix} file, or a damaged one: an array is too long")


def _places(content: mmap.mmap) -> list[tuple[int, bool]]:
    """Returns where the arrays begin, and whether their bytes are written as they are."""
    offsets, places = list[int](), list[tuple[int, bool]]()
    for tag in _TAG.finditer(content):
        if tag[0].startswith(b"<AppendedData"):
            start = content.find(b"_", tag.end()) + 1
            return [*places, *((start + offset, b"raw" in tag[0]) for offset in offsets)]
        if (offset := _OFFSET.search(tag[0])) is not None:
            offsets.append(int(offset[1]))
        elif b"binary" in tag[0]:
            places.append((tag.end(), False))
    return places


def _head(content: mmap.mmap, place: int, num_bytes: int, *, is_raw: bool) -> bytes:
    """Returns the first bytes of an array; none where they are no base64."""
    if is_raw:
        return content[place : place + num_bytes]
    num_letters = -(-num_bytes // 3) * 4
    try:
        return binascii.a2b_base64(content[place : place + 256].lstrip()[:num_letters])[:num_bytes]
    except binascii.Error:
        return b""
