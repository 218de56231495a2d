"""Notes: what an archive's metadata says about each case, without who the patient is.

Where from: a list's own columns, BIDS sidecars, DICOM headers of one file a series; other
layouts know the modality alone. It decides where to look. What may be kept `privacy` decides,
before anything is written: neither the file of notes nor what is made of it has ever held
more. It does not know what anybody asks about a case.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from tutelage.archive import dicom, elements
from tutelage.archive.cases import Cases
from tutelage.archive.formats import stem
from tutelage.archive.importers.base import read_json
from tutelage.archive.importers.listing import image_of
from tutelage.archive.instances import look, need_pydicom
from tutelage.archive.parallel import each_in_turn
from tutelage.archive.privacy import allowed
from tutelage.archive.settings import ArchiveSettings
from tutelage.errors import ArchiveError
from tutelage.records import NOTED, Case, Note, Quarantined
from tutelage.storage import Place

_TAGS = {
    "SeriesDescription": 0x0008103E, "StudyDescription": 0x00081030, "ProtocolName": 0x00181030,
    "BodyPartExamined": 0x00180015, "PatientName": 0x00100010, "PatientID": 0x00100020,
    "PatientBirthDate": 0x00100030, "OtherPatientIDs": 0x00101000, "OtherPatientNames": 0x00101001,
    "PatientAddress": 0x00101040, "AccessionNumber": 0x00080050, "StudyID": 0x00200010,
    "StudyDate": 0x00080020, "SeriesDate": 0x00080021, "AcquisitionDate": 0x00080022,
    "InstitutionName": 0x00080080, "InstitutionAddress": 0x00080081, "StationName": 0x00081010,
    "ReferringPhysicianName": 0x00080090, "PerformingPhysicianName": 0x00081050,
    "PhysiciansOfRecordName": 0x00081048, "OperatorsName": 0x00081070, "RequestingPhysicianName": 0x00321032,
}  # fmt: skip
"""Of a header, what may be kept and what must be known to be blanked out of it."""

_AT_ONCE = 4096

_OURS = ("image", "label", "role")
"""Columns of a list that say nothing about the patient."""


@dataclass(frozen=True, slots=True)
class Gathered:
    """What came of looking for notes."""

    told: int
    """Cases of which more than the modality is noted."""

    unreadable: tuple[Quarantined, ...]
    """Images whose metadata cannot be read; of those only the modality is noted."""


def write(settings: ArchiveSettings, root: Place, cases: Cases, place: Place) -> Gathered:
    """Write what is noted about cases, a row each, few of them in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([(name, pa.string()) for name in ("case", *NOTED)])
    sink, told, unreadable = io.BytesIO(), 0, list[Quarantined]()
    with pq.ParquetWriter(sink, schema, compression="zstd") as writer:
        waiting: list[dict[str, str]] = []
        for note, bad in _notes(settings, root, cases):
            unreadable += [bad] if bad else []
            told += bool(set(note.fields) - {"modality"})
            waiting.append({"case": note.case, **note.fields})
            if len(waiting) == _AT_ONCE:
                writer.write_table(pa.Table.from_pylist(waiting, schema))
                waiting = []
        writer.write_table(pa.Table.from_pylist(waiting, schema))
    place.write_bytes(sink.getvalue())
    return Gathered(told, tuple(unreadable))


def read(place: Place) -> Iterator[Note]:
    """Yield notes as they were written, few of them in memory at a time."""
    import pyarrow.parquet as pq

    with place.open() as stream:
        for batch in pq.ParquetFile(stream).iter_batches(_AT_ONCE):
            for row in batch.to_pylist():
                yield Note(row["case"], {name: row[name] for name in NOTED if row[name]})


Noted = tuple[Note, Quarantined | None]


def _notes(settings: ArchiveSettings, root: Place, cases: Cases) -> Iterator[Noted]:
    if settings.importer == "list":
        yield from _listed(root, cases)
        return
    if settings.importer == "dicom":
        need_pydicom()
    header_of = {"bids": _sidecar, "dicom": _header}.get(settings.importer, _nothing)

    def noted(case: Case) -> Noted:
        try:
            return _note(case, header_of(case)), None
        except (ArchiveError, OSError, ValueError) as error:
            # What a decoder says may quote a header, and with it the patient.
            told = str(error) if isinstance(error, ArchiveError) else type(error).__name__
            return _note(case, {}), Quarantined(case.image, f"its metadata cannot be read: {told}")

    yield from each_in_turn(noted, cases)


def _note(case: Case, header: Mapping[str, str]) -> Note:
    return Note(case.case, allowed({"modality": case.modality, **header}, (case.case, case.patient)))


# --- where it is written --------------------------------------------------------------------


def _nothing(case: Case) -> Mapping[str, str]:
    return {}


def _listed(root: Place, cases: Cases) -> Iterator[Noted]:
    """All columns of a list, by image; a row that is no case of the catalog is left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = _rows(root)
    while some := list(islice(rows, _AT_ONCE)):
        images = pa.array([image_of(root, row) for row in some], pa.string())
        where = pc.index_in(images, value_set=cases.table["image"].combine_chunks()).to_pylist()
        for row, index in zip(some, where, strict=True):
            if index is not None:
                header = {name: text for name, text in row.items() if text and name not in _OURS}
                yield _note(cases[index], header), None


def _rows(root: Place) -> Iterator[dict[str, str]]:
    with root.open() as stream:
        if root.name.lower().endswith(".parquet"):
            import pyarrow.parquet as pq

            for batch in pq.ParquetFile(stream).iter_batches(_AT_ONCE):
                for row in batch.to_pylist():
                    yield {str(name): str(text) for name, text in row.items() if text is not None}
            return
        separator = "\t" if root.name.lower().endswith(".tsv") else ","
        text = io.TextIOWrapper(stream, "utf-8-sig", newline="")
        for line in csv.DictReader(text, delimiter=separator):
            yield {str(name): text for name, text in line.items() if name and isinstance(text, str)}


def _sidecar(case: Case) -> Mapping[str, str]:
    """What lies beside an image under its name, as .json."""
    image = Place.of(case.image)
    sidecar = image.parent / f"{stem(image.name)}.json"
    if not sidecar.exists():
        return {}
    told = read_json(sidecar, "correct it")
    return {str(name): str(text) for name, text in told.items() if isinstance(text, str | int | float)}


def _header(case: Case) -> Mapping[str, str]:
    """The header of the first file of a series."""
    series = dicom.parsed(case.image)
    folders = [series.folder if path == "." else series.folder / path for path in series.within or (".",)]
    files = (file for folder in folders for file in folder.files())
    first = next((file for file in files if look(file).series == series.uid), None)
    return {} if first is None else _tags(first)


def _tags(file: Place) -> Mapping[str, str]:
    from pydicom import dcmread

    with elements.decoding(quoting=False), file.open() as stream:
        raw = dcmread(stream, stop_before_pixels=True, specific_tags=list(_TAGS.values()), force=True)
        return {name: text for name, tag in _TAGS.items() if (text := _decoded(elements.value(raw, tag)))}


def _decoded(text: str) -> str:
    """Bytes that are UTF-8 are that; the others stay what they look like in Western Europe."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text
