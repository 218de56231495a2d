import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.data.utils import dense_patch_slices
from monai.inferers import sliding_window_inference
from torch import Tensor, nn

from tutelage.specialist.plan import Triple
from tutelage.specialist.windows import kept_bytes, padded, slide, starts

pytestmark = pytest.mark.torch

CPU = torch.device("cpu")
PATCH: Triple = (4, 12, 10)
SHAPES: dict[str, Triple] = {
    "the patch": (4, 12, 10),
    "several along each axis": (11, 31, 27),
    "thick slices": (5, 40, 33),
    "long": (37, 12, 13),
    "one slice": (1, 30, 30),
    "smaller along one axis": (9, 7, 25),
    "smaller along all": (2, 5, 3),
}


def network(classes: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv3d(1, 6, 3, padding=1), nn.ReLU(), nn.Conv3d(6, classes, 3, padding=1)).eval()


def ours(image_CDHW: Tensor, look: nn.Module, patch: Triple, at_once: int = 1) -> Tensor:
    with torch.inference_mode():
        slices = slide(image_CDHW, patch, look, CPU, at_once=at_once)
        return torch.stack([logits_KHW.clone() for logits_KHW in slices], dim=1)


def theirs(image_CDHW: Tensor, look: nn.Module, patch: Triple) -> Tensor:
    _, d, h, w = image_CDHW.shape
    with torch.inference_mode():
        logits: Tensor = sliding_window_inference(
            padded(image_CDHW, patch)[None], patch, 1, look, overlap=0.5, mode="gaussian"
        )
    return logits[0, :, :d, :h, :w]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("patch", [PATCH, (3, 7, 5), (1, 12, 10)], ids=["even", "odd", "flat"])
def test_the_answer_is_monais_number_by_number(shape: Triple, patch: Triple) -> None:
    torch.manual_seed(1)
    image, look = torch.randn(1, *shape), network()
    mine, reference = ours(image, look, patch), theirs(image, look, patch)
    assert mine.shape == reference.shape
    assert torch.equal(mine, reference)


def test_windows_together_give_the_labels_of_windows_one_by_one() -> None:
    image, look = torch.randn(1, 11, 31, 27), network()
    one, three = (ours(image, look, PATCH, at_once) for at_once in (1, 3))
    assert torch.allclose(one, three, atol=1e-5)
    assert torch.equal(one.argmax(0), three.argmax(0))


def test_windows_together_do_not_outnumber_what_was_said() -> None:
    seen: list[int] = []
    look = network()
    look.register_forward_hook(lambda _, given, __: seen.append(len(given[0])))
    ours(torch.randn(1, 4, 31, 27), look, PATCH, at_once=4)
    along = [len(starts(31, 12)), len(starts(27, 10))]
    assert max(seen) == 4
    assert sum(seen) == along[0] * along[1]


@pytest.mark.parametrize(("length", "patch"), itertools.product((10, 11, 25, 100), (1, 2, 3, 7, 10)))
def test_windows_begin_where_monais_do(length: int, patch: int) -> None:
    step = max(1, patch // 2) if length > patch else patch
    expected = [place[0].start for place in dense_patch_slices((length,), (patch,), (step,))]
    assert starts(length, patch) == expected


def test_slices_come_as_soon_as_no_further_window_sees_them() -> None:
    seen: list[None] = []
    look = network()
    look.register_forward_hook(lambda *_: seen.append(None))
    with torch.inference_mode():
        slices = slide(torch.randn(1, 20, 12, 10), PATCH, look, CPU)
        asked = [len(seen) for _ in slices]
    assert asked == [1 + index // 2 for index in range(16)] + [9] * 4


def test_what_is_kept_is_as_deep_as_a_patch(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Tensor] = []
    zeros: Callable[..., Tensor] = torch.zeros

    def counted(*shape: object, **options: object) -> Tensor:
        made.append(zeros(*shape, **options))
        return made[-1]

    monkeypatch.setattr(torch, "zeros", counted)
    shape = (60, 31, 27)
    ours(torch.randn(1, *shape), network(classes=5), PATCH)
    kept = sum(tensor.nbytes for tensor in made)
    assert kept == kept_bytes(shape, PATCH, 5)
    assert kept < (5 + 1) * 4 * np.prod(shape) / 10


def test_an_image_that_is_large_enough_is_not_copied() -> None:
    image = torch.randn(1, 4, 12, 11)
    assert padded(image, PATCH) is image
    wider = padded(image, (4, 12, 13))
    assert wider.shape == (1, 4, 12, 13)
    assert torch.equal(wider[..., 11:], image.min().expand(1, 4, 12, 2))
