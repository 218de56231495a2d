"""What was embedded once is found again, and only then; and whatever goes wrong, work goes on."""

import contextlib
import logging
import os
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tutelage.generalists import cache as module
from tutelage.generalists import shards
from tutelage.generalists.base import Embedding
from tutelage.generalists.cache import CacheStats, EmbeddingCache
from tutelage.generalists.settings import CacheSettings
from tutelage.generalists.shards import Key, Read
from tutelage.generalists.threshold import Threshold
from tutelage.storage import Place

pytestmark = pytest.mark.files

RANDOM = np.random.default_rng(0)
SLICES = [(0, 7), (0, 8), (2, 3)]
PLAIN = CacheSettings(when="always", zstd=0)


def _embedding(values: int = 24) -> Embedding:
    return Embedding(RANDOM.standard_normal((2, 3, values // 6)).astype(np.float16), (31, 47))


EMBEDDINGS = {key: _embedding() for key in SLICES}


def _changed(**attributes: str) -> Threshold:
    generalist = Threshold()
    for name, value in attributes.items():
        setattr(generalist, name, value)
    return generalist


def _cache(place: Path | Place, settings: CacheSettings = PLAIN) -> EmbeddingCache:
    return EmbeddingCache(Place.of(place), Threshold(), settings)


def _raise(error: Exception) -> Callable[..., object]:
    def fail(*_: object) -> object:
        raise error

    return fail


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.shard"))


@pytest.fixture(params=["local", "through pyarrow"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place.of(tmp_path) if request.param == "local" else Place(f"file://{tmp_path}")


# --- keeping and finding ------------------------------------------------------------------


@pytest.mark.parametrize("settings", [CacheSettings(), CacheSettings(zstd=0), PLAIN], ids=str)
def test_slices_that_were_kept_are_found_by_others_to_the_bit(place: Place, settings: CacheSettings) -> None:
    _cache(place, settings).keep("image", EMBEDDINGS, 0.1)
    found = _cache(place, settings).find("image", [*SLICES, (1, 7)])
    assert found.keys() == EMBEDDINGS.keys()
    for key, embedding in found.items():
        assert embedding.shape == EMBEDDINGS[key].shape
        assert np.array_equal(embedding.features_CHW, EMBEDDINGS[key].features_CHW)


def test_who_keeps_finds_too_and_batches_add_up(place: Place) -> None:
    cache = _cache(place)
    assert cache.find("image", SLICES) == {}
    cache.keep("image", {SLICES[0]: EMBEDDINGS[SLICES[0]]})
    assert cache.find("image", SLICES).keys() == {SLICES[0]}
    cache.keep("image", {key: EMBEDDINGS[key] for key in SLICES[1:]})
    assert cache.find("image", SLICES).keys() == set(SLICES)


def test_a_shard_lies_beneath_weights_and_image_and_is_named_by_its_slices(tmp_path: Path) -> None:
    _cache(tmp_path).keep("pa/tient", EMBEDDINGS)
    (file,) = _shards(tmp_path)
    generalist, image, name = file.relative_to(tmp_path).parts
    assert generalist.startswith("none-threshold-")
    assert image == "pa%2Ftient"
    assert name.startswith("0-00007-")


def test_many_slices_become_several_shards(tmp_path: Path) -> None:
    many = {(0, index): _embedding() for index in range(70)}
    cache = _cache(tmp_path)
    cache.keep("image", many)
    assert len(_shards(tmp_path)) == 3
    assert cache.find("image", list(many)).keys() == many.keys()


@pytest.mark.parametrize(
    ("generalist", "image", "key"),
    [
        (Threshold(), "image", (0, 9)),
        (Threshold(), "image", (1, 7)),
        (Threshold(), "other", (0, 7)),
        (_changed(weights="none-other"), "image", (0, 7)),
        (_changed(preprocessing="upside down"), "image", (0, 7)),
    ],
    ids=["slice", "axis", "image", "weights", "preprocessing"],
)
def test_another_key_is_a_miss(tmp_path: Path, generalist: Threshold, image: str, key: Key) -> None:
    _cache(tmp_path).keep("image", EMBEDDINGS)
    assert EmbeddingCache(Place.of(tmp_path), generalist).find(image, [key]) == {}


def test_fp16_is_never_answered_from_int8(tmp_path: Path) -> None:
    rounded = CacheSettings(precision="int8")
    _cache(tmp_path, rounded).keep("image", EMBEDDINGS)
    assert _cache(tmp_path).find("image", SLICES) == {}
    found = _cache(tmp_path, rounded).find("image", SLICES)
    assert np.allclose(found[0, 7].features_CHW, EMBEDDINGS[0, 7].features_CHW, atol=0.02)


def test_integers_of_numpy_name_slices_as_well(tmp_path: Path) -> None:
    key = (0, np.int64(7))
    cache = _cache(tmp_path)
    cache.keep("image", {key: EMBEDDINGS[0, 7]})  # type: ignore[dict-item]
    assert _cache(tmp_path).find("image", [key]).keys() == {(0, 7)}  # type: ignore[list-item]


@pytest.mark.parametrize("when", ["auto", "never"])
def test_without_a_place_or_told_never_nothing_is_remembered(tmp_path: Path, when: str) -> None:
    place = Place.of(tmp_path) if when == "never" else None
    _cache(tmp_path).keep("image", EMBEDDINGS)
    before = len(list(tmp_path.rglob("*")))
    cache = EmbeddingCache(place, Threshold(), CacheSettings.model_validate({"when": when}))
    cache.keep("other", EMBEDDINGS)
    assert cache.find("image", SLICES) == cache.find("other", SLICES) == {}
    assert asdict(cache.stats()) == asdict(CacheStats(misses=6))
    assert len(list(tmp_path.rglob("*"))) == before


def test_what_was_done_is_counted(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    cache.keep("image", EMBEDDINGS)
    cache.find("image", [(0, 7), (0, 99)])
    before = cache.stats()
    cache.find("image", [(0, 7), (0, 8)])
    (file,) = _shards(tmp_path)
    assert before.bytes_written == file.stat().st_size
    assert (before.hits, before.misses, before.refused) == (1, 1, 0)
    after = cache.stats().since(before)
    assert (after.hits, after.misses, after.bytes_written) == (2, 0, 0)
    assert after.bytes_read > 2 * 48
    assert 0 < after.seconds_reading < 10


# --- damage -------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [0, 1, 100, -1], ids=["empty", "a byte", "a header", "all but a byte"])
def test_a_damaged_shard_is_a_miss_that_is_logged_and_mended(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture, left: int
) -> None:
    _cache(place).keep("image", EMBEDDINGS)
    (file,) = _shards(tmp_path)
    file.write_bytes(file.read_bytes()[:left])
    cache = _cache(place)
    with caplog.at_level(logging.WARNING):
        assert cache.find("image", SLICES) == {}
    assert f"{file} is damaged and made anew" in caplog.text
    assert _shards(tmp_path) == []
    cache.keep("image", EMBEDDINGS)
    assert _cache(place).find("image", SLICES).keys() == EMBEDDINGS.keys()


def test_damage_is_found_also_after_other_slices_of_the_shard_were(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    cache.keep("image", EMBEDDINGS)
    assert cache.find("image", [(0, 7)]).keys() == {(0, 7)}
    (file,) = _shards(tmp_path)
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    assert cache.find("image", [(2, 3)]) == {}
    assert cache.find("image", [(0, 7)]) == {}
    cache.keep("image", EMBEDDINGS)
    assert cache.find("image", SLICES).keys() == EMBEDDINGS.keys()


def test_a_shard_that_somebody_deleted_meanwhile_is_a_miss(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = _cache(tmp_path)
    cache.keep("image", EMBEDDINGS)
    _shards(tmp_path)[0].unlink()
    assert cache.find("image", SLICES) == {}
    assert caplog.text == ""


def test_a_shard_that_cannot_be_read_is_a_miss_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = _cache(tmp_path)
    cache.keep("image", EMBEDDINGS)
    with monkeypatch.context() as broken:
        broken.setattr(shards, "read", _raise(OSError("input/output error")))
        assert cache.find("image", SLICES) == {}
    assert f"{_shards(tmp_path)[0]} cannot be read and is made anew: input/output error" in caplog.text
    assert cache.find("image", SLICES).keys() == EMBEDDINGS.keys()


def test_a_folder_that_cannot_be_listed_is_a_miss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Place, "names", _raise(PermissionError("not yours")))
    assert _cache(tmp_path).find("image", SLICES) == {}
    assert "cannot be listed" in caplog.text


# --- many writers -------------------------------------------------------------------------


def test_two_writers_of_one_batch_leave_one_shard_and_of_two_batches_two(tmp_path: Path) -> None:
    for _ in range(2):
        _cache(tmp_path).keep("image", EMBEDDINGS)
    assert len(_shards(tmp_path)) == 1
    _cache(tmp_path).keep("image", {key: EMBEDDINGS[key] for key in SLICES[1:]})
    assert len(_shards(tmp_path)) == 2
    assert _cache(tmp_path).find("image", SLICES).keys() == EMBEDDINGS.keys()


def test_writers_and_readers_at_the_same_time_never_see_half_a_shard(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    features = RANDOM.standard_normal((8, 64, 64)).astype(np.float16)
    twins = [{(0, 0): Embedding(features, (31, 47))}, {(0, 0): Embedding(-features, (31, 47))}]
    seen: list[float] = []

    def work(twin: dict[Key, Embedding]) -> None:
        for _ in range(30):
            _cache(place).keep("image", twin)
            found = _cache(place).find("image", [(0, 0)])
            seen.append(abs(float(found[0, 0].features_CHW[0, 0, 0])))

    threads = [threading.Thread(target=work, args=(twin,)) for twin in twins]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [abs(float(features[0, 0, 0]))] * 60
    assert caplog.text == ""


# --- writes that fail ---------------------------------------------------------------------


@contextlib.contextmanager
def small_files_only() -> Iterator[None]:
    """As on a full disk: the system refuses to write more than a few bytes to any file.

    Not a fixture: what pytest itself writes meanwhile may go to a file as well.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_is_said_once_and_counted_and_work_goes_on(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = _cache(place)
    with small_files_only():
        for image in "abc":
            assert cache.find(image, SLICES) == {}
            cache.keep(image, EMBEDDINGS)
    (record,) = caplog.records
    assert "cannot be written, embeddings are made anew instead" in record.message
    assert "File too large" in record.message
    assert cache.refused == cache.stats().refused == 9
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["used"]


def test_a_place_that_cannot_be_a_folder_is_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("x")
    cache = _cache(tmp_path / "file")
    cache.keep("image", EMBEDDINGS)
    assert cache.refused == 3
    assert "cannot be written" in caplog.text


def test_writing_is_tried_again_a_minute_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "cache").write_text("in the way")
    cache = _cache(tmp_path / "cache")
    clock = _clock(monkeypatch)
    cache.keep("a", EMBEDDINGS)
    (tmp_path / "cache").unlink()
    clock.now += 30
    cache.keep("b", EMBEDDINGS)
    assert cache.refused == 6
    clock.now += 31
    cache.keep("c", EMBEDDINGS)
    assert cache.refused == 6
    assert len(_shards(tmp_path)) == 1
    assert len(caplog.records) == 1


# --- cost ---------------------------------------------------------------------------------


def _clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Time that stands still unless it is moved."""
    clock = SimpleNamespace(now=1000.0)
    fake = SimpleNamespace(perf_counter=lambda: clock.now, monotonic=lambda: clock.now)
    monkeypatch.setattr(module, "time", fake)
    return clock


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A place where a shard takes `reading` seconds to read and `writing` to write."""
    clock = _clock(monkeypatch)
    clock.reading = clock.writing = 0.0

    def later(what: Callable[..., object], kind: str) -> Callable[..., object]:
        def wait(*args: object) -> object:
            clock.now += getattr(clock, kind)
            return what(*args)

        return wait

    monkeypatch.setattr(shards, "read", later(shards.read, "reading"))
    monkeypatch.setattr(shards, "write", later(shards.write, "writing"))
    return clock


def _round(cache: EmbeddingCache, images: Sequence[str], seconds: float) -> list[int]:
    """Label images; the hits of each. Embedding its three slices takes `seconds`."""
    hits = []
    for image in images:
        before = cache.stats()
        found = cache.find(image, SLICES)
        missing = [key for key in SLICES if key not in found]
        cache.keep(image, {key: EMBEDDINGS[key] for key in missing}, seconds)
        hits.append(cache.stats().since(before).hits)
    return hits


IMAGES = [f"image{index:02d}" for index in range(33)]
AUTO = CacheSettings()


def test_where_reading_is_cheaper_than_embedding_everything_is_found(
    tmp_path: Path, slow: SimpleNamespace
) -> None:
    slow.reading, slow.writing = 0.3, 0.3
    assert _round(_cache(tmp_path, AUTO), IMAGES, seconds=3.0) == [0] * 33
    assert _round(_cache(tmp_path, AUTO), IMAGES, seconds=3.0) == [3] * 33


def test_where_writing_is_dearer_than_embedding_only_trials_are_kept(
    tmp_path: Path, slow: SimpleNamespace
) -> None:
    slow.reading, slow.writing = 9.0, 9.0
    cache = _cache(tmp_path, AUTO)
    _round(cache, IMAGES, seconds=3.0)
    assert len(_shards(tmp_path)) == 3  # the first, before anybody knew, and the 16th and 32nd
    assert cache.refused == 30 * 3


def test_a_later_round_learns_from_the_shards_what_embedding_took(
    tmp_path: Path, slow: SimpleNamespace
) -> None:
    _round(_cache(tmp_path, AUTO), IMAGES, seconds=3.0)
    slow.reading = 9.0
    assert sum(_round(_cache(tmp_path, AUTO), IMAGES[:15], seconds=3.0)) == 3


def test_trials_find_out_that_a_place_has_become_fast_again(tmp_path: Path, slow: SimpleNamespace) -> None:
    _round(_cache(tmp_path, AUTO), IMAGES, seconds=3.0)
    cache = _cache(tmp_path, AUTO)
    slow.reading = 4.0
    _round(cache, IMAGES[:1], seconds=3.0)
    slow.reading = 0.03
    assert _round(cache, IMAGES[1:], seconds=3.0) == [0] * 14 + [3] * 18


def test_told_always_cost_does_not_matter(tmp_path: Path, slow: SimpleNamespace) -> None:
    slow.reading, slow.writing = 9.0, 9.0
    assert _round(_cache(tmp_path), IMAGES, seconds=3.0) == [0] * 33
    assert _round(_cache(tmp_path), IMAGES, seconds=3.0) == [3] * 33


def test_a_place_that_fails_slowly_is_dear(
    tmp_path: Path, slow: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    _round(_cache(tmp_path, AUTO), IMAGES, seconds=3.0)

    def time_out(*_: object) -> Read:
        slow.now += 30.0
        raise TimeoutError("the store does not answer")

    monkeypatch.setattr(shards, "read", time_out)
    cache, before = _cache(tmp_path, AUTO), slow.now
    assert _round(cache, IMAGES, seconds=3.0) == [0] * 33
    assert slow.now - before == 3 * 30.0


# --- size ---------------------------------------------------------------------------------


SHARD_BYTES = 10_000
BOUND = CacheSettings(when="always", zstd=0, max_gb=40 * SHARD_BYTES / 1e9)


def _pass(cache: EmbeddingCache, images: int) -> float:
    """One pass over an archive in its order, one slice an image; the share of hits."""
    before = cache.stats()
    for image in range(images):
        if not cache.find(f"image{image:03d}", [(0, 0)]):
            cache.keep(f"image{image:03d}", {(0, 0): _embedding(4800)})
    done = cache.stats().since(before)
    return done.hits / images


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def test_an_archive_of_twice_the_bound_hits_for_half_in_every_later_pass(
    place: Place, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _cache(place, BOUND)
    assert _pass(first, 80) == 0.0
    assert 0.9 <= _size(tmp_path) / (40 * SHARD_BYTES) <= 1.0
    assert 0.45 <= _pass(first, 80) <= 0.55
    assert 0.45 <= _pass(_cache(place, BOUND), 80) <= 0.55
    assert first.refused > 0
    assert [("max_gb" in r.message and "raise the bound" in r.message) for r in caplog.records] == [True] * 2


def test_thirty_two_processes_exceed_the_bound_by_a_shard_each_at_most(tmp_path: Path) -> None:
    wide = BOUND.model_copy(update={"max_gb": 160 * SHARD_BYTES / 1e9})
    caches = [_cache(tmp_path, wide) for _ in range(32)]
    for image in range(8):
        for writer, cache in enumerate(caches):
            cache.keep(f"image{writer}-{image}", {(0, 0): _embedding(4800)})
    assert 0.95 <= _size(tmp_path) / (160 * SHARD_BYTES) <= (160 + 32) / 160


def test_without_a_bound_the_folder_is_never_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Place, "beneath", _raise(AssertionError("measured")))
    _cache(tmp_path).keep("image", EMBEDDINGS)
    assert len(_shards(tmp_path)) == 1


def _fill(folder: Path, generalist: Threshold, idle_days: float) -> Path:
    """The bound's worth of another generalist, last used so long ago; its folder."""
    before = set(folder.iterdir())
    _pass(EmbeddingCache(Place.of(folder), generalist, PLAIN), 40)
    (filled,) = set(folder.iterdir()) - before
    for file in filled.rglob("*"):
        then = time.time() - idle_days * 86_400
        os.utime(file, (then, then))
    return filled


def test_embeddings_that_nobody_uses_any_more_make_room_oldest_first(tmp_path: Path) -> None:
    older = _fill(tmp_path, _changed(weights="none-older"), idle_days=90)
    old = _fill(tmp_path, _changed(weights="none-old"), idle_days=60)
    wide = BOUND.model_copy(update={"max_gb": 2 * 40 * SHARD_BYTES / 1e9})
    cache = _cache(tmp_path, wide)
    _pass(cache, 30)
    assert cache.refused == 0
    assert (older.exists(), old.exists()) == (False, True)


def test_embeddings_in_use_and_what_is_not_ours_stay(tmp_path: Path) -> None:
    other = _fill(tmp_path, _changed(weights="none-other"), idle_days=90)
    EmbeddingCache(Place.of(tmp_path), _changed(weights="none-other")).find("any", SLICES)  # is in use again
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "precious").write_bytes(bytes(SHARD_BYTES))
    os.utime(tmp_path / "theirs" / "precious", (0, 0))
    cache = _cache(tmp_path, BOUND)
    _pass(cache, 3)
    assert cache.refused == 3
    assert len(_shards(other)) == 40
    assert (tmp_path / "theirs" / "precious").exists()


def test_a_place_that_cannot_be_measured_is_a_write_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Place, "beneath", _raise(PermissionError("not yours")))
    cache = _cache(tmp_path, BOUND)
    cache.keep("image", EMBEDDINGS)
    assert cache.refused == 3
    assert "not yours" in caplog.text
