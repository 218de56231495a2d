"""By which name an open server may be asked: one of this machine's own.

Without tokens, being on this machine is all that admits anybody, and a browser here asks for any
page that its user looks at: one whose name is turned to 127.0.0.1 once it is loaded would be
answered as if it were ours. It cannot choose the Host header, though, which still holds its name.
Whether it lives is told to everybody, as whoever probes that comes by an address. It does not know
where the server listens.
"""

import re

from starlette.types import ASGIApp, Receive, Scope, Send

from serve.problems import ProblemError

_OURS = re.compile(rb"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?", re.IGNORECASE)

_PROBED = ("/health", "/v2/health/live", "/v2/health/ready")


class Loopback:
    """Around an application that asks for no tokens."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on.

        Raises:
            ProblemError: it asks for another machine.
        """
        if scope["type"] == "http" and scope["path"] not in _PROBED and not _asks_here(scope):
            raise ProblemError(
                "without tokens this server answers on its own machine alone: found another Host, expected "
                "localhost, 127.0.0.1 or [::1]; ask it by one of these, or serve with serving.tokens "
                "(TUTELAGE_TOKENS)",
                "misdirected",
            )
        await self.app(scope, receive, send)


def _asks_here(scope: Scope) -> bool:
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    return len(hosts) == 1 and _OURS.fullmatch(hosts[0]) is not None
