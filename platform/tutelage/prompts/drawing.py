"""Questions of any kind about a mask.

It decides what a question holds for a generalist that takes this and not that, and which
questions ask on by themselves. It knows no image; what a generalist takes it is told.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tutelage.prompts.boxes import box, box_around
from tutelage.prompts.masks import mask
from tutelage.prompts.pieces import Labels, Piece, pieces
from tutelage.prompts.points import points
from tutelage.prompts.settings import Kind, PromptSettings
from tutelage.records import Prompt

Drawn = Literal[Kind, "box of points"]


@dataclass(frozen=True, slots=True)
class Takes:
    """What a generalist can be prompted with."""

    boxes: bool
    points: bool
    masks: bool


def suited(settings: PromptSettings, takes: Takes) -> Drawn | None:
    """Return what to draw for a generalist: what is set, or the box of its clicks; None if neither."""
    kind = settings.kinds
    if kind == "points" and not takes.points and takes.boxes and settings.box_from_points is not None:
        return "box of points"
    wants_boxes, wants_points = kind != "points", "points" in kind
    enough = (takes.boxes or not wants_boxes) and (takes.points or not wants_points)
    return kind if enough and (takes.masks or kind != "mask") else None


def nearest(settings: PromptSettings, takes: Takes) -> Drawn | None:
    """Return the same, or else the part of it that the generalist takes, or what stands for it."""
    exact = suited(settings, takes)
    if exact is not None:
        return exact
    if takes.boxes and settings.kinds != "points":
        return "boxes"
    return "points" if takes.points else None


def draw(
    mask_DHW: Labels, classes: int, settings: PromptSettings, seed: int, kind: Drawn | None = None
) -> list[Prompt]:
    """Draw questions on every slice, ordered by axis, slice, structure, piece and variant.

    `kind` is by default that of the settings. The mask is taken as it is: `clean` it first.
    """
    found = list(pieces(mask_DHW, classes, settings))
    ends = _ends(found) if settings.propagate else set()
    return [
        _question(piece, variant, settings, seed, kind or settings.kinds, _slice_of(piece) in ends)
        for piece in found
        for variant in range(settings.variants)
    ]


def _question(
    piece: Piece, variant: int, settings: PromptSettings, seed: int, kind: Drawn, propagate: bool
) -> Prompt:
    clicks = points(piece, variant, settings, seed) if "points" in kind else ()
    drawn = None if kind == "points" else box(piece, variant, settings, seed)
    if kind == "box of points":
        margin = settings.box_from_points or 0.0
        drawn, clicks = box_around(clicks, margin, piece.labels_HW.shape), ()
    return Prompt(
        piece.structure,
        piece.index,
        drawn,
        clicks,
        variant,
        piece.axis,
        mask(piece, variant, settings, seed) if kind == "mask" else None,
        propagate,
    )


def _slice_of(piece: Piece) -> tuple[int, int, int]:
    return piece.structure, piece.axis, piece.index


def _ends(found: list[Piece]) -> set[tuple[int, int, int]]:
    """First and last slice of every structure along every axis."""
    along: dict[tuple[int, int], list[int]] = {}
    for piece in found:
        along.setdefault((piece.structure, piece.axis), []).append(piece.index)
    return set(_outermost(along))


def _outermost(along: dict[tuple[int, int], list[int]]) -> Iterator[tuple[int, int, int]]:
    for (structure, axis), indices in along.items():
        yield structure, axis, min(indices)
        yield structure, axis, max(indices)
