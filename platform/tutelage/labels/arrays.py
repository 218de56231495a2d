"""Candidates and pseudo-labels as files: compressed numpy archives, the same bytes for the same content.

It decides how voxels are kept. Probabilities are rounded to 1/255, which no rule can feel.
Nothing here is ever unpickled.
"""

import hashlib
import io
import zipfile
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import WorkspaceError
from tutelage.records import Candidate, PseudoLabel
from tutelage.storage import Place


def file_of(folder: Place, case: str) -> Place:
    """Return where a case's arrays live; any id makes a usable name."""
    return folder / f"{quote(case, safe='')}.npz"


def write_candidate(folder: Place, candidate: Candidate) -> str:
    """Store a candidate and return the digest of its bytes."""
    return _write(
        file_of(folder, candidate.case),
        {
            "specialist_DHW": candidate.specialist_DHW,
            "generalist_KDHW": _rounded(candidate.generalist_KDHW),
            "variance_KDHW": _rounded(candidate.variance_KDHW),
            "predicted_iou": np.asarray(candidate.predicted_iou, np.float64),
        },
    )


def read_candidate(folder: Place, case: str) -> Candidate:
    """Return a stored candidate."""
    arrays = _read(file_of(folder, case))
    return Candidate(
        case=case,
        specialist_DHW=arrays["specialist_DHW"],
        generalist_KDHW=_restored(arrays["generalist_KDHW"]),
        variance_KDHW=_restored(arrays["variance_KDHW"]),
        predicted_iou=tuple(float(v) for v in arrays["predicted_iou"]),
    )


def write_label(folder: Place, label: PseudoLabel) -> str:
    """Store a pseudo-label's voxels and return the digest of their bytes."""
    return _write(
        file_of(folder, label.case),
        {
            "mask_DHW": label.mask_DHW,
            "weight_DHW": label.weight_DHW,
            "undecided": np.asarray(label.undecided, np.uint16),
        },
    )


def read_label(folder: Place, case: str) -> PseudoLabel:
    """Return a stored pseudo-label; its verdicts are rows of the step that curated it."""
    arrays = _read(file_of(folder, case))
    undecided = tuple(int(v) for v in arrays["undecided"])
    return PseudoLabel(case, arrays["mask_DHW"], arrays["weight_DHW"], undecided, ())


def _rounded(share: NDArray[np.float32]) -> NDArray[np.uint8]:
    return np.rint(np.clip(share, 0, 1) * 255).astype(np.uint8)


def _restored(bytes_: NDArray[np.uint8]) -> NDArray[np.float32]:
    return bytes_.astype(np.float32) / np.float32(255)


def _write(place: Place, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write the arrays in the order of their names; numpy stamps its archives with a fixed date."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: arrays[name] for name in sorted(arrays)})  # type: ignore[arg-type]
    data = buffer.getvalue()
    place.write_bytes(data)
    return hashlib.sha256(data).hexdigest()[:16]


def _read(place: Place) -> dict[str, NDArray[Any]]:
    try:
        with place.open() as stream, np.load(stream, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise WorkspaceError(
            f"{place} cannot be read ({error}), expected the arrays of a case; "
            "delete the folder that holds it and run again"
        ) from error
