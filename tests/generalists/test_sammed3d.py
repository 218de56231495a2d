"""SAM-Med3D with a small network of random weights, against its definition spelled out."""

from argparse import Namespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tutelage.errors import GeneralistError
from tutelage.generalists.base import Embedding, VolumeAnswer, VolumePrompt
from tutelage.generalists.sammed3d import CubeSize, SAMMed3D
from tutelage.generalists.vit3d import CubeDecoder, CubeEncoder, CubePrompts
from tutelage.generalists.weights import Weights, find
from tutelage.records import Point, Prompt

pytestmark = pytest.mark.torch

TINY = CubeSize(side=64, width=36, depth=3, heads=3, everywhere=(1,))
CELLS = TINY.side // 16
STEP_MM = 1.5

IN, OUT = Point((20.5, 33.5, 27.5), positive=True), Point((28.5, 20.5, 40.5), positive=False)
MIDDLE = (22.0, 30.0, 31.0)
SPACING = (2.0, 1.5, 1.0)

State = dict[str, Tensor]


def _parts() -> dict[str, nn.Module]:
    return {
        "image_encoder": CubeEncoder(TINY.side, TINY.width, TINY.depth, TINY.heads, TINY.everywhere),
        "prompt_encoder": CubePrompts(TINY.side),
        "mask_decoder": CubeDecoder(),
    }


@pytest.fixture(scope="module")
def state() -> State:
    generator = torch.Generator().manual_seed(0)
    values = {f"{n}.{k}": v for n, part in _parts().items() for k, v in part.state_dict().items()}
    for name, value in values.items():
        spread = 1.0 if "gaussian" in name else 0.1
        value.copy_(spread * torch.randn(value.shape, generator=generator))
        if "norm" in name and name.endswith("weight"):
            value += 1.0
    return values


