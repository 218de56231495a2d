"""Bytes of a scan in, bytes of a mask on the same grid out."""

import threading
from pathlib import Path

import numpy as np
import pytest

from tutelage.archive import formats
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid

pytestmark = pytest.mark.torch

GRID = Grid.from_spacing((10, 24, 20), (18.0, 9.0, 9.0))


def scan(folder: Path, name: str) -> bytes:
    grid = GRID if "nii" in name or "nrrd" in name else Grid.from_spacing((1, 24, 20), (1.0, 1.0, 1.0))
    noise = np.random.default_rng(0).integers(0, 255, grid.shape).astype(np.uint8)
    formats.write_image(str(folder / name), noise, grid)
    return (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2", "a.nrrd", "a.png"])
def test_the_kind_of_an_upload_is_recognized_without_a_name(tmp_path: Path, name: str) -> None:
    from serve.segmenter import recognized

    assert name == f"a{recognized(scan(tmp_path, name))}"


@pytest.mark.parametrize(
    ("data", "name"), [(b"hello", ""), (b"", ""), (b"hello", "a.txt")], ids=["words", "nothing", "by name"]
)
def test_an_upload_of_no_known_kind_is_told_which_kinds_there_are(
    tiny_specialist: Path, data: bytes, name: str
) -> None:
    from serve.segmenter import Segmenter, UnknownFormatError

    with pytest.raises(UnknownFormatError, match=r"\.nii\.gz"):
        Segmenter(str(tiny_specialist), 2**20)(data, name)


def test_the_mask_lies_on_the_scan_and_is_called_like_it(tmp_path: Path, tiny_specialist: Path) -> None:
    from serve.segmenter import Segmenter

    answer = Segmenter(str(tiny_specialist), 2**20)(scan(tmp_path, "a.nii"), "../patient 7.nii")
    assert answer.name == "patient 7.nii.gz"
    (tmp_path / "mask.nii.gz").write_bytes(answer.mask)
    label_DHW = formats.read_label(str(tmp_path / "mask.nii.gz"), GRID, values=2)
    assert [one.voxels for one in answer.found] == [int((label_DHW == value).sum()) for value in (1, 2)]


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz", "a.nii.bz2"])
def test_a_scan_that_is_cut_off_is_refused(tmp_path: Path, tiny_specialist: Path, name: str) -> None:
    from serve.segmenter import Segmenter

    packed = scan(tmp_path, name)
    with pytest.raises(ArchiveError):
        Segmenter(str(tiny_specialist), 2**20)(packed[: len(packed) // 2])


def test_many_at_once_get_the_answers_that_one_gets(tmp_path: Path, tiny_specialist: Path) -> None:
    from serve.segmenter import Segmenter

    segmenter, data = Segmenter(str(tiny_specialist), 2**20), scan(tmp_path, "a.nii.gz")
    alone, answers = segmenter(data).mask, []
    threads = [threading.Thread(target=lambda: answers.append(segmenter(data).mask)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [alone] * 4
