"""A scan of whole folders: roles, what is set aside and why, and what stops it."""

import gzip
import json
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tutelage.archive import formats, looking
from tutelage.archive.catalog import Catalog, load, scan
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError, WorkspaceError
from tutelage.geometry import Grid
from tutelage.records import Role
from tutelage.storage import Place

GRID = Grid.from_spacing((3, 4, 5), (3.0, 1.0, 1.0))
NAMES = tuple(f"p{i}" for i in range(6))


def settings_of(root: Path, **more: Any) -> ArchiveSettings:
    values = {
        "importer": "pairs",
        "root": str(root),
        "structures": ["left", "right"],
        "split": {"gold": 1, "validation": 1, "test": 1},
    }
    return ArchiveSettings.model_validate(values | more)


def save(path: Path, grid: Grid = GRID, value: float = 0, dtype: str = "i2") -> Path:
    formats.write_image(path, np.full(grid.shape, value, dtype), grid)
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Six labeled scans."""
    root = tmp_path / "archive"
    for name in NAMES:
        save(root / "images" / f"{name}.nii.gz")
        save(root / "labels" / f"{name}.nii.gz", dtype="u1")
    return root


def scanned(root: Path, **more: Any) -> Catalog:
    return scan(settings_of(root, **more), Place.of(root.parent / "catalog"), Place.of(root.parent / "made"))


def test_a_scan_tells_roles_and_grids(archive: Path) -> None:
    catalog = scanned(archive, modality="CT")
    assert catalog.structures == ("left", "right")
    assert [c.case for c in catalog.cases] == list(NAMES)
    assert Counter(c.role.value for c in catalog.cases) == {
        "gold": 1,
        "validation": 1,
        "test": 1,
        "unlabeled": 3,
    }
    assert not catalog.quarantined
    for case in catalog.cases:
        assert (case.grid, case.channels, case.modality) == (GRID, 1, "CT")
        status = os.stat(case.image)
        assert case.stamp == f"{status.st_size}-{status.st_mtime_ns}"
    assert catalog.case("p3").case == "p3"
    with pytest.raises(ArchiveError, match="no case 'p9'"):
        catalog.case("p9")


def test_labels_of_unlabeled_cases_are_hidden(archive: Path) -> None:
    for case in scanned(archive).cases:
        label = str(archive / "labels" / f"{case.case}.nii.gz")
        expected = (None, label) if case.role is Role.UNLABELED else (label, None)
        assert (case.label, case.hidden) == expected


def test_what_was_stored_is_what_is_loaded(archive: Path) -> None:
    (archive / "images" / "p0.nii.gz").write_bytes(b"")
    catalog = scanned(archive)
    loaded = load(Place.of(archive.parent / "catalog"))
    assert loaded == catalog
    assert loaded.fingerprint() == catalog.fingerprint()
    assert pickle.loads(pickle.dumps(catalog)) == catalog


def test_a_folder_without_a_catalog_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="run `tutelage catalog`"):
        load(Place.of(tmp_path))


@pytest.mark.parametrize("name", ["cases.parquet", "quarantine.parquet"])
def test_a_damaged_catalog_is_refused_and_a_scan_replaces_it(archive: Path, name: str) -> None:
    catalog = scanned(archive)
    folder = archive.parent / "catalog"
    (folder / name).write_bytes((folder / name).read_bytes()[:50])
    with pytest.raises(WorkspaceError, match="scan again"):
        load(Place.of(folder))
    assert scanned(archive) == catalog
    assert load(Place.of(folder)) == catalog


# --- fingerprint --------------------------------------------------------------------------


def test_copying_a_file_again_changes_its_stamp_and_not_the_fingerprint(archive: Path) -> None:
    before = scanned(archive)
    os.utime(archive / "images" / "p0.nii.gz", ns=(1, 1))
    after = scanned(archive)
    assert after.case("p0").stamp != before.case("p0").stamp
    assert after.fingerprint() == before.fingerprint()


def test_the_fingerprint_changes_with_roles_grids_and_names(archive: Path) -> None:
    prints = [scanned(archive).fingerprint()]
    prints.append(scanned(archive, split={"gold": 2, "validation": 1, "test": 1}).fingerprint())
    prints.append(scanned(archive, structures=["left", "other"]).fingerprint())
    other = Grid.from_spacing(GRID.shape, (3.0, 1.0, 1.5))
    save(archive / "images" / "p0.nii.gz", other)
    save(archive / "labels" / "p0.nii.gz", other)
    prints.append(scanned(archive).fingerprint())
    assert len(set(prints)) == 4


# --- quarantine ---------------------------------------------------------------------------


def cut(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 999, GRID.shape, np.int16)
    formats.write_image(path, noise, GRID)
    path.write_bytes(path.read_bytes()[:-20])


def without_spacing(path: Path) -> None:
    data = bytearray(gzip.decompress(path.read_bytes()))
    data[80:92] = bytes(12)
    path.write_bytes(gzip.compress(data))


def test_a_scan_goes_on_after_files_that_cannot_be_used(archive: Path) -> None:
    images, labels = archive / "images", archive / "labels"
    for name in ("cut", "empty", "flat", "elsewhere", "gone", "huge", "badlabel"):
        save(images / f"{name}.nii.gz")
        save(labels / f"{name}.nii.gz")
    cut(images / "cut.nii.gz")
    (images / "empty.nii.gz").write_bytes(b"")
    without_spacing(images / "flat.nii.gz")
    save(labels / "elsewhere.nii.gz", Grid.from_spacing(GRID.shape, (3.0, 1.0, 1.1)))
    save(images / "huge.nii.gz", Grid.from_spacing((20, 20, 20), (1, 1, 1)))
    (labels / "badlabel.nii.gz").write_bytes(b"no gzip")
    (images / "scan.dcm").write_bytes(b"DICM")
    (images / "gone.nii.gz").unlink()
    (images / "gone.nii.gz").symlink_to(archive / "nowhere.nii.gz")
    catalog = scanned(archive, max_voxels=1000)
    assert [c.case for c in catalog.cases] == list(NAMES)
    reasons = {str(Path(b.address).relative_to(archive)): b.reason for b in catalog.quarantined}
    expected = {
        "images/cut.nii.gz": "copy it again",
        "images/empty.nii.gz": "it is empty, expected an image",
        "images/flat.nii.gz": "its spacing is 0, 0, 0 mm",
        "labels/elsewhere.nii.gz": "does not lie on its image: corners lie up to",
        "images/huge.nii.gz": "declares 8000 voxels, expected at most 1000",
        "labels/badlabel.nii.gz": "cannot be decoded",
        "images/scan.dcm": "suffix is unknown",
        "labels/gone.nii.gz": "no image of its name",
    }
    assert set(reasons) == set(expected)
    for name, reason in expected.items():
        assert reason in reasons[name]
        assert not reasons[name].startswith("/"), "the address is told once"


def test_a_listed_file_that_is_not_there_is_set_aside(archive: Path) -> None:
    told = [{"image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz"} for n in (*NAMES, "gone")]
    labels = {"0": "background", "1": "left", "2": "right"}
    (archive / "dataset.json").write_text(json.dumps({"labels": labels, "training": told}))
    catalog = scanned(archive, importer="msd")
    assert len(catalog.cases) == 6
    [bad] = catalog.quarantined
    assert "does not exist" in bad.reason


def test_voxels_are_not_looked_at(archive: Path) -> None:
    save(archive / "images" / "p0.nii.gz", value=np.nan, dtype="f4")
    assert len(scanned(archive).cases) == 6
    with pytest.raises(ArchiveError, match="60 of its voxels are no numbers"):
        formats.read_image(archive / "images" / "p0.nii.gz")


# --- scanning again -----------------------------------------------------------------------


def test_files_that_have_not_changed_are_not_opened_again(
    archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = scanned(archive)
    opened: list[str] = []
    real = formats.header

    def noted(address: str) -> formats.Header:
        opened.append(address)
        return real(address)

    monkeypatch.setattr(formats, "header", noted)
    assert scanned(archive) == first
    assert opened == []
    save(archive / "labels" / "p2.nii.gz", Grid.from_spacing((3, 4, 6), (3, 1, 1)))
    again = scanned(archive)
    assert [Path(o).name for o in opened] == ["p2.nii.gz"] * 2
    assert [Path(b.address).name for b in again.quarantined] == ["p2.nii.gz"]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note the names of files whose headers are read."""
    names: list[str] = []
    real = formats.header

    def noted(address: str) -> formats.Header:
        names.append(Path(address).name)
        return real(address)

    monkeypatch.setattr(formats, "header", noted)
    return names


