"""A scan that is its own address: `data:` and its bytes as text (RFC 2397), for callers on other machines.

It decides how such an address is written and what is refused as one. It does not know what the
bytes mean: only whether they are compressed.
"""

import base64
import binascii

from tutelage.errors import ArchiveError

_DATA = "data:"
_HEAD = "data:application/gzip;base64,"
_MARK = ";base64"
_GZIP = b"\x1f\x8b"
_SHOWN = 40
"""Characters of an address that are repeated in a message."""


def is_data(address: str) -> bool:
    """Whether an address holds the file itself."""
    return address.startswith(_DATA)


def address_of(compressed: bytes) -> str:
    """Return the address of a compressed NIfTI."""
    return _HEAD + base64.b64encode(compressed).decode()


def contents(address: str) -> tuple[bytes, str]:
    """Return the bytes of a NIfTI and the suffix that goes with them.

    Raises:
        ArchiveError: the address holds no file.
    """
    head, _, body = address.partition(",")
    if not head.endswith(_MARK):
        raise ArchiveError(f"{_shortened(address)} has no part {_MARK}, expected {_HEAD}...; encode it so")
    try:
        data = base64.b64decode(body, validate=True)
    except binascii.Error as error:
        raise ArchiveError(f"{_shortened(address)} is no base64 ({error}); encode it again") from None
    return data, ".nii.gz" if data.startswith(_GZIP) else ".nii"


def _shortened(address: str) -> str:
    return address if len(address) <= _SHOWN else f"{address[:_SHOWN]}..."
