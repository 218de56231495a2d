"""Where the volumes of one training lie: in memory while there is room, then in files of the node.

It decides how much stays in memory and what the files are: nameless, so that nothing of them is
left however the process ends, and few, because a process may not open many. It does not
know what is learned from volumes.
"""

import logging
import mmap
import tempfile
from contextlib import ExitStack
from dataclasses import replace
from typing import Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tutelage.errors import TrainingError
from tutelage.methods.batches import Sample

_log = logging.getLogger(__name__)

_FILE_BYTES = 2**33
"""Length of a file; what is not written takes no room."""

_ALIGNED = 64

N = TypeVar("N", bound=np.generic)


class Volumes:
    """Keeps samples one after another. What it kept stays readable when it is closed."""

    def __init__(self, max_gb: float) -> None:
        self._max_gb = max_gb
        self._room = int(max_gb * 1e9)
        self._open = ExitStack()
        self._latest: _File | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def keep(self, sample: Sample) -> Sample:
        """Return the same sample, in memory if there is room for it, else in a file.

        Raises:
            TrainingError: there is no room for the file.
        """
        image, label = sample.image_CDHW, sample.label_DHW
        weight, features = sample.weight_DHW, sample.features_DCHW
        needed = sum(array.nbytes for array in (image, label, weight, features) if array is not None)
        if needed <= self._room:
            self._room -= needed
            return sample
        return replace(
            sample,
            image_CDHW=self._filed(image),
            label_DHW=None if label is None else self._filed(label),
            weight_DHW=None if weight is None else self._filed(weight),
            features_DCHW=None if features is None else self._filed(features),
        )

    def _filed(self, array: NDArray[N]) -> NDArray[N]:
        try:
            if self._latest is None or self._latest.room < array.nbytes:
                self._latest = self._open.enter_context(_File(array.nbytes))
                _log.info("volumes beyond %g GB lie beneath %s", self._max_gb, tempfile.gettempdir())
            return self._latest.append(array)
        except OSError as error:
            raise TrainingError(
                f"volumes beyond train.max_gb ({self._max_gb:g}) find no room beneath "
                f"{tempfile.gettempdir()} ({error}); let TMPDIR name a folder with more, "
                "raise train.max_gb, or give fewer cases"
            ) from error


class _File:
    """A file that arrays are read from where they lie; it is gone with the last of them."""

    def __init__(self, least: int) -> None:
        self._size, self._end = max(_FILE_BYTES, least), 0
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed on exit, its map with the last array
        self._file.truncate(self._size)
        self._map = mmap.mmap(self._file.fileno(), self._size, access=mmap.ACCESS_READ)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def room(self) -> int:
        """Bytes that are left."""
        return self._size - self._end

    def append(self, array: NDArray[N]) -> NDArray[N]:
        """Write an array and return it as it lies there."""
        start = self._end
        self._file.seek(start)
        self._file.write(np.ascontiguousarray(array).data)  # through the map, a full disk would be a crash
        self._file.flush()
        self._end = min(self._size, start + -(-array.nbytes // _ALIGNED) * _ALIGNED)
        return np.frombuffer(self._map, array.dtype, array.size, start).reshape(array.shape)
