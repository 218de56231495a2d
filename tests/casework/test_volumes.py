"""Where volumes lie while a specialist learns from them."""

import gc
import os
import resource
import tempfile
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.torch

from tutelage.casework import volumes  # noqa: E402
from tutelage.casework.volumes import Volumes  # noqa: E402
from tutelage.errors import TrainingError  # noqa: E402
from tutelage.methods.shelves import Ready, Sample, ready  # noqa: E402

SHAPE = (4, 8, 8)
GB = (256 * (4 + 1 + 4) + 64) / 1e9
"""Of one volume without voxels of structures; each of its arrays begins at a multiple of 64 bytes."""


def volume(seed: int, bare: bool = False, gold: bool = False, shown: bool = False) -> Ready:
    rng = np.random.default_rng(seed)
    image_CDHW = rng.normal(size=(1, *SHAPE)).astype(np.float32)
    if bare:
        return ready(Sample(f"c{seed}", image_CDHW, None, None, (), gold=False))
    return ready(
        Sample(
            case=f"c{seed}",
            image_CDHW=image_CDHW,
            label_DHW=rng.integers(0, 3, SHAPE).astype(np.uint8) if shown else np.zeros(SHAPE, np.uint8),
            weight_DHW=rng.random(SHAPE).astype(np.float32),
            undecided=(1,),
            gold=gold,
            features_DCHW=rng.normal(size=(3, 2, 1, 1)).astype(np.float16),
        )
    )


def equal(one: Ready, other: Ready) -> bool:
    names = ("image_CDHW", "label_DHW", "weight_DHW", "features_DCHW")
    pairs = [(getattr(one.sample, name), getattr(other.sample, name)) for name in names]
    pairs += list(zip(one.voxels, other.voxels, strict=True))
    alike = all(a is b is None or (a.dtype == b.dtype and np.array_equal(a, b)) for a, b in pairs)
    return alike and one.darkest == other.darkest and one.sample.case == other.sample.case


def filed(one: Ready | None) -> bool:
    assert one is not None
    return not one.sample.image_CDHW.flags.owndata and not one.sample.image_CDHW.flags.writeable


def test_below_the_bound_volumes_stay_as_they_are() -> None:
    given = [volume(0), volume(1)]
    with Volumes(2 * GB, 0) as kept:
        assert all(kept.keep(number, one) is one for number, one in enumerate(given))
        assert [kept.get(number) for number in range(3)] == [*given, None]
        assert (len(kept), kept.in_memory, kept.in_files, kept.gone) == (2, round(2e9 * GB), 0, 0)


def test_beyond_the_bound_they_are_the_same_and_in_files() -> None:
    given = [volume(0), volume(1, shown=True), volume(2, bare=True), volume(3)]
    with Volumes(0, 1) as kept:
        found = [kept.keep(number, one) for number, one in enumerate(given)]
        assert all(kept.get(number) is one for number, one in enumerate(found))
    assert all(equal(one, other) for one, other in zip(given, found, strict=True))
    assert all(filed(one) for one in found)
    assert (found[1].sample.undecided, found[2].sample.label_DHW, len(found[1].voxels)) == ((1,), None, 2)


def test_what_came_first_goes_into_a_file_and_then_away() -> None:
    with Volumes(2 * GB, 3 * GB) as kept:
        for number in range(5):
            kept.keep(number, volume(number))
        assert [filed(kept.get(number)) for number in range(5)] == [True] * 3 + [False] * 2
        kept.keep(5, volume(5))
        assert [kept.get(number) is None for number in range(6)] == [True] + [False] * 5
        assert [filed(kept.get(number)) for number in range(1, 6)] == [True] * 3 + [False] * 2
        assert kept.gone == 1


def test_annotated_cases_stay_in_memory_first() -> None:
    with Volumes(2 * GB, 9 * GB) as kept:
        for number in range(3):
            kept.keep(number, volume(number))
        for number in range(3, 6):
            kept.keep(number, volume(number, gold=True))
        kept.keep(6, volume(6))
        assert [filed(kept.get(number)) for number in range(7)] == [True] * 3 + [False] * 2 + [True] * 2
        assert (len(kept), kept.gone) == (7, 0)


def test_on_disk_the_stream_that_takes_more_gives_way() -> None:
    with Volumes(0, 10 * GB) as kept:
        for number in range(3):
            kept.keep(number, volume(number, gold=True))
        for number in range(3, 40):
            kept.keep(number, volume(number))
        assert [number for number in range(40) if kept.get(number) is not None] == [0, 1, 2, *range(33, 40)]
        for number in range(40, 80):
            kept.keep(number, volume(number, gold=True))
        left = [number for number in range(80) if kept.get(number) is not None]
        assert [sum(number in stream for number in left) for stream in (range(33, 40), range(40, 80))] == [
            5,
            5,
        ]


def test_memory_and_disk_are_flat_however_many_volumes_come() -> None:
    """An archive goes through a small bound: what is kept is the latest, all of it readable."""
    with Volumes(3 * GB, 16 * GB) as kept:
        held, most = [], 0
        for number in range(400):
            kept.keep(number, volume(number, bare=number % 3 == 0))
            held.append(kept.in_memory + kept.in_files)
            most = max(most, len(os.listdir("/proc/self/fd")))
            assert kept.in_memory <= 3e9 * GB
            assert kept.in_files <= 16e9 * GB
        slope = np.polyfit(np.arange(300), held[100:], 1)[0]
        assert abs(slope) < 1e9 * GB / 100, "bytes a volume"
        latest = [kept.get(number) for number in range(386, 400)]
        assert all(
            one is not None and equal(one, volume(n, bare=n % 3 == 0)) for n, one in enumerate(latest, 386)
        )
        assert kept.gone == 400 - len(kept)
        assert most < len(os.listdir("/proc/self/fd")) + 20


def test_what_was_given_out_stays_readable_when_it_has_given_way() -> None:
    with Volumes(0, 2 * GB) as kept:
        first = kept.keep(0, volume(0))
        for number in range(1, 50):
            kept.keep(number, volume(number))
        assert kept.get(0) is None
        assert equal(first, volume(0))
    assert equal(first, volume(0))


def test_without_any_room_volumes_are_given_back_and_not_kept() -> None:
    one = volume(0)
    with Volumes(0, 0) as kept:
        assert kept.keep(0, one) is one
        assert (kept.get(0), len(kept), kept.gone) == (None, 0, 1)


def test_nothing_is_left_and_few_files_are_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))
    with Volumes(0, 1) as kept:
        found = [kept.keep(seed, volume(seed)) for seed in range(50)]
        assert not list(tmp_path.iterdir())
        assert len(os.listdir("/proc/self/fd")) == before + 2
    assert len(os.listdir("/proc/self/fd")) == before + 1
    assert equal(found[49], volume(49))
    del kept, found
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_that_is_full_is_followed_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(volumes, "_FILE_BYTES", 5000)
    given = [volume(seed) for seed in range(6)]
    with Volumes(0, 1) as kept:
        found = [kept.keep(number, one) for number, one in enumerate(given)]
        assert len(kept._files[False]) == 3
    assert all(equal(one, other) for one, other in zip(given, found, strict=True))


def test_a_disk_without_room_is_told_with_advice() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        with Volumes(0, 1) as kept:
            kept.keep(0, volume(0))
            resource.setrlimit(
                resource.RLIMIT_FSIZE, (round(1.1e9 * GB), hard)
            )  # full in the midst of an array
            kept.keep(1, volume(1))

    try:
        with pytest.raises(TrainingError, match=r"File too large.* TMPDIR .* train\.disk_gb"):
            fill()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
