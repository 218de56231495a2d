"""What is sent back: which form the caller accepts, and the mask or its measures in that form.

Forms are a NIfTI mask on the scan's own grid, a DICOM SEG that refers to the series that was
sent, and JSON without voxels. Headers tell the same beside each. Knows no HTTP server.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np

from serve.uploads import Scan
from tutelage.archive import formats, segmentation
from tutelage.errors import ArchiveError, TutelageError

if TYPE_CHECKING:
    from serve.segmenter import Segmented

Kind = Literal["nifti", "dicom-seg", "json"]

MEDIA: dict[Kind, tuple[str, ...]] = {
    "nifti": ("application/gzip", "application/x-nifti", "application/x-gzip", "application/octet-stream"),
    "dicom-seg": ("application/dicom",),
    "json": ("application/json",),
}
"""What a caller may ask for; of each the first is what is said of the answer."""

MASK = ".nii.gz"

_SUFFIX: dict[Kind, str] = {"nifti": MASK, "dicom-seg": ".dcm", "json": ".json"}


class NotAcceptableError(TutelageError):
    """The caller accepts no form in which there is an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one upload."""

    body: bytes
    media_type: str
    name: str
    """What to call the file."""

    headers: dict[str, str]
    """What is told beside any form, and what to call the file."""


# --- which form ----------------------------------------------------------------------------


def kind_of(accept: str) -> Kind:
    """Return the form that an Accept header likes best; NIfTI where it likes all alike.

    Raises:
        NotAcceptableError: it likes none that there is.
    """
    wanted = [_range(part) for part in accept.split(",") if part.strip()] or [("*/*", 1.0)]
    liked = [(liking, kind) for kind, media in MEDIA.items() if (liking := _liking(media, wanted))[0] > 0]
    if not liked:
        known = ", ".join(name for media in MEDIA.values() for name in media[:1])
        raise NotAcceptableError(
            f"the request accepts {accept[:200]!r}, expected one of {known}; correct its Accept header"
        )
    return max(liked, key=lambda one: one[0])[1]


def _range(part: str) -> tuple[str, float]:
    """Take one part of an Accept header apart: which types, and how much they are liked."""
    name, *parameters = (word.strip().lower() for word in part.split(";"))
    for parameter in parameters:
        key, _, value = parameter.partition("=")
        if key.strip() == "q":
            try:
                quality = float(value)
            except ValueError:
                quality = 0.0
            return name, quality if 0 <= quality <= 1 else 0.0
    return name, 1.0


def _liking(media: Sequence[str], wanted: Sequence[tuple[str, float]]) -> tuple[float, int]:
    """Return how much a form is liked, and how exactly it was named: what is named goes before `*/*`."""
    return max(_liking_one(name, wanted) for name in media)


def _liking_one(name: str, wanted: Sequence[tuple[str, float]]) -> tuple[float, int]:
    for exactness, spelled in ((2, name), (1, name.split("/")[0] + "/*"), (0, "*/*")):
        qualities = [quality for asked, quality in wanted if asked == spelled]
        if qualities:
            return max(qualities), exactness
    return 0.0, 0


# --- in that form --------------------------------------------------------------------------


def answered(kind: Kind, scan: Scan, done: "Segmented", request_id: str) -> Answer:
    """Return the answer to a scan in one of the forms.

    Raises:
        NotAcceptableError: a DICOM SEG is asked for a scan that it cannot refer to.
    """
    name = scan.name + _SUFFIX[kind]
    headers = {
        "content-disposition": f"attachment; filename*=UTF-8''{quote(name)}",
        "x-tutelage-specialist": done.digest,
        "x-tutelage-model": quote(done.model, safe=" /:@+"),
        "x-tutelage-volumes-ml": json.dumps({one.structure: one.volume_ml for one in done.findings}),
        "x-tutelage-seconds": json.dumps(_rounded(done.seconds)),
        "x-tutelage-review": json.dumps([one.structure for one in done.findings if one.needs_review]),
    }
    return Answer(_body(kind, scan, done, request_id), MEDIA[kind][0], name, headers)


def _body(kind: Kind, scan: Scan, done: "Segmented", request_id: str) -> bytes:
    if kind == "json":
        return json.dumps(told(scan, done, request_id), allow_nan=False).encode()
    if kind == "nifti":
        return formats.mask_bytes(done.mask_DHW, scan.volume, MASK)
    if scan.series is None:
        raise NotAcceptableError(
            f"a DICOM SEG refers to a DICOM series, but the scan is {scan.volume.native.kind}; send a zip of "
            "the series, or accept application/gzip or application/json"
        )
    structures = [one.structure for one in sorted(done.findings, key=lambda one: one.value)]
    maker = segmentation.Maker(done.model, done.version, done.digest)
    try:
        return segmentation.encoded(done.mask_DHW, scan.volume.native, scan.series, structures, maker)
    except ArchiveError as error:
        raise NotAcceptableError(str(error)) from error


def told(scan: Scan, done: "Segmented", request_id: str) -> dict[str, Any]:
    """Say everything but voxels."""
    native = scan.volume.native
    return {
        "request_id": request_id,
        "model": {"name": done.model, "version": done.version, "digest": done.digest},
        "structures": [asdict(one) for one in done.findings],
        "needs_review": any(one.needs_review for one in done.findings),
        "grid": {
            "shape": list(native.shape),
            "spacing_mm": [float(v) for v in np.linalg.norm(np.asarray(native.matrix)[:, :3], axis=0)],
            "affine": [list(row) for row in native.matrix],
        },
        "seconds": _rounded(done.seconds),
    }


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {stage: round(float(value), 4) for stage, value in seconds.items()}
