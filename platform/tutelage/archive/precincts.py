"""How finely a JPEG 2000 frame is cut up: what is refused before the decoder takes memory for every piece.

A frame says how large its tiles are, and for each of them (marks COD and COC, of the whole frame or of one
tile) how many levels of detail there are, into which precincts each is cut, and how many layers everything
has. For each precinct the decoder takes some hundred bytes, for each of them in each layer (a packet) two and
some time, before it looks whether there is any: 158 bytes could ask for half a gigabyte. It decides how many
are too many and unpacks nothing; what is damaged is the decoder's to say.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tutelage.errors import ArchiveError

_MOST_PRECINCTS = 2**15
"""Of one tile: each takes about 550 bytes a band, of which there are three. A picture of 4096 by 4096 in
three colors, cut into squares of 64, has half as many."""

_MOST_PACKETS = 2**21
"""Of all tiles: at some 130 ns each, whether there is anything in them or not."""

_COD, _COC, _SOT, _SOD, _EOC = 0xFF52, 0xFF53, 0xFF90, 0xFF93, 0xFFD9
_OTHERS = frozenset({0x50, 0x51, 0x55, 0x57, 0x58, 0x59, *range(0x5C, 0x62), 0x63, 0x64})
"""Second bytes of the other marks in headers: behind one that is not known, the decoder looks for the next
that is, wherever it stands, and could find another COD than is found here."""

_HEADER = 4
"""Bytes of the marks SOC and SIZ, behind which the length of the latter stands."""

_PLAIN = 0xFF
"""Precincts of 2^15 by 2^15, where nothing is said of them."""


@dataclass(frozen=True, slots=True)
class _Style:
    """What one mark says of how tiles are cut up."""

    layers: int
    precincts: bytes
    """One of each level of detail, the coarsest first: exponents of two, of the height and the width."""


def check(source: bytes) -> None:
    """Refuse a codestream of which more pieces would be made than any sound one has.

    Raises:
        ArchiveError: there are too many precincts in a tile, or too many packets.
    """
    x, y, x_from, y_from, tile_x, tile_y, tile_x_from, tile_y_from, samples = struct.unpack_from(
        ">8IH", source, 2 * _HEADER
    )
    width, height = min(tile_x, x - x_from), min(tile_y, y - y_from)
    tiles = _parts(x - tile_x_from, tile_x) * _parts(y - tile_y_from, tile_y)
    styles = list(_styles(source, samples))
    layers = max((style.layers for style in styles), default=1)
    for style in styles:
        counts = list(_precincts(style.precincts, height, width))
        _refuse(samples * sum(counts), _MOST_PRECINCTS, "precincts a tile")
        _refuse(tiles * samples * layers * len(counts) * max(counts), _MOST_PACKETS, "packets")


def _refuse(found: int, most: int, of: str) -> None:
    if found > most:
        raise ArchiveError(
            f"a compressed frame of {found} {of}, expected at most {most}; compress it in larger pieces"
        )


def _parts(size: int, part: int) -> int:
    return -(-size // max(1, part))


def _precincts(exponents: bytes, height: int, width: int) -> Iterator[int]:
    """Count the precincts of each level of a tile, or one more along an axis, as it may begin within one."""
    for level, both in enumerate(exponents):
        coarser = len(exponents) - 1 - level
        rows = (height >> coarser >> (both >> 4)) + 2
        columns = (width >> coarser >> (both & 15)) + 2
        yield rows * columns


def _styles(source: bytes, samples: int) -> Iterator[_Style]:
    """Read every mark that says how tiles are cut up, of the frame and of its tiles."""
    index = 1 if samples < 257 else 2
    for mark, content in _marks(source):
        if mark == _COD and len(content) >= 10:
            (layers,) = struct.unpack_from(">H", content, 2)
            yield _style(layers, content[0], content[5:])
        elif mark == _COC and len(content) >= index + 6:
            yield _style(1, content[index], content[index + 1 :])


def _style(layers: int, told: int, content: bytes) -> _Style:
    """Read from the number of levels on; the lowest bit of what was `told` before says if sizes follow."""
    levels = 1 + min(content[0], 32)
    sizes = content[5 : 5 + levels] if told & 1 else b""
    return _Style(layers, sizes.ljust(levels, bytes([_PLAIN])))


def _marks(source: bytes) -> Iterator[tuple[int, bytes]]:
    """Go from mark to mark, past the packed pixels of one part of a tile to the next part.

    Raises:
        ArchiveError: one is not known.
    """
    at, part, length = 2, 0, 0
    while at + 4 <= len(source):
        mark, size = struct.unpack_from(">HH", source, at)
        if mark == _SOD:
            if part + length <= at:  # the last one need not say how long it is
                return
            at = part + length
            continue
        if mark == _EOC or mark < 0xFF00 or size < 2:
            return
        if mark not in (_COD, _COC, _SOT) and mark - 0xFF00 not in _OTHERS:
            raise ArchiveError(
                f"a compressed frame with a mark {mark:#06x}, expected those of JPEG 2000; export it again"
            )
        if mark == _SOT:
            part, length = at, int.from_bytes(source[at + 6 : at + 10])
        yield mark, source[at + 4 : at + 2 + size]
        at += 2 + size
