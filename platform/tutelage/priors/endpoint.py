"""Any server that speaks OpenAI's protocol: `vllm serve`, Ray Serve LLM, llama.cpp, others.

It decides how a question travels and how often it is sent. What a server may get wrong in an
answer (prose, a cut, nothing) comes back as a reply; what makes every answer impossible (no
server, no such model, no right to ask) raises. The key is read from the environment when it
is sent, and is in no record and no message; an address that holds one is refused. What a
server says about an error may repeat what it was asked or sent: a reply keeps it apart.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tutelage.errors import PriorsError
from tutelage.priors.base import Finish, Question, Reply
from tutelage.priors.settings import EndpointSettings

if TYPE_CHECKING:
    import httpx

_AGAIN = (408, 425, 429)
"""Statuses that ask to come back, beside all of a server's own troubles (500 and above)."""

_GONE_AFTER = 3
"""Questions in a row that found no server, each with all its tries, after which it is taken for gone."""

_SHOWN = 300


@dataclass(frozen=True)
class _Trouble:
    """Why a try failed, and what that means."""

    told: str
    detail: str = ""
    """What the server said about it."""
    again: bool = False
    away: bool = False
    """Whether there was no server at all."""
    wait_s: float | None = None
    """How long the server wants us to stay away."""


class Endpoint:
    """A model behind a server."""

    def __init__(self, url: str, model: str | None = None, settings: EndpointSettings | None = None) -> None:
        """Ask the server which models it has.

        Raises:
            PriorsError: there is no server, or it has no such model.
        """
        self._settings = settings or EndpointSettings()
        self._url = _address(url)
        self.name = self._model(model)
        self.digest = "unknown"
        self._away = 0

    def answer(self, questions: Iterable[Question]) -> Iterator[Reply]:
        """Yield replies as they come; no more questions than `concurrency` are under way.

        Raises:
            PriorsError: the server is gone, or refuses every question.
        """
        self._away = 0
        with asyncio.Runner() as runner:
            replies = self._replies(questions)
            try:
                while (reply := runner.run(_next(replies))) is not None:
                    yield reply
            finally:
                runner.run(replies.aclose())

    def close(self) -> None:
        """Nothing is held between answers."""

    # --- which model -----------------------------------------------------------------------

    def _model(self, wanted: str | None) -> str:
        import httpx

        with httpx.Client(headers=self._headers(), timeout=self._settings.timeout_s) as client:
            for attempt in range(self._settings.tries):
                trouble, body = self._listed(client)
                if trouble is None:
                    break
                if not trouble.again or attempt == self._settings.tries - 1:
                    raise PriorsError(_whole(trouble))
                time.sleep(self._pause_s(attempt, trouble))
        try:
            names = [str(model["id"]) for model in body["data"]]
        except (KeyError, TypeError):
            raise PriorsError(
                f"{self._url}/models lists no models; is it the address of an OpenAI API?"
            ) from None
        if wanted is None and len(names) == 1:
            return names[0]
        if wanted in names:
            return str(wanted)
        told = ", ".join(names) or "none"
        if wanted is None:
            raise PriorsError(f"{self._url} serves several models ({told}); say which with --served")
        raise PriorsError(f"{self._url} has no model {wanted!r}; it has {told}")

    def _listed(self, client: "httpx.Client") -> tuple[_Trouble | None, Any]:
        import httpx

        try:
            response = client.get(f"{self._url}/models")
        except httpx.HTTPError as error:
            return self._unreached(error), None
        if response.is_success:
            with suppress(ValueError):
                return None, response.json()
            return _Trouble(f"{self._url}/models answers no JSON; is it the address of an OpenAI API?"), None
        return self._refused(response), None

    # --- one question ----------------------------------------------------------------------

    async def _replies(self, questions: Iterable[Question]) -> AsyncGenerator[Reply, None]:
        import httpx

        asked = ((sample, one) for question in questions for sample, one in enumerate(question.apart()))
        limits = httpx.Limits(max_connections=self._settings.concurrency)
        under_way: set[asyncio.Task[Reply]] = set()
        async with httpx.AsyncClient(
            headers=self._headers(), timeout=self._settings.timeout_s, limits=limits
        ) as client:
            try:
                while True:
                    while len(under_way) < self._settings.concurrency and (following := next(asked, None)):
                        under_way.add(asyncio.create_task(self._reply(client, *following)))
                    if not under_way:
                        return
                    done, under_way = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        if task.exception() is None:
                            yield task.result()
                    for task in done:  # what the others had is not lost by the one that failed
                        task.result()
            finally:
                for task in under_way:
                    task.cancel()
                await asyncio.gather(*under_way, return_exceptions=True)

    async def _reply(self, client: "httpx.AsyncClient", sample: int, question: Question) -> Reply:
        trouble = _Trouble("")
        for attempt in range(self._settings.tries):
            if attempt:
                await asyncio.sleep(self._pause_s(attempt - 1, trouble))
            found = await self._tried(client, question)
            if not isinstance(found, _Trouble):
                self._away = 0
                return _read(found, question.key, sample)
            trouble = found
            if not trouble.again or (trouble.wait_s or 0) > self._settings.longest_wait_s:
                break
        self._away = self._away + 1 if trouble.away else 0
        if self._away >= _GONE_AFTER:
            advice = "what was answered so far is kept, run again when the server is back"
            raise PriorsError(f"{trouble.told}; {advice}")
        told = f"{trouble.told} (tries: {attempt + 1})"
        return Reply(question.key, sample, finish=Finish.ERROR, error=told, detail=trouble.detail)

    async def _tried(self, client: "httpx.AsyncClient", question: Question) -> "_Trouble | dict[str, Any]":
        import httpx

        try:
            response = await client.post(f"{self._url}/chat/completions", json=self._payload(question))
        except httpx.HTTPError as error:
            return self._unreached(error)
        if not response.is_success:
            trouble = self._refused(response)
            if response.status_code in (401, 403) or _no_model(response):
                raise PriorsError(_whole(trouble))
            return trouble
        try:
            body = response.json()
        except ValueError:
            return _Trouble(f"{self._url} answers no JSON", _shown(response.text))
        return (
            body if isinstance(body, dict) else _Trouble(f"{self._url} answers no object", _shown(str(body)))
        )

    def _payload(self, question: Question) -> dict[str, Any]:
        seed = {"seed": question.seed} if self._settings.seeds else {}
        return seed | {
            "model": self.name,
            "messages": [
                {"role": "system", "content": question.system},
                {"role": "user", "content": question.user},
            ],
            "temperature": question.temperature,
            "max_tokens": question.max_tokens,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": True, "schema": dict(question.schema)},
            },
        }

    # --- what can go wrong -----------------------------------------------------------------

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self._settings.api_key_env)
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _pause_s(self, attempt: int, trouble: _Trouble) -> float:
        if trouble.wait_s is not None:
            return trouble.wait_s
        pause_s = self._settings.wait_s * 2.0**attempt * random.uniform(0.5, 1.0)
        return min(pause_s, self._settings.longest_wait_s)

    def _unreached(self, error: "httpx.HTTPError") -> _Trouble:
        import httpx

        if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
            told = f"{self._url} did not answer within {self._settings.timeout_s:g} s"
            return _Trouble(
                f"{told}; wait longer (priors.endpoint.timeout_s) or ask less at once", again=True
            )
        advice = "start one, for example with `vllm serve MODEL`, or correct the address"
        told = f"no server answers at {self._url} ({str(error) or type(error).__name__}); {advice}"
        return _Trouble(told, again=isinstance(error, httpx.TransportError), away=True)

    def _refused(self, response: "httpx.Response") -> _Trouble:
        from httpx import codes

        status = response.status_code
        told = f"{self._url} answers {status} {codes.get_reason_phrase(status)}".rstrip()
        if status in (401, 403):  # some servers repeat the key
            return _Trouble(f"{told}; put a valid key into the variable {self._settings.api_key_env}")
        again = status in _AGAIN or status >= 500
        return _Trouble(told, _message(response), again, wait_s=_wait_s(response))


