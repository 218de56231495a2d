"""Candidates and pseudo-labels as files: compressed numpy archives, the same bytes for the same content.

It decides how voxels are kept: what is said about a structure only inside its box. Nothing
here is ever unpickled.
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
from tutelage.records import Candidate, PseudoLabel, Region
from tutelage.storage import NUMPY_HEADERS, Place


def file_of(folder: Place, case: str) -> Place:
    """Return where a case's arrays live; any id makes a usable name."""
    return folder / f"{quote(case, safe='')}.npz"


def write_candidate(folder: Place, candidate: Candidate) -> str:
    """Store a candidate and return the digest of its bytes."""
    regions = {
        name: array
        for value, region in enumerate(candidate.regions)
        if region.mean_DHW.size
        for name, array in _named(value, region).items()
    }
    return _write(
        file_of(folder, candidate.case),
        {
            "specialist_DHW": candidate.specialist_DHW,
            "starts_K3": np.asarray([region.start for region in candidate.regions], np.int32),
            "predicted_iou": np.asarray(candidate.predicted_iou, np.float64),
            "consensus": np.asarray(candidate.consensus, np.float64),
            **regions,
            **_features(candidate.pooled_KC, candidate.grid_DCHW),
        },
    )


def read_candidate(folder: Place, case: str) -> Candidate:
    """Return a stored candidate."""
    arrays = _read(file_of(folder, case))
    return Candidate(
        case=case,
        specialist_DHW=arrays["specialist_DHW"],
        regions=tuple(_region(arrays, value) for value in range(len(arrays["starts_K3"]))),
        predicted_iou=tuple(float(v) for v in arrays["predicted_iou"]),
        consensus=tuple(float(v) for v in arrays["consensus"]),
        pooled_KC=arrays["pooled_KC"],
        grid_DCHW=arrays.get("grid_DCHW"),
    )


def write_label(folder: Place, label: PseudoLabel) -> str:
    """Store a pseudo-label's voxels and return the digest of their bytes."""
    return _write(
        file_of(folder, label.case),
        {
            "mask_DHW": label.mask_DHW,
            "weight_DHW": label.weight_DHW,
            "undecided": np.asarray(label.undecided, np.uint16),
            **_features(label.pooled_KC, label.grid_DCHW),
        },
    )


def read_label(folder: Place, case: str) -> PseudoLabel:
    """Return a stored pseudo-label; its verdicts are rows of the step that curated it."""
    arrays = _read(file_of(folder, case))
    undecided = tuple(int(v) for v in arrays["undecided"])
    return PseudoLabel(
        case,
        arrays["mask_DHW"],
        arrays["weight_DHW"],
        undecided,
        (),
        arrays["pooled_KC"],
        arrays.get("grid_DCHW"),
    )


def mask_digests(mask_DHW: NDArray[np.uint8], structures: int) -> list[str | None]:
    """Return a digest of the voxels of each structure, by label value from 1; None where it has none."""
    from scipy.ndimage import find_objects

    found: list[str | None] = []
    for value, where in enumerate(find_objects(mask_DHW, structures), start=1):
        if where is None:
            found.append(None)
            continue
        place = [(axis.start, axis.stop) for axis in where]
        digest = hashlib.sha256(repr(place).encode())
        digest.update(np.packbits(mask_DHW[where] == value).tobytes())
        found.append(digest.hexdigest()[:16])
    return found


def _named(value: int, region: Region) -> dict[str, NDArray[np.uint8]]:
    """Arrays of one structure; a variance that is zero everywhere is left out."""
    arrays = {f"mean_{value}_DHW": region.mean_DHW}
    return arrays | ({f"variance_{value}_DHW": region.variance_DHW} if region.variance_DHW.any() else {})


def _region(arrays: Mapping[str, NDArray[Any]], value: int) -> Region:
    d, h, w = arrays["starts_K3"][value].tolist()
    mean_DHW = arrays.get(f"mean_{value}_DHW")
    if mean_DHW is None:
        mean_DHW = np.zeros((0, 0, 0), np.uint8)
    variance_DHW = arrays.get(f"variance_{value}_DHW")
    return Region(
        (d, h, w), mean_DHW, np.zeros(mean_DHW.shape, np.uint8) if variance_DHW is None else variance_DHW
    )


def _features(
    pooled_KC: NDArray[np.float16], grid_DCHW: NDArray[np.float16] | None
) -> dict[str, NDArray[np.float16]]:
    return {"pooled_KC": pooled_KC} | ({} if grid_DCHW is None else {"grid_DCHW": grid_DCHW})


def _write(place: Place, arrays: Mapping[str, NDArray[Any]]) -> str:
    """Write the arrays in the order of their names; numpy stamps its archives with a fixed date."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **{name: arrays[name] for name in sorted(arrays)})  # type: ignore[arg-type]
    data = buffer.getvalue()
    place.write_bytes(data)
    return hashlib.sha256(data).hexdigest()[:16]


def _read(place: Place) -> dict[str, NDArray[Any]]:
    try:
        data = io.BytesIO(place.read_bytes())
        with NUMPY_HEADERS, np.load(data, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise WorkspaceError(
            f"{place} cannot be read ({error}), expected the arrays of a case; "
            "delete the folder that holds it and run again"
        ) from error
