"""Masks as DICOM SEG: one object that refers to the series it was made from, voxel on pixel.

Decides what of a source's headers goes on: whose and of which study it is, and what it takes
to refer to its images. That goes back to who sent them, and is kept nowhere. Which structures
have codes of their own is in the table below; the others are tissue, told apart by their
labels. Slices without a structure are left out, as the standard allows.
"""

import io
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tutelage import __version__
from tutelage.archive import elements
from tutelage.archive.instances import need_pydicom
from tutelage.archive.series import Frame, Stack
from tutelage.archive.volume import Mask, Native, from_frame
from tutelage.errors import ArchiveError, MissingExtraError
from tutelage.storage import Place

_BELONGING = (
    "SpecificCharacterSet", "PatientName", "PatientID", "PatientBirthDate", "PatientSex",
    "StudyInstanceUID", "StudyDate", "StudyTime", "AccessionNumber", "StudyID", "ReferringPhysicianName",
    "FrameOfReferenceUID", "PositionReferenceIndicator",
    "LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod",
)  # fmt: skip
"""What a mask must say as its series does: PS3.3 C.7.1.1, C.7.2.1, C.7.4.1, C.7.6.1."""

_REFERRED = ("SOPClassUID", "SOPInstanceUID", "SeriesInstanceUID", "SeriesNumber", "Modality")

_MUST = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID")
"""Without these nothing can be referred to."""

_UID = re.compile(r"[0-9]+(\.[0-9]+)+")
_LABEL = 64
"""Letters that a label may have."""

_SERIES = 1000
"""Added to the number of the source series."""

_CODES = {
    "adrenal gland": "23451007", "aorta": "15825003", "bladder": "89837001", "brain": "12738006",
    "colon": "71854001", "duodenum": "38848004", "esophagus": "32849002", "femur": "71341001",
    "gallbladder": "28231008", "heart": "80891009", "hippocampus": "5366008",
    "inferior vena cava": "64131007", "kidney": "64033007", "left atrium": "82471001",
    "left ventricle": "87878005", "liver": "10200004", "lung": "39607008", "pancreas": "15776009",
    "portal vein": "32764006", "prostate": "41216001", "rectum": "34402009", "right atrium": "73829009",
    "right ventricle": "53085002", "small intestine": "30315005", "spinal cord": "2748008",
    "spleen": "78961009", "splenic vein": "35819009", "stomach": "69695003", "trachea": "44567001",
    "uterus": "35039007", "vertebra": "51282000",
}  # fmt: skip
"""SNOMED CT; meanings are the words themselves, as PS3.16 writes them."""

_ALTERED = {"cyst": "367643001", "lesion": "52988006", "neoplasm": "108369006"}
_SAME = {
    "postcava": "inferior vena cava",
    "oesophagus": "esophagus",
    "urinary bladder": "bladder",
    "tumor": "neoplasm",
    "tumour": "neoplasm",
    "cancer": "neoplasm",
}
_ORGAN = ("91723000", "Anatomical Structure")
_CHANGE = ("49755003", "Morphologically Abnormal Structure")
_TISSUE = ("85756007", "Tissue")
_SIDES = {"left": "7771000", "right": "24028007"}

Code = tuple[str, str]
"""Of SNOMED CT, and its meaning."""


@dataclass(frozen=True, slots=True)
class Source:
    """The series that a volume was made of, as far as a mask refers to it."""

    stack: Stack
    head: Any
    """What its first image says of patient, study and place, as pydicom has it."""

    uids: Mapping[str, tuple[str, str]]
    """Class and instance of every file."""


@dataclass(frozen=True, slots=True)
class Maker:
    """Who drew a mask."""

    model: str
    version: str
    digest: str
    """Of the specialist."""