async def _next(replies: AsyncIterator[Reply]) -> Reply | None:
    return await anext(replies, None)


def _whole(trouble: _Trouble) -> str:
    return f"{trouble.told}: {trouble.detail}" if trouble.detail else trouble.told


def _address(url: str) -> str:
    """With the path that servers use, where only a host is given."""
    parts = urlsplit(url)
    if "@" in (parts.netloc or url) or parts.query or parts.fragment:
        raise PriorsError(
            "--endpoint holds a user, a key, or something after ? or #, which would be printed and stored; "
            "give only scheme, host and path, like http://localhost:8000/v1, and put the key into "
            "the variable that priors.endpoint.api_key_env names (OPENAI_API_KEY)"
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise PriorsError(f"--endpoint is {url!r}, expected an address such as http://localhost:8000/v1")
    return url.rstrip("/") if parts.path.strip("/") else f"{url.rstrip('/')}/v1"


def _read(body: dict[str, Any], key: str, sample: int) -> Reply:
    try:
        choice = body["choices"][0]
        text = choice["message"].get("content") or ""
        tokens = int((body.get("usage") or {}).get("completion_tokens") or 0)
    except (KeyError, IndexError, TypeError, AttributeError):
        told = "the server's answer has no choices"
        return Reply(key, sample, finish=Finish.ERROR, error=told, detail=_shown(str(body)))
    finish = Finish.LENGTH if choice.get("finish_reason") == "length" else Finish.STOP
    return Reply(key, sample, str(text), tokens, finish)


def _no_model(response: "httpx.Response") -> bool:
    return response.status_code == 404 and "model" in _message(response).lower()


def _message(response: "httpx.Response") -> str:
    """What the server says went wrong, in whichever form it says it."""
    with suppress(ValueError, KeyError, TypeError, AttributeError):
        body = response.json()
        error = body.get("error", body)
        return _shown(str(error["message"] if isinstance(error, dict) else error))
    return _shown(response.text)


def _wait_s(response: "httpx.Response") -> float | None:
    """How long `Retry-After` says, in seconds or as a date."""
    told = response.headers.get("Retry-After")
    if told is None:
        return None
    with suppress(ValueError):
        return max(0.0, float(told))
    with suppress(ValueError, TypeError):
        return max(0.0, parsedate_to_datetime(told).timestamp() - time.time())
    return None


def _shown(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
