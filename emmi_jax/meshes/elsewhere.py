"""Trial reads in another process, of files on whose damage VTK's readers crash or run on for ever."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

READABLE, REFUSED = 40, 41
"""Results of the process that tries a file: numbers that no crash has."""

_SLOW = 1e6
"""Bytes a second that are read at least."""

_HEAD_BYTES = 1 << 20
_LARGE = 1 << 30
"""Files of so many bytes are not read twice."""

_POLYHEDRA = re.compile(rb"""\bName=["'](?:polyhedron_to_faces|faces)["']""")
_READ_CELLS = f"""import sys
from vtkmodules.vtkIOXML import vtkXMLUnstructuredGridReader
reader = vtkXMLUnstructuredGridReader()
reader.SetFileName(sys.argv[1])
reader.UpdateInformation()
for selection in (reader.GetPointDataArraySelection(), reader.GetCellDataArraySelection()):
    selection.DisableAllArrays()
reader.Update()
sys.exit({READABLE})"""
_LIMIT = """import os, resource
memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (memory + (16 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]))"""
"""A length that cannot be must fail, and not fill the memory."""


def run_elsewhere(path: Path, words: str, *arguments: str) -> None:
    """Runs Python code that reads a file, in another process.

    Args:
        path: The file.
        words: The code; it exits with `READABLE` or `REFUSED`.
        arguments: What `sys.argv` holds after the first.

    Raises:
        ValueError: That process did not end by itself.
    """
    command = [sys.executable, "-c", f"{_LIMIT}\n{words}", *arguments]
    timeout = 120 + path.stat().st_size / _SLOW
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout)
    except subprocess.TimeoutExpired:
        raise ValueError(f"{path}: damaged: VTK's reader does not end") from None
    if done.returncode not in (READABLE, REFUSED):
        raise ValueError(f"{path}: damaged: VTK's reader crashes")


def try_polyhedra(path: Path) -> None:
    """Reads the cells of a `.vtu` file elsewhere first if some are polyhedra, whose wrong faces make the reader crash.

    Raises:
        ValueError: They do.
    """
    status = path.stat()
    if status.st_size < _LARGE:
        _try_polyhedra(path, status.st_size, status.st_mtime_ns)


@cache
def _try_polyhedra(path: Path, size: int, modified: int) -> None:
    with path.open("rb") as file:
        if _POLYHEDRA.search(file.read(_HEAD_BYTES)):
            run_elsewhere(path, _READ_CELLS, str(path))
