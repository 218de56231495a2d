"""Where volumes lie while a specialist learns from them."""

import gc
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.torch

from tutelage.casework import volumes  # noqa: E402
from tutelage.casework.volumes import Volumes  # noqa: E402
from tutelage.errors import TrainingError  # noqa: E402
from tutelage.methods.batches import Sample  # noqa: E402

SHAPE = (3, 5, 7)
GB = 105 * (4 + 1 + 4) / 1e9 + 6 * 2 / 1e9
"""Of one sample."""


def sample(seed: int, bare: bool = False) -> Sample:
    rng = np.random.default_rng(seed)
    image_CDHW = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    if bare:
        return Sample(f"c{seed}", image_CDHW, None, None, (), gold=False)
    return Sample(
        case=f"c{seed}",
        image_CDHW=image_CDHW,
        label_DHW=rng.integers(0, 3, SHAPE).astype(np.uint8),
        weight_DHW=rng.random(SHAPE).astype(np.float32),
        undecided=(1,),
        gold=False,
        features_DCHW=rng.normal(size=(3, 2, 1, 1)).astype(np.float16),
    )


def equal(one: Sample, other: Sample) -> bool:
    names = ("image_CDHW", "label_DHW", "weight_DHW", "features_DCHW")
    pairs = [(getattr(one, name), getattr(other, name)) for name in names]
    return all(a is b is None or (a.dtype == b.dtype and np.array_equal(a, b)) for a, b in pairs)


def test_below_the_bound_volumes_stay_as_they_are() -> None:
    given = [sample(0), sample(1)]
    with Volumes(2.5 * GB) as kept:
        assert all(kept.keep(one) is one for one in given)


def test_beyond_the_bound_they_are_the_same_and_in_files() -> None:
    given = [sample(0), sample(1), sample(2, bare=True), sample(3)]
    with Volumes(1.2 * GB) as kept:
        found = [kept.keep(one) for one in given]
    assert found[0] is given[0]
    assert all(equal(one, other) for one, other in zip(given, found, strict=True))
    assert (found[1].case, found[1].undecided, found[2].label_DHW) == ("c1", (1,), None)
    for one in found[1:]:
        assert not one.image_CDHW.flags.owndata
        assert not one.image_CDHW.flags.writeable


def test_nothing_is_left_and_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with Volumes(0) as kept:
        found = [kept.keep(sample(seed)) for seed in range(50)]
        assert not list(tmp_path.iterdir())
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert equal(found[49], sample(49))
    del kept, found
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_full_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "_FILE_BYTES", 500)
    given = [sample(seed) for seed in range(4)]
    with Volumes(0) as kept:
        found = [kept.keep(one) for one in given]
    assert all(equal(one, other) for one, other in zip(given, found, strict=True))


def test_a_disk_without_room_is_told_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, array: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(volumes._File, "append", full)
    with Volumes(0) as kept, pytest.raises(TrainingError, match=r"No space left .* TMPDIR .* train\.max_gb"):
        kept.keep(sample(0))
