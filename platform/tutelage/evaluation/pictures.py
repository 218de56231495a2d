"""Overlays as small PNGs: planes side by side, the prediction tinted, what people drew as a line.

Pictures have a palette, half of it gray and half of it tinted, which takes a third of the bytes
that full color takes: a page with dozens of them must still fit into a mail.
"""

import base64
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from tutelage.evaluation.campaign import Overlay, Plane

_SIDE_PX = 168
_GRAYS = 64
_GAP_PX = 3
_LINE, _EDGE = 2 * _GRAYS, 2 * _GRAYS + 1
"""Places in the palette after grays and tinted grays: what people drew, and the prediction's rim."""

_WHITE = (255, 255, 255)

Pixels = NDArray[np.uint8]


def address(overlay: Overlay, color: str) -> str:
    """Return an overlay as a PNG data address, the prediction in a color like #4e79e6."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"data:image/png;base64,{base64.b64encode(_png(_strip(overlay), (red, green, blue))).decode()}"


def _strip(overlay: Overlay) -> Pixels:
    """Planes side by side, each a square."""
    low, high = np.percentile(np.concatenate([p.image_HW.ravel() for p in overlay.planes]), (1, 99))
    parts: list[Pixels] = []
    for plane in overlay.planes:
        parts += [np.zeros((_SIDE_PX, _GAP_PX), np.uint8)] * bool(parts)
        parts.append(_painted(plane, (_SIDE_PX, _SIDE_PX), (float(low), float(high))))
    return np.hstack(parts)


def _painted(plane: Plane, shape: tuple[int, int], window: tuple[float, float]) -> Pixels:
    low, high = window
    image_HW = _resized(plane.image_HW, shape)
    gray_HW = np.clip((image_HW - low) / max(high - low, 1e-6), 0, 1) * (_GRAYS - 1)
    prediction_HW, reference_HW = (
        _resized(mask_HW.astype(np.float32), shape) > 0.5
        for mask_HW in (plane.prediction_HW, plane.reference_HW)
    )
    pixels = gray_HW.astype(np.uint8) + _GRAYS * prediction_HW.astype(np.uint8)
    pixels[prediction_HW & ~ndimage.binary_erosion(prediction_HW)] = _EDGE
    pixels[reference_HW & ~ndimage.binary_erosion(reference_HW)] = _LINE
    return pixels


def _resized(values_HW: NDArray[Any], shape: tuple[int, int]) -> NDArray[np.float32]:
    """Sample at the centers of pixels, between voxels by a straight line."""
    along = [(np.arange(n) + 0.5) * old / n - 0.5 for n, old in zip(shape, values_HW.shape, strict=True)]
    where = np.meshgrid(*along, indexing="ij")
    return np.asarray(ndimage.map_coordinates(values_HW, where, order=1, mode="nearest"), np.float32)


def _png(pixels: Pixels, tint: tuple[int, int, int]) -> bytes:
    height, width = pixels.shape
    rows = np.hstack([np.zeros((height, 1), np.uint8), pixels]).tobytes()
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (b"IHDR", header), (b"PLTE", _palette(tint)), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(name, data) for name, data in chunks)


def _palette(tint: tuple[int, int, int]) -> bytes:
    gray = np.repeat(np.linspace(0, 255, _GRAYS)[:, None], 3, axis=1)
    tinted = 0.6 * gray + 0.4 * np.array(tint)
    return np.vstack([gray, tinted, [_WHITE], [tint]]).round().astype(np.uint8).tobytes()


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
