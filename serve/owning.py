"""Folders and locks of one user's processes on one node: whose a folder is, and whether a process lives.

It decides what counts as one's own. What lies in the folders, and what is removed, is known elsewhere.
"""

import fcntl
import os
import stat
from pathlib import Path

from tutelage.errors import WorkspaceError


def own(folder: Path) -> Path:
    """Make a folder that only this user can read, or find that it is one, which nobody else put there.

    Raises:
        WorkspaceError: it is somebody else's, or others may read it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise WorkspaceError(
            f"{folder} is not this user's own (mode {found.st_mode & 0o7777:o}, owner {found.st_uid}), "
            "expected a folder that only the server can read; remove it, or set TUTELAGE_SPOOL"
        )
    return folder


def is_held(file: Path) -> bool:
    """Whether the process that locked a file still lives: the system frees a dead one's locks."""
    try:
        descriptor = os.open(file, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that several who ask at once do not take each other for the owner.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
