"""Bytes that lie in no file with a name: kept by one process, read by others while that one lives.

Each lies on the disk of a folder in a file that the system forgets with the process that made it,
however that ends, and that no listing or copy of the disk's folders shows. Others open it by way
of /proc, so they are of the same user and see that process; in another container they do not. A
file begins with whose it is: numbers of processes and files are given again, and who comes late
with an old address gets nothing rather than somebody else's. It does not know what the bytes are.
"""

import contextlib
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import BinaryIO

_MOST = 256
"""Files that are kept at a time, each an open one of the process: many systems allow 1024."""


class Unnamed:
    """What one process keeps, by name."""

    def __init__(self, folder: Path, most: int = _MOST) -> None:
        self.folder, self.most = folder, most
        self._files: dict[str, BinaryIO] = {}
        self._lock = threading.Lock()

    def keep(self, name: str, data: bytes) -> str:
        """Keep bytes and return where; what was kept longest makes room.

        Raises:
            OSError: there is no room on the disk.
        """
        file = tempfile.TemporaryFile(dir=self.folder)  # noqa: SIM115 - stays open: it is gone once closed
        try:
            file.write(name.encode() + data)
            file.flush()
        except BaseException:
            with contextlib.suppress(OSError):  # it tries to write once more
                file.close()
            raise
        with self._lock:
            self._files[name] = file
            late = list(self._files)[: -self.most]
        for other in late:
            self.drop(other)
        return f"{os.getpid()}/fd/{file.fileno()}"

    def drop(self, name: str) -> None:
        """Forget what is kept under a name, if anything is."""
        with self._lock:
            file = self._files.pop(name, None)
        if file is not None:
            file.close()

    @property
    def names(self) -> tuple[str, ...]:
        """Whose bytes are kept."""
        with self._lock:
            return tuple(self._files)


def read(address: str, name: str) -> bytes | None:
    """Return what a process keeps there under a name; None if it does not, or not any more."""
    path, start = f"/proc/{address}", name.encode()
    try:
        # Looked at first: to open a pipe of another process can take from what it holds.
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        with open(path, "rb") as file:
            return file.read() if file.read(len(start)) == start else None
    except OSError:
        return None
