"""What headers said is kept as it was, for files that stay, and few of them are objects at a time."""

import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tutelage.archive.headers import Instance
from tutelage.archive.known import Known
from tutelage.archive.series import TELLING, Frame
from tutelage.storage import Place


def instance(file: str, frames: int = 1) -> Instance:
    """Return a file of many frames that differ in everything that may."""
    tells = ("", "2.3", "", "ORIGINAL\\PRIMARY", "", "é", "1")
    assert len(tells) == len(TELLING)
    own = tuple(
        Frame(
            file=file,
            index=n,
            uid="0123456789ab",
            position=(0.1, -n / 3, 1e-7),
            orientation=(1.0, 0.0, 0.0, 0.0, 1.0, n * 1e-9),
            spacing=(0.7, 0.8 + n),
            size=(512, 256, 3),
            slope=1.5 + n,
            intercept=-1024.0,
            tells=(*tells[:-1], str(n)),
        )
        for n in range(frames)
    )
    return Instance(
        file,
        (1000, 17),
        "scan",
        "",
        "1.2.3",
        "4",
        "f00d",
        "CT",
        "MONOCHROME2",
        localizer=not frames,
        frames=own,
    )


OTHER = Instance("/a/notes", (3, 4), "other", "it is no DICOM file; move it elsewhere")
FILES = [
    instance("/a/b/IM2"),
    instance("/a/scout", frames=0),
    instance("/a/many", frames=3000),
    instance(os.fsdecode(b"/a/caf\xe9")),
    instance("s3://bucket/é/IM1", frames=2),
    OTHER,
    *(instance(f"/z/{n:04d}") for n in np.random.default_rng(0).permutation(1500)),
]


def kept(folder: Path, files: list[Instance]) -> Known:
    """Return what a scan of such files leaves."""
    known = Known(Place.of(folder))
    for one in files:
        if known.get(one.file, one.stamp) is None:
            known.keep(one)
    known.settle()
    return known


def test_what_was_kept_comes_back_as_it_was(tmp_path: Path) -> None:
    for known in (kept(tmp_path, FILES), Known(Place.of(tmp_path))):
        for one in FILES:
            assert known.get(one.file, one.stamp) == one
            assert known.get(one.file, (one.stamp[0], 18)) is None
        for stranger in ("", "/a/b/IM1", "/a/b/IM20", "zzz"):
            assert known.get(stranger, (1000, 17)) is None


def test_files_that_were_not_met_are_forgotten(tmp_path: Path) -> None:
    kept(tmp_path, FILES)
    kept(tmp_path, FILES[:4])
    known = Known(Place.of(tmp_path))
    assert [one.file for one in FILES if known.get(one.file, one.stamp)] == [one.file for one in FILES[:4]]


def test_a_file_that_changed_is_known_by_its_latest_header(tmp_path: Path) -> None:
    kept(tmp_path, FILES)
    changed = replace(FILES[0], stamp=(1000, 18), modality="MR")
    known = kept(tmp_path, [changed, *FILES[1:]])
    assert known.get(changed.file, changed.stamp) == changed
    assert known.get(changed.file, FILES[0].stamp) is None


def test_nothing_is_written_where_nothing_changed_or_nothing_was_asked(tmp_path: Path) -> None:
    Known(Place.of(tmp_path)).settle()
    assert list(tmp_path.iterdir()) == []
    kept(tmp_path, FILES)
    before = (tmp_path / "instances.parquet").stat()
    kept(tmp_path, FILES)
    after = (tmp_path / "instances.parquet").stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_damaged_files_are_not_kept(tmp_path: Path) -> None:
    damaged = Instance("/a", (1, 2), "damaged", "it ends early")
    assert kept(tmp_path, [damaged]).get("/a", (1, 2)) is None


def test_what_another_release_read_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept(tmp_path, FILES[:4])
    monkeypatch.setattr("tutelage.archive.known.__version__", "0.0.1")
    assert Known(Place.of(tmp_path)).get(FILES[0].file, FILES[0].stamp) is None


def test_few_of_many_files_are_objects_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tutelage.archive.known._BLOCKS", 4)
    some = [instance(f"/{n:05d}", frames=3) for n in range(2500)]
    kept(tmp_path, some)
    names = [(one.file, one.stamp) for one in some]
    known = Known(Place.of(tmp_path))
    known.get(*names[0])
    tracemalloc.start()
    try:
        assert all(known.get(*name) is not None for name in names)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # All of them would be 8 MB.
    assert held < 3e6
