"""Which code is running: the package's version, the commit where that can be known, and what its files say.

It reads files and starts nothing. The digest of the files tells code that somebody has changed and not
committed from that which the commit has; commits that change no file of the package share it.
"""

import hashlib
import json
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import tutelage
from tutelage import __version__

_DIGITS = 12
_FILES_DIGITS = 8


@cache
def version() -> str:
    """Return the version, and after a plus sign the commit, if one is known, and the digest of the files."""
    commit = _installed() or checked_out(Path(__file__).resolve())
    parts = [commit[:_DIGITS]] if commit else []
    return f"{__version__}+{'.'.join([*parts, content(Path(tutelage.__file__).parent)])}"


def content(package: Path) -> str:
    """Return a digest of all Python files of a package."""
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        text = file.read_bytes()
        digest.update(f"{file.relative_to(package).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:_FILES_DIGITS]


def _installed() -> str | None:
    """The commit that an installer has noted."""
    try:
        told = distribution("tutelage").read_text("direct_url.json")
        found = json.loads(told or "{}").get("vcs_info", {}).get("commit_id")
    except (PackageNotFoundError, ValueError):
        return None
    return str(found) if found else None


def checked_out(file: Path) -> str | None:
    """The commit that is checked out where a file lies; None outside a repository."""
    root = next((folder for folder in file.parents if (folder / ".git").exists()), None)
    if root is None:
        return None
    try:
        folder = root / ".git"
        if folder.is_file():  # of a work tree beside the first one
            folder = root / folder.read_text().removeprefix("gitdir:").strip()
        head = (folder / "HEAD").read_text().strip()
        if not head.startswith("ref:"):
            return head
        common = folder / "commondir"
        shared = folder / common.read_text().strip() if common.exists() else folder
        return _reference(shared, head.removeprefix("ref:").strip())
    except OSError:
        return None


def _reference(folder: Path, name: str) -> str | None:
    if (folder / name).exists():
        return (folder / name).read_text().strip()
    packed = (folder / "packed-refs").read_text().splitlines()
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)
