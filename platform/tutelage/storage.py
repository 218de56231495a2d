"""Where bytes live: a local folder or any filesystem pyarrow knows (s3://, gs://, hdfs://).

A `Place` is a path with verbs. Writes are whole or absent: locally through a temporary
file, fsync and rename; on object stores a put is atomic by itself, elsewhere (hdfs://) a
temporary file is moved. It knows nothing about what the bytes mean.
"""

import contextlib
import os
import re
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, cast

from tutelage.errors import StorageError

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

NUMPY_HEADERS = threading.Lock()
"""Held while arrays are read with numpy, which parses their headers as Python: before 3.11.8 and 3.12.2,
that fails now and then in two threads at a time (python/cpython#106905)."""

_SCHEME = re.compile(r"^[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_TEMPORARY = ".writing-"
_OBJECT_STORES = ("s3", "gcs", "abfs")


@dataclass(frozen=True)
class Place:
    """A file or folder, local or remote. Picklable: it holds its address, never a connection."""

    uri: str
    """A local path, absolute, or scheme://bucket/key."""

    @classmethod
    def of(cls, address: "str | Path | Place") -> "Place":
        """Make a place of a path or an address; relative paths start at the working directory."""
        if isinstance(address, Place):
            return address
        text = str(address)
        if text.startswith("file://"):
            text = text.removeprefix("file://")
        if _SCHEME.match(text):
            return cls(text.rstrip("/"))
        return cls(str(Path(text).expanduser().absolute()))

    def __truediv__(self, name: str) -> "Place":
        return Place(f"{self.uri}/{name}")

    def __str__(self) -> str:
        return self.uri

    @property
    def name(self) -> str:
        """Last part of the address."""
        return PurePosixPath(self.uri).name

    @property
    def parent(self) -> "Place":
        """The folder that holds it."""
        return Place(self.uri.rsplit("/", 1)[0])

    @property
    def local(self) -> Path | None:
        """The path, if it is on this machine."""
        return None if _SCHEME.match(self.uri) else Path(self.uri)

    @cached_property
    def _remote(self) -> "tuple[FileSystem, str]":
        from pyarrow.fs import FileSystem

        with self._telling("reached"):
            filesystem, path = FileSystem.from_uri(self.uri)
        return filesystem, path

    def _info(self) -> "FileInfo":
        filesystem, path = self._remote
        with self._telling("looked at"):
            return filesystem.get_file_info(path)

    @contextlib.contextmanager
    def _telling(self, what: str) -> Iterator[None]:
        """Tell what a store elsewhere would not do; that a file is not there stays what it is."""
        try:
            yield
        except (FileNotFoundError, StorageError):
            raise
        except OSError as error:
            told = str(error).strip().splitlines()[0]
            raise StorageError(
                f"{self} cannot be {what} ({told}); check address, credentials and connection, and run the "
                "same command again"
            ) from error

    def exists(self) -> bool:
        """Whether a file or folder is there."""
        if self.local is not None:
            return self.local.exists()
        from pyarrow.fs import FileType

        return bool(self._info().type != FileType.NotFound)

    def stamp(self) -> tuple[int, int]:
        """Bytes and time of change in nanoseconds: together they tell whether a file is the same."""
        if self.local is not None:
            status = self.local.stat()
            return status.st_size, status.st_mtime_ns
        info = self._info()
        if info.size is None:
            raise FileNotFoundError(self.uri)
        return int(info.size), int(info.mtime_ns or 0)

    @contextlib.contextmanager
    def open(self) -> Iterator[BinaryIO]:
        """Open for reading, as a stream that can seek."""
        if self.local is not None:
            with self.local.open("rb") as stream:
                yield stream
            return
        filesystem, path = self._remote
        with self._telling("read"):
            remote = filesystem.open_input_file(path)
        with remote:
            yield cast(BinaryIO, remote)

    def read_bytes(self) -> bytes:
        """Return everything in the file."""
        with self.open() as stream:
            if self.local is not None:
                return stream.read()
            with self._telling("read"):
                return stream.read()

    def read_text(self) -> str:
        """Return everything in the file, as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, data: bytes, lasting: bool = True) -> None:
        """Replace the file, whole or not at all; folders above it are made.

        What need not survive a power cut is written faster if it is not `lasting`.
        """
        if self.local is None:
            with self._telling("written"):
                self._write_remote(data)
            return
        self.local.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.local.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
                stream.flush()
                if lasting:
                    os.fsync(stream.fileno())
            temporary.replace(self.local)
        finally:
            temporary.unlink(missing_ok=True)

    def _write_remote(self, data: bytes) -> None:
        filesystem, path = self._remote
        if filesystem.type_name in _OBJECT_STORES:
            with filesystem.open_output_stream(path, compression=None) as stream:
                stream.write(data)
            return
        folder, _, _ = path.rpartition("/")
        filesystem.create_dir(folder, recursive=True)
        temporary = f"{folder}/{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            with filesystem.open_output_stream(temporary, compression=None) as stream:
                stream.write(data)
            filesystem.move(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                filesystem.delete_file(temporary)
            raise

    @contextlib.contextmanager
    def writing(self) -> Iterator[BinaryIO]:
        """Open for writing, as a stream: what is written replaces the file when all of it is, or not at all.

        For what does not fit into memory.
        """
        if self.local is None:
            with self._writing_remote() as remote:
                yield remote
            return
        self.local.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.local.with_name(f"{_TEMPORARY}{uuid.uuid4().hex}")
        try:
            with temporary.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(self.local)
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _writing_remote(self) -> Iterator[BinaryIO]:
        """Write under another name and move: a stream that is closed early would leave half a file."""
        filesystem, path = self._remote
        folder, _, _ = path.rpartition("/")
        if filesystem.type_name not in _OBJECT_STORES:
            filesystem.create_dir(folder, recursive=True)
        temporary = f"{folder}/{_TEMPORARY}{uuid.uuid4().hex}"
        try:
            with filesystem.open_output_stream(temporary, compression=None) as stream:
                yield cast(BinaryIO, stream)
            filesystem.move(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                filesystem.delete_file(temporary)
            raise

    def move(self, to: "Place") -> None:
        """Move a file, or a folder with everything in it; a folder of an object store file by file."""
        if self.local is not None and to.local is not None:
            to.local.parent.mkdir(parents=True, exist_ok=True)
            self.local.rename(to.local)
            return
        from pyarrow.fs import FileType

        filesystem, path = self._remote
        _, target = to._remote
        if self._info().type != FileType.Directory:
            self._moved(filesystem, path, target)
            return
        for name in [name for name, _, _ in self.beneath()]:
            self._moved(filesystem, f"{path}/{name}", f"{target}/{name}")
        self.remove()

    def _moved(self, filesystem: "FileSystem", path: str, target: str) -> None:
        if filesystem.type_name not in _OBJECT_STORES:
            filesystem.create_dir(target.rpartition("/")[0], recursive=True)
        filesystem.move(path, target)

    def write_text(self, text: str) -> None:
        """Replace the file with this text, as UTF-8."""
        self.write_bytes(text.encode())

    def files(self, suffix: str = "") -> list["Place"]:
        """List the files directly in this folder by name, unfinished writes left out."""
        return [self / name for name in self.names(suffix)]

    def names(self, suffix: str = "") -> list[str]:
        """The same by their names alone, which take a tenth of the memory."""
        files, _ = self._within()
        return sorted(n for n in files if n.endswith(suffix) and not n.startswith(_TEMPORARY))

    def folders(self) -> list["Place"]:
        """List the folders directly in this folder by name."""
        _, folders = self._within()
        return [self / name for name in sorted(folders)]

    def _within(self) -> tuple[list[str], list[str]]:
        """Names of files and of folders directly in this folder, in no order."""
        files: list[str] = []
        folders: list[str] = []
        if self.local is not None:
            for item in os.scandir(self.local) if self.local.is_dir() else ():
                into = files if item.is_file() else folders if item.is_dir() else []
                into.append(item.name)
            return files, folders
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self._remote
        with self._telling("listed"):
            found = filesystem.get_file_info(FileSelector(path, allow_not_found=True))
        for info in found:
            into = files if info.type == FileType.File else folders
            into.append(info.base_name)
        return files, folders

    def beneath(self) -> Iterator[tuple[str, int, int]]:
        """Yield path from here, bytes and time of change in nanoseconds of every file at any depth.

        Unfinished writes are among them: they take room too.
        """
        if self.local is not None:
            yield from _beneath(self.local, "")
            return
        from pyarrow.fs import FileSelector, FileType

        filesystem, path = self._remote
        with self._telling("listed"):
            found = filesystem.get_file_info(FileSelector(path, allow_not_found=True, recursive=True))
        for info in found:
            if info.type == FileType.File:
                yield info.path.removeprefix(path).lstrip("/"), int(info.size or 0), int(info.mtime_ns or 0)

    def make_folder(self) -> None:
        """Make a local folder and those above it; object stores have none."""
        if self.local is not None:
            self.local.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Delete a file, or a folder with everything in it, if it is there."""
        if self.local is not None:
            if self.local.is_dir():
                import shutil

                shutil.rmtree(self.local)
            else:
                self.local.unlink(missing_ok=True)
            return
        from pyarrow.fs import FileType

        filesystem, path = self._remote
        kind = self._info().type
        with self._telling("deleted"):
            if kind == FileType.Directory:
                filesystem.delete_dir(path)
            elif kind == FileType.File:
                filesystem.delete_file(path)


def _beneath(folder: Path, prefix: str) -> Iterator[tuple[str, int, int]]:
    """Whatever others delete meanwhile is left out; no folder is held in memory, however full."""
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as found:
        for item in found:
            if item.is_dir(follow_symlinks=False):
                yield from _beneath(Path(item.path), f"{prefix}{item.name}/")
                continue
            with contextlib.suppress(FileNotFoundError):
                status = item.stat(follow_symlinks=False)
                yield f"{prefix}{item.name}", status.st_size, status.st_mtime_ns
