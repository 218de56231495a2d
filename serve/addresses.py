"""Scans that are named and not sent: only files below the folders that whoever runs the server has opened.

Where a path leads is asked after it was opened, so that links which change meanwhile lead nowhere else.
Only files and S3 are known: a server that fetches http would ask for strangers, inside its network.
"""

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from serve.problems import ProblemError
from serve.uploads import TooLargeError, Upload, basename
from tutelage.storage import Place

_PART = 2**20
_LONGEST = 4096
_ODD = frozenset("?#%@\\")
"""Letters that mean something in addresses of stores; `?` could name another server."""


def local(uri: str) -> bool:
    """Whether an address is one of a file here.

    Raises:
        ProblemError: it is of no kind that is read.
    """
    scheme = uri.partition(":")[0].lower() if ":" in uri else ""
    if len(uri) > _LONGEST or "\0" in uri or scheme not in ("file", "s3"):
        raise ProblemError(
            f"found an address of kind {scheme[:20]!r}, expected file:///... or s3://... below a folder that "
            "is opened; send the scan itself",
            "forbidden-address",
        )
    return scheme == "file"


def opened(uri: str, roots: Sequence[str], most: int) -> Upload:
    """Open a file below one of the folders.

    Raises:
        ProblemError: it lies elsewhere, or is not there.
        TooLargeError: it is larger than is allowed.
    """
    path = _path(uri)
    folders = [Path(root.removeprefix("file://")).resolve() for root in roots if not root.startswith("s3://")]
    try:
        resolved = path.resolve()
        if not _below(resolved, folders):
            raise _elsewhere()
        descriptor = os.open(resolved, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _missing() from None
    except (OSError, RuntimeError, ValueError):  # a loop of links is a RuntimeError, a null a ValueError
        raise _elsewhere() from None
    return _checked(descriptor, folders, path.name, most)


def _path(uri: str) -> Path:
    try:
        parts = urlsplit(uri)
    except ValueError:  # brackets that hold no address
        raise _elsewhere() from None
    path = Path(unquote(parts.path))
    if parts.netloc not in ("", "localhost") or not path.is_absolute():
        raise _elsewhere()
    return path


def parts_of(uri: str, roots: Sequence[str], most: int) -> Iterator[bytes]:
    """Yield a file of an object store piece by piece.

    Raises:
        ProblemError: it lies elsewhere, or is not there.
        TooLargeError: it is larger than is allowed.
    """
    key = uri.removeprefix("s3://")
    straight = all(part not in ("", ".", "..") for part in key.split("/"))
    stores = [root.rstrip("/") + "/" for root in roots if root.startswith("s3://")]
    if not straight or _ODD & set(key) or not any(uri.startswith(store) for store in stores):
        raise _elsewhere()
    place = Place(uri)
    try:
        _refuse_large(place.stamp()[0], most)
        with place.open() as stream:
            while part := stream.read(_PART):
                yield part
    except FileNotFoundError:
        raise _missing() from None
    except OSError:
        raise ProblemError("the store does not give the file; ask again later", "unknown-file") from None


def name_of(uri: str) -> str:
    """Return what the file is called."""
    return basename(PurePosixPath(uri).name)


def _checked(descriptor: int, folders: Sequence[Path], name: str, most: int) -> Upload:
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _below(_reached(descriptor), folders):
            raise _elsewhere()
        _refuse_large(status.st_size, most)
    except BaseException:
        os.close(descriptor)
        raise
    return Upload(os.fdopen(descriptor, "rb"), status.st_size, basename(name))


def _reached(descriptor: int) -> Path:
    """Where an open file lies, whatever its path leads to by now."""
    return Path(os.readlink(f"/proc/self/fd/{descriptor}"))


def _below(path: Path, folders: Sequence[Path]) -> bool:
    return any(path.is_relative_to(folder) for folder in folders)


def _refuse_large(size: int, most: int) -> None:
    if size > most:
        raise TooLargeError(
            f"the file has {size / 1e6:.1f} MB, at most {most / 1e6:.1f} MB are accepted; compress it"
        )


def _elsewhere() -> ProblemError:
    # The same whether something is there or not: an answer must not tell what the server's disk holds.
    return ProblemError(
        "the file does not lie below a folder that is opened to requests; copy it there, send the scan "
        "itself, or serve with serving.roots",
        "forbidden-address",
    )


def _missing() -> ProblemError:
    return ProblemError("there is no such file, expected a scan; copy it there", "unknown-file")
