"""The plan of a specialist: at what spacing it looks, how much at once, and how deep it is.

Derived from the grids of the archive and the settings, or read from a file that a person has
edited, then fixed: it is stored beside the weights, because weights without it mean
nothing. It knows nothing about torch.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal, get_args

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import Field, model_validator

from tutelage.errors import TrainingError
from tutelage.geometry import Grid
from tutelage.settings import Settings, load
from tutelage.specialist.settings import Norm, SpecialistSettings
from tutelage.storage import Place

Triple = tuple[int, int, int]

_ADVICE = """\
# What specialists of this workspace are: at what spacing (mm) they look, how much at once, and how
# deep they are, always in the order D, H, W. Edit it, and stages are trained again by it; delete
# it, and it is derived from the archive and the settings again.
"""

_ANISOTROPIC = 1.5
"""An axis this many times as coarse as the finest that can still be halved waits for the others."""

_SHORTEST = 4
"""An axis is not halved to fewer cells than this."""

_MOST_STRUCTURES = 255
"""Labels are bytes, and the background is one of their values."""


class TextPlan(Settings):
    """How vectors of texts enter a network; the vectors themselves lie with its weights."""

    kind: Literal["bottleneck", "head"]
    """Fused into the bottleneck's features, or turned into the last layers of each class."""
    topics: int = Field(ge=1)
    """Texts about each class, for example its shape and its position."""
    width: int = Field(ge=1)
    """Numbers in a vector."""


class Plan(Settings):
    """Everything that weights need to mean something."""

    structures: tuple[str, ...] = Field(min_length=1, max_length=_MOST_STRUCTURES)
    """Names by label value, from 1."""
    channels_in: int = Field(default=1, ge=1)
    """Channels of an image."""
    spacing: tuple[float, float, float]
    """Millimeters along (D, H, W) at which the network looks."""
    patch: Triple
    """Voxels along (D, H, W) that it is shown at once in training."""
    network: str
    """A key of NETWORKS."""
    channels: tuple[int, ...]
    """Features by level."""
    strides: tuple[Triple, ...]
    """How each level shrinks the grid."""
    norm: Norm = "instance"
    """What features are normalized over: each image by itself, or the batch."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Share of features that are left out in training."""
    text: TextPlan | None = None
    """How texts enter the network; None for a network that knows none."""

    @model_validator(mode="before")
    @classmethod
    def _without_batch(cls, values: Any) -> Any:
        """Plans were once stored with a `batch` that nobody read."""
        return {key: values[key] for key in values if key != "batch"} if isinstance(values, dict) else values

    @property
    def headless(self) -> bool:
        """Whether the network's own last layer gives way to one made from texts."""
        return self.text is not None and self.text.kind == "head"

    @property
    def kernel(self) -> Triple:
        """Voxels that a convolution looks at; a flat network has flat kernels."""
        return (1, 3, 3) if self.patch[0] == 1 else (3, 3, 3)

    @property
    def classes(self) -> int:
        """Structures and the background."""
        return len(self.structures) + 1

    @property
    def multiple(self) -> Triple:
        """What each side of a patch must be a multiple of."""
        d, h, w = (math.prod(stride[axis] for stride in self.strides) for axis in range(3))
        return d, h, w

    def problems(self) -> Iterator[tuple[str, str]]:
        """Complain about what a person may have written that no network can be."""
        known = get_args(SpecialistSettings.model_fields["network"].annotation)
        if self.network not in known:
            yield "network", f"found {self.network!r}, expected one of {', '.join(known)}"
        if len(self.channels) < 2 or min(self.channels) < 1:
            yield "channels", f"found {list(self.channels)}, expected two or more positive numbers"
        if len(self.strides) != len(self.channels) - 1:
            expected = len(self.channels) - 1
            yield "strides", f"found {len(self.strides)}, expected {expected}, one less than channels"
        if not all(mm > 0 and math.isfinite(mm) for mm in self.spacing):
            yield "spacing", f"found {list(self.spacing)} mm, expected positive numbers"
        if min(itertools.chain(*self.strides), default=1) < 1:
            yield "strides", f"found {[list(s) for s in self.strides]}, expected positive numbers"
            return
        cells = [n / m for n, m in zip(self.patch, self.multiple, strict=True)]
        if not all(n >= 1 and n.is_integer() for n in cells):
            near = [max(1, round(n)) * m for n, m in zip(cells, self.multiple, strict=True)]
            yield (
                "patch",
                f"found {list(self.patch)}, expected multiples of {list(self.multiple)}, by which the "
                f"strides divide; take for example {near}",
            )
        elif math.prod(cells) == 1:
            yield "strides", "nothing but one cell is left of a patch; take fewer or a larger patch"


