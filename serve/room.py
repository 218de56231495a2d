"""Memory for the volumes of one copy: who needs more than there is waits until others are done.

Before a scan is read, it counts as much as it could be unpacked; then as what it is, and what the
network makes of it. Whoever is alone always goes on, so nobody waits forever: what one scan may
need is limited elsewhere, and only what cannot fit into the machine at all is refused: here where
it is segmented, and in `uploads`, which reads headers, before it is read.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

from serve.uploads import TooLargeError
from tutelage.archive.formats import Volume
from tutelage.cluster.settings import ServingSettings
from tutelage.errors import StoppedError
from tutelage.specialist.looking import Stop

_SHARE = 0.8
"""Of the memory that is free while nothing is worked on; and of all, for one scan that is read."""

_ASK_S = 0.2
"""Seconds between two questions whether somebody who waits is still wanted."""

_FLOAT = 4
_COPIES = 2
"""Of an image at a time: as it was read, and as it is changed."""


class Room:
    """What is taken, and what is free."""

    def __init__(self, free: Callable[[], int] | None = None, total: Callable[[], int] | None = None) -> None:
        self._free, self._total = free or free_bytes, total or total_bytes
        self._changed = threading.Condition()
        self._held: dict[int, int] = {}
        self._working: dict[int, int] = {}
        self._budget = 0

    @contextmanager
    def part(self) -> Iterator["Part"]:
        """Have a part of it, of no size yet, and give it back in the end."""
        part = Part(self)
        try:
            yield part
        finally:
            self.put(part, 0, 0)

    def put(self, part: "Part", held: int, working: int) -> None:
        """Note how large a part is."""
        with self._changed:
            for taken, size in ((self._held, held), (self._working, working)):
                taken.pop(id(part), None)
                if size:
                    taken[id(part)] = size
            self._changed.notify_all()

    def wait(self, part: "Part", held: int, working: int, stop: Stop) -> None:
        """Have a part become this large, when there is room for it.

        Raises:
            StoppedError: nobody waits for it any more.
        """
        with self._changed:
            while not self._fits(part, held + working, bool(working)):
                if stop():
                    raise StoppedError("nobody waits for the answer any more")
                self._changed.wait(_ASK_S)
            self.put(part, held, working)

    def readable(self) -> int:
        """Return how many bytes reading one scan may take, however long it waits."""
        return int(_SHARE * self._total())

    def refuse_impossible(self, size: int) -> None:
        """Refuse what no waiting helps.

        Raises:
            TooLargeError: the machine has less memory.
        """
        total = self._total()
        if size > total:
            raise TooLargeError(
                f"segmenting the scan takes about {size / 1e9:.1f} GB of memory, the server has "
                f"{total / 1e9:.1f} GB; send a smaller or coarser scan"
            )

    def _fits(self, part: "Part", size: int, works: bool) -> bool:
        others = {**self._held}
        others.pop(id(part), None)
        if not others and not self._working:
            self._budget = int(_SHARE * self._free())
            return True
        # Who has its scan already waits for those that work only, or two of them would wait for each other.
        if works and not self._working:
            return True
        return sum(others.values()) + sum(self._working.values()) + size <= self._budget


class Part:
    """What one scan takes."""

    def __init__(self, room: Room) -> None:
        self.room = room

    def read(self, size: int, settings: ServingSettings, stop: Stop) -> None:
        """Wait for room to read an upload of so many bytes, whatever it unpacks to."""
        unpacked = min(settings.max_unpacked_mb * 1e6, 1e6 + size * settings.max_ratio)
        image = min(settings.max_voxels * _FLOAT, unpacked * _FLOAT)
        self.room.wait(self, int(unpacked + image), 0, stop)

    def work(self, volume: Volume, told: dict[str, Any], stop: Stop) -> None:
        """Wait for room to segment a volume that is in memory now."""
        held = int(volume.image_CDHW.nbytes)
        self.room.put(self, held, 0)
        need = working_bytes(volume, told)
        self.room.refuse_impossible(held + need)
        self.room.wait(self, held, need, stop)


def working_bytes(volume: Volume, told: dict[str, Any]) -> int:
    """Return about what segmenting takes besides: the image as the model sees it, and sums by class."""
    sizes = zip(volume.grid.shape, volume.grid.spacing, told["spacing_DHW_mm"], strict=True)
    seen = prod(max(1.0, count * spacing / wanted) for count, spacing, wanted in sizes)
    channels, classes = len(volume.image_CDHW), len(told["structures"]) + 1
    return int(seen * _FLOAT * (_COPIES * channels + classes)) + int(volume.image_CDHW.nbytes)


def free_bytes() -> int:
    """Return how much memory this process can still have, by its machine and its container."""
    machine = _meminfo("MemAvailable")
    limit, used = _control("memory.max"), _control("memory.current")
    return machine if limit is None or used is None else min(machine, max(limit - used, 0))


def total_bytes() -> int:
    """Return how much memory there is, by the machine and the container."""
    limit = _control("memory.max")
    machine = _meminfo("MemTotal")
    return machine if limit is None else min(machine, limit)


def _meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _control(name: str) -> int | None:
    """Read a number of the container's control group; None where it sets none."""
    try:
        text = Path("/sys/fs/cgroup", name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
