"""Embeddings that were paid for once, kept as shards of files.

<place>/<weights>-<preprocessing>-<precision>/<image>/<first slice>-<its keys>.shard, so a
change of weights, of preprocessing or of the image never finds an old embedding. Whatever
goes wrong costs time and nothing else: a shard that is damaged is logged, deleted and made
anew, a place that cannot be read is a miss, one that cannot be written (a full disk) is
said once, counted, and tried again a minute later.

It decides three things. Whether looking pays (`when: auto`): as soon as a slice has been
seen to take longer to read than to embed, images are neither looked for nor kept, save one
in sixteen, which shows when that changes. Until something was read, writing stands for it;
until something was embedded here, what the shards say it took when they were made.

What stays at the bound (`max_gb`): whatever is there. Archives are read from one end to the
other, round after round, and with an archive of twice the bound, a cache that made room for
the newest would always have thrown out what comes next: it would never hit. One that admits
nothing more hits for half. Only embeddings of another generalist (or precision) that nobody
has used for `idle_days` are thrown out, as a whole.

Who writes: anybody. A shard is whole or absent and its name tells its slices, so two who
embed the same batch replace one with the other, and two who embed different batches keep
both. Each process measures the folder, writes a 32nd of the room that is left, and measures
again: up to 32 of them that write at a like pace exceed the bound by no more than a shard
each; one that slept meanwhile may add the 32nd that it had left.

It knows nothing about models.
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from urllib.parse import quote

from tutelage.generalists import shards
from tutelage.generalists.base import Embedding, Generalist
from tutelage.generalists.room import Room
from tutelage.generalists.settings import CacheSettings
from tutelage.generalists.shards import Key
from tutelage.settings import fingerprint
from tutelage.storage import Place

_log = logging.getLogger(__name__)

_SUFFIX = ".shard"
_SLICES_A_SHARD = 32
_HALF_LIFE_SLICES = 256
"""After so many slices an old measurement counts half."""

_TRIAL_IMAGES = 16
"""One image in so many is looked for and kept even where that does not seem to pay."""

_DEFAULTS = CacheSettings()
_RETRY_SECONDS = 60.0
"""How long nothing is kept after a write has failed."""


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What a cache has done since it was made; in slices, bytes and seconds."""

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    seconds_reading: float = 0.0
    refused: int = 0
    """Slices that were not kept: no room, a write that failed, or reading that costs too much."""

    def plus(self, **counts: float) -> "CacheStats":
        """Count some more."""
        return CacheStats(**{f.name: getattr(self, f.name) + counts.get(f.name, 0) for f in fields(self)})

    def since(self, before: "CacheStats") -> "CacheStats":
        """Count only what came after."""
        return self.plus(**{f.name: -getattr(before, f.name) for f in fields(self)})


class _Pace:
    """Seconds a slice, where old measurements fade."""

    def __init__(self) -> None:
        self._seconds, self._slices = 0.0, 0.0

    def add(self, seconds: float, slices: int) -> None:
        """Learn that so many slices took so long together."""
        fade = 0.5 ** (slices / _HALF_LIFE_SLICES)
        self._seconds, self._slices = self._seconds * fade + seconds, self._slices * fade + slices

    @property
    def seconds(self) -> float | None:
        """What one slice takes, once there was one."""
        return self._seconds / self._slices if self._slices else None


