"""How a patch is chosen, turned and made to look as another scanner might show it.

Every choice comes from a numpy generator that the caller seeds, so a patch is the same
wherever it is made. What changes brightness runs where the patch already is, on a GPU too.
It does not know which cases there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tutelage.methods.base import View
from tutelage.methods.settings import AugmentSettings

_SOMETIMES = 0.3
"""How often noise is added, and how often a patch is bent by a gamma."""

_VOXELS = 4096
"""Voxels of a structure that may be asked for; more of them would not make patches more diverse."""

SEEDS = 2**63
"""Seeds of a patch's noise, and of what a method draws for it, are below this."""

Triple = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Look:
    """How the intensities of one patch are changed."""

    contrast: float
    shift: float
    noise: float
    """Deviation; 0 adds none."""
    gamma: float | None
    seed: int
    """Of the noise."""


def foreground(
    label_DHW: NDArray[np.uint8], weight_DHW: NDArray[np.float32] | None
) -> tuple[NDArray[np.int64], ...]:
    """Return, for each structure that a label shows, indices of some of its voxels that count."""
    flat = label_DHW.ravel() if weight_DHW is None else np.where(weight_DHW > 0, label_DHW, 0).ravel()
    shown = np.flatnonzero(np.bincount(flat, minlength=1)[1:]) + 1
    found = [np.flatnonzero(flat == value) for value in shown]
    # Copied: a view would keep all of the voxels.
    return tuple(where[:: max(1, len(where) // _VOXELS)].copy() for where in found)


def view(
    shape: Triple,
    patch: Triple,
    voxels: Sequence[NDArray[np.int64]],
    settings: AugmentSettings,
    turns: int,
    rng: np.random.Generator,
) -> View:
    """Choose where a patch lies and how it is turned.

    `voxels` are those of structures (see `foreground`), `turns` is the least step of quarter
    turns: 1, or 2 where a quarter would change the patch's form.
    """
    room = [max(0, n - p) for n, p in zip(shape, patch, strict=True)]
    start = [int(rng.integers(0, r + 1)) for r in room]
    if voxels and rng.random() < settings.foreground_share:
        within = voxels[int(rng.integers(len(voxels)))]
        middle = np.unravel_index(within[rng.integers(len(within))], shape)
        start = [int(np.clip(m - p // 2, 0, r)) for m, p, r in zip(middle, patch, room, strict=True)]
    flips = [flip and bool(rng.random() < 0.5) for flip in settings.flips]
    quarters = turns * int(rng.integers(4 // turns)) if settings.quarter_turns else 0
    return View(shape, (start[0], start[1], start[2]), patch, (flips[0], flips[1], flips[2]), quarters)


def look(settings: AugmentSettings, rng: np.random.Generator) -> Look:
    """Choose other brightness, contrast, noise and gamma."""
    most = 1 + settings.contrast
    return Look(
        contrast=rng.uniform(1 / most, most),
        shift=rng.uniform(-settings.brightness, settings.brightness),
        noise=settings.noise if rng.random() < _SOMETIMES else 0.0,
        gamma=rng.uniform(*settings.gamma) if rng.random() < _SOMETIMES else None,
        seed=int(rng.integers(SEEDS)),
    )


def looked(image_CDHW: Tensor, how: Look) -> Tensor:
    """Return the patch with its intensities changed, on its own device."""
    x = image_CDHW * how.contrast + how.shift
    if how.noise:
        generator = torch.Generator(x.device).manual_seed(how.seed)
        x = x + how.noise * torch.randn(x.shape, generator=generator, device=x.device)
    if how.gamma is not None:
        low, high = x.min(), x.max()
        x = ((x - low) / (high - low + 1e-6)) ** how.gamma * (high - low) + low
    return x
