"""Whose token was shown, and whether it opens this address.

The file is read again as soon as it changes; one that has become unusable lets nobody in, since
a token that was just removed must not stay valid because another line is damaged.
"""

import hmac
import logging
import threading
from pathlib import Path

from serve.problems import ProblemError
from tutelage.cluster import tokens
from tutelage.cluster.tokens import Token
from tutelage.errors import SettingsError

_log = logging.getLogger("tutelage.serve.tokens")


class Tokens:
    """The tokens of one file."""

    def __init__(self, path: str | Path) -> None:
        """Read the file.

        Raises:
            SettingsError: it cannot be used.
        """
        self.path = Path(path)
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._tokens: tuple[Token, ...] = ()
        self._read()
        if tokens.others_read(self.path):
            _log.warning(
                "%s can be read by others than its owner; chmod 600 hides whose tokens there are", path
            )

    def who(self, secret: str) -> Token | None:
        """Return whose secret it is.

        Every line is compared, each in constant time: how long it takes tells nothing.
        """
        digest = tokens.hashed(secret).encode()
        found = None
        for token in self._current():
            if hmac.compare_digest(digest, token.sha256.encode()):
                found = token
        return found

    def admitted(self, secret: str, scope: str) -> Token:
        """Return whose secret it is, if it opens this scope.

        Raises:
            ProblemError: no secret, an unknown one, or one for something else.
        """
        token = self.who(secret) if secret else None
        if token is None:
            found = "an unknown token" if secret else "no token"
            raise ProblemError(
                f"found {found}, expected `Authorization: Bearer TOKEN`; whoever runs the server makes "
                "one with `tutelage tokens add`",
                "unauthorized",
            )
        if scope not in token.scopes and "admin" not in token.scopes:
            raise ProblemError(
                f"the token of {token.name} has scope {' and '.join(token.scopes)}, expected {scope}; ask "
                "whoever runs the server for one with that scope",
                "forbidden",
            )
        return token

    def _current(self) -> tuple[Token, ...]:
        with self._lock:
            try:
                if self._seen() != self._stamp:
                    self._read()
            except (OSError, SettingsError) as error:
                if self._stamp is not None:
                    _log.error("nobody is let in any more: %s", error)
                self._stamp, self._tokens = None, ()
            return self._tokens

    def _read(self) -> None:
        # Looked at before it is read: a change in between is noticed the next time.
        stamp = self._seen() if self.path.exists() else None
        self._tokens = tokens.read(self.path)
        self._stamp = stamp

    def _seen(self) -> tuple[int, ...]:
        status = self.path.stat()
        return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_mode
