"""Archives of very many files: time and memory that do not grow with them more than columns must.

Nobody writes so many images: a list names them, and what headers say is made up.
"""

import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.archive import catalog, formats, looking
from tutelage.archive.cases import schema
from tutelage.archive.catalog import load, scan
from tutelage.archive.importers import listing
from tutelage.archive.parallel import READERS, each_in_turn
from tutelage.archive.rows import write_rows
from tutelage.archive.settings import ArchiveSettings
from tutelage.archive.volume import Header, native_for
from tutelage.geometry import Grid
from tutelage.records import Role
from tutelage.storage import Place

GRID = Grid.from_spacing((120, 512, 512), (3.0, 0.8, 0.8))


def write_catalog(folder: Path, count: int) -> None:
    """Write a catalog of made-up cases."""
    names = [f"case_{i:08d}" for i in range(count)]
    affine = np.tile(np.array(GRID.affine).ravel(), count)
    columns = {
        "case": names,
        "patient": names,
        "role": ["gold"] * 10 + ["unlabeled"] * (count - 10),
        "image": [f"s3://bucket/site/images/{name}.nii.gz" for name in names],
        "label": pa.nulls(count, pa.string()),
        "hidden": pa.nulls(count, pa.string()),
        "modality": ["CT"] * count,
        "shape": pa.FixedSizeListArray.from_arrays(pa.array(np.tile(GRID.shape, count)), 3),
        "affine": pa.FixedSizeListArray.from_arrays(pa.array(affine), 12),
        "channels": np.ones(count, np.int64),
        "stamp": [f"{i}-17" for i in range(count)],
        "label_stamp": [""] * count,
    }
    write_rows(Place.of(folder), pa.table(columns, schema()), [], ("liver",))


def test_what_is_left_to_do_of_many_cases_is_known_at_once(tmp_path: Path) -> None:
    write_catalog(tmp_path, 100_000)
    started, before = time.monotonic(), pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        unlabeled = load(Place.of(tmp_path)).of(Role.UNLABELED)
        left = unlabeled.without(unlabeled.ids().slice(0, 90_000))
        first = (left[0].case, next(iter(left)).case, len(left), len(unlabeled.identity()))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert first == ("case_00090010", "case_00090010", 9990, 12)
    # A second on a quiet machine. A hundred thousand objects alone would be 100 MB.
    assert time.monotonic() - started < 15
    assert peak_bytes < 30e6
    assert pa.total_allocated_bytes() - before < 100e6


def test_the_catalog_lies_in_groups_that_can_be_read_one_by_one(tmp_path: Path) -> None:
    write_catalog(tmp_path, 100_000)
    stored = pq.ParquetFile(tmp_path / "cases.parquet")
    assert stored.num_row_groups == 2
    assert stored.read_row_group(1, columns=["case"])["case"][0].as_py() == "case_00065536"


# --- scanning -----------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Make up what files say, a few hundred of them at a time, and note whose headers are read."""
    names: list[str] = []

    def header(address: str) -> Header:
        names.append(address)
        return Header(GRID, 1, "nifti", native_for("nifti", GRID), None)

    monkeypatch.setattr(formats, "header", header)
    monkeypatch.setattr(formats, "stamp", lambda address: "5000-17")
    for room, name in ((catalog, "_AT_ONCE"), (looking, "_BATCH"), (listing, "_ROWS")):
        monkeypatch.setattr(room, name, 256)
    return names


def settings_of(folder: Path, count: int) -> ArchiveSettings:
    """Write a list of so many images, two of each patient, and return settings to read it."""
    root = folder / "list.parquet"
    images = [f"s3://bucket/images/case_{i:08d}.nii.gz" for i in range(count)]
    labels = [image.replace("images", "labels") if i < 100 else None for i, image in enumerate(images)]
    patients = [f"patient_{i // 2}" for i in range(count)]
    pq.write_table(pa.table({"image": images, "label": labels, "patient": patients}), root)
    return ArchiveSettings(importer="list", root=str(root), structures=("liver",))


def scan_peak_bytes(folder: Path, count: int) -> int:
    """Return the peak of objects while so many files are scanned; columns are not among them."""
    folder.mkdir()
    settings = settings_of(folder, count)
    tracemalloc.start()
    try:
        cases = scan(settings, Place.of(folder / "catalog"), Place.of(folder)).cases
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(cases) == count
    return peak


def test_a_scan_has_few_objects_in_memory_however_many_files_there_are(
    tmp_path: Path, opened: list[str]
) -> None:
    scan_peak_bytes(tmp_path / "warm", 500)
    few = scan_peak_bytes(tmp_path / "few", 2_000)
    opened.clear()
    many = scan_peak_bytes(tmp_path / "many", 16_000)
    assert len(opened) == 16_100
    # The test's own list of addresses and the drawing of patients are all that grows: 250 bytes a case.
    assert many - few < 14_000 * 400
    assert many < 12e6


def test_of_many_files_only_new_ones_are_opened(tmp_path: Path, opened: list[str]) -> None:
    def scanned(count: int) -> list[str]:
        return [
            case.case
            for case in scan(
                settings_of(tmp_path, count), Place.of(tmp_path / "catalog"), Place.of(tmp_path)
            ).cases
        ]

    assert len(scanned(3_000)) == 3_000
    opened.clear()
    assert len(scanned(3_002)) == 3_002
    assert sorted(opened) == [f"s3://bucket/images/case_{i:08d}.nii.gz" for i in (3_000, 3_001)]
    opened.clear()
    assert len(scanned(2_000)) == 2_000
    assert not opened


# --- readers ------------------------------------------------------------------------------


def test_answers_come_in_order_and_items_are_taken_as_readers_get_to_them() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for number in range(10_000):
            taken = number
            yield number

    answers = each_in_turn(lambda number: 2 * number, items(), at_once=4)
    assert [next(answers) for _ in range(10)] == [2 * number for number in range(10)]
    assert taken < 4 * (READERS * 4 + 4)
    assert list(answers) == [2 * number for number in range(10, 10_000)]


def test_what_a_reader_raises_is_raised_in_its_turn() -> None:
    answers = each_in_turn(lambda number: 1 // number, [2, 1, 0, 1], at_once=1)
    assert [next(answers), next(answers)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(answers)
