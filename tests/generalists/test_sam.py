"""SAM and MedSAM against the loop that their definitions describe, with small networks of random weights."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Slice
from tutelage.generalists.loading import modeling
from tutelage.generalists.sam import SIZES, LeanAttention, MedSAM, Sam, Size, empty_parts
from tutelage.generalists.weights import Weights
from tutelage.geometry import Box
from tutelage.records import Point, Prompt

pytestmark = pytest.mark.torch

TINY = Size(width=32, depth=2, heads=2, everywhere=(1,), side=256)
GRID = TINY.side // 16
MEAN = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
STD = torch.tensor([58.395, 57.12, 57.375])[:, None, None]

IN, OUT = Point((30.5, 40.5), positive=True), Point((70.5, 20.5), positive=False)
BOX = Box((10.0, 20.0), (60.0, 85.0))


def _random_sam() -> Any:
    """segment_anything's own class with seeded weights, offsets and norms included."""
    torch.manual_seed(0)
    parts = empty_parts(TINY)
    sam = modeling().Sam(parts.encoder, parts.prompt_encoder, parts.mask_decoder).to_empty(device="cpu")
    generator = torch.Generator().manual_seed(0)
    for name, value in [*sam.named_parameters(), *sam.named_buffers()]:
        spread = 1.0 if "gaussian" in name else 0.2
        value.data = spread * torch.randn(value.shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            value.data += 1.0
    sam.pixel_mean, sam.pixel_std = MEAN, STD
    return sam.eval()


@pytest.fixture(scope="module")
def reference() -> Any:
    return _random_sam()


@pytest.fixture(scope="module")
def weights(reference: Any, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save(reference.state_dict(), path)
    return Weights(path, "0123456789abcdef")


@pytest.fixture(scope="module")
def ours(weights: Weights) -> Sam:
    return Sam(weights, precision="fp32", device="cpu", size=TINY)


def _image(shape: tuple[int, ...], seed: int = 0) -> Slice:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def _scaled(shape: tuple[int, int], longest: int) -> tuple[int, int]:
    scale = longest / max(shape)
    return int(shape[0] * scale + 0.5), int(shape[1] * scale + 0.5)


@torch.inference_mode()
def _by_the_book(
    sam: Any, image: Slice, prompt: Prompt, longest: int = TINY.side
) -> tuple[NDArray[np.float32], float]:
    """One slice, one prompt, through segment_anything's own modules as its predictor calls them.

    A slice that does not fill the square is decoded from its own cells.
    """
    colors = torch.from_numpy(image if image.ndim == 3 else image[None]).expand(3, -1, -1)
    shape = (colors.shape[1], colors.shape[2])
    size = _scaled(shape, longest)
    rows, columns = (GRID, GRID) if longest == TINY.side else (-(-n // 16) for n in size)
    scaled = F.interpolate(255 * colors[None], size, mode="bilinear", align_corners=False, antialias=True)
    features = sam.image_encoder(sam.preprocess(scaled))
    down, right = size[0] / shape[0], size[1] / shape[1]
    points = boxes = masks = None
    if prompt.points:
        places = [[p.at[1] * right - 0.5, p.at[0] * down - 0.5] for p in prompt.points]
        points = torch.tensor([places]), torch.tensor([[float(p.positive) for p in prompt.points]])
    if prompt.box is not None:
        (top, left), (bottom, across) = prompt.box.start, prompt.box.stop
        boxes = torch.tensor([[left * right, top * down, across * right, bottom * down]])
    if prompt.logits_HW is not None:
        low = (size[0] * 4 * GRID // TINY.side, size[1] * 4 * GRID // TINY.side)
        believed = torch.from_numpy(prompt.logits_HW)[None, None]
        believed = F.interpolate(believed, low, mode="bilinear", align_corners=False, antialias=True)
        masks = torch.full((1, 1, 4 * GRID, 4 * GRID), -10.0)
        masks[..., : low[0], : low[1]] = believed
    lone = len(prompt.points) == 1 and boxes is None and masks is None
    sparse, dense = sam.prompt_encoder(points=points, boxes=boxes, masks=masks)
    low_masks, ious = sam.mask_decoder(
        image_embeddings=features[..., :rows, :columns],
        image_pe=sam.prompt_encoder.get_dense_pe()[..., :rows, :columns],
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense[..., :rows, :columns],
        multimask_output=lone,
    )
    best = int(ious[0].argmax())
    square = F.interpolate(low_masks, (16 * rows, 16 * columns), mode="bilinear", align_corners=False)
    logits = F.interpolate(square[..., : size[0], : size[1]], shape, mode="bilinear", align_corners=False)[
        0, best
    ]
    return logits.numpy(), float(ious[0, best].clamp(0, 1))


def _agrees(ours: Sam, sam: Any, image: Slice, prompts: list[Prompt], longest: int = TINY.side) -> None:
    (embedding,) = ours.embed([image])
    for answer, prompt in zip(ours.segment(embedding, prompts), prompts, strict=True):
        logits_HW, iou = _by_the_book(sam, image, prompt, longest)
        assert answer.prompt is prompt
        assert answer.logits_HW.shape == logits_HW.shape
        spread = float(np.abs(logits_HW).max())
        assert (
            float(np.abs(answer.logits_HW - logits_HW).max()) < 5e-3 * spread
        )  # embeddings are kept in fp16
        assert answer.predicted_iou == pytest.approx(iou, abs=5e-3)


MASK = np.linspace(-4, 4, 64 * 48, dtype=np.float32).reshape(64, 48)
KINDS = {
    "a box": Prompt(1, 0, BOX),
    "a lone click": Prompt(1, 0, points=(IN,)),
    "two clicks": Prompt(1, 0, points=(IN, OUT)),
    "a box and a click": Prompt(1, 0, BOX, (OUT,)),
    "a box and a mask": Prompt(1, 0, BOX, logits_HW=MASK),
    "a click and a mask": Prompt(1, 0, points=(IN,), logits_HW=MASK),
    "a mask alone": Prompt(1, 0, logits_HW=MASK),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_prompt_is_answered_as_by_the_book(ours: Sam, reference: Any, kind: str) -> None:
    _agrees(ours, reference, _image((128, 96)), [KINDS[kind]])


@pytest.mark.parametrize("kind", KINDS)
def test_a_slice_that_is_magnified_less_is_answered_from_its_own_cells(
    weights: Weights, reference: Any, kind: str
) -> None:
    bounded = Sam(weights, precision="fp32", device="cpu", magnify=1.5, size=TINY)
    image = _image((128, 96))
    assert bounded.embed([image])[0].features_CHW.shape[1:] == (12, 9)  # of 16 x 16
    _agrees(bounded, reference, image, [KINDS[kind]], longest=192)


def test_prompts_of_all_kinds_together_are_answered_in_their_order(ours: Sam, reference: Any) -> None:
    _agrees(ours, reference, _image((128, 96)), [*KINDS.values(), *reversed(KINDS.values())])


@pytest.mark.parametrize(
    "shape",
    [(96, 128), (600, 311), (3, 90, 100), (1, 77, 128)],
    ids=["wide", "larger", "colors", "one color"],
)
def test_slices_of_any_shape_and_color_agree(ours: Sam, reference: Any, shape: tuple[int, ...]) -> None:
    _agrees(ours, reference, _image(shape), [KINDS["a box"], KINDS["two clicks"]])


def test_several_slices_in_one_call_are_embedded_as_if_alone(ours: Sam) -> None:
    slices = [_image((64, 64), 1), _image((3, 128, 96), 2), _image((50, 128), 3)]
    together = ours.embed(slices)
    assert [embedding.shape for embedding in together] == [(64, 64), (128, 96), (50, 128)]
    for image, embedding in zip(slices, together, strict=True):
        (alone,) = ours.embed([image])
        assert np.array_equal(alone.features_CHW, embedding.features_CHW)
        assert alone.features_CHW.shape == (256, GRID, GRID)


def test_half_the_bits_give_nearly_the_same_embedding(weights: Weights, ours: Sam) -> None:
    short = Sam(weights, precision="bf16", device="cpu", size=TINY)
    image = _image((128, 96))
    a, b = (model.embed([image])[0].features_CHW.astype(np.float64).ravel() for model in (short, ours))
    assert float(np.corrcoef(a, b)[0, 1]) > 0.999
    assert short.preprocessing != ours.preprocessing


@pytest.mark.parametrize("side", [14, 16])
@torch.inference_mode()
def test_lean_attention_is_the_original_one_on_either_path(side: int) -> None:
    encoder = modeling().ImageEncoderViT(
        img_size=16 * side, embed_dim=32, depth=1, num_heads=4, use_rel_pos=True, global_attn_indexes=(0,)
    )
    original = encoder.blocks[0].attn
    generator = torch.Generator().manual_seed(1)
    for value in original.parameters():
        value.data = 0.3 * torch.randn(value.shape, generator=generator)
    lean = LeanAttention(original)
    x = torch.randn(2, side, side, 32, generator=generator)
    expected = original(x)
    assert torch.allclose(lean(x), expected, atol=1e-4)
    lean.in_turns = lean.widened  # type: ignore[method-assign]
    assert torch.allclose(lean(x), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "millions"), [("sam_vit_b", 93.735472), ("sam_vit_l", 312.342832), ("sam_vit_h", 641.090608)]
)
def test_the_published_sizes_have_the_published_number_of_weights(name: str, millions: float) -> None:
    parts = empty_parts(SIZES[name])
    assert sum(p.numel() for part in parts for p in part.parameters()) == round(millions * 1e6)
    names = dict(parts.encoder.named_parameters())
    width = SIZES[name].width
    assert names["pos_embed"].shape == (1, 64, 64, width)
    everywhere = SIZES[name].everywhere
    for index in range(SIZES[name].depth):
        side = 64 if index in everywhere else 14
        assert names[f"blocks.{index}.attn.rel_pos_h"].shape == (2 * side - 1, width // SIZES[name].heads)


def test_weights_of_another_size_are_refused(weights: Weights) -> None:
    with pytest.raises(GeneralistError, match=r"tiny\.pth does not hold the weights of sam_vit_l"):
        Sam(weights, "sam_vit_l", device="cpu")


@pytest.mark.parametrize("shape", [(2, 64, 64), (64,), (1, 3, 64, 64)])
def test_a_slice_with_other_axes_is_refused(ours: Sam, shape: tuple[int, ...]) -> None:
    with pytest.raises(GeneralistError, match="expected \\(H, W\\), or 1 or 3 colors"):
        ours.embed([_image(shape)])


# --- MedSAM -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def medical(weights: Weights) -> MedSAM:
    return MedSAM(weights, precision="fp32", device="cpu", size=TINY)


@pytest.mark.parametrize("shape", [(128, 96), (3, 60, 100), (500, 400)], ids=["grey", "colors", "larger"])
@torch.inference_mode()
def test_medsam_stretches_slices_and_averages_probabilities(
    medical: MedSAM, reference: Any, shape: tuple[int, ...]
) -> None:
    image = 0.2 + 0.5 * _image(shape)
    (embedding,) = medical.embed([image])
    (answer,) = medical.segment(embedding, [Prompt(1, 0, BOX)])

    colors = torch.from_numpy(image if image.ndim == 3 else image[None]).expand(3, -1, -1)
    side = (TINY.side, TINY.side)
    square = F.interpolate(colors[None], side, mode="bicubic", align_corners=False, antialias=True).clamp(
        0, 1
    )
    square = (square - square.min()) / (square.max() - square.min())
    height, width = colors.shape[1:]
    box = torch.tensor([[20.0, 10.0, 85.0, 60.0]]) / torch.tensor([width, height, width, height]) * TINY.side
    sparse, dense = reference.prompt_encoder(points=None, boxes=box, masks=None)
    low, _ = reference.mask_decoder(
        image_embeddings=reference.image_encoder(square),
        image_pe=reference.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=False,
    )
    inside = F.interpolate(low.sigmoid(), (height, width), mode="bilinear", align_corners=False)[0, 0].numpy()
    assert np.allclose(1 / (1 + np.exp(-answer.logits_HW)), inside, atol=5e-3)


def test_medsam_takes_boxes_only(medical: MedSAM) -> None:
    (embedding,) = medical.embed([_image((64, 64))])
    for prompt in (KINDS["a lone click"], KINDS["a box and a mask"]):
        with pytest.raises(GeneralistError, match="medsam takes boxes only"):
            medical.segment(embedding, [prompt])
