"""Files of EnSight Gold, ASCII, C or Fortran binary: words and numbers in their order."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

_RECORD = 80
_MOST_PARTS = 1 << 16
_MOST_RECORDS = 1 << 22
_BEGIN, _END = b"BEGIN TIME STEP", b"END TIME STEP"


class EnsightData(ABC):
    """The content of a file behind a place that moves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def word(self) -> str:
        """Takes a line."""

    @abstractmethod
    def ints(self, number: int, *, num_rows: int | None = None) -> NDArray[np.int64]:
        """Takes so many integers; where a file has lines, those of so many lines, by default of one for each."""

    @abstractmethod
    def floats(self, number: int, *, num_rows: int | None = None) -> NDArray[np.float32]:
        """Takes so many numbers; see `ints`."""

    @property
    @abstractmethod
    def most(self) -> int:
        """Most lines or numbers that may follow."""

    @abstractmethod
    def peek(self) -> str | None:
        """Returns the next line, in text the next one that is not blank; None at the end."""

    @abstractmethod
    def only_step(self, step: int) -> None:
        """Goes to a time step of a file with several, from 0 on, and ends behind it.

        Raises:
            ValueError: There is no such step.
        """

    def part(self) -> int | None:
        """Takes the line `part` and the number of a part; None at the end.

        Raises:
            ValueError: Something else follows.
        """
        if (word := self.peek()) is None:
            return None
        if word.split()[:1] != ["part"]:
            raise self.damage(f"expected 'part', got {word!r:.80}")
        self.word()
        return int(self.ints(1)[0])

    def element(self) -> str | None:
        """Takes the line that begins elements or values; None before the next part and at the end.

        Raises:
            ValueError: It is empty.
        """
        if (word := self.peek()) == "":
            raise self.damage("expected a keyword, got an empty line")
        return None if word is None or word.split()[0] == "part" else self.word()

    def count(self) -> int:
        """Takes a number of things, each of which takes a number."""
        return self.total(self.ints(1))

    def total(self, numbers: Sequence[int] | NDArray[np.int64]) -> int:
        """Returns the sum of numbers of things.

        Raises:
            ValueError: The file is too short for so many.
        """
        values = np.asarray(numbers, np.int64)
        total = int(values.sum())
        if (values < 0).any() or total > self.most:
            raise self.damage(f"it claims {total:,} numbers")
        return total

    def damage(self, what: str) -> ValueError:
        """Returns an error that says what is wrong."""
        return ValueError(f"{self.path}: truncated or damaged: {what}")


class _Lines(EnsightData):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lines = path.read_bytes().splitlines()
        while self._lines and not self._lines[-1].strip():
            self._lines.pop()
        self._place, self._size = 0, sum(map(len, self._lines))

    def word(self) -> str:
        self._place += 1
        if self._place > len(self._lines):
            raise self.damage("its end is missing")
        return self._lines[self._place - 1].decode(errors="replace").strip()

    def ints(self, number: int, *, num_rows: int | None = None) -> NDArray[np.int64]:
        numbers = self._numbers(number, number if num_rows is None else num_rows)
        with np.errstate(invalid="ignore"):
            whole = numbers.astype(np.int64)
        if (whole != numbers).any():
            raise self.damage(f"expected whole numbers, got {numbers[whole != numbers][0]:g}")
        return whole

    def floats(self, number: int, *, num_rows: int | None = None) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            return self._numbers(number, number if num_rows is None else num_rows).astype(np.float32)

    @property
    def most(self) -> int:
        return self._size

    def peek(self) -> str | None:
        while self._place < len(self._lines):
            if line := self._lines[self._place].decode(errors="replace").strip():
                return line
            self._place += 1
        return None

    def only_step(self, step: int) -> None:
        """Goes to a time step; see `EnsightData`."""
        begins = [i for i, line in enumerate(self._lines) if line.strip() == _BEGIN]
        ends = [i for i, line in enumerate(self._lines) if line.strip() == _END]
        if step >= len(begins) or step >= len(ends):
            raise self.damage(f"it has {len(begins):,} time steps, expected at least {step + 1:,}")
        self._lines, self._place = self._lines[begins[step] + 1 : ends[step]], 0

    def _numbers(self, number: int, num_rows: int) -> NDArray[np.float64]:
        rows = self._lines[self._place : self._place + num_rows]
        self._place += num_rows
        try:
            numbers = np.array(b" ".join(rows).split(), np.float64)
        except ValueError as error:
            raise self.damage(f"{error!s:.80}") from None
        if len(numbers) != number:
            raise self.damage(f"{len(numbers):,} numbers, expected {number:,}")
        return numbers


