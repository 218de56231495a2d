"""A specialist as MLflow loads it: a table of scans in, a table of masks out, nothing of a campaign needed.

It decides what a call is given and gives back. A scan is the path of a file, and its mask is then
a file too; or it is a `data:` address that holds a NIfTI, for callers elsewhere, and its mask comes
back as one. MLflow calls `_load_pyfunc` by its name; this file does not know MLflow.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from tutelage.archive import formats
from tutelage.archive.addresses import address_of, contents, is_data
from tutelage.casework.predicting import MASK, Order, Prediction, predict, segment
from tutelage.errors import TutelageError
from tutelage.specialist.predictor import Predictor
from tutelage.storage import Place

IMAGE = "image"
"""The one column of a call: paths and `data:` addresses of scans."""


class Packaged:
    """A specialist, loaded once."""

    def __init__(self, folder: Place | str) -> None:
        self.predictor = Predictor(folder)

    def predict(self, scans: pd.DataFrame, params: Mapping[str, Any] | None = None) -> pd.DataFrame:
        """Segment a column of scans: `mask`, and where there is none `reason`, and `volumes_ml` as JSON.

        Of `params`, `output` is the folder for masks of files, a new temporary one unless told, and
        `max_voxels` refuses larger scans.
        """
        told = params or {}
        max_voxels = int(told.get("max_voxels", formats.MAX_VOXELS))
        addresses = [str(address) for address in scans[IMAGE]]
        files = iter(_orders([Path(a) for a in addresses if not is_data(a)], str(told.get("output", ""))))
        done = [
            self._data(address, max_voxels) if is_data(address) else self._file(next(files), max_voxels)
            for address in addresses
        ]
        return pd.DataFrame([_row(prediction) for prediction in done], index=scans.index)

    def _file(self, order: Order, max_voxels: int) -> Prediction:
        if order.mask.resolve() == order.image.resolve():
            told = f"the mask of {order.image} would overwrite it; name another output"
            return Prediction(str(order.image), None, told, ())
        [done] = predict(self.predictor, [order], max_voxels)
        return done

    def _data(self, address: str, max_voxels: int) -> Prediction:
        try:
            data, suffix = contents(address)
            volume = formats.read_image_bytes(data, f"scan{suffix}", max_voxels)
            mask_DHW, found = segment(self.predictor, volume)
        except Exception as error:  # a stranger's bytes can raise anything; the row says what it was
            told = str(error) if isinstance(error, TutelageError) else f"{type(error).__name__}: {error}"
            return Prediction("", None, told, ())
        return Prediction("", address_of(formats.mask_bytes(mask_DHW, volume, MASK)), "", found)


def _orders(images: Sequence[Path], output: str) -> Iterator[Order]:
    """Say where masks go; of several scans with one name each mask has its number before it."""
    if not images:
        return
    folder = Path(output or tempfile.mkdtemp(prefix="tutelage-masks-"))
    stems = [formats.stem(image.name) for image in images]
    often = Counter(stems)
    for number, (image, stem) in enumerate(zip(images, stems, strict=True)):
        name = stem if often[stem] == 1 else f"{number:04d}-{stem}"
        yield Order(image, folder / (name + MASK))


def _row(done: Prediction) -> dict[str, str]:
    volumes_ml = {one.structure: one.volume_ml for one in done.found}
    return {"mask": done.mask or "", "reason": done.reason, "volumes_ml": json.dumps(volumes_ml)}


def _load_pyfunc(folder: str) -> Packaged:
    """Load a specialist's folder, as MLflow asks."""
    return Packaged(folder)
