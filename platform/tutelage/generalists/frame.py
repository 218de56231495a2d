"""How a slice becomes the square that a SAM sees, and how what it says goes back into the slice's pixels.

Prompts make the same way as pixels. A slice that may not be magnified as far as the square
is large lies in its first corner; embeddings then end with the cells that hold it, and what
an encoder need not see is not made. It knows no network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Slice
from tutelage.records import Prompt

LOW = 4
"""Logits of the decoder along each side of a cell."""

_OUTSIDE = -10.0
"""Logit of the padding of a mask that is a prompt."""


@dataclass(frozen=True, slots=True)
class Frame:
    """How a slice becomes the square that an encoder sees, and how what comes out goes back."""

    side: int
    """Pixels of the square."""

    fit: Literal["longest", "stretch"] = "longest"
    """longest: scaled until its longest side fits, padded right and below. stretch: along each side."""

    colors: Literal["as they are", "imagenet", "extremes"] = "as they are"
    """imagenet: standardized. extremes: darkest and brightest of the slice become 0 and 1."""

    grid: int = 64
    """Cells of the embedding along each side of the square."""

    magnify: float | None = None
    """How many times a slice is magnified at most; None: until it fills the square. Only with `longest`."""

    partial: bool = False
    """Whether the encoder is shown only the cells of the square that hold a slice; needs `magnify`."""

    def __post_init__(self) -> None:
        if self.magnify is None and self.partial:
            raise ValueError("found a part of a square without magnify, expected both; set magnify")
        if self.magnify is not None and self.fit != "longest":
            raise ValueError(f"found magnify with fit {self.fit}, expected longest; set one of them")

    @property
    def cell(self) -> int:
        """Pixels of the square along each side of a cell."""
        return self.side // self.grid

    def told(self) -> str:
        """Words that change whenever the square would."""
        fit = "longest side" if self.fit == "longest" else "both sides"
        how = "bilinear, padded right and below" if self.fit == "longest" else "bicubic"
        bound = "" if self.magnify is None else f", magnified {self.magnify:g} times"
        part = ", in part" if self.partial else ""
        colors = "" if self.colors == "as they are" else f", {self.colors}"
        return f"{fit} {self.side}, {how}{colors}{bound}{part}"

    def scaled(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Pixels of a slice inside the square."""
        if self.fit == "stretch":
            return self.side, self.side
        return _fitted(shape, self._longest(shape))

    def _longest(self, shape: tuple[int, int]) -> int:
        """Pixels of the longest side in the square: whole cells, so that features tell its scale."""
        if self.magnify is None:
            return self.side
        cells = int(max(shape) * self.magnify / self.cell)
        return self.cell * min(self.grid, max(1, cells))

    def square(self, image_CHW: Tensor) -> Tensor:
        """(3, side, side), or the part of it that is shown, of one or three colors in [0, 1]."""
        height, width = self.scaled((image_CHW.shape[1], image_CHW.shape[2]))
        mode = "bilinear" if self.fit == "longest" else "bicubic"
        # Antialiasing changes nothing when enlarging; when shrinking it averages, as in training.
        scaled_CHW = F.interpolate(
            image_CHW[None], (height, width), mode=mode, align_corners=False, antialias=True
        )[0]
        colored_3HW = self._colored(scaled_CHW.expand(3, -1, -1))
        rows, columns = self.shown((image_CHW.shape[1], image_CHW.shape[2]))
        return F.pad(colored_3HW, (0, columns - width, 0, rows - height))

    def shown(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Pixels that the encoder is shown of the square."""
        if not self.partial:
            return self.side, self.side
        rows, columns = self.kept(shape)
        return rows * self.cell, columns * self.cell

    def kept(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of cells that an embedding has: all, or with `magnify` those of the slice."""
        if self.magnify is None:
            return self.grid, self.grid
        rows, columns = (-(-n // self.cell) for n in self.scaled(shape))
        return rows, columns

    def _colored(self, image_3HW: Tensor) -> Tensor:
        if self.colors == "imagenet":
            mean_311, std_311 = _imagenet(image_3HW.device)
            return (image_3HW - mean_311) / std_311
        if self.colors == "extremes":
            image_3HW = image_3HW.clamp(0, 1)  # bicubic overshoots at edges
            low, high = image_3HW.min(), image_3HW.max()
            return (image_3HW - low) / (high - low).clamp(min=1e-8)
        return image_3HW

    def corners(self, prompts: Sequence[Prompt], shape: tuple[int, int]) -> Tensor:
        """(B, 4): x and y of the first corner of each box, then of the last, in pixels of the square."""
        down, right = self._stretch(shape)
        boxes = [prompt.box for prompt in prompts if prompt.box is not None]
        edges = [(*box.start, *box.stop) for box in boxes]
        corners = [(left * right, top * down, far * right, low * down) for top, left, low, far in edges]
        return torch.tensor(corners, dtype=torch.float32)

    def clicks(self, prompts: Sequence[Prompt], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """(B, N, 2) x and y in pixels of the square, and (B, N) 1 for inside and 0 for outside.

        The prompt encoder takes indices of pixels and adds the half that leads to their middle;
        clicks come as distances from the slice's edge and already have it.
        """
        down, right = self._stretch(shape)
        points = [prompt.points for prompt in prompts]
        places = [[(p.at[1] * right - 0.5, p.at[0] * down - 0.5) for p in some] for some in points]
        signs = [[p.positive for p in some] for some in points]
        return torch.tensor(places, dtype=torch.float32), torch.tensor(signs, dtype=torch.float32)

    def believed(self, prompts: Sequence[Prompt], shape: tuple[int, int]) -> Tensor:
        """(B, 1, 4 grid, 4 grid): masks that are prompts, as logits where the decoder would put its own."""
        side = LOW * self.grid
        height, width = (side, side)
        if self.fit == "longest":
            height, width = _fitted(shape, self._longest(shape) * side // self.side)
        squares = []
        for prompt in prompts:
            if prompt.logits_HW is not None:
                logits_11HW = torch.from_numpy(prompt.logits_HW).float()[None, None]
                scaled = F.interpolate(
                    logits_11HW, (height, width), mode="bilinear", align_corners=False, antialias=True
                )
                squares.append(F.pad(scaled, (0, side - width, 0, side - height), value=_OUTSIDE)[0])
        return torch.stack(squares)

    def cells(self, shape: tuple[int, int]) -> tuple[int, int]:
        """Rows and columns of an embedding that hold the slice and what its last pixels lean on."""
        leaned = (n // self.cell + 1 for n in self.scaled(shape))
        rows, columns = (min(there, n) for there, n in zip(self.kept(shape), leaned, strict=True))
        return rows, columns

    def restored(self, low_BMHW: Tensor, shape: tuple[int, int]) -> Tensor:
        """(B, M, *shape) logits from those of the decoder, of which rows and columns may be missing."""
        if self.fit == "stretch":
            # Where a model averages probabilities, a confident pixel must not outvote its neighbors.
            inside = F.interpolate(low_BMHW.sigmoid(), shape, mode="bilinear", align_corners=False)
            return inside.logit(eps=1e-6)
        height, width = self.scaled(shape)
        factor = self.cell // LOW
        size = [factor * low_BMHW.shape[2], factor * low_BMHW.shape[3]]
        square = F.interpolate(low_BMHW, size, mode="bilinear", align_corners=False)
        return F.interpolate(square[..., :height, :width], shape, mode="bilinear", align_corners=False)

    def _stretch(self, shape: tuple[int, int]) -> tuple[float, float]:
        down, right = (after / before for after, before in zip(self.scaled(shape), shape, strict=True))
        return down, right


def _fitted(shape: tuple[int, int], longest: int) -> tuple[int, int]:
    """Return a shape whose longest side is that, in the same proportion."""
    height, width = (max(1, int(n * longest / max(shape) + 0.5)) for n in shape)
    return height, width


@cache
def _imagenet(device: torch.device) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the colors that SAM was taught with, for colors in [0, 1].

    Kept, because every copy of a few numbers to a GPU makes both wait for each other.
    """
    mean_311 = torch.tensor([0.485, 0.456, 0.406], device=device)[:, None, None]
    return mean_311, torch.tensor([0.229, 0.224, 0.225], device=device)[:, None, None]


def slice_colors(image_HW: Slice) -> Tensor:
    """(C, H, W) of a slice, C being 1 or 3."""
    image = torch.from_numpy(image_HW.astype("float32", order="C", copy=False))
    if image.ndim == 2:
        return image[None]
    if image.ndim == 3 and image.shape[0] in (1, 3):
        return image
    raise GeneralistError(
        f"a slice has shape {tuple(image.shape)}, expected (H, W), or 1 or 3 colors before them; "
        "hand over one slice at a time, colors first"
    )
