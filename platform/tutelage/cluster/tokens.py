"""Who may ask a server: hashed tokens in a file, one a line. How they are made, written and read.

    night-batch predict 9f86d081884c7d65... 2026-01-31T09:00:00+00:00

A token is 256 random bits, so its hash tells nobody anything and needs no salt. A file that others
can read is therefore only told about; one that others can write is refused, since they could
let themselves in. What a scope opens is not decided here.
"""

import hashlib
import os
import re
import secrets
import stat
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from tutelage.errors import SettingsError

SCOPES: Final = ("predict", "admin")
"""`predict` has scans segmented; `admin` may that too, and sees measurements and everybody's jobs."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HASH = re.compile(r"[0-9a-f]{64}")
_PREFIX = "tutelage_"
"""By which scanners recognize a secret that was written into a repository."""


@dataclass(frozen=True, slots=True)
class Token:
    """One line of the file."""

    name: str
    scopes: tuple[str, ...]
    sha256: str
    created: str
    """ISO 8601."""


def made(name: str, scopes: Sequence[str]) -> tuple[str, Token]:
    """Return a new secret, and the line that lets it in.

    Raises:
        SettingsError: name or scopes are none.
    """
    if not _NAME.fullmatch(name):
        raise SettingsError(
            f"a token cannot be called {name!r}, expected up to 64 letters, digits, dots or dashes"
        )
    unknown = [scope for scope in scopes if scope not in SCOPES]
    if unknown or not scopes:
        raise SettingsError(f"found scopes {list(scopes)}, expected some of {', '.join(SCOPES)}")
    secret = _PREFIX + secrets.token_urlsafe(32)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    ordered = tuple(scope for scope in SCOPES if scope in scopes)
    return secret, Token(name, ordered, hashed(secret), created)


def hashed(secret: str) -> str:
    """Return what is kept of a secret."""
    return hashlib.sha256(secret.encode(errors="surrogateescape")).hexdigest()


def read(path: Path) -> tuple[Token, ...]:
    """Read the file.

    Raises:
        SettingsError: it is not there, not in this form, or others can write it.
    """
    try:
        mode = path.stat().st_mode
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        raise SettingsError(
            f"{path} does not exist; `tutelage tokens add NAME --file {path}` makes it"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read as lines of tokens: {error}") from None
    if mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SettingsError(
            f"{path} has mode {stat.filemode(mode)}, expected that its owner alone can write it: others "
            f"could let themselves in; chmod 600 {path}"
        )
    return _parsed(text, path)


def others_read(path: Path) -> bool:
    """Whether somebody but the owner can read the file."""
    return bool(path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH))


def write(path: Path, tokens: Iterable[Token]) -> None:
    """Replace the file, whole or not at all; its owner alone can read it."""
    lines = [" ".join((token.name, ",".join(token.scopes), token.sha256, token.created)) for token in tokens]
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.writelines(f"{line}\n" for line in lines)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _parsed(text: str, path: Path) -> tuple[Token, ...]:
    tokens: dict[str, Token] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        token = _token(line)
        if token is None:
            # The line itself is not shown: somebody may have written the secret there.
            raise SettingsError(
                f"{path}, line {number} is no token, expected `name scopes sha256 created` as "
                "`tutelage tokens add` writes it; remove the line and add the token again"
            )
        if token.name in tokens:
            raise SettingsError(f"{path}, line {number}: {token.name} is there already; keep one of them")
        tokens[token.name] = token
    return tuple(tokens.values())


def _token(line: str) -> Token | None:
    parts = line.split()
    if len(parts) != 4 or not _NAME.fullmatch(parts[0]) or not _HASH.fullmatch(parts[2]):
        return None
    scopes = tuple(parts[1].split(","))
    return Token(parts[0], scopes, parts[2], parts[3]) if set(scopes) <= set(SCOPES) else None
