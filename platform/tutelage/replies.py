"""What a server's answer means where it is not what was asked for: which error, and whether to ask again.

It reads problem documents (RFC 9457), and what proxies and portals say instead. It asks nobody.
"""

import json
import time
from collections.abc import Mapping
from contextlib import suppress
from email.utils import parsedate_to_datetime
from typing import Any

import httpx

from tutelage.errors import BusyError, ForbiddenError, RefusedError, ServerError

_AWAY = (500, 502, 504)
"""Statuses that ask to come back, unless a problem document says what was wrong."""

_SHOWN = 300
"""Characters of an answer that is no problem document."""


def refusal(response: httpx.Response) -> ServerError:
    """Return the error for an answer that is none."""
    told: dict[str, Any] = {}
    if media(response) == "application/problem+json":
        with suppress(ValueError):  # cut off on the way: then the status alone is told
            told = dict(json.loads(response.content))
    status = response.status_code
    error = problem(told or {"detail": response.text[:_SHOWN] or response.reason_phrase}, status)
    error.request_id = error.request_id or request_id(response)
    # Without a document it was not the application that answered: a copy died, or a proxy is at its limit.
    error.again = status in (429, 503) or (not told and status in _AWAY)
    error.retry_after_s = _seconds(response.headers.get("retry-after", ""))
    return error


def problem(told: Mapping[str, Any], status: int) -> ServerError:
    """Return the error that a problem document (RFC 9457) describes."""
    status = int(told.get("status") or status)
    detail = str(told.get("detail") or told.get("title") or f"HTTP {status}")
    error = _kind(status)(f"{detail} (HTTP {status})" if status and "detail" not in told else detail)
    error.status = status
    error.kind = str(told.get("type", "")).removeprefix("urn:tutelage:")
    error.request_id = str(told.get("request_id") or "")
    return error


def _kind(status: int) -> type[ServerError]:
    if status in (401, 403):
        return ForbiddenError
    if status in (429, 503):
        return BusyError
    return RefusedError if 400 <= status < 500 else ServerError


def _seconds(retry_after: str) -> float:
    """Read Retry-After, which is seconds or a date."""
    if retry_after.isdecimal():
        return float(retry_after)
    try:
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    except ValueError:
        return 0.0


def told_in(response: httpx.Response, name: str) -> Any:
    """Return what an answer in JSON tells under a name."""
    try:
        return response.json()[name]
    except (ValueError, TypeError, KeyError):
        raise stranger(response) from None


def stranger(response: httpx.Response) -> ServerError:
    """Return the error for an answer that none of our servers gives, like a portal's page to log in."""
    told = f"{response.url.copy_with(query=None)} answered with {media(response) or 'no type'}"
    return ServerError(
        f"{told}, which is not what a server of `tutelage serve` does; is it the address of one, and is "
        "nothing in between?"
    )


def media(response: httpx.Response) -> str:
    """Return the type of an answer, without parameters."""
    return str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()


def request_id(response: httpx.Response) -> str:
    """Return the server's own id, which is told first; proxies on the way may tell theirs too."""
    return str(response.headers.get("x-request-id", "")).partition(",")[0]
