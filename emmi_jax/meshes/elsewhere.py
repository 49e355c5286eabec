"""Trial reads in another process, of files on whose damage VTK's readers crash or run on for ever."""

from __future__ import annotations

import atexit
import json
import os
import select
import subprocess
import sys
import threading
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import IO, cast

_LARGE = 1 << 30
"""Files of so many bytes are not read twice."""

_SLOW = 1e6
"""Bytes a second that are read at least."""

# A length that cannot be must fail, and not fill the memory.
_SERVER = """
import json, os, resource, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
resource.setrlimit(resource.RLIMIT_AS, (memory + (16 << 30), resource.getrlimit(resource.RLIMIT_AS)[1]))
answers = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)
for line in sys.stdin:
    words, *arguments = json.loads(line)
    try:
        exec(words, {"arguments": arguments})
    except Exception:
        pass
    print(file=answers)
"""
_OF_XML = """
import vtkmodules.vtkIOXML
path, kind = arguments
reader = getattr(vtkmodules.vtkIOXML, kind)()
reader.SetFileName(path)
reader.UpdateInformation()
reader.GetPointDataArraySelection().DisableAllArrays()
reader.GetCellDataArraySelection().DisableAllArrays()
reader.Update()
"""
_LOCK = threading.Lock()
_servers: dict[int, subprocess.Popen[bytes]] = {}
"""That of this process, by its number: a process that is forked starts its own."""


def run_elsewhere(path: Path, words: str, *arguments: str | float | None) -> None:
    """Runs Python code that reads a file, in another process, which stays for the next file.

    Args:
        path: The file.
        words: The code, which finds `arguments`; whatever it raises is left to the read in this process.
        arguments: Those of the code.

    Raises:
        ValueError: That process crashes, or does not come to an end.
    """
    with _LOCK:
        server = _servers.get(os.getpid())
        if server is None or server.poll() is not None:
            server = _servers[os.getpid()] = _start()
        asked, answer = cast(IO[bytes], server.stdin), cast(IO[bytes], server.stdout)
        with suppress(BrokenPipeError):
            asked.write(json.dumps([words, *arguments]).encode() + b"\n")
        is_done = bool(select.select([answer], [], [], 120 + path.stat().st_size / _SLOW)[0])
        if is_done and answer.read(1):
            return
        _stop(server)
    raise ValueError(f"{path}: damaged: VTK's reader {'crashes' if is_done else 'does not end'}")


def try_xml(path: Path, reader: str) -> None:
    """Reads points and cells of a `.vtp` or `.vtu` file elsewhere first; see `run_elsewhere`."""
    status = path.stat()
    if status.st_size < _LARGE:
        _try_xml(path, reader, status.st_size, status.st_mtime_ns)


@cache
def _try_xml(path: Path, reader: str, size: int, modified: int) -> None:
    run_elsewhere(path, _OF_XML, str(path.absolute()), reader)


def _start() -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _SERVER]
    pipe = subprocess.PIPE
    server = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL)
    atexit.register(_stop, server)
    return server


def _stop(server: subprocess.Popen[bytes]) -> None:
    atexit.unregister(_stop)
    server.kill()
    with server:
        pass