class _Binary(EnsightData):
    """C binary: lines of 80 bytes, numbers of 4; the order of the bytes is that of the first number of a part."""

    def __init__(self, path: Path, order: str | None) -> None:
        super().__init__(path)
        self._bytes = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        self._place, self.order = 0, order

    def word(self) -> str:
        record = self._take(_RECORD).tobytes()
        return record.split(b"\0")[0].decode(errors="replace").strip()

    def ints(self, number: int, *, num_rows: int | None = None) -> NDArray[np.int64]:
        taken = self._take(4 * number)
        if self.order is None and number:
            self.order = "<" if taken.view("<u4")[0] < _MOST_PARTS else ">"
        return taken.view(f"{self.order or '<'}i4").astype(np.int64)

    def floats(self, number: int, *, num_rows: int | None = None) -> NDArray[np.float32]:
        return self._take(4 * number).view(f"{self.order or '<'}f4").astype(np.float32)

    @property
    def most(self) -> int:
        return (len(self._bytes) - self._place) // 4

    def peek(self) -> str | None:
        place = self._place
        if place >= len(self._bytes):
            return None
        word, self._place = self.word(), place
        return word

    def only_step(self, step: int) -> None:
        """Goes to a time step; see `EnsightData`."""
        begins, ends = ([match.start() for match in re.finditer(word, self._bytes.data)] for word in (_BEGIN, _END))
        if step >= len(begins) or step >= len(ends):
            raise self.damage(f"it has {len(begins):,} time steps, expected at least {step + 1:,}")
        self._bytes, self._place = self._bytes[begins[step] + _RECORD : ends[step]], 0

    def _take(self, size: int) -> NDArray[np.uint8]:
        taken = np.array(self._bytes[self._place : self._place + size])
        self._place += size
        if len(taken) < size:
            raise self.damage(f"it ends at byte {len(self._bytes):,}, expected {self._place:,}")
        return taken


class _Fortran(_Binary):
    """Fortran binary: the same in records, which stand between their lengths."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, None)
        content, place, records = self._bytes, 0, list[NDArray[np.uint8]]()
        self.order = "<" if content[:4].tobytes() == _RECORD.to_bytes(4, "little") else ">"
        while place < len(content):
            size = int.from_bytes(
                mark := content[place : place + 4].tobytes(), "little" if self.order == "<" else "big"
            )
            end = place + 4 + size
            if content[end : end + 4].tobytes() != mark or len(mark) < 4 or len(records) > _MOST_RECORDS:
                raise self.damage(f"no record of {size:,} bytes at byte {place:,}")
            records.append(content[place + 4 : end])
            place = end + 4
        self._bytes = np.concatenate(records)


def open_data(path: Path, like: EnsightData | None = None, step: int | None = None) -> EnsightData:
    """Opens a geometry; or a variable, which is in the form of its geometry.

    Args:
        path: The file.
        like: The geometry of a variable.
        step: The time step of a file with several.

    Raises:
        ValueError: It is empty or damaged, or has no such step.
    """
    if not path.stat().st_size:
        raise ValueError(f"{path}: empty")
    with path.open("rb") as file:
        head = file.read(_RECORD + 4)
    data: EnsightData
    if isinstance(like, _Fortran) or (like is None and head[4:].lower().startswith(b"fortran binary")):
        data = _Fortran(path)
    elif isinstance(like, _Binary) or (like is None and _plain(head) == b"c binary"):
        data = _Binary(path, like.order if isinstance(like, _Binary) else None)
    else:
        data = _Lines(path)
    if like is None and isinstance(data, _Binary):
        data.word()
    if step is not None:
        data.only_step(step)
    return data


def _plain(head: bytes) -> bytes:
    return head[:_RECORD].split(b"\0")[0].strip().lower()
