"""A volume in, a mask with findings out: what is said of each structure, and when a person should look."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tutelage.archive.volume import Volume, native_for
from tutelage.errors import ArchiveError, StoppedError, TrainingError
from tutelage.geometry import Grid
from tutelage.records import Prior

pytestmark = pytest.mark.torch


def volume(seed: int = 0, shape: tuple[int, int, int] = (10, 24, 20), channels: int = 1) -> Volume:
    grid = Grid.from_spacing(shape, (18.0, 9.0, 9.0))
    image_CDHW = np.random.default_rng(seed).normal(100, 30, (channels, *shape)).astype(np.float32)
    return Volume(image_CDHW, grid, native_for("nifti", grid), "0")


def large(seed: int = 0) -> Volume:
    return volume(seed, (30, 70, 90))


def test_the_mask_is_the_one_that_the_specialist_gives_and_findings_measure_it(tiny_specialist: Path) -> None:
    from serve.segmenter import Segmenter
    from tutelage.specialist.predictor import Predictor

    predictor, scan = Predictor(str(tiny_specialist)), volume()
    done = Segmenter(predictor, "torso", "3")(scan)
    assert np.array_equal(done.mask_DHW, predictor.mask(scan.image_CDHW, scan.grid))
    assert (done.model, done.version, done.digest) == ("torso", "3", predictor.digest)
    assert set(done.seconds) == {"prepare", "network", "judge"}
    assert [(one.structure, one.value) for one in done.findings] == [("liver", 1), ("spleen", 2)]
    for one in done.findings:
        assert one.voxels == (done.mask_DHW == one.value).sum()
        assert one.volume_ml == pytest.approx(one.voxels * scan.grid.voxel_ml, abs=1e-3)
        assert one.needs_review == bool(one.reasons)


def test_a_mask_of_which_the_specialist_is_unsure_is_for_a_person(
    tiny_specialist: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which one that was never trained is."""
    from serve import segmenter
    from tutelage.specialist.predictor import Predictor

    served = segmenter.Segmenter(Predictor(str(tiny_specialist)))
    found = [one for one in served(volume()).findings if one.voxels]
    assert found
    for one in found:
        assert one.confidence is not None
        assert one.confidence < segmenter.LOW_CONFIDENCE
        assert "unsure" in one.reasons[0]
    monkeypatch.setattr(segmenter, "LOW_CONFIDENCE", 0.0)
    assert not any(one.needs_review for one in served(volume()).findings if one.voxels)


def test_what_is_known_of_anatomy_speaks(tiny_specialist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve import segmenter
    from tutelage.specialist.predictor import Predictor

    monkeypatch.setattr(segmenter, "LOW_CONFIDENCE", 0.0)
    known = segmenter.Known(
        {"liver": Prior("liver", (1e6, 2e6)), "spleen": Prior("spleen", (0.0, 1e9), (0, 999))}
    )
    served = segmenter.Segmenter(Predictor(str(tiny_specialist)), known=known)
    liver, spleen = served(volume()).findings
    assert liver.voxels
    assert f"liver is {liver.volume_ml:.1f} ml, expected 1e+06 to 2e+06 ml" in liver.reasons
    assert spleen.reasons == ()
    assert served.describe()["anatomy"] == ["liver", "spleen"]


@pytest.mark.parametrize("make", [volume, large], ids=["in one window", "in many"])
def test_many_at_once_get_the_answers_that_each_gets_alone(
    tiny_specialist: Path, make: Callable[[int], Volume]
) -> None:
    from serve.segmenter import Segmenter
    from tutelage.specialist.predictor import Predictor

    served = Segmenter(Predictor(str(tiny_specialist)))
    alone = [served(make(seed)) for seed in range(3)]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda seed: served(make(seed % 3)), range(6)))
    for seed, done in enumerate(together):
        assert np.array_equal(done.mask_DHW, alone[seed % 3].mask_DHW)
        assert done.findings == alone[seed % 3].findings
    assert served.windows_seen >= served.batches > 0


def test_who_stops_waiting_is_worked_for_no_longer(tiny_specialist: Path) -> None:
    from serve.segmenter import Segmenter
    from tutelage.specialist.predictor import Predictor

    served = Segmenter(Predictor(str(tiny_specialist)))
    told: list[tuple[int, int]] = []
    with pytest.raises(StoppedError):
        served(large(), lambda: len(told) == 2, lambda done, total: told.append((done, total)))
    assert [done for done, _ in told] == [1, 2]
    assert served.windows_seen == 2 < told[0][1]


def test_another_number_of_channels_is_refused(tiny_specialist: Path) -> None:
    from serve.segmenter import Segmenter
    from tutelage.specialist.predictor import Predictor

    with pytest.raises(ArchiveError, match="2 channels"):
        Segmenter(Predictor(str(tiny_specialist)))(volume(channels=2))


def test_no_mask_comes_of_probabilities_that_are_no_numbers(tiny_specialist: Path) -> None:
    from serve.segmenter import Segmenter
    from tutelage.specialist.predictor import Predictor

    predictor = Predictor(str(tiny_specialist))
    next(predictor.network.parameters()).data[0] = float("nan")
    with pytest.raises(TrainingError, match="no numbers"):
        Segmenter(predictor)(volume())
