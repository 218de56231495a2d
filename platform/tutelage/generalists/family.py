"""What all promptable SAMs share: a slice becomes a square, prompts become tokens, tokens become masks.

A member of the family brings an image encoder and says how its square is made; prompt
encoder and mask decoder are segment_anything's. Prompts of one kind go through the decoder
together: as many tokens each, with or without a mask. A lone click is ambiguous, so the
best of three masks by the model's own opinion is taken; everything else asks for one. It
knows nothing about volumes, caches or structures by name.
"""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple, Self

import torch
from torch import Tensor

from tutelage.errors import GeneralistError
from tutelage.generalists import onednn
from tutelage.generalists.base import Capabilities, Embedding, Slice, refuse_unanswerable
from tutelage.generalists.batching import Batches
from tutelage.generalists.decoder import FastDecoder
from tutelage.generalists.frame import Frame, slice_colors
from tutelage.generalists.loading import Parts, chosen_dtype
from tutelage.generalists.settings import Precision
from tutelage.generalists.tinyvit import TinyViT
from tutelage.records import Answer, Prompt

_SLICES_AT_ONCE = {"cpu": 1, "cuda": 16}
"""More slices at a time do not make a CPU faster, only its memory fuller."""

_PROMPTS_AT_ONCE = {"cpu": 16, "cuda": 64}
"""Bounds the decoder's memory: about 25 MB a prompt in fp32."""

_SLICES_AHEAD = 64
"""Slices that are copied to a GPU while earlier ones are embedded."""


class _Kind(NamedTuple):
    """Prompts that are equal in this fit into one call of the decoder."""

    box: bool
    points: int
    mask: bool

    @classmethod
    def of(cls, prompt: Prompt) -> Self:
        return cls(prompt.box is not None, len(prompt.points), prompt.logits_HW is not None)

    @property
    def ambiguous(self) -> bool:
        return self == (False, 1, False)