def read_plan(place: Place) -> Plan | None:
    """Return the plan that a file holds, or None if there is no file.

    Raises:
        SettingsError: the file is there and is no plan, with everything that is wrong in it.
    """
    return load(place, Plan) if place.exists() else None


def write_plan(place: Place, plan: Plan) -> None:
    """Write a plan for a person to edit."""
    # Triples on one line each are what a person can read.
    text = yaml.safe_dump(plan.model_dump(mode="json"), sort_keys=False, default_flow_style=None)
    place.write_text(_ADVICE + str(text))


def make_plan(
    grids: Sequence[Grid], structures: Sequence[str], channels_in: int, settings: SpecialistSettings
) -> Plan:
    """Plan for the middle one of these grids.

    Raises:
        TrainingError: there is nothing to plan for: no grid, no structure, or volumes of one voxel.
    """
    _check(grids, structures)
    spacings = np.array([grid.spacing for grid in grids])
    extents = np.array([np.multiply(grid.shape, grid.spacing) for grid in grids])
    spacing = settings.spacing or _rounded(np.median(spacings, axis=0))
    shape = np.maximum(1, np.rint(np.median(extents, axis=0) / spacing)).astype(int)
    patch = settings.patch or _affordable(shape, settings.max_patch_voxels)
    if math.prod(patch) == 1:
        raise TrainingError(
            f"a volume of {shape.tolist()} voxels at {spacing} mm is shown in patches of one voxel, expected "
            "more; set a finer specialist.spacing or a larger specialist.patch"
        )
    strides = _strides(patch, spacing, len(settings.channels) - 1)
    multiple = [math.prod(stride[axis] for stride in strides) for axis in range(3)]
    # To the nearest multiple: up would cost half as much again for a rim of padding.
    d, h, w = (max(m, round(n / m) * m) for n, m in zip(patch, multiple, strict=True))
    return Plan(
        structures=tuple(structures),
        channels_in=channels_in,
        spacing=spacing,
        patch=(d, h, w),
        network=settings.network,
        channels=settings.channels,
        strides=strides,
        norm=settings.norm,
        dropout=settings.dropout,
    )


def _check(grids: Sequence[Grid], structures: Sequence[str]) -> None:
    if not grids:
        raise TrainingError("there is no image to plan a specialist for; give at least one case")
    if not 1 <= len(structures) <= _MOST_STRUCTURES:
        raise TrainingError(
            f"there are {len(structures)} structures, expected 1 to {_MOST_STRUCTURES} because labels are "
            "bytes; choose among them"
        )


def _rounded(spacing_mm: NDArray[np.float64]) -> tuple[float, float, float]:
    """Four digits make a readable plan; what they round to nothing keeps all of its own."""
    d, h, w = (round(float(v), 4) or float(v) for v in spacing_mm)
    return d, h, w


def _affordable(shape: Sequence[int], most: int) -> Triple:
    """The whole volume if that is not too much, else a part of its form; a flat one stays flat."""
    axes = sum(n > 1 for n in shape) or 1
    shrink = min(1.0, (most / math.prod(int(n) for n in shape)) ** (1 / axes))
    d, h, w = (max(1, round(n * shrink)) for n in shape)
    return d, h, w


def _strides(patch: Sequence[int], spacing: Sequence[float], levels: int) -> tuple[Triple, ...]:
    """Halve the finest axes first, and none until nothing is left of it."""
    cells, size = [float(n) for n in patch], list(spacing)
    strides: list[Triple] = []
    for _ in range(levels):
        # An axis too short to be halved does not hold up the others, however fine it is.
        finest = min((s for s, n in zip(size, cells, strict=True) if n / 2 >= _SHORTEST), default=0.0)
        d, h, w = (
            2 if n / 2 >= _SHORTEST and s < _ANISOTROPIC * finest else 1
            for n, s in zip(cells, size, strict=True)
        )
        cells = [n / k for n, k in zip(cells, (d, h, w), strict=True)]
        size = [s * k for s, k in zip(size, (d, h, w), strict=True)]
        strides.append((d, h, w))
    return tuple(strides)
