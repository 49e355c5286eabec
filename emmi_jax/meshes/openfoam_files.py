"""OpenFOAM's files: dictionaries and lists, ASCII or binary, compressed or not. Nothing in them is executed."""

from __future__ import annotations

import gzip
import re
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emmi_jax.meshes.openfoam_entries import MOST_DEPTH, FoamDict, Tokens

CHANNELS = {"scalar": 1, "vector": 3, "symmTensor": 6, "tensor": 9, "sphericalTensor": 1, "label": 1}

_BLANK = re.compile(rb"(?:\s+|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
_PLAIN = rb'[^\s{}()\[\];"]'
_WORD = re.compile(rb"[A-Za-z_]" + _PLAIN + rb"*(?:\(" + _PLAIN + rb"*\)" + _PLAIN + rb"*)+|" + _PLAIN + rb"+")
"""Words may have brackets, as `total(p)_coeff`; behind a number they open a list."""

_STRING = re.compile(rb'"((?:[^"\\]|\\.)*)"', re.DOTALL)
_CODE = re.compile(rb"#\{.*?#\}", re.DOTALL)
_SPACES = bytes.maketrans(b"()", b"  ")
_CLOSED = re.compile(rb"\)\s*\)")
_INCLUDES = ("#include", "#includeIfPresent", "#sinclude")
_OF_CASE = re.compile(r"(\$\{?FOAM_CASE\}?|<case>)/")


class FoamFile:
    """A file of OpenFOAM.

    Args:
        path: The file; one that ends in `.gz` is decompressed.

    Attributes:
        header: The entries of its header `FoamFile`.

    Raises:
        ValueError: It is damaged or has numbers of an unknown kind.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._position = path, 0
        with open_foam(path) as file:
            try:
                self._content: bytes = file.read()
            except (OSError, EOFError, zlib.error) as error:
                raise ValueError(f"{path}: damaged: {error}") from None
        self._is_binary, self._scalar, self._label = False, "<f8", "<i4"
        self.header = FoamDict()
        if self._peek(_WORD) == "FoamFile":
            self._take(_WORD)
            self.header = self._block(FoamDict(), 0)
            self._is_binary = self.header.tokens("format") == ["binary"]
            arch = " ".join(map(str, self.header.tokens("arch") or ()))
            order = ">" if "MSB" in arch else "<"
            self._scalar = f"{order}f4" if "scalar=32" in arch else f"{order}f8"
            self._label = f"{order}i8" if "label=64" in arch else f"{order}i4"

    def dictionary(self) -> FoamDict:
        """Reads the entries after the header."""
        return self._entries(FoamDict(), b"", 0)

    def patches(self) -> FoamDict:
        """Reads a list of dictionaries with names, as `boundary` is one."""
        entries = FoamDict()
        self._blank()
        if re.compile(rb"\d*\s*\(").match(self._content, self._position):
            self._position = self._content.index(b"(", self._position) + 1
        return self._entries(entries, b")", 0)

    def labels(self) -> NDArray[np.int64]:
        """Reads a list of whole numbers, [N]."""
        return self._list(1, self._label).reshape(-1).astype(np.int64)

    def vectors(self) -> NDArray[np.float64]:
        """Reads a list of vectors, [N, 3], in double precision."""
        return self._list(3, self._scalar).astype(np.float64)

    def faces(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Reads a list of faces: their corners, and where each starts among them, and the end."""
        if self.header.tokens("class") == ["faceCompactList"]:
            offsets = self.labels()
            corners = self.labels()
        else:
            if self._is_binary:
                raise self._damage("a binary faceList, expected a faceCompactList")
            count = None if self._next() == b"(" else self._count()
            end = self._content.rfind(b")")
            text = self._content[self._position + (count is None) : max(end, 0)].replace(b")", b" -1 ")
            flat = self._numbers(text, np.int64)
            last = np.flatnonzero(flat < 0)
            sizes = np.diff(last, prepend=-1) - 2
            if count not in (None, len(last)) or not np.array_equal(flat[last - sizes - 1], sizes):
                raise self._damage(f"expected {count or 'whole'} faces, got {len(last)}")
            offsets = np.concatenate([[0], np.cumsum(sizes)])
            is_corner = flat >= 0
            is_corner[last - sizes - 1] = False
            corners = flat[is_corner]
        if len(offsets) < 1 or offsets[0] != 0 or (np.diff(offsets) < 3).any() or offsets[-1] != len(corners):
            raise self._damage("faces need at least three corners each")
        return corners, offsets

    def _damage(self, what: str) -> ValueError:
        if self._is_binary and self.header.tokens("arch") is None:
            return ValueError(
                f"{self.path}: {what}: its header has no arch: expected labels of 32 and scalars of 64 bits"
            )
        return ValueError(f"{self.path}: damaged: {what}")

    def _blank(self) -> None:
        match = _BLANK.match(self._content, self._position)
        self._position = self._position if match is None else match.end()

    def _peek(self, pattern: re.Pattern[bytes]) -> str | None:
        self._blank()
        match = pattern.match(self._content, self._position)
        return None if match is None else match[0].decode("latin-1")

    def _take(self, pattern: re.Pattern[bytes]) -> str:
        token = self._peek(pattern)
        if token is None:
            raise self._damage(f"unexpected {self._content[self._position : self._position + 20]!r}")
        self._position += len(token)
        return token

    def _next(self) -> bytes:
        self._blank()
        return self._content[self._position : self._position + 1]

    def _block(self, into: FoamDict, depth: int) -> FoamDict:
        if self._next() != b"{":
            raise self._damage("expected a dictionary")
        self._position += 1
        return self._entries(into, b"}", depth + 1)

    def _entries(self, into: FoamDict, end: bytes, depth: int) -> FoamDict:
        """Reads entries up to the end of the dictionary, or of the file."""
        if depth > MOST_DEPTH:
            raise self._damage(f"more than {MOST_DEPTH} dictionaries inside one another")
        while (char := self._next()) != end:
            if not char:
                raise self._damage("its end is missing")
            if char == b";":
                self._position += 1
                continue
            key = self._take(_STRING if char == b'"' else _WORD)
            if key.startswith("#"):
                self._directive(key, into, depth)
            elif key.startswith("$"):
                for name, value in (into.macro(key) or {}).items():
                    into[name] = value
            elif self._next() == b"{":
                into[key] = self._block(FoamDict(into), depth)
            else:
                into[key] = self._value()
        self._position += len(end)
        return into

    def _directive(self, key: str, into: FoamDict, depth: int) -> None:
        """Reads an included file beside this one; other directives are passed over."""
        if self._next() == b'"':
            file = self._included(self._take(_STRING)[1:-1])
            if key in _INCLUDES and file.is_file():
                FoamFile(file)._entries(into, b"", depth + 1)
        elif self._next() not in (b"", b"}", b";", b"{", b"("):
            self._take(_WORD)

    def _included(self, name: str) -> Path:
        """Returns a file beside this one, or one of the case."""
        match = _OF_CASE.match(name)
        cases = (folder for folder in self.path.absolute().parents if (folder / "system").is_dir())
        return self.path.parent / name if match is None else next(cases, self.path.parent) / name[match.end() :]

    def _value(self) -> Tokens:
        tokens, closing = Tokens(), list[bytes]()
        while True:
            char = self._next()
            if not char or (char == b"}" and not closing):
                raise self._damage("an entry has no ;")
            if char == b";" and not closing:
                self._position += 1
                return tokens
            if char == b'"':
                tokens.append(self._take(_STRING))
            elif char == b"#" and (code := _CODE.match(self._content, self._position)):
                self._position = code.end()
            elif char in b"([{":
                closing.append(char)
                tokens.append(char.decode())
                self._position += 1
            elif char in b")]}":
                if closing:
                    closing.pop()
                tokens.append(char.decode())
                self._position += 1
            elif char == b";":
                self._position += 1
            else:
                word = self._take(_WORD)
                kind = word[5:-1] if word.startswith("List<") else ""
                tokens.append(word if kind not in CHANNELS else self._list(CHANNELS[kind], self._of_kind(kind)))

    def _of_kind(self, kind: str) -> str:
        return self._label if kind == "label" else self._scalar

    def _count(self) -> int:
        """Reads how many rows a list has, and its opening bracket."""
        word = self._take(re.compile(rb"\d+"))
        if self._next() == b"(":
            self._position += 1
        return int(word)

    def _list(self, channels: int, dtype: str) -> NDArray[Any]:
        """Reads a list of numbers or vectors, [N, F]."""
        is_counted = self._next() != b"(" or self._is_binary
        count = int(self._take(re.compile(rb"\d+"))) if is_counted else 1
        if self._next() == b"{":  # all rows are the same
            end = self._content.find(b"}", self._position)
            row = self._numbers(self._content[self._position + 1 : max(end, 0)], np.dtype(dtype))
            self._position = end + 1
            if len(row) != channels or count > 1 << 40:
                raise self._damage(f"expected {channels} numbers")
            return np.tile(row, (count, 1))
        if self._next() != b"(":
            if count:
                raise self._damage(f"expected a list of {count} rows")
            return np.zeros((0, channels), np.dtype(dtype).newbyteorder("="))
        start = self._position + 1
        if self._is_binary:
            end = start + count * channels * np.dtype(dtype).itemsize
            if self._content[end : end + 1] != b")":
                raise self._damage(f"its list of {count} rows is truncated")
            values = np.frombuffer(self._content[start:end], dtype)
        else:
            closed = _CLOSED.search(self._content, start) if channels > 1 and count else None
            end = self._content.find(b")", start) if closed is None else closed.end() - 1
            if end < 0:
                raise self._damage("its list has no end")
            values = self._numbers(self._content[start : max(end, 0)], np.dtype(dtype))
        self._position = end + 1
        count = count if is_counted else len(values) // channels
        if len(values) != count * channels:
            raise self._damage(f"expected {count * channels} numbers, got {len(values)}")
        return values.reshape(count, channels).astype(values.dtype.newbyteorder("="), copy=False)

    def _numbers(self, text: bytes, dtype: Any) -> NDArray[Any]:
        kind = np.int64 if np.dtype(dtype).kind == "i" else np.float64
        if not text.strip():
            return np.zeros(0, kind)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            try:
                return np.fromstring(text.translate(_SPACES).decode("latin-1"), kind, sep=" ")
            except (DeprecationWarning, ValueError):
                raise self._damage("its list has a word that is no number") from None


def open_foam(path: Path) -> Any:
    """Opens a file, compressed or not, for reading bytes."""
    return gzip.open(path) if path.suffix == ".gz" else path.open("rb")
