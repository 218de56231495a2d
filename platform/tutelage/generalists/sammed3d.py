"""SAM-Med3D: a SAM of volumes. It takes clicks, and looks at a cube of 192 mm around a middle.

As published: the cube is sampled at 1.5 mm, voxels above zero are standardized, and clicks
are answered one after another, each with what was answered before as a mask, the first with
an empty one. Here volumes come windowed, so zero is the darkest percentile instead of air
or water. It knows nothing about slices or structures by name.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Embedding, Slice, VolumeAnswer, VolumePrompt
from tutelage.generalists.capabilities import CAPABILITIES
from tutelage.generalists.loading import Parts, chosen_dtype, loaded
from tutelage.generalists.settings import Precision
from tutelage.generalists.vit3d import EMBED_DIM, PATCH_VOXELS, CubeDecoder, CubeEncoder, CubePrompts
from tutelage.generalists.weights import Weights
from tutelage.records import Answer, Prompt

_STEP_MM = 1.5

_STATE = "model_state_dict"
"""Where the checkpoint has its state dict."""

_LOW = 4
"""Logits of the decoder along each side of a cell."""


@dataclass(frozen=True, slots=True)
class CubeSize:
    """The published size; tests have a smaller one."""

    side: int = 128
    """Voxels of the cube."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    everywhere: tuple[int, ...] = (2, 5, 8, 11)


@dataclass(frozen=True, slots=True)
class Cube:
    """Where a cube lies in a volume.

    Its axes are the network's, (X, Y, Z) of RAS+: X is W and Y is H, both the other way round.
    """

    middle: tuple[float, float, float]
    """Along (D, H, W) in voxel edges."""

    spacing_mm: tuple[float, float, float]
    side: int

    def cut(self, volume_DHW: Tensor) -> Tensor:
        """(X, Y, Z) sampled linearly from the volume, zero outside of it."""
        steps = torch.arange(self.side, dtype=torch.float64) + 0.5 - self.side / 2
        for axis, (middle, mm) in enumerate(zip(self.middle, self.spacing_mm, strict=True)):
            volume_DHW = _sampled(volume_DHW, axis, middle + steps * _STEP_MM / mm - 0.5)
        return volume_DHW.permute(2, 1, 0).flip(0, 1)

    def back(self, cube_XYZ: Tensor, shape: Sequence[int]) -> tuple[tuple[int, int, int], Tensor]:
        """First voxel, and (D, H, W) sampled linearly from the cube, of the box whose middles lie in it."""
        cube = cube_XYZ.flip(0, 1).permute(2, 1, 0)
        starts = []
        for axis, (middle, mm, voxels) in enumerate(zip(self.middle, self.spacing_mm, shape, strict=True)):
            places = torch.arange(voxels, dtype=torch.float64) + 0.5
            at = (places - middle) * mm / _STEP_MM + self.side / 2 - 0.5
            inside = torch.nonzero((at >= -0.5) & (at <= self.side - 0.5)).flatten()
            starts.append(int(inside[0]) if len(inside) else 0)
            cube = _sampled(cube, axis, at[inside].clamp(0, self.side - 1))
        return (starts[0], starts[1], starts[2]), cube

    def place(self, at: Sequence[float]) -> tuple[float, float, float]:
        """(X, Y, Z) of a click in voxels of the cube, from its first corner."""
        d, h, w = (
            (a - middle) * mm / _STEP_MM + self.side / 2
            for a, middle, mm in zip(at, self.middle, self.spacing_mm, strict=True)
        )
        return self.side - w, self.side - h, d


