"""Lists of images in CSV and Parquet: what lines mean, and all that can be wrong with one."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.archive import formats, structures_of
from tutelage.archive.catalog import Catalog, scan
from tutelage.archive.importers import Found, found_in
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.geometry import Grid
from tutelage.records import Quarantined, Role
from tutelage.storage import Place

GRID = Grid.from_spacing((3, 4, 5), (3.0, 1.0, 1.0))


def settings_of(root: Path, **more: Any) -> ArchiveSettings:
    values = {"importer": "list", "root": str(root), "structures": ["liver"], "modality": "MR"}
    return ArchiveSettings.model_validate(values | more)


def listed(root: Path, **more: Any) -> tuple[list[Found], list[Quarantined]]:
    items = list(found_in(settings_of(root, **more), Place.of(root)))
    return [i for i in items if isinstance(i, Found)], [i for i in items if isinstance(i, Quarantined)]


def write(folder: Path, text: str | bytes, name: str = "list.csv") -> Path:
    file = folder / name
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def test_images_are_all_that_a_list_needs(tmp_path: Path) -> None:
    root = write(tmp_path, "image\na.nii.gz\nsub/b.nrrd\n")
    assert listed(root)[0] == [
        Found("a", "a", f"{tmp_path}/a.nii.gz", None, "MR"),
        Found("b", "b", f"{tmp_path}/sub/b.nrrd", None, "MR"),
    ]


FULL = (
    "patient,image,age,case,label,modality,role\n"
    "anna,a.nii,61,scan-1,la.nii,CT,gold\n"
    ",b.nii,,,,,\n"
    'bert,"c, d.nii",unknown,,,,unlabeled\n'
)


@pytest.mark.parametrize("kind", ["csv", "bom", "crlf", "tsv", "parquet"])
def test_every_column_counts_and_empty_values_are_allowed(tmp_path: Path, kind: str) -> None:
    if kind == "parquet":
        root = tmp_path / "list.parquet"
        table = {
            "patient": ["anna", None, "bert"],
            "image": ["a.nii", "b.nii", "c, d.nii"],
            "age": [61, None, 7],
            "case": ["scan-1", "", None],
            "label": ["la.nii", None, ""],
            "modality": ["CT", None, None],
            "role": pa.array(["gold", None, "unlabeled"]).dictionary_encode(),
        }
        pq.write_table(pa.table(table), root)
    elif kind == "tsv":
        root = write(tmp_path, FULL.replace(",", "\t").replace("c\t d", "c, d"), "list.tsv")
    else:
        text = FULL.encode().replace(b"\n", b"\r\n" if kind == "crlf" else b"\n")
        root = write(tmp_path, b"\xef\xbb\xbf" * (kind == "bom") + text)
    assert listed(root)[0] == [
        Found("scan-1", "anna", f"{tmp_path}/a.nii", f"{tmp_path}/la.nii", "CT", Role.GOLD),
        Found("b", "b", f"{tmp_path}/b.nii", None, "MR"),
        Found("c, d", "bert", f"{tmp_path}/c, d.nii", None, "MR", Role.UNLABELED),
    ]


def test_numbers_are_names_too(tmp_path: Path) -> None:
    root = tmp_path / "list.parquet"
    pq.write_table(pa.table({"image": ["a.nii"], "case": [7], "patient": [12]}), root)
    assert [(f.case, f.patient) for f in listed(root)[0]] == [("7", "12")]
    assert [f.case for f in listed(write(tmp_path, "image,case\na.nii,007\n"))[0]] == ["007"]


def test_addresses_are_from_the_list_or_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    told = {
        "a.nii": f"{tmp_path}/lists/a.nii",
        "./b.nii": f"{tmp_path}/lists/b.nii",
        "../c.nii": f"{tmp_path}/c.nii",
        "/data/d.nii": "/data/d.nii",
        "file:///data/e.nii": "/data/e.nii",
        "s3://bucket/f.nii": "s3://bucket/f.nii",
        "gs://bucket/with space/g.nii": "gs://bucket/with space/g.nii",
    }
    root = write(tmp_path / "lists", "\n".join(["image", *told, ""]))
    assert [f.image for f in listed(root)[0]] == list(told.values())


def test_a_list_that_lies_elsewhere_names_images_beside_it(tmp_path: Path) -> None:
    write(tmp_path, "image\na.nii\n")
    place = Place(f"file://{tmp_path}/list.csv")
    [found] = found_in(settings_of(tmp_path / "list.csv"), place)
    assert isinstance(found, Found)
    assert found.image == f"file://{tmp_path}/a.nii"


def test_other_columns_may_hold_anything(tmp_path: Path) -> None:
    lines = "".join(f"{i}.nii,{'5' if i < 9000 else 'five'}\n" for i in range(10_000))
    assert len(listed(write(tmp_path, f"image,image_quality\n{lines}"))[0]) == 10_000


# --- rows that cannot be used -------------------------------------------------------------


def test_a_row_without_an_image_is_set_aside(tmp_path: Path) -> None:
    found, bad = listed(write(tmp_path, "image,case\na.nii,a\n,b\n"))
    assert [f.case for f in found] == ["a"]
    assert [(Path(b.address).name, b.reason) for b in bad] == [
        ("list.csv row 2", "it has no image, expected an address; fill one in")
    ]


@pytest.mark.parametrize("name", ["a/b", "../a", ".hidden", "a\\b", "a\tb", "x" * 201, "é" * 101])
def test_a_case_that_cannot_be_part_of_a_files_name_is_set_aside(tmp_path: Path, name: str) -> None:
    root = tmp_path / "list.parquet"
    pq.write_table(pa.table({"image": ["a.nii", "b.nii"], "case": [name, "b"]}), root)
    found, bad = listed(root)
    assert [f.case for f in found] == ["b"]
    assert "in row 1, expected what can be part of a file's name" in bad[0].reason


# --- lists that cannot be used ------------------------------------------------------------

BAD: dict[str, tuple[str | bytes, str]] = {
    "nothing": (b"", "its columns are none:\n  no column image, expected one of addresses; add it"),
    "no images": ("path,label\na,b\n", "its columns are path, label:\n  no column image"),
    "misspelt image": ("Images\na\n", "column Images does not count; name it image"),
    "longer names": (
        "image_uri,patient_id\na,b\n",
        "column image_uri .*\n.* patient_id does not .* it patient",
    ),
    "twice": ("image,image\na,b\n", "column image is there twice"),
    "unknown role": (
        "image,role\na,gold\nb,train\nc,Test\n",
        "roles 'Test' in row 3, 'train' in row 2; expected",
    ),
    "too long a line": ("image,case\na,b,c\n", "cannot be read as a list .*Expected 2 columns, got 3"),
    "too short a line": ("image,case\na\n", "Expected 2 columns, got 1"),
    "other text": (b"image\n\xff\xfe\n", "cannot be read as a list"),
    "other text far down": (b"image\n" + 9000 * b"a.nii\n" + b"\xff\xfe\n", "invalid UTF8"),
    "other text at once": (b"\xff\xfeimage\n", "cannot be read as a list"),
}


@pytest.mark.parametrize(("text", "complaint"), BAD.values(), ids=BAD.keys())
def test_a_list_that_makes_no_sense_is_refused(tmp_path: Path, text: str | bytes, complaint: str) -> None:
    with pytest.raises(ArchiveError, match=complaint):
        listed(write(tmp_path, text))


def test_all_problems_of_the_columns_are_told_at_once(tmp_path: Path) -> None:
    root = tmp_path / "list.parquet"
    columns = [pa.array(["a"]), pa.array([[1]]), pa.array([1.5]), pa.array(["x"])]
    pq.write_table(pa.Table.from_arrays(columns, ["Image", "label", "case", "role_name"]), root)
    with pytest.raises(ArchiveError) as refused:
        structures_of(settings_of(root))
    told = str(refused.value).splitlines()[1:]
    assert [line.split(",")[0].split(";")[0] for line in told] == [
        "  column Image does not count",
        "  column role_name does not count",
        "  column label holds list<element: int64>",
        "  column case holds double",
    ]


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("list.xlsx", r"expected a file of .csv, .tsv or .parquet"),
        ("list.parquet", "cannot be read as a list"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, name: str, complaint: str) -> None:
    with pytest.raises(ArchiveError, match=complaint):
        listed(write(tmp_path, "image\n", name))


def test_problems_are_known_before_anything_starts(tmp_path: Path) -> None:
    root = write(tmp_path, "picture\na.nii\n")
    [(where, what)] = settings_of(root).problems()
    assert (where, "no column image" in what) == ("root", True)
    root = write(tmp_path, "image\na.nii\n")
    [(where, what)] = settings_of(root, structures=[]).problems()
    assert (where, "expected the names of label values" in what) == ("structures", True)
    assert not list(settings_of(root).problems())


# --- whole scans --------------------------------------------------------------------------


def archive(folder: Path, roles: list[str]) -> Path:
    """Write a scan and a label for each of the roles, and a list of them."""
    lines = ["image,label,role"]
    for number, role in enumerate(roles):
        for kind, dtype in (("image", "i2"), ("label", "u1")):
            formats.write_image(folder / f"{kind}{number}.nii.gz", np.zeros(GRID.shape, dtype), GRID)
        lines.append(f"image{number}.nii.gz,label{number}.nii.gz,{role}")
    return write(folder, "\n".join([*lines, ""]))


def scanned(root: Path, **more: Any) -> Catalog:
    split = {"gold": 1, "validation": 1, "test": 1}
    settings = settings_of(root, split=split, **more)
    return scan(settings, Place.of(root.parent / "catalog"), Place.of(root.parent / "made"))


def test_roles_are_taken_from_the_list(tmp_path: Path) -> None:
    catalog = scanned(archive(tmp_path, ["gold", "validation", "test", "", ""]))
    assert [case.role.value for case in catalog.cases] == [
        "gold",
        "validation",
        "test",
        "unlabeled",
        "unlabeled",
    ]
    assert [case.label is None for case in catalog.cases] == [False, False, False, True, True]
    assert catalog.case("image3").hidden == f"{tmp_path}/label3.nii.gz"


def test_where_unlabeled_cases_are_told_those_without_a_role_are_set_aside(tmp_path: Path) -> None:
    catalog = scanned(archive(tmp_path, ["gold", "validation", "test", "unlabeled", ""]))
    assert len(catalog.cases) == 4
    assert [(Path(b.address).name, b.reason) for b in catalog.quarantined] == [
        ("image4.nii.gz", "list.csv gives it no role; fill one in if it should take part")
    ]


def test_without_roles_they_are_drawn(tmp_path: Path) -> None:
    catalog = scanned(archive(tmp_path, [""] * 5))
    assert catalog.cases.counts("role") == {("gold",): 1, ("test",): 1, ("unlabeled",): 2, ("validation",): 1}


def test_a_labeled_role_needs_a_label(tmp_path: Path) -> None:
    root = archive(tmp_path, ["gold", "test"])
    root.write_text(root.read_text().replace("label1.nii.gz", ""))
    with pytest.raises(ArchiveError, match=r"list\.csv gives image1 a labeled split"):
        scanned(root)


def test_two_rows_of_one_name_are_refused(tmp_path: Path) -> None:
    root = write(tmp_path, "image\na/image.nii\nb/image.nii\n")
    with pytest.raises(ArchiveError, match=r"two cases named image, .* tell them apart in column case"):
        scanned(root)


def test_addresses_that_lead_nowhere_are_set_aside(tmp_path: Path) -> None:
    root = archive(tmp_path, ["gold", "validation", "test"])
    root.write_text(root.read_text() + "gone.nii,,\nhtp://nowhere/x.nii,,\nnotes.txt,,\n")
    catalog = scanned(root)
    assert len(catalog.cases) == 3
    reasons = {Path(bad.address).name: bad.reason for bad in catalog.quarantined}
    assert "does not exist" in reasons["gone.nii"]
    assert "htp" in reasons["x.nii"]
    assert "suffix is unknown" in reasons["notes.txt"]


def test_a_list_has_no_other_files_beside_it(tmp_path: Path) -> None:
    root = archive(tmp_path, [""] * 4)
    (tmp_path / "splits.json").write_text(json.dumps({"gold": ["nobody"]}))
    (tmp_path / "patients.csv").write_text("nonsense")
    assert len(scanned(root).cases) == 4
