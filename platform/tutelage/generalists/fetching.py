"""Bringing a file from an address onto this machine: whole and checked, or not at all.

http(s) goes through the standard library, s3 and gs through `storage`. What came is written
beside the file with its sha256, which holds from then on. It knows no generalist and does
not know what is in a file.
"""

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import shutil
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from tutelage.errors import GeneralistError
from tutelage.storage import Place

FOLDER_VARIABLE = "TUTELAGE_WEIGHTS"
"""Environment variable that names another folder for what is pulled."""

_LARGEST_BYTES = 8 * 2**30
"""Of a file whose size nobody published: twice the largest segmenter known."""

_SPARE_BYTES = 2**28
"""What a download leaves free on its disk."""

_CHUNK_BYTES = 2**20
_TIMEOUT_SECONDS = 60.0

Progress = Callable[[int, int | None], None]
"""Hears bytes so far and bytes in all, where known."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What a file must be, as far as anybody knows."""

    sha256: str | None = None
    md5: str | None = None
    size_bytes: int | None = None


def folder() -> Path:
    """Where pulled weights are kept on this machine."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named).expanduser() if named else Path.home() / ".cache" / "tutelage" / "weights"


def shown(address: str) -> str:
    """The address without a password or a signature in it."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def note_of(place: Path) -> Path:
    """Where the digest of a file is written down."""
    return place.with_name(f"{place.name}.json")


def recorded(place: Path) -> str | None:
    """The digest that was written down when this file was pulled; a file of one's own has none."""
    if place.parent != folder() or not note_of(place).is_file():
        return None
    try:
        return str(json.loads(note_of(place).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GeneralistError(
            f"{note_of(place)} cannot be read ({error}), expected the digest of the file beside it; "
            "remove both to have them again"
        ) from None


def fetched_once(address: str, place: Path, expected: Expected, progress: Progress | None) -> None:
    """Workers of one machine that start together wait for the first of them."""
    with alone(place):
        if not place.is_file():
            download(address, place, expected, progress)


@contextlib.contextmanager
def alone(place: Path) -> Iterator[None]:
    """Hold a file against other processes of this machine; its folder is made."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        lock = place.with_name(f"{place.name}.lock").open("w")
    except OSError as error:
        raise GeneralistError(
            f"{place.parent} cannot hold weights ({error}); name another folder in {FOLDER_VARIABLE}"
        ) from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel lets go when the process ends, however it ends
        yield


def download(address: str, place: Path, expected: Expected, progress: Progress | None) -> None:
    """Bring a file here whole and checked, or leave nothing."""
    temporary = place.with_name(f".writing-{uuid.uuid4().hex}")
    digests = {kind: hashlib.new(kind, usedforsecurity=kind == "sha256") for kind in ("sha256", "md5")}
    size = 0
    try:
        with _opened(address) as (source, total), temporary.open("wb") as sink:
            _refuse_size(address, total, expected, place)
            for chunk in iter(lambda: source.read(_CHUNK_BYTES), b""):
                size += len(chunk)
                _refuse_growth(address, size, total)
                sink.write(chunk)
                for digest in digests.values():
                    digest.update(chunk)
                if progress is not None:
                    progress(size, total)
            sink.flush()
            os.fsync(sink.fileno())
        found = {kind: digest.hexdigest() for kind, digest in digests.items()}
        _refuse_cut(address, size, total)
        _refuse_digest(address, found, expected)
        note = {"sha256": found["sha256"], "bytes": size, "from": shown(address), "at": _now()}
        Place.of(note_of(place)).write_text(json.dumps(note, indent=1))
        temporary.replace(place)
    except (OSError, http.client.HTTPException) as error:
        raise GeneralistError(
            f"{shown(address)} cannot be brought to {place} ({error}); check the address and the network, or "
            "bring the file by hand and name it in generalist.weights"
        ) from None
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _opened(address: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """The bytes at an address, and how many they say they are."""
    if urlsplit(address).scheme in ("http", "https"):
        with urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as answer:
            told = answer.headers.get("Content-Length")
            yield answer, int(told) if told and told.isdigit() else None
        return
    place = Place.of(address)
    try:
        size, _ = place.stamp()
    except ValueError as error:  # pyarrow's word for a scheme that it does not know
        raise GeneralistError(f"{shown(address)} is no address of weights: {error}; correct it") from None
    with place.open() as stream:
        yield stream, size


def _refuse_size(address: str, total: int | None, expected: Expected, place: Path) -> None:
    exact = expected.size_bytes
    if exact is not None and total is not None and total != exact:
        raise GeneralistError(
            f"{shown(address)} offers {total} bytes, expected the published {exact}; nothing was written"
        )
    if total is not None and total > _LARGEST_BYTES:
        raise GeneralistError(
            f"{shown(address)} offers {total} bytes, expected weights of at most {_LARGEST_BYTES}; "
            "nothing was written, bring the file by hand if it is meant"
        )
    free = shutil.disk_usage(place.parent).free
    if (total or 0) + _SPARE_BYTES > free:
        raise GeneralistError(
            f"{place.parent} has {free} bytes free, expected room for {total or 'unknown'} and "
            f"{_SPARE_BYTES} to spare; make room, or name another folder in {FOLDER_VARIABLE}"
        )


def _refuse_growth(address: str, size: int, total: int | None) -> None:
    limit = _LARGEST_BYTES if total is None else total
    if size > limit:
        raise GeneralistError(f"{shown(address)} sends more than {limit} bytes; nothing was kept")


def _refuse_cut(address: str, size: int, total: int | None) -> None:
    if total is not None and size != total:
        raise GeneralistError(
            f"{shown(address)} sent {size} bytes, expected {total}; nothing was kept, try again"
        )


def _refuse_digest(address: str, found: dict[str, str], expected: Expected) -> None:
    for kind, wanted in (("sha256", expected.sha256), ("md5", expected.md5)):
        if wanted is not None and found[kind] != wanted.lower():
            raise GeneralistError(
                f"{shown(address)} has {kind} {found[kind][:16]}..., expected {wanted[:16]}...; "
                "nothing was kept, the file there has changed or something stands between"
            )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