def test_a_new_file_is_found_and_nothing_else_is_opened(archive: Path, opened: list[str]) -> None:
    scanned(archive)
    opened.clear()
    save(archive / "images" / "p6.nii.gz")
    (archive / "images" / "p0.nii.gz").unlink()
    catalog = scanned(archive)
    assert opened == ["p6.nii.gz"]
    assert [c.case for c in catalog.cases] == [*NAMES[1:], "p6"]
    opened.clear()
    assert scanned(archive) == catalog
    assert not opened


def test_cases_that_take_no_part_are_not_opened_again_either(archive: Path, opened: list[str]) -> None:
    split = {"gold": 1, "validation": 1, "test": 1, "unlabeled": 0}
    assert len(scanned(archive, split=split).cases) == 3
    opened.clear()
    assert len(scanned(archive).cases) == 6
    assert not opened


def test_files_that_could_not_be_used_are_opened_again(archive: Path, opened: list[str]) -> None:
    cut(archive / "images" / "p0.nii.gz")
    scanned(archive)
    opened.clear()
    scanned(archive)
    assert opened == ["p0.nii.gz"]


def test_a_label_that_appears_later_is_opened_with_its_image(archive: Path, opened: list[str]) -> None:
    (archive / "labels" / "p0.nii.gz").rename(archive / "p0.nii.gz")
    scanned(archive)
    opened.clear()
    (archive / "p0.nii.gz").rename(archive / "labels" / "p0.nii.gz")
    assert scanned(archive).case("p0").hidden or scanned(archive).case("p0").label
    assert opened == ["p0.nii.gz", "p0.nii.gz"]


