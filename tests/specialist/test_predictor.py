from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.utils._python_dispatch import TorchDispatchMode

from tutelage.errors import ArchiveError, StoppedError
from tutelage.geometry import Grid
from tutelage.specialist import artifact
from tutelage.specialist.looking import AT_ONCE, Looking
from tutelage.specialist.network import build
from tutelage.specialist.plan import Plan, Triple, make_plan
from tutelage.specialist.predictor import Answer, Predictor, largest
from tutelage.specialist.preprocess import prepare
from tutelage.specialist.settings import SpecialistSettings
from tutelage.specialist.windows import count
from tutelage.storage import Place

pytestmark = pytest.mark.torch

Make = Callable[..., Predictor]
Spacing = tuple[float, float, float]


def plan_of(shape: Triple, spacing: Spacing = (2.0, 1.0, 1.0)) -> Plan:
    settings = SpecialistSettings(channels=(4, 8, 8), patch=shape)
    return make_plan([Grid.from_spacing(shape, spacing)], ["a", "b"], 1, settings)


@pytest.fixture
def made(tmp_path: Path) -> Make:
    def make(shape: Triple = (8, 24, 32), spacing: Spacing = (2.0, 1.0, 1.0)) -> Predictor:
        plan = plan_of(shape, spacing)
        torch.manual_seed(0)
        artifact.save(Place.of(tmp_path), build(plan).state_dict(), plan, {})
        predictor = Predictor(str(tmp_path))
        predictor.dtype = torch.float32  # so that differences are those of geometry
        return predictor

    return make


