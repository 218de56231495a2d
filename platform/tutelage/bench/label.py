"""How fast a case is labeled, against the loop that everybody writes first.

Peer: for every slice the encoder as published, in fp32 and unfused, then one call of the
decoder for every box and its mask in the slice's pixels, like SamPredictor; same weights,
same boxes, same slices prepared in the same way, same threads or the same GPU. Ours is what
a labeling worker does with the same boxes: windows, embeds, decodes, keeps embeddings and
joins answers. Correctness first: every mask is compared.

It starts no Ray and needs few packages beside torch, so that it also runs where there is
little else:

    PYTHONPATH=platform python -m tutelage.bench.label --json label.json
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from tutelage.archive.synthetic import STRUCTURES, phantom
from tutelage.bench import base
from tutelage.bench.base import Bench, Measured, medians
from tutelage.generalists import onednn
from tutelage.generalists.base import Slice
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.litemedsam import LiteMedSAM, load_parts, model_corners, model_square
from tutelage.generalists.settings import CacheSettings, GeneralistSettings
from tutelage.generalists.slices import windowed
from tutelage.generalists.tinyvit import IMAGE_SIZE
from tutelage.generalists.volumes import ask
from tutelage.generalists.weights import find
from tutelage.measures import jaccard
from tutelage.prompts.boxes import boxes
from tutelage.prompts.settings import PromptSettings
from tutelage.records import Prompt
from tutelage.storage import Place

PEER = "plain per-slice fp32 loop"

_SPACING = (6.0, 1.5, 1.5)
_PIXELS = 100
"""Masks below this are a handful of pixels, of which one is more than a hundredth."""

_FIRST_ROUND = {"cpu": 2.0, "cuda": 6.0}
"""Goals."""

_AT_ONCE = {"cpu": 1, "cuda": 16}
"""Slices in one call of the bare encoder, as many as a worker's."""

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class _Case:
    """One volume, what is asked about it, and how."""

    image_DHW: NDArray[np.float32]
    scaled_DHW: Slice
    prompts: Sequence[Prompt]
    settings: GeneralistSettings

    @property
    def slices(self) -> list[int]:
        """Those with a prompt."""
        return sorted({prompt.index for prompt in self.prompts})


