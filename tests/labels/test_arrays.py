from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tutelage.errors import WorkspaceError
from tutelage.labels import arrays
from tutelage.records import Candidate, PseudoLabel, Region
from tutelage.storage import Place


def candidate(case: str = "a/b c") -> Candidate:
    rng = np.random.default_rng(0)
    mean = rng.integers(0, 256, (2, 3, 4)).astype(np.uint8)
    nothing = np.zeros((0, 0, 0), np.uint8)
    return Candidate(
        case,
        rng.integers(0, 3, (4, 5, 6)).astype(np.uint8),
        (
            Region((0, 0, 0), nothing, nothing),
            Region((1, 2, 0), mean, mean // 2),
            Region((0, 0, 0), mean, np.zeros_like(mean)),
        ),
        (0.0, 0.5, 0.7),
        (1.0, 0.25, 1.0),
        rng.random((3, 7)).astype(np.float16),
    )


def test_a_candidate_comes_back_as_it_was(tmp_path: Path) -> None:
    folder, before = Place.of(tmp_path), candidate()
    arrays.write_candidate(folder, before)
    assert repr(arrays.read_candidate(folder, before.case)) == repr(before)


def test_the_small_grid_of_features_comes_back_where_it_was_kept(tmp_path: Path) -> None:
    folder, grid_DCHW = Place.of(tmp_path), np.arange(16, dtype=np.float16).reshape(1, 4, 2, 2)
    before = replace(candidate(), grid_DCHW=grid_DCHW)
    arrays.write_candidate(folder, before)
    assert np.array_equal(arrays.read_candidate(folder, before.case).grid_DCHW, grid_DCHW)  # type: ignore[arg-type]


def test_the_same_content_has_the_same_digest_and_other_content_another(tmp_path: Path) -> None:
    first = arrays.write_candidate(Place.of(tmp_path / "1"), candidate())
    assert first == arrays.write_candidate(Place.of(tmp_path / "2"), candidate())
    changed = candidate()
    changed.specialist_DHW[0, 0, 0] += 1
    assert first != arrays.write_candidate(Place.of(tmp_path / "3"), changed)


def test_a_label_comes_back(tmp_path: Path) -> None:
    mask = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    label = PseudoLabel("a", mask, mask[::-1].copy(), (2, 7), (), mask[0].astype(np.float16))
    arrays.write_label(Place.of(tmp_path), label)
    after = arrays.read_label(Place.of(tmp_path), "a")
    assert (after.mask_DHW == mask).all()
    assert (after.weight_DHW == mask[::-1]).all()
    assert after.undecided == (2, 7)
    assert (after.pooled_KC == mask[0]).all()
    assert after.grid_DCHW is None


def test_ids_that_are_no_file_names_stay_apart(tmp_path: Path) -> None:
    names = {arrays.file_of(Place.of(tmp_path), case).name for case in ("a/b", "a_b", "a%2Fb", "../b")}
    assert len(names) == 4
    assert not any("/" in name for name in names)


def test_a_damaged_file_says_what_to_do(tmp_path: Path) -> None:
    arrays.write_candidate(Place.of(tmp_path), candidate("a"))
    file = tmp_path / "a.npz"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(WorkspaceError, match="run again"):
        arrays.read_candidate(Place.of(tmp_path), "a")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", mask_DHW=np.array([{"evil": 1}], dtype=object))
    with pytest.raises(WorkspaceError):
        arrays.read_label(Place.of(tmp_path), "a")


def test_a_digest_of_a_structures_voxels_tells_where_they_are_and_of_nothing_else() -> None:
    mask_DHW = np.zeros((3, 6, 6), np.uint8)
    mask_DHW[1, 1:4, 1:4] = 1
    mask_DHW[2, 5, 5] = 3
    first, second, third = arrays.mask_digests(mask_DHW, 3)
    assert second is None
    assert first != third
    other = mask_DHW.copy()
    other[1, 2, 2] = 3  # a voxel of the first is the third's now
    changed = arrays.mask_digests(other, 3)
    assert first not in changed
    assert third not in changed
    moved = np.roll(mask_DHW, 1, axis=2)
    assert arrays.mask_digests(moved, 3)[0] != first
    mask_DHW[2, 5, 5] = 2
    assert arrays.mask_digests(mask_DHW, 3)[0] == first
