"""Processes from outside: who started whom, what they are called and what they take. Linux only.

It reads /proc and decides nothing about what a figure means.
"""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path


def descendants(root: int) -> list[int]:
    """Return a process and all that it started, directly or not."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, IndexError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [root]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def is_called(pid: int, word: str) -> bool:
    """Whether a word stands in a process's command line, where Ray writes what an actor is."""
    with contextlib.suppress(OSError):
        return word in Path(f"/proc/{pid}/cmdline").read_text()
    return False


def own_mib(pid: int) -> float:
    """Memory that a process has for itself: neither files nor what it shares with others."""
    _, resident, shared, *_ = map(int, Path(f"/proc/{pid}/statm").read_text().split())
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE") / 2**20


def taken_mib(root: int) -> dict[int, float]:
    """Proportional set sizes of a process and its descendants, by process: pages they share count once."""
    found = {}
    for pid in descendants(root):
        with contextlib.suppress(OSError, StopIteration):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            found[pid] = int(next(line for line in lines if line.startswith("Pss:")).split()[1]) / 1024
    return found


@contextlib.contextmanager
def looking(look: Callable[[], None], every_s: float) -> Iterator[None]:
    """Have a thread look again and again; a look that finds nobody any more is passed over."""
    over = threading.Event()

    def again() -> None:
        while not over.wait(every_s):
            with contextlib.suppress(OSError):
                look()

    thread = threading.Thread(target=again, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
