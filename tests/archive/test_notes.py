"""Notes of made-up archives: what is kept of lists, sidecars and headers, and what never is."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tutelage.archive import formats, notes
from tutelage.archive.catalog import scan
from tutelage.archive.importers import Found, found_in
from tutelage.archive.settings import ArchiveSettings
from tutelage.geometry import Grid
from tutelage.records import Note
from tutelage.storage import Place

SECRETS = ("doe", "jane", "1234567", "1970", "wilson", "accession-9", "mercy")
GRID = Grid.from_spacing((4, 8, 8), (3.0, 1.0, 1.0))


def image(place: Path) -> None:
    formats.write_image(Place.of(place), np.random.default_rng(0).random(GRID.shape).astype(np.float32), GRID)


def label(place: Path) -> None:
    label_DHW = np.zeros(GRID.shape, np.uint8)
    label_DHW[1:3, 2:5, 2:5] = 1
    formats.write_image(Place.of(place), label_DHW, GRID)


def gathered(tmp_path: Path, settings: ArchiveSettings) -> tuple[dict[str, Note], notes.Gathered, bytes]:
    catalog = scan(settings, Place.of(tmp_path / "catalog"), Place.of(tmp_path / "made"))
    place = Place.of(tmp_path / "catalog" / "notes.parquet")
    told = notes.write(settings, Place.of(settings.root or "."), catalog.cases, place)
    found = {note.case: note for note in notes.read(place)}
    table = pq.read_table(tmp_path / "catalog" / "notes.parquet")
    return found, told, json.dumps(table.to_pylist()).lower().encode()


@pytest.mark.parametrize("kind", ["csv", "tsv", "parquet"])
def test_a_lists_own_columns_are_notes(tmp_path: Path, kind: str) -> None:
    columns: dict[str, list[str]] = {name: [] for name in ("image", "case", "label", "patient", "role")}
    columns |= {name: [] for name in ("report", "Series Description", "patient_name", "accession")}
    for number, role in enumerate(("gold", "validation", "test", "unlabeled")):
        image(tmp_path / f"{number}.nii.gz")
        label(tmp_path / f"label-{number}.nii.gz")
        row = (f"{number}.nii.gz", f"c{number}", f"label-{number}.nii.gz", f"p{number}", role)
        notes_ = (
            "Jane Doe, Accession-9: status after splenectomy, 01.02.1970",
            "CT abd Doe",
            "Doe^Jane",
            "Accession-9",
        )
        for name, text in zip(columns, (*row, *notes_), strict=True):
            columns[name].append(text)
    columns["report"][3] = ""
    root = tmp_path / f"list.{kind}"
    if kind == "parquet":
        pq.write_table(pa.table(columns), root)
    else:
        separator = "," if kind == "csv" else "\t"
        rows = [list(columns), *zip(*columns.values(), strict=True)]
        root.write_text("\n".join(separator.join(f'"{text}"' for text in row) for row in rows) + "\n")
    settings = ArchiveSettings.model_validate(
        {"importer": "list", "root": str(root), "structures": ["spleen"], "modality": "CT"}
    )
    found, told, written = gathered(tmp_path, settings)
    assert set(found) == {"c0", "c1", "c2", "c3"}
    assert found["c0"].fields["series_description"] == "CT abd [removed]"
    assert "status after splenectomy" in found["c0"].fields["report"]
    assert "report" not in found["c3"].fields
    assert told.told == 4
    assert not [secret for secret in SECRETS if secret.encode() in written]


def test_sidecars_are_notes(tmp_path: Path) -> None:
    root = tmp_path / "bids"
    for number in range(4):
        folder = root / f"sub-0{number}" / "anat"
        folder.mkdir(parents=True)
        image(folder / f"sub-0{number}_T1w.nii.gz")
        masks = root / "derivatives" / "drawn" / f"sub-0{number}" / "anat"
        masks.mkdir(parents=True)
        label(masks / f"sub-0{number}_dseg.nii.gz")
    sidecar = {
        "ProtocolName": "Head",
        "PatientName": "Doe^Jane",
        "EchoTime": 0.1,
        "SeriesDescription": "Doe T1",
    }
    (root / "sub-01" / "anat" / "sub-01_T1w.json").write_text(json.dumps(sidecar))
    settings = ArchiveSettings.model_validate(
        {
            "importer": "bids",
            "root": str(root),
            "structures": ["spleen"],
            "split": {"gold": 2, "validation": 1, "test": 1},
        }
    )
    found, told, written = gathered(tmp_path, settings)
    assert found["sub-01_T1w"].fields == {
        "modality": "T1w",
        "protocol": "Head",
        "series_description": "[removed] T1",
    }
    assert found["sub-00_T1w"].fields == {"modality": "T1w"}
    assert (told.told, told.unreadable) == (1, ())
    assert not [secret for secret in SECRETS if secret.encode() in written]


def test_headers_of_series_are_notes_and_names_and_dates_stay_in_them(tmp_path: Path) -> None:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    root = tmp_path / "dicom"
    for number in range(4):
        (root / f"s{number}").mkdir(parents=True)
        for slice_ in range(3):
            one = Dataset()
            one.file_meta = FileMetaDataset()
            one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, generate_uid()
            one.SeriesInstanceUID, one.StudyInstanceUID = f"1.2.{number + 1}", "1.2.840.1"
            one.PatientID, one.PatientName, one.PatientBirthDate = f"1234567{number}", "Doe^Jane", "19700101"
            one.ReferringPhysicianName, one.AccessionNumber = "Wilson^J", "Accession-9"
            one.InstitutionName = "Mercy"
            one.SeriesDescription = "Abd Doe 19700101 venous, Mercy"
            one.ProtocolName, one.BodyPartExamined = "Abdomen 1234567 ACCESSION-9", "ABDOMEN"
            one.Modality, one.SeriesNumber, one.ImageType = "CT", number, ["ORIGINAL", "PRIMARY", "AXIAL"]
            one.Rows = one.Columns = 8
            one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
            one.BitsAllocated = one.BitsStored = 16
            one.HighBit, one.PixelRepresentation = 15, 1
            one.PixelSpacing, one.ImageOrientationPatient = [1, 1], [1, 0, 0, 0, 1, 0]
            one.ImagePositionPatient = [0, 0, 2.0 * slice_]
            one.PixelData = np.zeros((8, 8), "i2").tobytes()
            one.save_as(root / f"s{number}" / f"{slice_}.dcm", enforce_file_format=True)
    (root / "labels").mkdir()
    settings = ArchiveSettings.model_validate(
        {
            "importer": "dicom",
            "root": str(root),
            "structures": ["spleen"],
            "split": {"gold": 2, "validation": 1, "test": 1},
        }
    )
    for item in found_in(settings, Place.of(root)):
        assert isinstance(item, Found)
        volume = formats.read_image(item.image, 10**6)
        label_DHW = np.zeros(volume.grid.shape, np.uint8)
        label_DHW[1, 2:5, 2:5] = 1
        formats.write_image(Place.of(root / "labels" / f"{item.case}.nii.gz"), label_DHW, volume.grid)
    found, told, written = gathered(tmp_path, settings)
    assert told.told == 4
    assert told.unreadable == ()
    for note in found.values():
        assert note.fields["body_part"] == "ABDOMEN"
        assert note.fields["series_description"].startswith("Abd [removed] [removed] venous")
    assert not [secret for secret in SECRETS if secret.encode() in written]


def test_other_layouts_know_the_modality_alone(tmp_path: Path) -> None:
    settings = ArchiveSettings.model_validate(
        {
            "importer": "synthetic",
            "synthetic": {"patients": 4, "spacing": [36, 18, 18], "styles": ["ct"]},
            "split": {"gold": 2, "validation": 1, "test": 1},
        }
    )
    catalog = scan(settings, Place.of(tmp_path / "catalog"), Place.of(tmp_path / "made"))
    place = Place.of(tmp_path / "notes.parquet")
    assert notes.write(settings, Place.of(tmp_path / "made"), catalog.cases, place).told == 0
    assert {note.fields["modality"] for note in notes.read(place)} == {"CT"}
