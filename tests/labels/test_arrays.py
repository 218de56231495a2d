from pathlib import Path

import numpy as np
import pytest

from tutelage.errors import WorkspaceError
from tutelage.labels import arrays
from tutelage.records import Candidate, PseudoLabel
from tutelage.storage import Place


def candidate(case: str = "a/b c") -> Candidate:
    rng = np.random.default_rng(0)
    share = rng.random((3, 4, 5, 6)).astype(np.float32)
    return Candidate(
        case, rng.integers(0, 3, (4, 5, 6)).astype(np.uint8), share, share / np.float32(2), (0.0, 0.5, 0.7)
    )


def test_a_candidate_comes_back_within_half_a_step(tmp_path: Path) -> None:
    folder, before = Place.of(tmp_path), candidate()
    arrays.write_candidate(folder, before)
    after = arrays.read_candidate(folder, before.case)
    assert (after.specialist_DHW == before.specialist_DHW).all()
    assert np.abs(after.generalist_KDHW - before.generalist_KDHW).max() <= 0.5 / 255 + 1e-6
    assert after.predicted_iou == before.predicted_iou


def test_the_same_content_has_the_same_digest_and_other_content_another(tmp_path: Path) -> None:
    first = arrays.write_candidate(Place.of(tmp_path / "1"), candidate())
    assert first == arrays.write_candidate(Place.of(tmp_path / "2"), candidate())
    changed = candidate()
    changed.specialist_DHW[0, 0, 0] += 1
    assert first != arrays.write_candidate(Place.of(tmp_path / "3"), changed)


def test_a_label_comes_back(tmp_path: Path) -> None:
    mask = np.arange(60, dtype=np.uint8).reshape(3, 4, 5)
    label = PseudoLabel("a", mask, mask[::-1].copy(), (2, 7), ())
    arrays.write_label(Place.of(tmp_path), label)
    after = arrays.read_label(Place.of(tmp_path), "a")
    assert (after.mask_DHW == mask).all()
    assert (after.weight_DHW == mask[::-1]).all()
    assert after.undecided == (2, 7)


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