class EmbeddingCache:
    """Embeddings of one generalist by image and slice; without a place it remembers nothing.

    For one thread at a time. An image is best finished before the next is begun: only one
    folder is known at a time.
    """

    def __init__(
        self, place: Place | None, generalist: Generalist, settings: CacheSettings = _DEFAULTS
    ) -> None:
        self.settings = settings
        self._room: Room | None = None
        if place is not None and settings.when != "never":
            key = f"{generalist.weights}-{fingerprint(generalist.preprocessing)}-{settings.precision}"
            self._room = Room(place / key, settings.max_gb, settings.idle_days)
        self._stats = CacheStats()
        self._reading, self._writing, self._embedding = _Pace(), _Pace(), _Pace()
        self._embedding_elsewhere: float | None = None
        self._closed_until = 0.0
        self._images = 0
        self._image: str | None = None
        self._pays = True
        self._keys: dict[str, frozenset[Key] | None] | None = None
        """Shards of the image by name, with what is in them; None where that is not known yet."""

    def stats(self) -> CacheStats:
        """Return what was done so far."""
        return self._stats

    @property
    def refused(self) -> int:
        """Slices that were not kept."""
        return self._stats.refused

    def find(self, image: str, slices: Sequence[Key]) -> dict[Key, Embedding]:
        """Return the embeddings of those slices (axis, index) that are there whole.

        `image` names the voxels as the generalist sees them, window included.
        """
        wanted = frozenset(slices)
        found: dict[Key, Embedding] = {}
        if self._room is not None and self._open(self._room, image):
            started = time.perf_counter()
            found, failed = self._found(self._room.folder / quote(image, safe=""), wanted)
            seconds = time.perf_counter() - started
            if found or failed:  # a place that fails slowly is dear too
                self._reading.add(seconds, max(1, len(found)))
            self._count(seconds_reading=seconds)
        self._count(hits=len(found), misses=len(wanted) - len(found))
        return found

    def keep(self, image: str, embeddings: Mapping[Key, Embedding], seconds: float | None = None) -> None:
        """Keep the embeddings of slices (axis, index); `seconds` is what embedding them took together."""
        if self._room is None or not embeddings:
            return
        if seconds is not None:
            self._embedding.add(seconds, len(embeddings))
        each = None if seconds is None else round(seconds / len(embeddings), 4)
        pays, folder = self._open(self._room, image), self._room.folder / quote(image, safe="")
        named = {(int(axis), int(index)): embedding for (axis, index), embedding in embeddings.items()}
        keys = sorted(named)
        for start in range(0, len(keys), _SLICES_A_SHARD):
            some = {key: named[key] for key in keys[start : start + _SLICES_A_SHARD]}
            if not (pays and self._kept(self._room, folder, some, each)):
                self._count(refused=len(some))

    # --- whether it pays ---------------------------------------------------------------

    def _open(self, room: Room, image: str) -> bool:
        """Turn to an image; whether it is to be looked for and kept, decided once an image."""
        if image != self._image:
            if self._image is None:
                room.mark()
            self._image, self._keys = image, None
            self._images += 1
            self._pays = self._is_cheap() or self._images % _TRIAL_IMAGES == 0
        return self._pays

    def _is_cheap(self) -> bool:
        """Whether a slice is expected to take less time to read than to embed; yes while nobody knows."""
        reading = self._writing.seconds if self._reading.seconds is None else self._reading.seconds
        embedding = self._embedding.seconds
        embedding = self._embedding_elsewhere if embedding is None else embedding
        if self.settings.when == "always" or reading is None or embedding is None:
            return True
        return reading < embedding

    # --- files ---------------------------------------------------------------------------

    def _found(self, folder: Place, wanted: frozenset[Key]) -> tuple[dict[Key, Embedding], bool]:
        """What the image's shards hold of these slices, and whether any could not be read."""
        found: dict[Key, Embedding] = {}
        failed = False
        try:
            if self._keys is None:
                self._keys = dict.fromkeys(folder.names(_SUFFIX))
        except OSError as error:
            _log.warning("%s cannot be listed and its slices are made anew: %s", folder, error)
            return found, True
        for name, keys in list(self._keys.items()):
            missing = wanted - found.keys()
            if not missing or (keys is not None and not keys & missing):
                continue
            try:
                with (folder / name).open() as stream:
                    read = shards.read(stream, missing)
            except FileNotFoundError:  # somebody found it damaged
                del self._keys[name]
            except OSError as error:
                failed = True
                _log.warning("%s cannot be read and is made anew: %s", folder / name, error)
            except ValueError as error:
                del self._keys[name]
                self._discard(folder / name, error)
            else:
                found.update(read.found)
                self._keys[name] = read.keys
                self._embedding_elsewhere = read.seconds or self._embedding_elsewhere
                self._count(bytes_read=read.bytes_read)
        return found, failed

    @staticmethod
    def _discard(file: Place, damage: ValueError) -> None:
        _log.warning("%s is damaged and made anew: %s", file, damage)
        try:
            file.remove()
        except OSError as error:
            _log.warning("%s cannot be deleted: %s", file, error)

    def _kept(
        self, room: Room, folder: Place, embeddings: Mapping[Key, Embedding], seconds: float | None
    ) -> bool:
        """Write one shard; whether that was allowed and went well."""
        if time.monotonic() < self._closed_until or room.full:
            return False
        started = time.perf_counter()
        data = shards.write(embeddings, self.settings.precision, self.settings.zstd, seconds)
        (axis, index), *_ = keys = sorted(embeddings)
        name = f"{axis}-{index:05d}-{fingerprint(keys)}{_SUFFIX}"
        try:
            if not room.take(len(data)):
                return False
            (folder / name).write_bytes(data, lasting=False)
        except OSError as error:
            if self._closed_until == 0.0:
                _log.warning(
                    "%s cannot be written, embeddings are made anew instead and writing is tried again "
                    "every %g s; told once: %s",
                    folder / name,
                    _RETRY_SECONDS,
                    error,
                )
            self._closed_until = time.monotonic() + _RETRY_SECONDS
            return False
        if self._keys is not None:
            self._keys[name] = frozenset(keys)
        self._writing.add(time.perf_counter() - started, len(keys))
        self._count(bytes_written=len(data))
        return True

    def _count(self, **counts: float) -> None:
        self._stats = self._stats.plus(**counts)