def scan(shape: Triple, spacing: Spacing = (2.0, 1.0, 1.0)) -> tuple[NDArray[np.float32], Grid]:
    image = np.random.default_rng(0).normal(100, 20, (1, *shape)).astype(np.float32)
    image[:, shape[0] // 3 :, shape[1] // 4 : -shape[1] // 4, shape[2] // 3 :] += 80
    return image, Grid.from_spacing(shape, spacing)


SHAPES: dict[str, tuple[Triple, Spacing]] = {
    "the patch": ((8, 24, 32), (2.0, 1.0, 1.0)),
    "finer": ((15, 50, 61), (1.1, 0.5, 0.5)),
    "coarser": ((5, 11, 17), (3.3, 2.0, 2.0)),
    "large": ((19, 70, 41), (2.0, 1.0, 1.0)),
    "long and thin": ((3, 9, 900), (2.0, 1.0, 1.0)),
    "one slice": ((1, 24, 32), (2.0, 1.0, 1.0)),
    "one voxel": ((1, 1, 1), (2.0, 1.0, 1.0)),
    "one voxel when seen by the network": ((2, 3, 3), (0.1, 0.1, 0.1)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_any_image_gets_probabilities_and_a_mask_on_its_own_grid(made: Make, name: str) -> None:
    predictor, (image, grid) = made(), scan(*SHAPES[name])
    probability, mask = predictor.probability(image, grid), predictor.mask(image, grid)
    assert probability.shape == (3, *grid.shape)
    assert probability.dtype == np.float32
    assert np.abs(probability.sum(0) - 1).max() < 1e-5
    assert mask.dtype == np.uint8
    assert np.array_equal(mask, probability.argmax(0))


@pytest.mark.parametrize("shape", [(8, 24, 32), (5, 24, 20), (8, 17, 32)])
def test_windows_fill_a_smaller_image_up_as_training_does(made: Make, shape: Triple) -> None:
    """To the patch, at the far ends, with the smallest value."""
    predictor, (image, grid) = made(), scan(shape)
    seen = predictor.probability(image, grid)
    normal = prepare(image, grid, predictor.plan)
    filled = torch.full((1, 1, *predictor.plan.patch), float(normal.min()))
    d, h, w = shape
    filled[0, :, :d, :h, :w] = torch.from_numpy(normal)
    with torch.inference_mode():
        expected = predictor.network(filled.to(predictor.device))[0].softmax(0)[:, :d, :h, :w]
    assert np.abs(seen - expected.cpu().numpy()).max() < 1e-5


@pytest.mark.parametrize("shape", [(19, 70, 41), (8, 26, 32), (8, 24, 33)])
def test_an_image_is_looked_at_in_windows_of_the_patch_however_little_it_is_larger(
    made: Make, shape: Triple
) -> None:
    """Padded to what strides divide it would have a rim that no network learned from."""
    predictor, (image, grid) = made(), scan(shape)
    seen: list[tuple[int, ...]] = []
    predictor.network.register_forward_hook(lambda _, given, __: seen.append(tuple(given[0].shape)))
    predictor.mask(image, grid)
    assert sum(batch for batch, *_ in seen) == count(shape, predictor.plan.patch) > 1
    assert {given[1:] for given in seen} == {(1, 8, 24, 32)}


def test_the_same_image_gets_the_same_answer(made: Make) -> None:
    predictor, (image, grid) = made(), scan((19, 70, 41), (1.7, 1.2, 0.9))
    first, again = predictor.probability(image, grid), predictor.probability(image, grid)
    assert np.array_equal(first, again)
    assert np.array_equal(made().probability(image, grid), first)


def test_an_answer_leaves_the_image_alone(made: Make) -> None:
    predictor, (image, grid) = made(), scan((8, 24, 32))
    before = image.copy()
    predictor.mask(image, grid)
    assert np.array_equal(image, before)


@pytest.mark.parametrize("shape", [(8, 24, 32), (19, 70, 41), (1, 1, 1)])
@pytest.mark.parametrize("value", [0.0, -1000.0, 70000.1])
def test_a_blank_image_gets_an_answer(made: Make, shape: Triple, value: float) -> None:
    grid = Grid.from_spacing(shape, (2.0, 1.0, 1.0))
    probability = made().probability(np.full((1, *shape), value, np.float32), grid)
    assert np.isfinite(probability).all()


def test_a_mask_is_made_without_all_classes_of_the_whole_volume(made: Make) -> None:
    """Nothing of what a tensor is made for has as many numbers as classes and voxels."""
    predictor, (image, grid) = made(), scan((60, 40, 41))
    largest_seen = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest_seen
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                largest_seen = max(largest_seen, result.numel())
            return result

    with Watch():  # type: ignore[no-untyped-call]
        predictor.mask(image, grid)
    assert 8 * 24 * 32 < largest_seen < 3 * 60 * 40 * 41 / 2


def test_of_classes_alike_the_first_is_the_largest() -> None:
    share = torch.tensor([[0.2, 0.4, 0.3, 0.1], [0.4, 0.4, 0.3, 0.2], [0.4, 0.2, 0.4, 0.7]])[:, None]
    assert largest(share).tolist() == [[1, 0, 2, 2]]


@pytest.mark.parametrize("shape", [(1, 40, 48), (1, 33, 41), (1, 200, 150), (3, 40, 48)])
def test_a_flat_specialist_answers(made: Make, shape: Triple) -> None:
    predictor, (image, grid) = made((1, 40, 48), (1.0, 1.0, 1.0)), scan(shape, (1.0, 1.0, 1.0))
    assert predictor.plan.patch[0] == 1
    assert np.array_equal(predictor.mask(image, grid), predictor.probability(image, grid).argmax(0))


def test_an_image_with_other_channels_is_refused(made: Make) -> None:
    image, grid = scan((8, 24, 32))
    with pytest.raises(ArchiveError, match="2 channels"):
        made().mask(np.concatenate([image, image]), grid)


# --- with somebody waiting ----------------------------------------------------------------


def answered(predictor: Predictor, image: NDArray[np.float32], grid: Grid, **told: Any) -> Answer:
    return predictor.answer(predictor.prepared(image, grid), grid, **told)


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_is_the_mask_and_how_sure_it_is(made: Make, name: str) -> None:
    """Against all probabilities of the whole volume."""
    predictor, (image, grid) = made(), scan(*SHAPES[name])
    probability = predictor.probability(image, grid).astype(np.float64)
    answer = answered(predictor, image, grid)
    assert np.array_equal(answer.mask_DHW, predictor.mask(image, grid))
    for value, mean in enumerate(answer.confidence):
        inside = answer.mask_DHW == value
        expected = probability.max(0)[inside].mean() if inside.any() else None
        assert mean == (None if expected is None else pytest.approx(expected, abs=1e-6))
    assert answer.finite


def test_probabilities_that_are_no_numbers_are_known_by_the_confidence(made: Make) -> None:
    predictor, (image, grid) = made(), scan((8, 24, 32))
    next(predictor.network.parameters()).data[0] = float("nan")
    assert not answered(predictor, image, grid).finite


@pytest.mark.parametrize("shape", [(8, 24, 32), (19, 70, 41)])
def test_windows_are_counted(made: Make, shape: Triple) -> None:
    predictor, (image, grid) = made(), scan(shape)
    told: list[tuple[int, int]] = []
    answered(predictor, image, grid, progress=lambda done, total: told.append((done, total)))
    total = told[-1][1]
    assert told == [(done, total) for done in range(1, total + 1)]
    assert total == (1 if shape == (8, 24, 32) else 4 * 5 * 2)


def test_who_stops_waiting_is_worked_for_no_window_longer(made: Make) -> None:
    predictor, (image, grid) = made(), scan((19, 70, 41))
    seen = 0

    def look(windows: torch.Tensor) -> torch.Tensor:
        nonlocal seen
        seen += 1
        return predictor.logits(windows)

    with pytest.raises(StoppedError, match="after 3 of 40 windows"):
        answered(predictor, image, grid, look=look, stop=lambda: seen == 3)
    assert seen == 3


def test_an_answer_is_made_without_all_classes_of_the_whole_volume(made: Make) -> None:
    predictor, (image, grid) = made(), scan((60, 40, 41))
    sizes: list[int] = []

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    with Watch():  # type: ignore[no-untyped-call]
        answered(predictor, image, grid)
    assert max(sizes) < 3 * 60 * 40 * 41 / 2


def test_volumes_at_the_same_time_get_the_masks_that_each_gets_alone(made: Make) -> None:
    """To the bit on a CPU, where every window is looked at by itself."""
    predictor = made()
    scans = [scan(*SHAPES[name]) for name in ("large", "the patch", "finer", "long and thin", "coarser")] * 2
    alone = [answered(predictor, image, grid) for image, grid in scans]
    looking = Looking(predictor.logits, AT_ONCE[predictor.device.type])
    with ThreadPoolExecutor(len(scans)) as pool:
        together = list(pool.map(lambda one: answered(predictor, *one, look=looking), scans))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one.mask_DHW, other.mask_DHW)
        assert one.confidence == other.confidence


def test_windows_in_a_batch_give_nearly_the_same_probabilities(made: Make) -> None:
    """What a GPU does for several callers; on a CPU it is only allowed here."""
    predictor = made()
    scans = [scan(*SHAPES[name]) for name in ("large", "finer", "long and thin")]
    alone = [answered(predictor, image, grid) for image, grid in scans]
    looking = Looking(predictor.logits, 8)
    with ThreadPoolExecutor(len(scans)) as pool:
        together = list(pool.map(lambda one: answered(predictor, *one, look=looking), scans))
    assert looking.batches < looking.windows
    for one, other in zip(alone, together, strict=True):
        assert (one.mask_DHW == other.mask_DHW).mean() > 0.9999