def source_of(stack: Stack) -> Source:
    """Read of a volume's files what a mask refers to."""
    files = list(dict.fromkeys(frame.file for frame in stack.frames))
    head = _read(files[0], (*_BELONGING, *_REFERRED))
    uids = {file: _uids(_read(file, _REFERRED[:2])) for file in files[1:]}
    return Source(stack, head, {files[0]: _uids(head)} | uids)


def encoded(mask_DHW: Mask, native: Native, source: Source, structures: Sequence[str], maker: Maker) -> bytes:
    """Return a mask as the bytes of a DICOM file, its structures numbered from one.

    Raises:
        ArchiveError: the headers of the series lack what a SEG must say, or are damaged.
        MissingExtraError: highdicom is not installed.
    """
    mask_KHW = from_frame(mask_DHW[np.newaxis], native)[..., 0].transpose(2, 1, 0)
    seg = _need_highdicom()
    try:
        images, order = _images(source)
        made = seg.Segmentation(
            source_images=images,
            pixel_array=np.ascontiguousarray(mask_KHW[order]),
            segmentation_type="BINARY",
            segment_descriptions=[_segment(n, name, maker) for n, name in enumerate(structures, start=1)],
            **_told(source, maker),
        )
        for word in _BELONGING:
            if word in source.head:
                made[word] = source.head[word]
        buffer = io.BytesIO()
        made.save_as(buffer, enforce_file_format=True)
    except (ArchiveError, MemoryError):
        raise
    except Exception as error:  # headers of strangers make it raise anything, and what it says may quote them
        raise ArchiveError(
            f"its headers do not go into a DICOM SEG ({type(error).__name__}); ask for NIfTI instead"
        ) from error
    return buffer.getvalue()


# --- the source ---------------------------------------------------------------------------


def _read(file: str, words: tuple[str, ...]) -> Any:
    from pydicom import dcmread

    need_pydicom()
    with elements.decoding(quoting=False), Place(file).open() as stream:
        return dcmread(stream, stop_before_pixels=True, specific_tags=list(words), force=True)


def _uids(raw: Any) -> tuple[str, str]:
    return elements.text(raw, "class"), elements.text(raw, "uid")


def _images(source: Source) -> tuple[list[Any], list[int]]:
    """Return the images to refer to, with no more than a mask must know, and slices in their order."""
    frames, step_mm = source.stack.frames, _step_mm(source.stack)
    if len(frames) == len(source.uids):
        images = [_image(source, frame) for frame in frames]
        for image, frame in zip(images, frames, strict=True):
            image.ImagePositionPatient = list(frame.position)
            image.ImageOrientationPatient = list(frames[0].orientation)
            image.PixelSpacing, image.SliceThickness = list(frames[0].spacing), step_mm
        return images, list(range(len(frames)))
    order = sorted(range(len(frames)), key=lambda slice_: frames[slice_].index)
    if len(source.uids) > 1 or [frames[slice_].index for slice_ in order] != list(range(len(frames))):
        raise ArchiveError(
            f"its {len(frames)} slices are frames of {len(source.uids)} files, expected one file of all, or "
            "a file each, for a DICOM SEG; ask for NIfTI instead"
        )
    return [_image_of_many(source, [frames[slice_] for slice_ in order], step_mm)], order


def _image(source: Source, frame: Frame) -> Any:
    from pydicom.dataset import Dataset

    image = Dataset()
    image.SOPClassUID, image.SOPInstanceUID = source.uids[frame.file]
    for word in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"):
        setattr(image, word, source.head.get(word, ""))
    for word in _MUST:
        if not _UID.fullmatch(str(image[word].value or "")):
            raise ArchiveError(
                f"its headers have no usable {word}, which a DICOM SEG must say; ask for NIfTI"
            )
    for word in ("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID"):
        setattr(image, word, "")
    image.StudyDate = image.StudyTime = None
    image.Modality = str(source.head.get("Modality", "")) or "OT"
    image.Rows, image.Columns, _ = frame.size
    return image


