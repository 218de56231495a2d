"""Embeddings that were paid for once, kept as files.

One file a slice: <place>/<weights>-<preprocessing>/<image>/<index>.npy, so a change of
weights, of preprocessing or of the image never finds an old embedding. A file that cannot
be read, or does not match its checksum, is a miss and not an error. It knows nothing about
models and never deletes.
"""

import logging

from tutelage.generalists.base import Embedding, Generalist
from tutelage.settings import fingerprint
from tutelage.storage import Place

_log = logging.getLogger(__name__)


class EmbeddingCache:
    """Embeddings of one generalist by image and slice; without a place it remembers nothing."""

    def __init__(self, place: Place | None, generalist: Generalist) -> None:
        key = f"{generalist.weights}-{fingerprint(generalist.preprocessing)}"
        self._folder = None if place is None else place / key

    def get(self, image: str, index: int) -> Embedding | None:
        """Return the embedding of one slice, or None if it is not there whole.

        `image` names the voxels as the generalist sees them, window included.
        """
        if self._folder is None:
            return None
        file = self._file(self._folder, image, index)
        try:
            return Embedding.from_bytes(file.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            _log.warning("%s cannot be read and is made anew: %s", file, error)
            return None

    def put(self, image: str, index: int, embedding: Embedding) -> None:
        """Keep the embedding of one slice."""
        if self._folder is not None:
            self._file(self._folder, image, index).write_bytes(embedding.to_bytes())

    @staticmethod
    def _file(folder: Place, image: str, index: int) -> Place:
        return folder / image / f"{index:05d}.npy"
