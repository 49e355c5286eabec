"""Variants of text and binary formats that VTK's readers refuse, rewritten as they like them."""

from __future__ import annotations

import codecs
import re
from pathlib import Path

import numpy as np

_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}
_HEAD_BYTES, _STL_FACET = 1024, 50
STL_HEADER = 84
"""Bytes before the triangles of a binary `.stl` file; the last four are their number."""
_STL_BODY = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
_VERTEX = re.compile(r"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)")
_MORE_NUMBERS = re.compile(r"(?m)^(\s*v(?:\s+\S+){3}).*$")
_WORD = re.compile(r"(?m)^[ \t]*[A-Z]+\b")
_PLY_HEADER, _PLY_BYTES = re.compile(rb"(?i)\s*ply\s.*?\nend_header\b", re.DOTALL), 1 << 16
_PLY_CAPITALS = re.compile(rb"(?m)^([A-Z]|(property|format|element) [A-Z]|property \w+ [XYZ]\s*$)")
_FACET_END, _SOLID_END = re.compile(r"\bendfacet\b"), re.compile(r"\bendsolid\b")
_NAME = re.compile(r"(?m)^[ \t]*(end)?solid\b(?!.*\bvertex\b.*\bvertex\b).*$")


def is_stl_text(head: bytes) -> bool:
    """Returns whether an `.stl` file that begins so is text."""
    if head.startswith(tuple(_MARKS)):
        return True
    words = head.lower()
    return b"\0" not in head and (words.lstrip()[:5] == b"solid" or b"facet" in words)


def binary_stl_size(head: bytes) -> int:
    """Returns the size that a binary `.stl` file that begins so claims."""
    return STL_HEADER + _STL_FACET * int.from_bytes(head[STL_HEADER - 4 : STL_HEADER], "little")


def rewritten(path: Path, *, has_failed: bool = False) -> bytes | None:
    """Returns the content of a file that VTK would read wrongly, or refuse, as it reads it; None if there is no need.

    An `.stl` file may be a text in capitals, in one line, with a byte order mark, in UTF-16, with comments or with
    exponents of Fortran; or have more bytes than its triangles. The others may have a byte order mark or be in
    capitals, an `.obj` file comments or colours behind coordinates.

    Args:
        path: An `.stl`, `.obj` or `.ply` file.
        has_failed: Whether VTK has refused it.

    Raises:
        ValueError: It is damaged.
    """
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    match path.suffix.lower():
        case ".stl" if is_stl_text(head):
            if has_failed or not head.lstrip().startswith(b"solid"):
                return _binary_stl(path, path.read_bytes().decode(encoding or "latin-1", errors="replace"))
        case ".stl":
            size = binary_stl_size(head)
            if size > STL_HEADER and path.stat().st_size > size:
                with path.open("rb") as file:
                    return file.read(size)
        case ".obj" if encoding or has_failed or _first_word(path).isupper():
            text = path.read_bytes().decode(encoding or "latin-1", errors="replace")
            text = _WORD.sub(lambda match: match[0].lower(), re.sub("#.*", "", text))
            return _MORE_NUMBERS.sub(r"\1", text).encode()
        case ".ply":
            with path.open("rb") as file:
                header = _PLY_HEADER.match(file.read(_PLY_BYTES).removeprefix(codecs.BOM_UTF8))
            if header is not None and (encoding == "utf-8-sig" or _PLY_CAPITALS.search(header[0])):
                content = path.read_bytes().removeprefix(codecs.BOM_UTF8)
                return content[: header.end()].lower() + content[header.end() :]
    return None


def _first_word(path: Path) -> bytes:
    """Returns the first word that is no comment."""
    with path.open("rb") as file:
        lines = (line.split() for line in file)
        return next((words[0] for words in lines if words and not words[0].startswith(b"#")), b"")


def _binary_stl(path: Path, text: str) -> bytes:
    text = _NAME.sub(lambda match: f"{match[1] or ''}solid", text.lower())
    words, num_facets = _VERTEX.findall(text), len(_FACET_END.findall(text))
    ends = [match.start() for match in _SOLID_END.finditer(text)]
    if not ends or text.find("facet", ends[-1]) >= 0 or len(words) != 3 * num_facets:
        raise ValueError(
            f"{path}: not a .stl file, or a truncated one: {len(words)} corners in {num_facets} whole facets, "
            f"{'no endsolid' if not ends else 'expected three in each'}"
        )
    rows = np.zeros(num_facets, _STL_BODY)
    rows["corners"] = np.array([_number(path, word) for row in words for word in row]).reshape(-1, 3, 3)
    return b"text".ljust(STL_HEADER - 4) + num_facets.to_bytes(4, "little") + rows.tobytes()


def _number(path: Path, word: str) -> float:
    try:
        return float(word.replace("d", "e"))
    except ValueError:
        raise ValueError(f"{path}: not a .stl file, or a damaged one: {word!r} is no number") from None