def run(repeats: int = 5, slices: int = 12) -> Bench:
    """Measure on `slices` slices of one phantom, `repeats` times each way."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    case = _case(slices)
    theirs = _Plain(device)
    weights = find()
    exact, quick = LiteMedSAM(weights, "fp32"), LiteMedSAM(weights, "auto")
    bare = _Bare(quick.dtype, device, [case.scaled_DHW[index] for index in case.slices])
    with tempfile.TemporaryDirectory() as folder:
        round_ = _Rounds(case, Path(folder))
        round_.first(exact)
        warm = round_.first(quick)
        first, first_fp32, cached, encoder, plain, plain_encoder = medians(
            [
                lambda: round_.first(quick),
                lambda: round_.first(exact),
                lambda: round_.again(quick, warm),
                bare,
                lambda: theirs.masks(case),
                lambda: theirs.features(case),
            ],
            repeats,
        )
    reference = theirs.masks(case)
    same_fp32, same = (_agreement(model, case, reference) for model in (exact, quick))
    mode = str(quick.dtype).removeprefix("torch.")
    told = (
        f"{len(case.slices)} slices of {case.scaled_DHW.shape[1]} x {case.scaled_DHW.shape[2]}, "
        f"{len(case.prompts)} boxes, {base.where(device)}, median of {repeats}"
    )
    limit = bare.told(encoder / len(case.slices))
    seconds = "seconds, theirs over ours"
    goal = _FIRST_ROUND[device.type]
    return Bench(
        "label",
        (
            _row("first_round", first, plain, plain / first, goal, f"{seconds}; {mode}; {told}"),
            _row("first_round_fp32", first_fp32, plain, plain / first_fp32, 1.3, f"{seconds}; {told}"),
            _row(
                "cached_round",
                cached,
                plain,
                plain / cached,
                10.0,
                f"{seconds}; {mode}, embeddings kept; {told}",
            ),
            _row(
                "encoder_share",
                encoder / first,
                plain_encoder / plain,
                encoder / first,
                0.85,
                f"time of bare encoder calls over time of the first round; ratio is ours; {mode}; {limit}",
            ),
            _row("mask_iou_min_fp32", same_fp32.smallest, 1.0, same_fp32.smallest, 0.99, same_fp32.told()),
            _row("mask_iou_min", same.smallest, 1.0, same.smallest, 0.97, f"{mode}; {same.told()}"),
        ),
    )


def _row(name: str, ours: float, theirs: float, ratio: float, goal: float, note: str) -> Measured:
    return Measured(f"label.{name}", PEER, ours, theirs, ratio, goal, "higher", note)


def _case(slices: int) -> _Case:
    """Slices spread over a whole phantom, one box a structure on each: 1 to 9, 5 on average."""
    settings = GeneralistSettings(cache=CacheSettings(when="always"))
    patient = phantom(0, 0, spacing=_SPACING, styles=("ct",))
    chosen = np.unique(np.linspace(0, len(patient.image_DHW) - 1, slices).astype(int))
    image_DHW = patient.image_DHW[chosen].astype(np.float32)
    prompts = boxes(patient.label_DHW[chosen], len(STRUCTURES) + 1, PromptSettings(), seed=0)
    return _Case(image_DHW, windowed(image_DHW, settings.window), prompts, settings)


class _Rounds:
    """Ours: what a labeling worker does with one volume."""

    def __init__(self, case: _Case, folder: Path) -> None:
        self._case = case
        self._folder = folder
        self._count = 0

    def first(self, model: LiteMedSAM) -> EmbeddingCache:
        """A first round; returns the cache that it has filled."""
        self._count += 1
        cache = EmbeddingCache(Place.of(self._folder / str(self._count)), model, self._case.settings.cache)
        return self.again(model, cache)

    def again(self, model: LiteMedSAM, cache: EmbeddingCache) -> EmbeddingCache:
        """A round with this cache."""
        case = self._case
        ask(model, case.image_DHW, "phantom", case.prompts, len(STRUCTURES) + 1, cache, case.settings)
        return cache


class _Bare:
    """Our encoder alone, on slices that have been prepared and wait on the device."""

    def __init__(self, dtype: torch.dtype, device: torch.device, slices_HW: Sequence[Slice]) -> None:
        encoder, _, _ = load_parts(find().path)
        square_13HW = torch.zeros(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        with torch.inference_mode(), FlopCounterMode(display=False) as counter:
            encoder(square_13HW)
        self._gflop: float = counter.get_total_flops() / 1e9
        self._dtype, self._device = dtype, device
        last = torch.channels_last
        self._encoder = encoder.fuse().to(device).lowered(dtype).to(memory_format=last)  # type: ignore[call-overload]
        squares_B3HW = torch.stack([model_square(image_HW) for image_HW in slices_HW]).to(device)
        self._squares = torch.split(squares_B3HW.contiguous(memory_format=last), _AT_ONCE[device.type])

    @torch.inference_mode()
    def __call__(self) -> None:
        """Encode every slice."""
        for some_B3HW in self._squares:
            self._encoder(some_B3HW)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def told(self, seconds: float) -> str:
        """How near the encoder comes to what the machine can do."""
        peaks = {dtype: _peak_gflops(dtype, self._device) for dtype in (torch.float32, self._dtype)}
        machine = ", ".join(
            f"{peak:.0f} in {str(dtype).removeprefix('torch.')}" for dtype, peak in peaks.items()
        )
        achieved = self._gflop / seconds
        return (
            f"{self._gflop:.0f} GFLOP a slice at {achieved:.0f} GFLOP/s, "
            f"{achieved / peaks[self._dtype]:.0%} of a large matrix product's ({machine})"
        )


@torch.inference_mode()
def _peak_gflops(dtype: torch.dtype, device: torch.device, side: int = 2048, times: int = 7) -> float:
    """What a large matrix product reaches."""
    factors = torch.rand(2, side, side, device=device).to(dtype)
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        onednn.linear(factors[0], factors[1], None)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - started)
    return 2 * side**3 / statistics.median(seconds) / 1e9


class _Plain:
    """The peer."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        parts: Sequence[Any] = [part.to(device) for part in load_parts(find().path)]
        self._encoder, self._prompt_encoder, self._decoder = parts

    @torch.inference_mode()
    def features(self, case: _Case) -> list[Tensor]:
        """Embeddings of every slice, one by one."""
        features = [self._features(case.scaled_DHW[index]) for index in case.slices]
        return [one.cpu() for one in features]

    @torch.inference_mode()
    def masks(self, case: _Case) -> list[Mask]:
        """One mask a prompt, in order."""
        found = []
        features_1CHW, index = torch.zeros(0), -1
        shape = (case.scaled_DHW.shape[1], case.scaled_DHW.shape[2])
        for prompt in case.prompts:
            if prompt.index != index:
                features_1CHW, index = self._features(case.scaled_DHW[prompt.index]), prompt.index
            corners_14 = model_corners([prompt], shape).to(self._device)
            sparse, dense = self._prompt_encoder(points=None, boxes=corners_14, masks=None)
            low_11HW, _ = self._decoder(
                image_embeddings=features_1CHW,
                image_pe=self._prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            found.append(_in_pixels(low_11HW, shape))
        return found

    def _features(self, image_HW: Slice) -> Tensor:
        features_1CHW: Tensor = self._encoder(model_square(image_HW)[None].contiguous().to(self._device))
        return features_1CHW


def _in_pixels(low_11HW: Tensor, shape: tuple[int, int]) -> Mask:
    """As SamPredictor does: up to the model's square, cut, up or down to the slice, thresholded."""
    high, wide = (int(n * IMAGE_SIZE / max(shape) + 0.5) for n in shape)
    square = F.interpolate(low_11HW, (IMAGE_SIZE, IMAGE_SIZE), mode="bilinear", align_corners=False)
    logits_11HW = F.interpolate(square[..., :high, :wide], shape, mode="bilinear", align_corners=False)
    return np.asarray((logits_11HW[0, 0] > 0).cpu().numpy())


@dataclass(frozen=True)
class _Agreement:
    """How alike ours and the peer's masks are."""

    smallest: float
    """IoU over masks of _PIXELS or more."""

    compared: int
    tiny: int
    tiny_pixels: int
    """Pixels that differ at most in one of the tiny masks."""

    def told(self) -> str:
        """Return it in words."""
        text = f"smallest IoU of {self.compared} masks of {_PIXELS} pixels or more"
        return (
            f"{text}; in {self.tiny} smaller ones {self.tiny_pixels} pixels differ at most"
            if self.tiny
            else text
        )


def _agreement(model: LiteMedSAM, case: _Case, reference: Sequence[Mask]) -> _Agreement:
    found: dict[int, Mask] = {}
    for index in case.slices:
        asked = [n for n, prompt in enumerate(case.prompts) if prompt.index == index]
        (embedding,) = model.embed([case.scaled_DHW[index]])
        answers = model.segment(embedding, [case.prompts[n] for n in asked])
        found |= {n: answer.logits_HW > 0 for n, answer in zip(asked, answers, strict=True)}
    pairs = [(found[n], mask_HW) for n, mask_HW in enumerate(reference)]
    large = [jaccard(ours, theirs) for ours, theirs in pairs if theirs.sum() >= _PIXELS]
    tiny = [int((ours ^ theirs).sum()) for ours, theirs in pairs if theirs.sum() < _PIXELS]
    return _Agreement(min(large), len(large), len(tiny), max(tiny, default=0))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and say so, without the rest of the package."""
    parser = argparse.ArgumentParser(prog="python -m tutelage.bench.label", description=__doc__)
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slices", type=int, default=12)
    told = parser.parse_args(arguments)
    base.told(run(told.repeats, told.slices), told.json)


if __name__ == "__main__":
    main()
