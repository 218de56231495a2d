"""Frames of a DICOM series into volumes: which belong together, in which order, and where they lie.

Order comes from positions along the normal, never from names or numbers. What would bend the
geometry (a missing slice, uneven gaps, a tilted gantry) is refused with the place where it
was seen; nothing is resampled. Frames that share places are told apart by the first tag that
makes even volumes of them. Opens no file and knows no tag's number.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import ArchiveError

TELLING = ("acquisition", "echo", "phase", "type", "bvalue", "trigger", "stack")
"""What may tell volumes of one series apart, in the order of trying; pairs come after single ones."""

FEWEST = 3
"""Slices of a volume: with two nobody can say whether the gap between them is even."""

_SAME_MM = 1e-3
"""Frames that lie closer along the normal share their place."""

_PARALLEL = 1e-4
"""How much cosines of one orientation may differ: half a tenth of a millimeter over half a meter."""

_UNEVEN = 0.05
"""How far a slice may lie from its even place, as a share of the gap."""

_ASLANT = 2e-3
"""How far slices may shift sideways, as a share of the way along the normal; an angle of 0.1 degrees."""

_ROUNDED_MM = 0.02
"""Allowed besides: positions are often written with two decimals."""

_SQUARE = 1e-3
"""Largest cosine of the angle between rows and columns."""

_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""DICOM counts millimeters toward left, back and head."""

Vector = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Frame:
    """One image of a series, as its header describes it."""

    file: str
    index: int
    """Among the frames of its file, from 0."""

    uid: str
    """Hash of the instance's UID; with the index it tells copies of one image."""

    position: Vector
    """Center of the first pixel, in millimeters toward left, back and head."""

    orientation: tuple[float, ...]
    """Directions along a row and along a column, three cosines each."""

    spacing: tuple[float, float]
    """Millimeters between rows and between columns."""

    size: tuple[int, int, int]
    """Rows, columns and samples a pixel."""

    slope: float
    intercept: float
    tells: tuple[str, ...]
    """A value for every word of TELLING, empty where the header has none."""


Told = tuple[tuple[str, str], ...]
"""Which words of TELLING, with which values, pick a volume out of its series; empty for all of it."""


@dataclass(frozen=True, slots=True)
class Stack:
    """Frames of one volume in order, from the first along the normal."""

    frames: tuple[Frame, ...]
    told: Told
    matrix: NDArray[np.float64]
    """4x4, from (column, row, slice) to RAS+ millimeters."""

    @property
    def shape(self) -> tuple[int, int, int]:
        """Columns, rows and slices."""
        rows, columns, _ = self.frames[0].size
        return columns, rows, len(self.frames)


class _SharedError(ArchiveError):
    """Frames share a place."""


def volumes(frames: Sequence[Frame]) -> tuple[Stack, ...]:
    """Return the volumes of a series.

    Raises:
        ArchiveError: its frames are no volume, nor several that a tag tells apart.
    """
    own = _once(frames)
    try:
        return (_stacked(own, ()),)
    except _SharedError as error:
        for words in (*combinations(TELLING, 1), *combinations(TELLING, 2)):
            if split := _split(own, words):
                return split
        raise ArchiveError(
            f"{error}, and none of {', '.join(TELLING)} tells even volumes apart; split the series"
        ) from None


def _once(frames: Sequence[Frame]) -> list[Frame]:
    """Drop copies: one instance counts once, whatever its files are called."""
    kept: dict[tuple[str, int], Frame] = {}
    for frame in sorted(frames, key=lambda frame: (frame.file, frame.index)):
        kept.setdefault((frame.uid, frame.index), frame)
    return list(kept.values())


def _split(frames: Sequence[Frame], words: tuple[str, ...]) -> tuple[Stack, ...] | None:
    groups: dict[Told, list[Frame]] = {}
    for frame in frames:
        told = tuple((word, frame.tells[TELLING.index(word)]) for word in words)
        if not all(value for _, value in told):
            return None
        groups.setdefault(told, []).append(frame)
    if len(groups) < 2:
        return None
    try:
        return tuple(_stacked(groups[told], told) for told in sorted(groups))
    except ArchiveError:
        return None


def _stacked(frames: Sequence[Frame], told: Told) -> Stack:
    _refuse_mixed(frames)
    if len(frames) < FEWEST:
        raise ArchiveError(f"it has {len(frames)} slices, expected at least {FEWEST} of a volume")
    row, column, normal = _axes(frames[0].orientation)
    ordered = sorted(frames, key=lambda frame: (float(np.dot(frame.position, normal)), frame.file))
    positions_N3 = np.array([frame.position for frame in ordered], np.float64)
    along_mm = positions_N3 @ normal
    _refuse_shared(ordered, along_mm)
    _refuse_uneven(ordered, along_mm)
    _refuse_slanted(positions_N3, along_mm, normal)
    between_rows, between_columns = ordered[0].spacing
    matrix = np.eye(4)
    matrix[:3, 0] = row * between_columns
    matrix[:3, 1] = column * between_rows
    matrix[:3, 2] = normal * (along_mm[-1] - along_mm[0]) / (len(ordered) - 1)
    matrix[:3, 3] = positions_N3[0]
    return Stack(tuple(ordered), told, _TO_RAS @ matrix)