def test_a_scan_that_was_stopped_does_not_read_again_what_it_had_read(
    archive: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = scan(settings_of(archive), Place.of(archive.parent / "other"), Place.of(archive.parent))
    monkeypatch.setattr(looking, "_BATCH", 2)
    read = formats.header

    def stopped(address: str) -> formats.Header:
        if "p4" in address:
            raise KeyboardInterrupt
        return read(address)

    with monkeypatch.context() as stopping:
        stopping.setattr(formats, "header", stopped)
        with pytest.raises(KeyboardInterrupt):
            scanned(archive)
    opened.clear()
    assert scanned(archive) == whole
    assert sorted(set(opened)) == ["p4.nii.gz", "p5.nii.gz"]
    assert not list((archive.parent / "catalog" / "headers").glob("*"))


def test_what_was_seen_may_be_damaged_and_costs_only_time(archive: Path, opened: list[str]) -> None:
    catalog = scanned(archive)
    (archive.parent / "catalog" / "headers.parquet").write_bytes(b"no parquet")
    opened.clear()
    assert scanned(archive) == catalog
    assert len(opened) == 12


def test_a_smaller_limit_counts_for_files_known_before(archive: Path) -> None:
    scanned(archive)
    with pytest.raises(ArchiveError, match="0 patients have labels"):
        scanned(archive, max_voxels=10)


def test_a_name_that_is_no_text_is_set_aside(archive: Path) -> None:
    odd = os.fsencode(archive / "images") + b"/caf\xe9.nii.gz"
    with open(odd, "wb") as file:
        file.write((archive / "images" / "p0.nii.gz").read_bytes())
    catalog = scanned(archive)
    [bad] = catalog.quarantined
    assert bad.address.endswith("caf\\udce9.nii.gz")
    assert "is no UTF-8" in bad.reason
    assert load(Place.of(archive.parent / "catalog")) == catalog


# --- what stops a scan --------------------------------------------------------------------


def test_two_cases_of_one_id_are_refused(archive: Path) -> None:
    save(archive / "images" / "p1.nrrd")
    with pytest.raises(ArchiveError, match=r"two cases named p1, .*p1\.nii\.gz and .*p1\.nrrd"):
        scanned(archive)


def test_splits_are_taken_from_the_folder(archive: Path) -> None:
    told = {"gold": ["p0"], "validation": ["p1"], "test": ["p2"], "unlabeled": ["p3", "p4"]}
    (archive / "splits.json").write_text(json.dumps(told))
    catalog = scanned(archive)
    assert {c.case: c.role.value for c in catalog.cases} == {
        case: role for role, cases in told.items() for case in cases
    }
    assert [Path(b.address).name for b in catalog.quarantined] == ["p5.nii.gz"]
    assert "splits.json does not name it" in catalog.quarantined[0].reason


BAD_SPLITS = {
    "stranger": ({"gold": ["p0", "p00"]}, "names 1 cases that are not there, first p00"),
    "twice": ({"gold": ["p0"], "test": ["p0"]}, "case p0 is in gold and test"),
    "other word": ({"train": ["p0"]}, "'train' is no list of a split, expected gold, unlabeled"),
    "no list": ({"gold": "p0"}, "'gold' is no list"),
    "patient in two": ({"gold": ["p0"], "test": ["p1"]}, "anna in gold and test"),
}


@pytest.mark.parametrize(("told", "complaint"), BAD_SPLITS.values(), ids=BAD_SPLITS.keys())
def test_splits_that_contradict_are_refused(archive: Path, told: dict[str, Any], complaint: str) -> None:
    (archive / "splits.json").write_text(json.dumps(told))
    (archive / "patients.csv").write_text("case,patient\np0,anna\np1,anna\n")
    with pytest.raises(ArchiveError, match=complaint):
        scanned(archive)


def test_a_split_may_name_what_is_in_quarantine(archive: Path) -> None:
    (archive / "images" / "p5.nii.gz").write_bytes(b"")
    (archive / "splits.json").write_text(json.dumps({"gold": ["p0", "p5"], "test": ["p1"]}))
    catalog = scanned(archive)
    assert [c.case for c in catalog.of(Role.GOLD)] == ["p0"]
    assert [Path(b.address).name for b in catalog.quarantined] == ["p5.nii.gz"]