class SAMMed3D:
    """A loaded model; frozen, and the same answer to the same question."""

    capabilities = CAPABILITIES["sammed3d"]
    channels = EMBED_DIM

    def __init__(
        self,
        weights: Weights,
        precision: Precision = "auto",
        device: str | None = None,
        compiled: bool = False,
        size: CubeSize | None = None,
    ) -> None:
        """Load the weights onto a device, by default a GPU if there is one."""
        size = size or CubeSize()
        with torch.device("meta"):
            encoder = CubeEncoder(size.side, size.width, size.depth, size.heads, size.everywhere)
            parts = Parts(encoder, CubePrompts(size.side), CubeDecoder())
        parts = loaded(weights.path, "SAM-Med3D", parts, within=_STATE)
        self.side = size.side
        self.reach_mm = size.side / 2 * _STEP_MM
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = chosen_dtype(precision, self.device)
        self.weights = weights.digest
        told = f"cube of {size.side}, {_STEP_MM} mm, linear, {str(self.dtype).removeprefix('torch.')}"
        self.preprocessing = f"{told}, compiled" if compiled else told
        frozen = parts.encoder.to(self.device, self.dtype)
        self._encoder = torch.compile(frozen) if compiled else frozen
        # Prompts and masks stay fp32: they are cheap, and coordinates have no bits to spare.
        self._prompts, self._decoder = (part.to(self.device) for part in parts[1:])
        self._positions = self._prompts.positions()

    def embed(self, slices_HW: Sequence[Slice]) -> list[Embedding]:
        """Refuse: a slice is no volume.

        Raises:
            GeneralistError: always, if there are slices.
        """
        if slices_HW:
            raise GeneralistError(
                f"sammed3d was handed {len(slices_HW)} slices, expected a volume; ask with `segment_volume`"
            )
        return []

    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        """Refuse: a slice is no volume.

        Raises:
            GeneralistError: always.
        """
        raise GeneralistError(
            f"sammed3d was asked {len(prompts)} questions about a slice of {embedding.shape}, expected them "
            "about a volume; ask it with `segment_volume`"
        )

    @torch.inference_mode()
    def segment_volume(
        self, volume_DHW: Slice, spacing_mm: Sequence[float], prompts: Sequence[VolumePrompt]
    ) -> list[VolumeAnswer]:
        """Answer prompts about one volume; those with one middle after another look at it once.

        Raises:
            GeneralistError: if a prompt has no click inside, or one that is out of reach.
        """
        volume = torch.from_numpy(np.ascontiguousarray(volume_DHW, np.float32))
        d, h, w = (float(mm) for mm in spacing_mm)
        answers, seen, features = [], None, torch.zeros(0)
        for prompt in prompts:
            cube = Cube(prompt.middle, (d, h, w), self.side)
            if cube != seen:
                features, seen = self._looked(cube.cut(volume)), cube
            answers.append(self._answered(features, cube, prompt, volume_DHW.shape))
        return answers

    def _looked(self, cube_XYZ: Tensor) -> Tensor:
        """(1, C, X, Y, Z) features of a cube."""
        lit = cube_XYZ[cube_XYZ > 0]
        mean, spread = (lit.mean(), lit.std()) if len(lit) > 1 else (torch.zeros(()), torch.ones(()))
        standard_XYZ = (cube_XYZ - mean) / spread.clamp(min=1e-6)
        features: Tensor = self._encoder(standard_XYZ[None, None].to(self.device, self.dtype)).float()
        if not bool(torch.isfinite(features).all()):
            raise GeneralistError(
                f"sammed3d embeds a cube as values that are not numbers in {self.dtype}, expected a volume "
                "in [0, 1] and the published weights; check the image, or set precision: fp32"
            )
        return features

    def _answered(
        self, features_1CXYZ: Tensor, cube: Cube, prompt: VolumePrompt, shape: Sequence[int]
    ) -> VolumeAnswer:
        places_1T3, positive_1T = self._clicks(cube, prompt)
        cells = self.side // PATCH_VOXELS
        low_1XYZ = torch.zeros((1, _LOW * cells, _LOW * cells, _LOW * cells), device=self.device)
        iou = torch.zeros(1)
        for clicks in range(1, len(prompt.clicks) + 1):
            tokens_1TC, dense_1CXYZ = self._prompts(
                places_1T3[:, :clicks], positive_1T[:, :clicks], low_1XYZ[:, None]
            )
            low_1XYZ, iou = self._decoder(features_1CXYZ, self._positions, tokens_1TC, dense_1CXYZ)
        full = F.interpolate(low_1XYZ[:, None], 3 * [self.side], mode="trilinear", align_corners=False)
        start, logits_DHW = cube.back(full[0, 0].cpu(), shape)
        return VolumeAnswer(
            prompt,
            start,
            logits_DHW.contiguous().numpy(),
            float(iou.clamp(0, 1)),
            _pooled(features_1CXYZ[0], full[0] > 0),
        )

    def _clicks(self, cube: Cube, prompt: VolumePrompt) -> tuple[Tensor, Tensor]:
        """(1, T, 3) places in voxels of the cube, and (1, T) whether each is inside."""
        places = [cube.place(click.at) for click in prompt.clicks]
        if not any(click.positive for click in prompt.clicks):
            raise GeneralistError(
                f"the prompt for structure {prompt.structure} has {len(places)} clicks and none inside, "
                "but sammed3d needs one; draw one"
            )
        for place, click in zip(places, prompt.clicks, strict=True):
            if not all(0 <= v <= self.side for v in place):
                raise GeneralistError(
                    f"a click for structure {prompt.structure} is at {click.at}, more than "
                    f"{self.reach_mm:g} mm from the middle {prompt.middle}; leave it out, or move the middle"
                )
        signs = [[click.positive for click in prompt.clicks]]
        return torch.tensor([places], dtype=torch.float32, device=self.device), torch.tensor(
            signs, device=self.device
        )


def _sampled(x: Tensor, axis: int, at: Tensor) -> Tensor:
    """Linear along one axis, at places in middles of voxels; zero outside."""
    before = at.floor().long()
    share = (at - before).to(x.dtype)
    shape = [-1 if a == axis else 1 for a in range(x.ndim)]
    sampled = []
    for index, weight in ((before, 1 - share), (before + 1, share)):
        there = (index >= 0) & (index < x.shape[axis])
        values = x.index_select(axis, index.clamp(0, x.shape[axis] - 1))
        sampled.append(values * (weight * there).view(shape))
    return sampled[0] + sampled[1]


def _pooled(features_CXYZ: Tensor, mask_1XYZ: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float16]]:
    """Mean of the features over the mask, every voxel alike."""
    share_1XYZ = F.avg_pool3d(mask_1XYZ.float(), PATCH_VOXELS)
    total = share_1XYZ.sum().clamp(min=1e-6)
    return np.asarray(((features_CXYZ * share_1XYZ).sum(dim=(1, 2, 3)) / total).cpu().numpy(), np.float16)
