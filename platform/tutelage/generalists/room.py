"""How much more may be written beneath a folder that several processes fill.

It decides how often the folder is measured (before each 32nd of the room left is taken, so
that its size costs about 300 listings from empty to full, whatever the bound) and which
folders go when there is none: those of other generalists that are marked and long unused.
What was refused once is refused for good: a process that starts later measures anew.
"""

import contextlib
import logging
import time
from collections import defaultdict

from tutelage.storage import Place

_log = logging.getLogger(__name__)

_MARK = "used"
_GB = 10**9
_DAY_NS = 86_400 * 10**9
_SHARE = 32
"""So many processes of a like pace exceed the bound by a file each at most, more of them in proportion."""


class Room:
    """Room for one generalist's folder within the bound of the folder above it."""

    def __init__(self, folder: Place, max_gb: float | None, idle_days: float) -> None:
        self.folder = folder
        self._bound = None if max_gb is None else int(max_gb * _GB)
        self._idle_ns = int(idle_days * _DAY_NS)
        self._allowance = 0
        self.full = False

    def mark(self) -> None:
        """Tell other processes that this folder is in use, if it can be written at all."""
        with contextlib.suppress(OSError):
            (self.folder / _MARK).write_bytes(b"", lasting=False)

    def take(self, size: int) -> bool:
        """Whether a file of so many bytes may be written."""
        if self._bound is None:
            return True
        if self.full:
            return False
        if size > self._allowance:
            left = self._left(self._bound, size)
            if size > left:
                self.full = True
                _log.warning(
                    "%s has %.3g GB left of the %.3g GB of generalist.cache.max_gb; what is there is used, "
                    "what is not is embedded anew each time: raise the bound or delete what is not needed",
                    self.folder.parent,
                    max(0, left) / _GB,
                    self._bound / _GB,
                )
                return False
            self._allowance = max(left // _SHARE, size)
        self._allowance -= size
        return True

    def _left(self, bound: int, needed: int) -> int:
        """Bytes left; if they are too few, after idle folders have gone."""
        sizes: dict[str, int] = defaultdict(int)
        newest: dict[str, int] = defaultdict(int)
        marked = set()
        for path, size, changed_ns in self.folder.parent.beneath():
            top, _, below = path.partition("/")
            sizes[top] += size
            newest[top] = max(newest[top], changed_ns)
            if below == _MARK:
                marked.add(top)
        left = bound - sum(sizes.values())
        idle_before = time.time_ns() - self._idle_ns
        for name in sorted(marked - {self.folder.name}, key=newest.__getitem__):
            if left >= needed or newest[name] > idle_before:
                break
            with contextlib.suppress(FileNotFoundError):  # another process had the same thought
                (self.folder.parent / name).remove()
            _log.info("%s, not used for long, made room for %.3g GB", name, sizes[name] / _GB)
            left += sizes[name]
        return left