def _axes(
    orientation: Sequence[float],
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Return unit vectors along a row, along a column and along the normal, upright on each other.

    Rounded cosines are straightened as ITK does it: the column's direction is kept.
    """
    row, column = np.asarray(orientation[:3], np.float64), np.asarray(orientation[3:], np.float64)
    lengths = np.linalg.norm(row), np.linalg.norm(column)
    if not (np.isfinite(lengths).all() and np.allclose(lengths, 1, atol=0.01)):
        raise ArchiveError(
            f"its orientation is {_numbers(orientation)}, expected cosines; correct the header"
        )
    if abs(float(row @ column)) > _SQUARE:
        raise ArchiveError(
            f"its rows and columns are not upright on each other, cosines {_numbers(orientation)}; "
            "resample it"
        )
    normal = _unit(np.cross(row, column))
    row = _unit(np.cross(column, normal))
    return row, _unit(np.cross(normal, row)), normal


def _unit(vector: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(vector / np.linalg.norm(vector), np.float64)


# --- refusing -----------------------------------------------------------------------------


def _refuse_mixed(frames: Sequence[Frame]) -> None:
    """Refuse frames that cannot lie on one grid, whatever their order."""
    facts: tuple[tuple[str, Callable[[Frame], tuple[float, ...]], float], ...] = (
        ("rows, columns and channels", lambda frame: frame.size, 0.0),
        ("spacings in mm", lambda frame: frame.spacing, 1e-4),
        ("orientations", lambda frame: frame.orientation, _PARALLEL),
    )
    for name, fact, tolerance in facts:
        values = np.array([fact(frame) for frame in frames], np.float64)
        if (np.abs(values - values[0]) > tolerance).any():
            counts = Counter(_numbers(fact(frame)) for frame in frames).most_common(3)
            told = ", ".join(f"({value}) {count} times" for value, count in counts)
            raise ArchiveError(
                f"its images have different {name}: {told}; expected one grid, split the series"
            )


def _refuse_shared(frames: Sequence[Frame], along_mm: NDArray[np.float64]) -> None:
    close = np.flatnonzero(np.diff(along_mm) < _SAME_MM)
    if len(close):
        first = int(close[0])
        raise _SharedError(
            f"{len(close) + 1} images lie at places of others, first {_pair(frames, first)} "
            f"at {along_mm[first]:.2f} mm"
        )


def _refuse_uneven(frames: Sequence[Frame], along_mm: NDArray[np.float64]) -> None:
    count = len(frames)
    gaps = np.diff(along_mm)
    step = float(gaps.mean())
    off = np.abs(along_mm - along_mm[0] - step * np.arange(count)).max()
    if off <= _UNEVEN * step + _ROUNDED_MM:
        return
    usual = float(np.median(gaps))
    worst = int(np.abs(gaps - usual).argmax())
    where = f"{gaps[worst]:.2f} mm between {_pair(frames, worst)} (at {along_mm[worst]:.2f} mm)"
    lost = [round(float(gap) / usual) - 1 for gap in gaps]
    even = all(
        abs(gap - (1 + n) * usual) <= _UNEVEN * usual + 2 * _ROUNDED_MM
        for gap, n in zip(gaps, lost, strict=True)
    )
    if even and sum(lost) > 0:
        told = f"{sum(lost)} slices are missing" if sum(lost) > 1 else "1 slice is missing"
        raise ArchiveError(f"{told}: {where}, {usual:.2f} mm elsewhere; copy the series again")
    raise ArchiveError(
        f"its gaps run from {gaps.min():.2f} to {gaps.max():.2f} mm, {where}, expected even ones; "
        "copy the series again, or resample it"
    )


def _refuse_slanted(
    positions_N3: NDArray[np.float64], along_mm: NDArray[np.float64], normal: NDArray[np.float64]
) -> None:
    aside_N3 = positions_N3 - positions_N3[0] - np.outer(along_mm - along_mm[0], normal)
    aside_mm = np.linalg.norm(aside_N3, axis=1)
    length_mm = float(along_mm[-1] - along_mm[0])
    if aside_mm.max() <= _ASLANT * length_mm + _ROUNDED_MM:
        return
    angle = np.degrees(np.arctan2(aside_mm[-1], length_mm))
    raise ArchiveError(
        f"its slices shift sideways by up to {aside_mm.max():.2f} mm (gantry tilt of {angle:.1f} degrees), "
        "expected them straight above each other; correct the tilt, as dcm2niix does"
    )


def _pair(frames: Sequence[Frame], first: int) -> str:
    """Name two neighbors; frames of one file by their numbers."""
    a, b = frames[first], frames[first + 1]
    if a.file == b.file:
        return f"frames {a.index + 1} and {b.index + 1} of {_name(a)}"
    return f"{_name(a)} and {_name(b)}"


def _name(frame: Frame) -> str:
    return frame.file.rpartition("/")[2]


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:g}" for value in values)
