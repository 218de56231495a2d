"""LiteMedSAM with its published weights, on made-up slices."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tutelage import generalists
from tutelage.archive.synthetic import STRUCTURES, phantom
from tutelage.errors import GeneralistError
from tutelage.generalists import GeneralistSettings
from tutelage.generalists.base import Embedding
from tutelage.generalists.cache import EmbeddingCache
from tutelage.generalists.litemedsam import LiteMedSAM
from tutelage.generalists.pooling import small_grid
from tutelage.generalists.volumes import ask, windowed
from tutelage.generalists.weights import find
from tutelage.geometry import Box
from tutelage.measures import dice, jaccard
from tutelage.prompts import PromptSettings
from tutelage.prompts.boxes import boxes
from tutelage.records import Point, Prompt
from tutelage.storage import Place

pytestmark = pytest.mark.torch

LIVER = STRUCTURES.index("liver") + 1
PATIENT = phantom(0, 1, spacing=(30.0, 3.0, 3.0), styles=("ct",))
SLICES = windowed(PATIENT.image_DHW, (0.5, 99.5))
INDEX = int(np.argmax((PATIENT.label_DHW == LIVER).sum(axis=(1, 2))))
"""The slice with most liver."""


@pytest.fixture(scope="module")
def exact() -> LiteMedSAM:
    return LiteMedSAM(find(), "fp32", device="cpu")


@pytest.fixture(scope="module")
def quick() -> LiteMedSAM:
    return LiteMedSAM(find(), "auto", device="cpu")


@pytest.fixture(scope="module")
def embedding(exact: LiteMedSAM) -> Embedding:
    return exact.embed([SLICES[INDEX]])[0]


@pytest.fixture(scope="module")
def prompts() -> list[Prompt]:
    """A box around everything on the slice, the liver first."""
    one_slice_DHW = PATIENT.label_DHW[INDEX : INDEX + 1]
    return boxes(one_slice_DHW, len(STRUCTURES) + 1, PromptSettings(), seed=0)


def test_a_box_around_the_liver_finds_the_liver(
    exact: LiteMedSAM, embedding: Embedding, prompts: list[Prompt]
) -> None:
    liver = next(answer for answer in exact.segment(embedding, prompts) if answer.prompt.structure == LIVER)
    assert liver.logits_HW.shape == SLICES[INDEX].shape
    assert dice(liver.logits_HW > 0, PATIENT.label_DHW[INDEX] == LIVER) > 0.8
    assert 0.7 < liver.predicted_iou <= 1.0


def test_half_the_bits_give_the_same_masks(
    exact: LiteMedSAM, embedding: Embedding, prompts: list[Prompt]
) -> None:
    short = LiteMedSAM(find(), "bf16", device="cpu")
    answers = short.segment(short.embed([SLICES[INDEX]])[0], prompts)
    for answer, precise in zip(answers, exact.segment(embedding, prompts), strict=True):
        assert jaccard(answer.logits_HW > 0, precise.logits_HW > 0) >= 0.95
    assert short.preprocessing != exact.preprocessing
    assert short.weights == exact.weights == find().digest


def test_boxes_asked_together_are_answered_as_if_alone(
    exact: LiteMedSAM, embedding: Embedding, prompts: list[Prompt]
) -> None:
    many = (17 * prompts)[:17]  # more than go through the decoder at once
    together = exact.segment(embedding, many)
    assert [answer.prompt for answer in together] == many
    for position in (0, 16):
        (alone,) = exact.segment(embedding, [many[position]])
        assert np.allclose(alone.logits_HW, together[position].logits_HW, atol=1e-3)


def test_no_prompts_are_no_answers(exact: LiteMedSAM, embedding: Embedding) -> None:
    assert exact.segment(embedding, []) == []
    assert exact.embed([]) == []


def _ellipse(shape: tuple[int, int], box: Box) -> NDArray[np.bool_]:
    rows, columns = np.indices(shape) + 0.5
    (top, left), (bottom, right) = box.start, box.stop
    down = (rows - (top + bottom) / 2) / ((bottom - top) / 2)
    across = (columns - (left + right) / 2) / ((right - left) / 2)
    return np.asarray(down**2 + across**2 < 1)


@pytest.mark.parametrize(
    ("shape", "box"),
    [
        ((60, 140), Box((10.0, 80.0), (50.0, 105.0))),
        ((300, 131), Box((30.0, 20.0), (90.0, 110.0))),
        ((600, 400), Box((300.0, 40.0), (540.0, 160.0))),
    ],
    ids=["wide", "tall", "larger than the model's square"],
)
def test_a_mask_lies_where_its_box_is_whatever_the_shape_of_the_slice(
    quick: LiteMedSAM, shape: tuple[int, int], box: Box
) -> None:
    ellipse_HW = _ellipse(shape, box)
    noise_HW = 0.02 * np.random.default_rng(0).standard_normal(shape)
    image_HW = np.clip(0.3 + 0.5 * ellipse_HW + noise_HW, 0, 1).astype(np.float32)
    (answer,) = quick.segment(quick.embed([image_HW])[0], [Prompt(1, 0, box)])
    assert answer.logits_HW.shape == shape
    assert dice(answer.logits_HW > 0, ellipse_HW) > 0.93


@pytest.fixture(scope="module")
def bounded() -> LiteMedSAM:
    return LiteMedSAM(find(), "auto", device="cpu", magnify=2.0)


@pytest.mark.parametrize(
    ("shape", "box"),
    [((35, 50), Box((8.0, 20.0), (26.0, 44.0))), ((50, 30), Box((24.0, 4.0), (46.0, 20.0)))],
    ids=["wide", "tall"],
)
def test_a_tiny_slice_is_found_without_filling_the_square(
    bounded: LiteMedSAM, shape: tuple[int, int], box: Box
) -> None:
    ellipse_HW = _ellipse(shape, box)
    image_HW = (0.3 + 0.5 * ellipse_HW).astype(np.float32)
    (embedding,) = bounded.embed([image_HW])
    assert max(embedding.features_CHW.shape[1:]) == 25  # of 64 cells, a sixth of the work
    (answer,) = bounded.segment(embedding, [Prompt(1, 0, box)])
    assert answer.logits_HW.shape == shape
    assert dice(answer.logits_HW > 0, ellipse_HW) > 0.9


def test_the_rest_of_the_square_is_not_missed(quick: LiteMedSAM, bounded: LiteMedSAM) -> None:
    """The same scale, once by a bound and once by padding the slice by hand."""
    box = Box((20.0, 24.0), (52.0, 70.0))
    image_HW = (0.3 + 0.5 * _ellipse((64, 96), box)).astype(np.float32)
    padded_HW = np.pad(image_HW, ((0, 64), (0, 32)))
    (part,) = bounded.segment(bounded.embed([image_HW])[0], [Prompt(1, 0, box)])
    (whole,) = quick.segment(quick.embed([padded_HW])[0], [Prompt(1, 0, box)])
    assert jaccard(part.logits_HW > 0, whole.logits_HW[:64, :96] > 0) > 0.95


def test_slices_of_several_shapes_in_one_call_are_embedded_as_if_alone(bounded: LiteMedSAM) -> None:
    images = [np.full(shape, 0.5, np.float32) for shape in ((20, 30), (30, 20), (30, 20), (20, 30))]
    together = bounded.embed(images)
    for image, one in zip(images, together, strict=True):
        (alone,) = bounded.embed([image])
        assert one.shape == image.shape
        assert np.array_equal(one.features_CHW, alone.features_CHW)


def test_what_is_remembered_of_a_structure_is_read_inside_it(bounded: LiteMedSAM) -> None:
    """Bright left, dark right: features averaged over each half are those of its cells."""
    image_HW = np.zeros((32, 64), np.float32)
    image_HW[:, :32] = 1.0
    (embedding,) = bounded.embed([image_HW])
    coarse = small_grid(embedding, stretches=False).astype(np.float32)
    features = embedding.features_CHW.astype(np.float32)
    columns = features.shape[2]
    assert features.shape[1:] == (16, 32)
    halves = (features[:, :, : columns // 2], features[:, :, columns // 2 :])
    for seen, half in zip((coarse[:, :, :4], coarse[:, :, 4:]), halves, strict=True):
        assert np.allclose(seen.mean(axis=(1, 2)), half.mean(axis=(1, 2)), atol=2e-3)


def test_answers_from_the_cache_are_the_same_to_the_bit(quick: LiteMedSAM, tmp_path: Path) -> None:
    two_slices_DHW = PATIENT.image_DHW[INDEX - 1 : INDEX + 1]
    found = boxes(PATIENT.label_DHW[INDEX - 1 : INDEX + 1], LIVER + 1, PromptSettings(), seed=0)
    cache = EmbeddingCache(Place.of(tmp_path), quick)
    first, again = (
        ask(quick, two_slices_DHW, "digest", found, LIVER + 1, cache, GeneralistSettings()) for _ in range(2)
    )
    assert (first.slices_embedded, again.cache_hits) == (2, 2)
    assert [region.where for region in first.regions] == [region.where for region in again.regions]
    for one, other in zip(first.regions, again.regions, strict=True):
        assert np.array_equal(one.mean_DHW, other.mean_DHW)
    assert first.predicted_iou == again.predicted_iou


def test_clicks_are_refused_because_it_takes_boxes_only(exact: LiteMedSAM, embedding: Embedding) -> None:
    with pytest.raises(GeneralistError, match="litemedsam takes boxes only"):
        exact.segment(embedding, [Prompt(1, 0, points=(Point((3.0, 4.0), positive=True),))])


def test_a_slice_with_values_that_are_not_numbers_is_refused(quick: LiteMedSAM) -> None:
    with pytest.raises(GeneralistError, match="values that are not numbers"):
        quick.embed([np.full((8, 8), np.nan, np.float32)])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_same_masks(exact: LiteMedSAM, embedding: Embedding, prompts: list[Prompt]) -> None:
    on_gpu = LiteMedSAM(find(), "auto", device="cuda")
    answers = on_gpu.segment(on_gpu.embed([SLICES[INDEX]])[0], prompts)
    for answer, precise in zip(answers, exact.segment(embedding, prompts), strict=True):
        assert jaccard(answer.logits_HW > 0, precise.logits_HW > 0) >= 0.95


class _Mischief:
    def __reduce__(self) -> tuple[object, ...]:
        return print, ("code in a file of weights has run",)


def _write(path: Path, kind: str) -> None:
    published = find().path.read_bytes()
    if kind == "cut short":
        path.write_bytes(published[: len(published) // 2])
    elif kind == "code":
        path.write_bytes(pickle.dumps(_Mischief(), protocol=2))
    elif kind == "code in a zip":
        torch.save({"image_encoder.x": _Mischief()}, path)
    else:
        torch.save({"image_encoder.x": torch.zeros(1)}, path)


@pytest.mark.parametrize("kind", ["cut short", "code", "code in a zip", "another model"])
def test_a_file_that_holds_no_such_weights_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    path = tmp_path / "wrong.pth"
    _write(path, kind)
    with pytest.raises(GeneralistError, match=r"wrong\.pth does not hold the weights of LiteMedSAM"):
        generalists.build(GeneralistSettings(weights=str(path)))
    assert "has run" not in capsys.readouterr().out