class PromptableSam:
    """A loaded model; frozen, and the same answer to the same question."""

    def __init__(
        self,
        name: str,
        parts: Parts,
        frame: Frame,
        weights: str,
        capabilities: Capabilities,
        *,
        precision: Precision = "auto",
        device: str | None = None,
        compiled: bool = False,
    ) -> None:
        """Put the parts onto a device, by default a GPU if there is one."""
        self.name, self.frame, self.weights, self.capabilities = name, frame, weights, capabilities
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.dtype = chosen_dtype(precision, self.device)
        if self.device.type == "cpu":
            onednn.keep_pages()
        encoder = parts.encoder.to(self.device)
        encoder = encoder.lowered(self.dtype) if isinstance(encoder, TinyViT) else encoder.to(self.dtype)
        self._seen_in = next(encoder.parameters()).dtype
        told = [frame.told(), "fused", f"{self._seen_in} to {self.dtype}".replace("torch.", "")]
        self.preprocessing = ", ".join([*told, "compiled"] if compiled else told)
        encoder = encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._encoder = torch.compile(encoder) if compiled else encoder
        # Prompts stay fp32: coordinates have no bits to spare.
        self._prompt_encoder = parts.prompt_encoder.to(self.device)
        self._decoder = FastDecoder(self._prompt_encoder, parts.mask_decoder.to(self.device), self.dtype)
        self._slices = Batches(_SLICES_AT_ONCE[self.device.type], "slices")
        self._prompts = Batches(_PROMPTS_AT_ONCE[self.device.type], "prompts")
        self._copies = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]

    @property
    def halvings(self) -> int:
        """How often memory ran out since it was loaded, each time halving a batch."""
        return self._slices.halvings + self._prompts.halvings

    # --- embedding ----------------------------------------------------------------------------

    @torch.inference_mode()
    def embed(self, slices_HW: Sequence[Slice]) -> list[Embedding]:
        """Look at slices in [0, 1]; they may differ in shape, and may have three colors before it.

        Raises:
            GeneralistError: if a slice has other axes, or values that are not numbers.
        """
        images = [slice_colors(image_HW) for image_HW in slices_HW]
        rows: list[tuple[Tensor, Tensor]] = []
        for _, alike in itertools.groupby(images, key=self._cut):
            some = list(alike)
            for start in range(0, len(some), _SLICES_AHEAD):
                rows += self._slices.over(self._brought(some[start : start + _SLICES_AHEAD]), self._encoded)
        if self._copies is not None:
            self._copies.synchronize()
        return [self._remembered(*row, image_CHW) for row, image_CHW in zip(rows, images, strict=True)]

    def _cut(self, image_CHW: Tensor) -> tuple[tuple[int, int], tuple[int, int]]:
        """Return what is shown of the square and what is kept: slices that are alike in it go together."""
        shape = (image_CHW.shape[1], image_CHW.shape[2])
        return self.frame.shown(shape), self.frame.kept(shape)

    def _brought(self, images_CHW: Sequence[Tensor]) -> list[Tensor]:
        """The slices on the device; on a GPU they travel while it computes."""
        if self._copies is None:
            return list(images_CHW)
        computing = torch.cuda.current_stream(self.device)
        with torch.cuda.stream(self._copies):
            brought = [image.pin_memory().to(self.device, non_blocking=True) for image in images_CHW]
        computing.wait_stream(self._copies)
        for image in brought:
            image.record_stream(computing)
        return brought

    def _encoded(self, images_CHW: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Features and whether they are numbers; on a GPU the copies are still on their way to the host."""
        squares_B3HW = torch.stack([self.frame.square(image) for image in images_CHW]).to(self._seen_in)
        _, (rows, columns) = self._cut(images_CHW[0])
        features_BCHW = self._encoder(squares_B3HW.contiguous(memory_format=torch.channels_last))
        features_BCHW = features_BCHW[..., :rows, :columns]
        # Comparing is false of what is not a number.
        finite_B = features_BCHW.abs().amax(dim=(1, 2, 3)) <= torch.finfo(torch.float16).max
        # Layer norm ends the encoder, so values stay near 1 and fp16 holds what bf16 can say.
        features_BCHW = features_BCHW.to(torch.float16).contiguous()
        return list(zip(self._taken(features_BCHW), self._taken(finite_B), strict=True))

    def _taken(self, there: Tensor) -> Tensor:
        """The same on the host, once the stream of copies has finished."""
        if self._copies is None:
            return there
        here = torch.empty(there.shape, dtype=there.dtype, pin_memory=True)
        self._copies.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._copies):
            here.copy_(there, non_blocking=True)
        there.record_stream(self._copies)
        return here

    def _remembered(self, features_CHW: Tensor, finite: Tensor, image_CHW: Tensor) -> Embedding:
        if not bool(finite):
            raise GeneralistError(
                f"{self.name} embeds a slice as values that are not numbers in {self.dtype}, expected "
                "slices in [0, 1] and the published weights; check the image, or set precision: fp32"
            )
        return Embedding(features_CHW.numpy(), (image_CHW.shape[1], image_CHW.shape[2]))

    # --- prompting ----------------------------------------------------------------------------

    @torch.inference_mode()
    def segment(self, embedding: Embedding, prompts: Sequence[Prompt]) -> list[Answer]:
        """Answer prompts about one slice, those of a kind together.

        Raises:
            GeneralistError: if a prompt holds what this model does not take.
        """
        refuse_unanswerable(self.name, self.capabilities, prompts)
        features_1CHW = torch.from_numpy(embedding.features_CHW).to(self.device)[None]
        kinds: dict[_Kind, list[int]] = defaultdict(list)
        for position, prompt in enumerate(prompts):
            kinds[_Kind.of(prompt)].append(position)
        answers: dict[int, Answer] = {}
        for kind, positions in kinds.items():
            work = partial(self._answered, features_1CHW, embedding.shape, kind)
            told = self._prompts.over([prompts[position] for position in positions], work)
            answers.update(zip(positions, told, strict=True))
        return [answers[position] for position in range(len(prompts))]

    def _answered(
        self, features_1CHW: Tensor, shape: tuple[int, int], kind: _Kind, prompts: Sequence[Prompt]
    ) -> list[Answer]:
        sparse_BTC, dense_BCHW = self._tokens(prompts, shape, kind)
        cells = self.frame.cells(shape)
        low_BMHW, ious_BM = self._decoder(
            features_1CHW, sparse_BTC, dense_BCHW, multimask=kind.ambiguous, cells=cells
        )
        best_B = ious_BM.argmax(dim=1)
        rows_B = torch.arange(len(prompts), device=best_B.device)
        logits_B1HW = self.frame.restored(low_BMHW[rows_B, best_B][:, None].float(), shape)
        # A plain regression predicts the IoU: it can leave [0, 1].
        ious = ious_BM[rows_B, best_B].float().clamp(0, 1).tolist()
        logits_BHW = logits_B1HW[:, 0].cpu().numpy()
        return [Answer(*told) for told in zip(prompts, logits_BHW, ious, strict=True)]

    def _tokens(
        self, prompts: Sequence[Prompt], shape: tuple[int, int], kind: _Kind
    ) -> tuple[Tensor, Tensor]:
        points = boxes = masks = None
        if kind.points:
            places_BN2, signs_BN = self.frame.clicks(prompts, shape)
            points = (places_BN2.to(self.device), signs_BN.to(self.device))
        if kind.box:
            boxes = self.frame.corners(prompts, shape).to(self.device)
        if kind.mask:
            masks = self.frame.believed(prompts, shape).to(self.device)
        sparse_BTC, dense_BCHW = self._prompt_encoder(points=points, boxes=boxes, masks=masks)
        rows, columns = self.frame.kept(shape)
        return sparse_BTC, dense_BCHW[..., :rows, :columns]