def _image_of_many(source: Source, frames: Sequence[Frame], step_mm: float) -> Any:
    """Return an image of many frames, its groups written anew: those of scanners say much else."""
    from pydicom.dataset import Dataset

    image = _image(source, frames[0])
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = list(frames[0].orientation)
    measures.PixelSpacing, measures.SliceThickness = list(frames[0].spacing), step_mm
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    each = []
    for frame in frames:
        place, own = Dataset(), Dataset()
        place.ImagePositionPatient = list(frame.position)
        own.PlanePositionSequence = [place]
        each.append(own)
    image.NumberOfFrames = len(frames)
    image.SharedFunctionalGroupsSequence, image.PerFrameFunctionalGroupsSequence = [shared], each
    return image


def _step_mm(stack: Stack) -> float:
    return float(np.linalg.norm(stack.matrix[:3, 2]))


# --- what is told of the mask --------------------------------------------------------------


def _told(source: Source, maker: Maker) -> dict[str, Any]:
    from pydicom.uid import generate_uid

    number = str(source.head.get("SeriesNumber", "") or "")
    return {
        "series_instance_uid": generate_uid(prefix=None),
        "series_number": _SERIES + int(number if re.fullmatch(r"\d{1,6}", number) else 0),
        "sop_instance_uid": generate_uid(prefix=None),
        "instance_number": 1,
        "manufacturer": "tutelage",
        "manufacturer_model_name": _plain(maker.model),
        "software_versions": (f"tutelage {__version__}", _plain(f"{maker.model} {maker.version}")),
        "device_serial_number": _plain(maker.digest),
        "series_description": _plain(f"Segmentation by {maker.model}"),
        "content_label": "SEGMENTATION",
        "content_description": "Drawn by a network, not checked by a person",
    }


def _segment(number: int, structure: str, maker: Maker) -> Any:
    import highdicom
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code as Coded

    category, kind, side = coded(structure)
    described = SegmentDescription(
        segment_number=number,
        segment_label=_plain(structure),
        segmented_property_category=Coded(category[0], "SCT", category[1]),
        segmented_property_type=Coded(kind[0], "SCT", kind[1]),
        algorithm_type="AUTOMATIC",
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=_plain(maker.model),
            family=codes.DCM.ArtificialIntelligence,
            version=_plain(maker.version or maker.digest),
            source="tutelage",
            parameters={"specialist": maker.digest},
        ),
    )
    if side:
        modifier = highdicom.sr.CodedConcept(side[0], "SCT", side[1])
        described.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return described


def coded(structure: str) -> tuple[Code, Code, Code | None]:
    """Return what kind of thing a structure is, what it is, and on which side it lies if its name says so."""
    words = re.findall(r"[a-z]+", structure.lower())
    sides = [word for word in words if word in _SIDES]
    name = " ".join(word for word in words if word not in _SIDES)
    side = (_SIDES[sides[0]], sides[0].capitalize()) if len(sides) == 1 else None
    for called in (structure.lower().replace("_", " "), name, name.removesuffix("s")):
        called = _SAME.get(called, called)
        if called in _CODES:
            return _ORGAN, (_CODES[called], called.capitalize()), None if _sided(called) else side
        if called in _ALTERED:
            return _CHANGE, (_ALTERED[called], called.capitalize()), side
    return _ORGAN, _TISSUE, None


def _sided(called: str) -> bool:
    return any(word in _SIDES for word in called.split())


def _plain(text: str) -> str:
    """Return text as every set of characters has it, and as long as DICOM lets it be."""
    return text.encode("ascii", "replace").decode().replace("\\", "/")[:_LABEL].strip() or "unnamed"


def _need_highdicom() -> Any:
    try:
        from highdicom import seg
    except ImportError:
        raise MissingExtraError(
            "DICOM SEG needs highdicom, which is not installed; run `pip install 'tutelage[dicom]'`"
        ) from None
    # What it logs on the way names instances of patients' images.
    logging.getLogger("highdicom").setLevel(logging.ERROR)
    return seg
