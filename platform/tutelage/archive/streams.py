"""Bytes on their way in and out: compression, a digest in passing, files that were cut off.

Unpacks no more than it is asked for, and packs without a time of writing, so that the same
content makes the same bytes. Knows no image format.
"""

import bz2
import gzip
import hashlib
import io
import zlib
from typing import Any, BinaryIO, cast

from tutelage.errors import ArchiveError

_PART = 2**20
"""Bytes read at a time."""

_REASON = 16
"""Parts that are read beyond what a header declares, to reach the end and its checksum."""


_PACKED = 2**16
"""Bytes that are unpacked at a time."""

_GZIP = 31
"""What zlib calls gzip with checksum and length."""

_PARTS = 2**17
"""Parts that a gzip file may have; writers that can be searched begin a new one every 64 KB."""


class Hashed:
    """A stream that remembers what passed, for a digest in the same pass."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._sha = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Read on."""
        data = self._stream.read(size)
        self._sha.update(data)
        return data

    def digest(self) -> str:
        """Read to the end; return the first 16 hex digits of the SHA-256 of everything."""
        while self.read(_PART):
            pass
        return self._sha.hexdigest()[:16]


def at_most(stream: BinaryIO, size: int) -> bytearray:
    """Read up to `size` bytes, taking memory as they come: a short file may promise many."""
    data = bytearray()
    while len(data) < size:
        part = stream.read(min(size - len(data), _PART))
        if not part:
            break
        data += part
    return data


def exactly(stream: BinaryIO, size: int) -> bytearray:
    """Read `size` bytes, or say how many are missing."""
    data = at_most(stream, size)
    if len(data) < size:
        raise ArchiveError(f"it ends {size - len(data)} bytes early, of {size} expected; copy it again")
    return data


def finish(content: BinaryIO) -> None:
    """Read on to the end, within reason: only there does a decompressor verify its checksum."""
    for _ in range(_REASON):
        if not content.read(_PART):
            return


def unpacked(stream: BinaryIO, compression: str) -> BinaryIO:
    """Return the content of a stream."""
    if compression == "gzip":
        return cast(BinaryIO, io.BufferedReader(_Gzip(stream), _PACKED))
    return cast(BinaryIO, bz2.BZ2File(stream)) if compression == "bzip2" else stream


class _Gzip(io.RawIOBase):
    """What a gzip file holds.

    GzipFile takes long names in headers a byte at a time, and any number of empty parts: minutes, for
    an upload that means harm.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._part = zlib.decompressobj(_GZIP)
        self._parts = 1
        self._ahead = b""

    def readable(self) -> bool:
        """Whether it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a buffer as far as one step goes; 0 at the end."""
        while True:
            if self._part.eof and not self._next():
                return 0
            data = self._part.decompress(self._more(), len(buffer))
            self._ahead = self._part.unconsumed_tail
            if data:
                buffer[: len(data)] = data
                return len(data)
            if not self._ahead and not self._part.eof:
                self._ahead = self._stream.read(_PACKED)
                if not self._ahead:
                    raise EOFError

    def _more(self) -> bytes:
        ahead, self._ahead = self._ahead, b""
        return ahead

    def _next(self) -> bool:
        """Go on to the part behind this one, if there is one: zeros at the end are no part."""
        rest = self._part.unused_data.lstrip(b"\0")
        while not rest:
            read = self._stream.read(_PACKED)
            if not read:
                return False
            rest = read.lstrip(b"\0")
        self._parts += 1
        if self._parts > _PARTS:
            raise ArchiveError(f"it is gzip of more than {_PARTS} parts, expected one; pack it again")
        self._part, self._ahead = zlib.decompressobj(_GZIP), rest
        return True


def packed(data: bytes, compression: str) -> bytes:
    """Return what a file of this content holds."""
    if compression == "gzip":
        return gzip.compress(data, 4, mtime=0)
    return bz2.compress(data) if compression == "bzip2" else data


def check_length(stream: BinaryIO, stored: int, size: int | None, compression: str) -> None:
    """Find a file that was cut off, without unpacking one that looks whole.

    `stored` is how many bytes it has, `size` how many it should hold unpacked at the least,
    where that is known.
    """
    if size is None or compression == "bzip2":
        return
    if not compression:
        if stored < size:
            raise ArchiveError(f"it ends after {stored} of {size} bytes; copy it again")
        return
    # The last four bytes of gzip tell its length; a file of several parts tells only the last one's.
    stream.seek(max(stored - 4, 0))
    if int.from_bytes(stream.read(4), "little") == size % 2**32:
        return
    stream.seek(0)
    content, left = unpacked(stream, compression), size
    while left > 0:
        left -= len(exactly(content, min(left, _PART)))
    finish(content)