@pytest.fixture(scope="module")
def weights(state: State, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """As published: with the arguments and losses of whoever trained."""
    path = tmp_path_factory.mktemp("weights") / "tiny3d.pth"
    torch.save(
        {"model_state_dict": state, "args": Namespace(lr=8e-5), "losses": [np.float64(0.3)], "epoch": 7}, path
    )
    return Weights(path, "0123456789abcdef")


@pytest.fixture(scope="module")
def ours(weights: Weights) -> SAMMed3D:
    return SAMMed3D(weights, precision="fp32", device="cpu", size=TINY)


# --- the definition, spelled out --------------------------------------------------------------


def _linear(state: State, name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def _norm(state: State, name: str, x: Tensor, eps: float = 1e-6) -> Tensor:
    """Over the last axis."""
    centered = x - x.mean(dim=-1, keepdim=True)
    unit = centered / (centered.square().mean(dim=-1, keepdim=True) + eps).sqrt()
    return unit * state[f"{name}.weight"] + state[f"{name}.bias"]


def _attention(state: State, name: str, x_SSSC: Tensor) -> Tensor:
    """Every query and every key of a padded window, one head after another, as the published code has it."""
    s, heads = x_SSSC.shape[0], TINY.heads
    q, k, v = _linear(state, f"{name}.qkv", x_SSSC).chunk(3, dim=-1)
    per = q.shape[-1] // heads
    mixed = torch.zeros_like(q)
    index = torch.arange(s)
    tables = [state[f"{name}.rel_pos_{a}"][index[:, None] - index[None] + s - 1] for a in "dhw"]
    for head in range(heads):
        own = slice(head * per, (head + 1) * per)
        qh, kh, vh = q[..., own], k[..., own], v[..., own]
        scores = torch.einsum("xyze,abce->xyzabc", qh, kh) / per**0.5
        by_d = torch.einsum("xyze,xke->xyzk", qh, tables[0])
        by_h = torch.einsum("xyze,yke->xyzk", qh, tables[1])
        by_w = torch.einsum("xyze,zke->xyzk", qh, tables[2])
        # Axes of the sums as they are broadcast there, right or wrong.
        scores = scores + by_d[:, :, :, None, None] + by_h[:, :, None, :, None] + by_w[:, :, None, None]
        share = scores.flatten(3).softmax(dim=-1)
        mixed[..., own] = (share @ vh.reshape(-1, per)).view(s, s, s, per)
    return _linear(state, f"{name}.proj", mixed)


def _encoded(state: State, cube_XYZ: Tensor) -> Tensor:
    """(C, X, Y, Z)."""
    e = "image_encoder"
    patches = F.conv3d(
        cube_XYZ[None, None], state[f"{e}.patch_embed.proj.weight"], state[f"{e}.patch_embed.proj.bias"], 16
    )
    x = patches[0].movedim(0, -1) + state[f"{e}.pos_embed"][0]
    for block in range(TINY.depth):
        name = f"{e}.blocks.{block}"
        normed = _norm(state, f"{name}.norm1", x)
        pad = 0 if block in TINY.everywhere else 14 - CELLS
        normed = F.pad(normed, (0, 0, 0, pad, 0, pad, 0, pad))
        x = x + _attention(state, f"{name}.attn", normed)[:CELLS, :CELLS, :CELLS]
        hidden = F.gelu(_linear(state, f"{name}.mlp.lin1", _norm(state, f"{name}.norm2", x)))
        x = x + _linear(state, f"{name}.mlp.lin2", hidden)
    for conv, norm, pad in ((0, 1, 0), (2, 3, 1)):
        x = F.conv3d(x.movedim(-1, 0)[None], state[f"{e}.neck.{conv}.weight"], padding=pad)[0].movedim(0, -1)
        x = _norm(state, f"{e}.neck.{norm}", x)
    return x.movedim(-1, 0)


def _waves(state: State, shares: Tensor) -> Tensor:
    matrix = state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    angles = 2 * torch.pi * ((2 * shares - 1) @ matrix)
    return torch.cat([angles.sin(), angles.cos(), angles.sin()], dim=-1)


def _decoded(
    decoder: Any, state: State, features: Tensor, places: Tensor, positive: Tensor, low: Tensor
) -> Any:
    """Logits and IoU for all clicks at once, given the mask before."""
    p, d = "prompt_encoder", "mask_decoder"
    clicks = _waves(state, places / TINY.side)
    for index, inside in enumerate(positive.tolist()):
        clicks[index] += state[f"{p}.point_embeddings.{int(inside)}.weight"][0]
    tokens = torch.cat(
        [
            state[f"{d}.iou_token.weight"],
            state[f"{d}.mask_tokens.weight"],
            clicks,
            state[f"{p}.not_a_point_embed.weight"],
        ]
    )
    x = low[None, None]
    for conv, norm in ((0, 1), (3, 4)):
        name = f"{p}.mask_downscaling"
        x = F.conv3d(x, state[f"{name}.{conv}.weight"], state[f"{name}.{conv}.bias"], 2)
        x = F.gelu(_norm(state, f"{name}.{norm}", x.movedim(1, -1))).movedim(-1, 1)
    dense = F.conv3d(x, state[f"{p}.mask_downscaling.6.weight"], state[f"{p}.mask_downscaling.6.bias"])
    shares = (torch.arange(CELLS) + 0.5) / CELLS
    positions = torch.zeros(CELLS, CELLS, CELLS, 384)
    for i in range(CELLS):
        for j in range(CELLS):
            for k in range(CELLS):
                positions[i, j, k] = _waves(state, torch.stack([shares[j], shares[i], shares[k]]))
    cells = (features[None] + dense).flatten(3)
    hs, src = decoder.transformer(cells, positions.movedim(-1, 0)[None].flatten(3), tokens[None])
    up = decoder.output_upscaling(src.transpose(1, 2).reshape(1, 384, CELLS, CELLS, CELLS))[0]
    mixture, iou = hs[0, 1], hs[0, 0]
    for layer in range(3):
        mixture = _linear(state, f"{d}.output_hypernetworks_mlps.0.layers.{layer}", mixture)
        iou = _linear(state, f"{d}.iou_prediction_head.layers.{layer}", iou)
        if layer < 2:
            mixture, iou = mixture.relu(), iou.relu()
    return torch.einsum("c,cxyz->xyz", mixture, up), iou[0]


def _at(volume: np.ndarray[Any, Any], place: tuple[float, ...]) -> float:
    """One value, linear between the middles of voxels, zero outside."""
    total = 0.0
    low = [int(np.floor(p)) for p in place]
    for corner in np.ndindex(2, 2, 2):
        index = [a + c for a, c in zip(low, corner, strict=True)]
        if all(0 <= i < n for i, n in zip(index, volume.shape, strict=True)):
            near = [1 - abs(p - i) for p, i in zip(place, index, strict=True)]
            total += float(np.prod(near)) * float(volume[tuple(index)])
    return total


def _volume(shape: tuple[int, int, int] = (40, 52, 60)) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(0).random(shape).astype(np.float32)


# --- tests ------------------------------------------------------------------------------------


@torch.inference_mode()
def test_clicks_are_answered_as_the_definition_says(ours: SAMMed3D, state: State) -> None:
    volume = _volume()
    (answer,) = ours.segment_volume(volume, SPACING, [VolumePrompt(3, MIDDLE, (IN, OUT))])

    steps = (np.arange(TINY.side) + 0.5 - TINY.side / 2) * STEP_MM
    axes = [m + steps / mm - 0.5 for m, mm in zip(MIDDLE, SPACING, strict=True)]
    cube = torch.from_numpy(volume)
    for axis, places in enumerate(axes):  # linear along one axis after another is linear along all
        weights = np.maximum(0, 1 - np.abs(places[:, None] - np.arange(volume.shape[axis])))
        cube = torch.tensordot(torch.from_numpy(weights.astype(np.float32)), cube, ([1], [axis])).movedim(
            0, axis
        )
    spot = (10, 30, 50)
    exact = _at(volume, tuple(float(a[i]) for a, i in zip(axes, spot, strict=True)))
    assert float(cube[spot]) == pytest.approx(exact, abs=1e-5)
    cube = cube.permute(2, 1, 0).flip(0, 1)  # to the patient's right, front and head
    lit = cube[cube > 0]
    features = _encoded(state, (cube - lit.mean()) / lit.std())

    clicked = []
    for click in (IN, OUT):
        d, h, w = (
            (a - m) * mm / STEP_MM + TINY.side / 2 for a, m, mm in zip(click.at, MIDDLE, SPACING, strict=True)
        )
        clicked.append((TINY.side - w, TINY.side - h, d))
    decoder = CubeDecoder()
    prefix = "mask_decoder."
    decoder.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    low, iou = torch.zeros(4 * CELLS, 4 * CELLS, 4 * CELLS), torch.zeros(())
    for clicks in (1, 2):
        signs = torch.tensor([True, False][:clicks])
        low, iou = _decoded(decoder.eval(), state, features, torch.tensor(clicked[:clicks]), signs, low)
    full = F.interpolate(low[None, None], 3 * [TINY.side], mode="trilinear", align_corners=False)[0, 0]

    back = full.flip(0, 1).permute(2, 1, 0).numpy()
    assert answer.predicted_iou == pytest.approx(float(iou.clamp(0, 1)), abs=1e-4)
    bar = 1e-3 * float(np.abs(back).max())
    for index in ((0, 0, 0), (20, 25, 30), (7, 40, 11)):
        voxel = [s + i for s, i in zip(answer.start, index, strict=True)]
        at = [
            (v + 0.5 - m) * mm / STEP_MM + TINY.side / 2 - 0.5
            for v, m, mm in zip(voxel, MIDDLE, SPACING, strict=True)
        ]
        expected = _at(back, tuple(min(max(a, 0.0), TINY.side - 1.0) for a in at))
        assert float(answer.logits_DHW[index]) == pytest.approx(expected, abs=bar)
    share = F.avg_pool3d((full > 0).float()[None], 16)
    pooled = ((features * share).sum(dim=(1, 2, 3)) / share.sum()).numpy()
    assert np.allclose(answer.features_C, pooled, atol=1e-2)


def test_the_published_size_has_the_published_names_and_number_of_weights() -> None:
    with torch.device("meta"):
        encoder, prompts, decoder = CubeEncoder(), CubePrompts(), CubeDecoder()
    counts = [sum(p.numel() for p in part.parameters()) for part in (encoder, prompts, decoder)]
    assert counts == [92_924_928, 8_668, 7_575_636]
    assert [len(part.state_dict()) for part in (encoder, prompts, decoder)] == [189, 15, 120]
    shapes = {name: tuple(value.shape) for name, value in encoder.state_dict().items()}
    assert shapes["patch_embed.proj.weight"] == (768, 1, 16, 16, 16)
    assert shapes["pos_embed"] == (1, 8, 8, 8, 768)
    assert shapes["blocks.0.attn.rel_pos_d"] == (27, 64)
    assert shapes["blocks.2.attn.rel_pos_w"] == (15, 64)
    assert shapes["blocks.11.mlp.lin2.weight"] == (768, 3072)
    assert shapes["neck.2.weight"] == (384, 384, 3, 3, 3)
    shapes = {name: tuple(value.shape) for name, value in decoder.state_dict().items()}
    assert shapes["transformer.layers.1.cross_attn_image_to_token.q_proj.weight"] == (192, 384)
    assert shapes["output_upscaling.3.weight"] == (96, 48, 2, 2, 2)
    assert shapes["output_hypernetworks_mlps.3.layers.2.weight"] == (48, 384)
    assert shapes["iou_prediction_head.layers.0.weight"] == (256, 384)
    shapes = {name: tuple(value.shape) for name, value in prompts.state_dict().items()}
    assert shapes["pe_layer.positional_encoding_gaussian_matrix"] == (3, 128)
    assert shapes["mask_downscaling.6.weight"] == (384, 16, 1, 1, 1)


def _ask(ours: SAMMed3D, middle: tuple[float, float, float], *clicks: Point) -> VolumeAnswer:
    (answer,) = ours.segment_volume(_volume(), SPACING, [VolumePrompt(1, middle, clicks)])
    return answer


def test_an_answer_is_about_the_voxels_within_reach(ours: SAMMed3D) -> None:
    near = _ask(ours, (2.0, 3.0, 4.0), Point((2.5, 3.5, 4.5), positive=True))
    assert near.start == (0, 0, 0)
    assert near.logits_DHW.shape == (26, 35, 52)  # 48 mm on, at 2, 1.5 and 1 mm a voxel
    assert np.isfinite(near.logits_DHW).all()


def test_prompts_together_are_answered_as_if_alone(ours: SAMMed3D) -> None:
    prompts = [
        VolumePrompt(1, MIDDLE, (IN,)),
        VolumePrompt(2, MIDDLE, (IN, OUT)),
        VolumePrompt(3, (9.0, 9.0, 9.0), (IN,)),
    ]
    together = ours.segment_volume(_volume(), SPACING, prompts)
    for prompt, answer in zip(prompts, together, strict=True):
        assert answer.prompt is prompt
        assert np.array_equal(answer.logits_DHW, _ask(ours, prompt.middle, *prompt.clicks).logits_DHW)


def test_an_empty_volume_is_answered_with_numbers(ours: SAMMed3D) -> None:
    (answer,) = ours.segment_volume(
        np.zeros((9, 9, 9), np.float32),
        SPACING,
        [VolumePrompt(1, (4.0, 4.0, 4.0), (Point((4.5, 4.5, 4.5), True),))],
    )
    assert np.isfinite(answer.logits_DHW).all()


def test_clicks_that_cannot_be_answered_are_refused(ours: SAMMed3D) -> None:
    with pytest.raises(GeneralistError, match="none inside"):
        _ask(ours, MIDDLE, OUT)
    with pytest.raises(GeneralistError, match=r"more than 48 mm\s+from the middle"):
        _ask(ours, (100.0, 30.0, 31.0), IN)


def test_slices_are_refused(ours: SAMMed3D) -> None:
    assert ours.embed([]) == []
    with pytest.raises(GeneralistError, match="segment_volume"):
        ours.embed([np.zeros((4, 4), np.float32)])
    with pytest.raises(GeneralistError, match="segment_volume"):
        ours.segment(Embedding(np.zeros((1, 1, 1), np.float16), (4, 4)), [Prompt(1, 0)])


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(GeneralistError, match="does not hold the weights of SAM-Med3D"):
        SAMMed3D(find(), device="cpu")
