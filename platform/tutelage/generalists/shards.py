"""Packed embeddings of one image together in a file, of which single ones can be read.

Layout: a magic line, the length and checksum of the header, the header (JSON: what lies
where, each with its checksum), then the bodies. Whatever a file claims is compared with its length and
with limits before memory is taken for it. It knows nothing about folders and keeps nothing open.
"""

import struct
import zlib
from collections.abc import Iterable, Mapping
from typing import BinaryIO, NamedTuple

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, NonNegativeInt

from tutelage.generalists.base import Embedding
from tutelage.generalists.codec import Form, pack, unpack
from tutelage.generalists.settings import CachePrecision

Key = tuple[int, int]
"""Axis that a slice lies across, and its index along it."""

_MAGIC = b"tutelage embeddings 1\n"
_LENGTHS = struct.Struct("<II")
_FIRST_READ = 8192
"""Holds the header of 32 slices: one request where each takes its time."""

_MOST_HEADER = 1 << 24
_MOST_AT_ONCE = 1 << 26
"""Bodies that lie together are read together up to so many bytes."""


class _Entry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    key: tuple[NonNegativeInt, NonNegativeInt]
    form: Form
    start: NonNegativeInt
    """Bytes after the header."""

    size: NonNegativeInt
    checksum: NonNegativeInt


class _Header(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    seconds: NonNegativeFloat | None
    entries: tuple[_Entry, ...]


class Read(NamedTuple):
    """What a shard gave."""

    keys: frozenset[Key]
    """Everything in it."""

    seconds: float | None
    """What it took to embed one slice, if that was known."""

    found: Mapping[Key, Embedding]
    bytes_read: int


def write(
    embeddings: Mapping[Key, Embedding], precision: CachePrecision, zstd: int, seconds: float | None
) -> bytes:
    """Make the bytes of a shard."""
    entries, bodies, start = [], [], 0
    for key in sorted(embeddings):
        form, body = pack(embeddings[key], precision, zstd)
        entries.append(_Entry(key=key, form=form, start=start, size=len(body), checksum=zlib.crc32(body)))
        bodies.append(body)
        start += len(body)
    header = _Header(seconds=seconds, entries=tuple(entries)).model_dump_json().encode()
    return b"".join((_MAGIC, _LENGTHS.pack(len(header), zlib.crc32(header)), header, *bodies))


def read(stream: BinaryIO, wanted: Iterable[Key]) -> Read:
    """Read from a shard those wanted slices that it holds, and no others.

    Raises:
        ValueError: if the file, or one of these slices, is cut short, damaged or something else.
    """
    length = stream.seek(0, 2)
    stream.seek(0)
    header, body_start = _header(stream, length)
    known = {entry.key: entry for entry in header.entries}
    entries = sorted((known[key] for key in set(wanted) & known.keys()), key=lambda entry: entry.start)
    found: dict[Key, Embedding] = {}
    for run in _runs(entries):
        start, size = body_start + run[0].start, sum(entry.size for entry in run)
        if start + size > length:
            raise ValueError(f"slice {run[-1].key} ends at byte {start + size} of {length}")
        stream.seek(start)
        together = memoryview(stream.read(size))
        for entry in run:
            body, together = together[: entry.size], together[entry.size :]
            if zlib.crc32(body) != entry.checksum:
                raise ValueError(f"slice {entry.key} does not match its checksum")
            found[entry.key] = unpack(entry.form, body)
    read_bytes = min(length, _FIRST_READ) + sum(entry.size for entry in entries)
    return Read(frozenset(known), header.seconds, found, read_bytes)


def _header(stream: BinaryIO, length: int) -> tuple[_Header, int]:
    """The header, and where it ends."""
    fixed = len(_MAGIC) + _LENGTHS.size
    first = stream.read(min(length, _FIRST_READ))
    if len(first) < fixed or not first.startswith(_MAGIC):
        raise ValueError(f"{length} bytes do not begin as a shard of embeddings")
    size, checksum = _LENGTHS.unpack_from(first, len(_MAGIC))
    end = fixed + size
    if end > length or size > _MOST_HEADER:
        raise ValueError(f"its header claims {size} bytes of {length}")
    text = first[fixed:end] if end <= len(first) else first[fixed:] + stream.read(end - len(first))
    if zlib.crc32(text) != checksum:
        raise ValueError("its header does not match its checksum")
    return _Header.model_validate_json(text), end


def _runs(entries: Iterable[_Entry]) -> list[list[_Entry]]:
    """Entries in order of place, those together whose bodies follow each other."""
    runs: list[list[_Entry]] = []
    for entry in entries:
        last = runs[-1] if runs else []
        follows = bool(last) and last[-1].start + last[-1].size == entry.start
        if follows and entry.start + entry.size - last[0].start <= _MOST_AT_ONCE:
            last.append(entry)
        else:
            runs.append([entry])
    return runs
