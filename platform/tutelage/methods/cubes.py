"""Patches cut into cubes: exchanged among images, or looked at one by one, and put back.

It decides where a patch of any shape is cut, so that the cut is clean at every level of a network.
It does not know what is learned from it.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import TrainingError
from tutelage.methods import chance

Triple = tuple[int, int, int]

_SHORTEST = 2
"""Cells of the coarsest level along a cube: of one cell no network with instance norms can tell anything."""


@dataclass(frozen=True, slots=True)
class Cubes:
    """Equal cubes that cover a patch; where they do not divide it, the last ones overlap the ones before."""

    patch: Triple
    size: Triple
    """Of a cube."""
    counts: Triple
    """Cubes along each axis."""

    def __len__(self) -> int:
        return math.prod(self.counts)

    @classmethod
    def of(cls, patch: Triple, multiple: Triple, most: int) -> "Cubes":
        """Cut at multiples of what the network shrinks, into at most `most` along each axis; flat stays flat.

        Raises:
            TrainingError: the patch is too small to be cut at all.
        """
        cells = [p // m for p, m in zip(patch, multiple, strict=True)]
        lengths = [min(n, max(_SHORTEST, math.ceil(n / most))) for n in cells]
        d, h, w = (n * m for n, m in zip(lengths, multiple, strict=True))
        i, j, k = (math.ceil(n / length) for n, length in zip(cells, lengths, strict=True))
        if i * j * k == 1:
            raise TrainingError(
                f"a patch of {patch} voxels, which the network shrinks to {cells}, cannot be cut into cubes, "
                f"expected more than {_SHORTEST} cells along an axis; set a larger specialist.patch or fewer "
                "specialist.channels"
            )
        return cls(patch, (d, h, w), (i, j, k))

    def cut(self, volume_BCDHW: Tensor) -> Tensor:
        """Return all cubes of all patches, (B * N, C, d, h, w), those of one patch side by side."""
        d, h, w = self.size
        starts = itertools.product(*map(self._starts, range(3)))
        cubes = [volume_BCDHW[..., z : z + d, y : y + h, x : x + w] for z, y, x in starts]
        return torch.stack(cubes, 1).flatten(0, 1)

    def join(self, cubes_NCdhw: Tensor) -> Tensor:
        """Undo `cut`, at this or a coarser level; where cubes overlap, the later one counts."""
        joined = cubes_NCdhw.reshape(-1, *self.counts, *cubes_NCdhw.shape[1:])
        for axis in (2, 1, 0):
            shrunk = self.size[axis] // joined.shape[axis - 3]
            starts = [start // shrunk for start in self._starts(axis)]
            kept = [after - start for start, after in itertools.pairwise(starts)]
            *first, last = joined.unbind(axis + 1)
            trimmed = [cube.narrow(axis - 3, 0, n) for cube, n in zip(first, kept, strict=True)]
            joined = torch.cat([*trimmed, last], axis - 3)
        return joined

    def draw(self, seeds: Sequence[int]) -> Tensor:
        """Draw from which of some images, which have seeds, each of their cubes shall come, (B, i, j, k)."""
        drawn = [torch.rand(self.counts, generator=chance.generator(seed, "cubes")) for seed in seeds]
        return torch.stack(drawn).argsort(0)

    def mix(self, volume_BCDHW: Tensor, source_Bijk: Tensor) -> Tensor:
        """Exchange cubes at the same place among images, at this or a coarser level."""
        source = self._spread(source_Bijk.to(volume_BCDHW.device), volume_BCDHW)
        return volume_BCDHW.gather(0, source.expand_as(volume_BCDHW))

    def unmix(self, volume_BCDHW: Tensor, source_Bijk: Tensor) -> Tensor:
        """Undo `mix`, at this or a coarser level."""
        return self.mix(volume_BCDHW, source_Bijk.argsort(0))

    def _spread(self, source_Bijk: Tensor, volume: Tensor) -> Tensor:
        """The source of every voxel, (B, 1, D, H, W); here cubes do not overlap, and the last are shorter."""
        for axis, (size, shrunk) in enumerate(zip(self.size, _shrunk(self.patch, volume), strict=True), 1):
            cube = torch.arange(volume.shape[axis + 1], device=volume.device) // (size // shrunk)
            source_Bijk = source_Bijk.index_select(axis, cube)
        return source_Bijk[:, None]

    def _starts(self, axis: int) -> list[int]:
        size, side = self.size[axis], self.patch[axis]
        return [min((n + 1) * size, side) - size for n in range(self.counts[axis])]


def coarser(label_BDHW: Tensor, level_BCdhw: Tensor) -> Tensor:
    """Every n-th voxel of a label or map, at the resolution of a level."""
    d, h, w = _shrunk(label_BDHW.shape[-3:], level_BCdhw)
    return label_BDHW[..., ::d, ::h, ::w]


def small(level_NCdhw: Tensor) -> Tensor:
    """Features of each cube in at most two cells an axis, flat: what the published network has of a cube."""
    d, h, w = (min(2, n) for n in level_NCdhw.shape[-3:])
    return F.adaptive_avg_pool3d(level_NCdhw, (d, h, w)).flatten(1)


def _shrunk(shape: Sequence[int], level: Tensor) -> list[int]:
    return [n // own for n, own in zip(shape, level.shape[-3:], strict=True)]
